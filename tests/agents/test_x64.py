"""Every agent trains in x64 mode as well, and nothing that it learns is widened by it."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# One process for all: the mode is a process's own, and each would start JAX anew. What a wider
# number breaks it breaks while a program is traced, so one agent of each loop is run as well.
PROGRAM = """
import traceback, jax, jaxrl
from jaxrl.training.evaluate import evaluate
from tests.configurations import NAMES, main_configuration

RUN = ("ppo", "pqn", "abs", "sac", "cql", "grpo")
NARROW = {"float32", "int32", "uint32", "bool"}

def traced(agent):
    def whole(key):
        state, _ = jaxrl.fused(agent, key)
        return state, evaluate(agent, state, key, 2)
    return jax.eval_shape(whole, jax.random.key(0))[0]

def widened(name):
    agent = main_configuration(name)
    states = [traced(agent)]
    if name in RUN:
        states.append(jaxrl.sweep(agent, seeds=2, evaluations=1, episodes=2)[0].state)
    learned = jax.tree.leaves([agent.learned(state) for state in states])
    return {str(x.dtype) for x in learned} - NARROW

assert jax.config.jax_enable_x64
assert set(RUN) <= set(NAMES)
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
