"""Populations and environments spread over devices give what one device gives."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxrl
from agents.offline.bc import BC
from agents.on_policy.ppo import PPO
from jaxrl.training import engine, programs
from tests.helpers import assert_close
from tests.probes import Chain
from tests.records import bandit, make
from tests.training.test_checkpoint import agents

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def ppo(**changes):
    env = Chain(limit=3)
    options = {"num_envs": 8, "num_steps": 8, "num_epochs": 1, "num_minibatches": 1}
    options |= {"normalize_observations": True, "normalize_rewards": True, "hidden_sizes": (8,)}
    return PPO(env, env.default_params, total_steps=64 * 6, **options | changes)


def test_data_parallel_gradients_are_those_of_one_device():
    """Two devices with half of the environments each: one gradient, one set of statistics."""
    engine._programs.clear()
    # The first iteration only gathers the statistics that observations are normalised by.
    spread = jaxrl.train(ppo(), until=2, data_parallel=True)
    chunk = programs.chunk_over_environments
    (program,) = [program for key, program in engine._programs.items() if key[0] is chunk]
    assert "all-reduce" in program.as_text()  # they did work together
    alone = jaxrl.train(ppo(), until=2)
    # After one step Adam's first moment is the gradient, up to a factor.
    moments = [run.state.opt_state for run in (spread, alone)]
    assert_close(*moments, 1e-6)
    assert max(np.abs(x).max() for x in jax.tree.leaves(moments)) > 1e-3
    assert_close(spread.state, alone.state, 1e-6)


@pytest.mark.slow
def test_data_parallel_runs_learn_evaluate_and_go_on(tmp_path):
    agent = ppo(num_minibatches=2, num_epochs=2)
    options = {"evaluations": 2, "episodes": 4}
    alone = jaxrl.train(agent, seed=1, **options)
    spread = jaxrl.train(agent, seed=1, data_parallel=True, **options)
    assert_close(spread.history.metrics, alone.history.metrics, 1e-3)
    np.testing.assert_array_equal(
        spread.history.evaluations["returns"], alone.history.evaluations["returns"]
    )
    checkpoints = jaxrl.Checkpoints(tmp_path)
    jaxrl.train(agent, seed=1, until=3, data_parallel=True, checkpoints=checkpoints)
    again = jaxrl.train(agent, seed=1, data_parallel=True, checkpoints=checkpoints)
    assert_close(again.state, spread.state, 1e-5)
    several = jaxrl.sweep(agent, seeds=2, data_parallel=True)
    assert_close(several[1].state, spread.state, 1e-5)


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(ValueError, match="num_envs=3 is not a multiple of 2 devices"):
        jaxrl.train(ppo(num_envs=3), data_parallel=True)
    env = Chain(limit=3)
    with pytest.raises(ValueError, match="no environments to spread"):
        jaxrl.train(make(BC, env, bandit(env), steps=100), data_parallel=True)


def work():
    """Sixteen members of each kind of agent, for a few iterations."""
    results = []
    for agent in agents(iterations=4):
        rates = [1e-4 * 1.5**i for i in range(8)]
        name = "learning_rate"
        run = jaxrl.sweep(agent, {name: rates}, seeds=2, evaluations=1, episodes=2)
        results.append((run.history.metrics, run.history.env_steps, run.evaluate(2).returns))
    return results


@pytest.mark.slow
def test_eight_devices_train_what_one_does(tmp_path):
    results = []
    for count in ("1", "8"):
        path = tmp_path / count
        code = (
            "import sys, pickle, jax; from tests.training import test_devices\n"
            f"assert len(jax.devices()) == {count}\n"
            f"open({str(path)!r}, 'wb').write(pickle.dumps(test_devices.work()))\n"
        )
        env = os.environ | {"JAX_NUM_CPU_DEVICES": count}
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        results.append(pickle.loads(path.read_bytes()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), *results)
