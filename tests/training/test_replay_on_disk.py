"""Replay memories are on disk only as long as training may need them."""

import warnings
from functools import cache

import jax
import numpy as np
import pytest

import jaxrl
from agents.off_policy.sac import SAC
from jaxrl import Checkpoints
from jaxrl.agent import Tag, derive
from jaxrl.parts.trees import nbytes
from jaxrl.training import restore
from jaxrl.training.engine import shapes
from jaxrl.training.members import stack_agents
from jaxrl.training.memory import readable
from jaxrl.training.sweep import Member, _disk_line
from tests.helpers import StopAt, assert_same
from tests.probes import ActionChoice

KEPT_ANEW = "its replay memory was not kept when it ended"
ENV = ActionChoice(continuous=True)


@cache
def sac(iterations=12, **changes):
    options = {"num_envs": 2, "num_steps": 2, "batch_size": 4, "num_updates": 1}
    options |= {"learning_starts": 8, "buffer_size": 32, "hidden_sizes": (4,)}
    return SAC(ENV, ENV.default_params, total_steps=4 * iterations, **options | changes)


def replays(folder):
    return sorted(path.parent.name for path in folder.glob("*/replay"))


def train(folder, agent, **options):
    """Saved after every iteration, by a member that trains alone."""
    own = {"every": 0, "keep": 2, "keep_replay": options.pop("keep_replay", False)}
    return jaxrl.train(agent, checkpoints=Checkpoints(folder, **own), **options)


def test_once_a_run_has_ended_no_checkpoint_holds_its_replay(tmp_path):
    stopped = train(tmp_path, sac(), callbacks=[StopAt(9)])
    assert stopped.interrupted
    assert replays(tmp_path) == ["8", "9"]  # the newest: also where the best is an earlier one
    run = train(tmp_path, sac())
    assert replays(tmp_path) == []
    assert nbytes(run.state.source.replay) > 0
    # What remains is all that acting takes, and what comes back where nothing is left to do.
    kept = sac().without_replay(run.state)
    like = shapes(stack_agents([sac()]), 1)
    saved = restore.read(tmp_path, like, kept=sac().without_replay(like))
    assert_same(jax.tree.map(lambda x: x[0], saved.states), kept)
    assert_same(train(tmp_path, sac()).state, kept)
    # It was bit for bit the run that was never stopped.
    assert_same(run.state, jaxrl.train(sac()).state)


@pytest.mark.slow
def test_with_its_replay_a_run_is_extended_bit_for_bit(tmp_path):
    train(tmp_path, sac(), keep_replay=True)
    assert "12" in replays(tmp_path)
    longer = train(tmp_path, sac(15), keep_replay=True)
    assert_same(longer.state, jaxrl.train(sac(15)).state)


def test_without_it_the_policy_fills_another_one_first(tmp_path):
    run, reports = train(tmp_path, sac()), []
    with pytest.warns(UserWarning, match=KEPT_ANEW):
        longer = train(tmp_path, sac(15), callbacks=[reports.append])
    assert reports[0].first == 12
    assert longer.history.env_steps[-1] == 15 * 4  # refilling counts for nothing
    before, after = run.history.metrics["critic_loss"], longer.history.metrics["critic_loss"]
    np.testing.assert_array_equal(after[:12], before)
    assert np.isfinite(after).sum() == np.isfinite(before).sum() + 3  # it learns from the first on
    # Nothing is left to do, so nothing is filled anew.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(train(tmp_path, sac(15)).state, sac().without_replay(longer.state))


@pytest.mark.parametrize("iterations", [pytest.param(5, marks=pytest.mark.slow), 12])
def test_a_refilled_replay_is_what_those_iterations_would_have_collected(iterations):
    """Against a loop over the iterations, each of which takes its steps with the policy as it is.

    The replay holds those of eight iterations.
    """
    agent = sac()
    state = agent.without_replay(jax.jit(agent.init)(jax.random.key(4)))
    filled = jax.jit(agent.refilled)(state, iterations)
    key = derive(state.key, Tag.REFILL, iterations)
    explore = jax.tree_util.Partial(agent.explorer(state, iterations))
    advance = jax.jit(lambda source, i: agent.collected().advance(source, key, i, explore)[0])
    expected = agent.collected().emptied(state.source.actors)
    for i in range(max(0, iterations - 8), iterations):
        expected = advance(expected, i)
    np.testing.assert_allclose(filled.source.replay.reward, expected.replay.reward, rtol=1e-5)
    np.testing.assert_allclose(filled.source.replay.action, expected.replay.action, rtol=1e-5)
    held = np.asarray(filled.source.replay.action).any(axis=(1, 2))
    assert held.sum() == min(iterations * 2, 16)  # rows of two steps each, none of them empty
    assert_same(filled.learner, state.learner)


def test_an_agent_that_cannot_fill_one_says_so():
    with pytest.raises(ValueError, match="sac: its replay memory was not kept, so it cannot"):
        jaxrl.Agent.refilled(sac(), None, 3)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
def test_populations_and_single_runs_over_devices_are_refilled(parallel, tmp_path):
    seeds = 1 if parallel else 3

    def sweep(agent):
        checkpoints = Checkpoints(tmp_path, every=0)
        return jaxrl.sweep(agent, seeds=seeds, checkpoints=checkpoints, data_parallel=parallel)

    sweep(sac())
    with pytest.warns(UserWarning, match=KEPT_ANEW):
        longer = sweep(sac(15))
    assert longer.history.env_steps[:, -1].tolist() == [60] * seeds
    rewards = np.asarray(longer[seeds - 1].state.source.replay.reward)
    assert rewards.all()


def test_what_is_much_on_disk_is_announced(tmp_path, monkeypatch):
    members = [Member(sac(), {}, seed) for seed in range(2)]

    def lines(**options):
        return _disk_line(members, 2, Checkpoints(tmp_path / "none" / "yet", **options))

    assert lines() == ""
    monkeypatch.setattr("jaxrl.training.sweep.WORTH_A_LINE", 1)
    states = shapes(stack_agents([sac(), sac()]), 2)
    whole, kept = nbytes(states), nbytes(sac().without_replay(states))
    assert whole > kept
    during, after = readable(3 * whole + kept), readable(3 * kept)
    assert f"up to {during} during training, {after} afterwards" in lines()
    assert f"{readable(3 * whole)} afterwards" in lines(keep_replay=True)
    assert f"up to {readable(2 * whole + kept)} during" in lines(keep=1)
    # Of two batches, one after the other, one has its replays on disk at any time.
    during = readable(3 * (kept + (whole - kept) / 2) + kept)
    assert f"up to {during} during" in _disk_line(members, 1, Checkpoints(tmp_path))
