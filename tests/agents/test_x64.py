"""Every agent trains in x64 mode as well, and nothing that it learns is widened by it."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# One process for all: the mode is a process's own, and each would start JAX anew.
PROGRAM = """
import traceback, jax, jaxrl
from tests.configurations import NAMES, main_configuration

def widened(name):
    agent = main_configuration(name)
    run = jaxrl.sweep(agent, seeds=2, evaluations=1, episodes=2)[0]
    learned = jax.tree.leaves(agent.learned(run.state))
    return {str(x.dtype) for x in learned} - {"float32", "int32", "uint32", "bool"}

assert jax.config.jax_enable_x64
faults = {}
for name in NAMES:
    try:
        if wide := widened(name):
            faults[name] = str(wide)
    except Exception:
        faults[name] = traceback.format_exc(limit=-3)
for name, fault in faults.items():
    print(name, fault)
"""


@pytest.mark.slow
def test_every_agent_trains_in_x64_mode():
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout
