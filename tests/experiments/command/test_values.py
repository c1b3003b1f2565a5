"""`jaxrl eval --data`: the value of a run's policies from recorded data."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from envs_jax import datasets
from experiments.command.cli import main
from experiments.command.values import sampled_values
from tests.envs_jax.test_recording import two_armed
from tests.experiments.command.test_data import recording


def member(log_prob):
    """A policy that pulls both of two arms as often, or does not know how often."""
    agent = SimpleNamespace(action_space=spaces.Discrete(2), log_prob=log_prob)
    return SimpleNamespace(agent=agent, state=None)


def test_sampled_values_are_exact_where_the_frequencies_are():
    even = member(lambda state, obs, action: jnp.log(0.5) + 0 * action)
    plain, weighted, size = sampled_values(even, two_armed(), gamma=0.9)
    assert plain == pytest.approx(0.5 * 1 + 0.5 * 3)
    ratios = np.array([2.0, 2 / 3, 2 / 3, 2 / 3])
    assert weighted == pytest.approx(ratios @ [1, 3, 3, 3] / ratios.sum())
    assert size == pytest.approx(ratios.sum() ** 2 / (ratios**2).sum())


def test_what_is_not_known_is_not_shown():
    assert sampled_values(member(lambda *_: None), two_armed(), 0.9) is None
    unknown = recording("CartPole-v1", np.zeros(4, np.int32))
    assert sampled_values(member(None), unknown, 0.9) is None


@pytest.mark.slow
def test_the_policies_of_a_run_are_valued(tmp_path, capsys):
    """Rewards are 1 to 4, in episodes of three steps and of one that goes on."""
    words = ["num_envs=4", "num_steps=16", "num_minibatches=2", "--steps", "64", "--episodes", "1"]
    out, path = tmp_path / "run", tmp_path / "data.hdf5"
    assert main(["train", "ppo", "CartPole-v1", *words, "--seeds", "2", "--out", str(out)]) == 0
    steps = recording("CartPole-v1", np.array([0, 1, 0, 1], np.int32))
    known = np.log(np.full(4, 0.5, np.float32))
    datasets.write(path, steps.__class__(**{**vars(steps), "log_prob": known}))
    capsys.readouterr()
    words = ["eval", str(out), "--data", str(path), "--steps", "2000", "--gamma", "0.5"]
    assert main([*words, "--member", "1", "--stochastic"]) == 0
    text = capsys.readouterr().out
    assert "of the policy that was recorded: 2.75" in text
    row = next(x.split() for x in text.splitlines() if x.split()[:1] == ["1"])
    fitted, plain, weighted, size = map(float, row[-4:])
    assert 2 < fitted < 7  # 2.75 and 4, and less or more by where the policy goes
    assert plain > 0
    assert weighted == pytest.approx(2.75, abs=0.01)  # whatever the weight of the one episode
    assert size == 1  # a single episode is whole
    assert main([*words, "--member", "0"]) == 0
    row = next(x.split() for x in capsys.readouterr().out.splitlines() if x.split()[:1] == ["0"])
    assert row[-3:] == ["-", "-", "-"]
