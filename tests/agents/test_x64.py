"""Every agent trains in x64 mode as well, and nothing that it learns is widened by it."""

import os
import subprocess
import sys

import pytest

import agents

PROGRAM = """
import sys, jax, jax.numpy as jnp, jaxrl
from tests.agents.test_every_agent import main_configuration

assert jax.config.jax_enable_x64
agent = main_configuration(sys.argv[1])
run = jaxrl.sweep(agent, seeds=2, evaluations=1, episodes=2)[0]
learned = agent.learned(run.state)
wide = {str(x.dtype) for x in jax.tree.leaves(learned)} - {"float32", "int32", "uint32", "bool"}
assert not wide, wide
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", agents.AGENTS)
def test_every_agent_trains_in_x64_mode(name):
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
