"""Memory plans: a population that does not fit trains in batches that do, with the same results."""

import jax
import numpy as np
import pytest

import jaxrl
from agents.off_policy.sac import SAC
from jaxrl import Checkpoints
from jaxrl.parts.replay import nbytes
from jaxrl.training import memory
from jaxrl.training.members import stack_agents
from jaxrl.training.programs import needed_bytes
from tests.helpers import assert_close
from tests.probes import ActionChoice
from tests.training.test_sweep import toy


@pytest.mark.parametrize(
    ("members", "limit", "batch"),
    [
        (8, 900, 8),  # 100 + 8 x 100
        (8, 899, 4),  # 6 would fit, but 4 and 4 are as many batches
        (8, 699, 4),
        (16, 700, 6),
        (5, 300, 2),
        (5, 299, 1),
        (3, 200, 1),
    ],
)
def test_the_largest_batch_that_fits(members, limit, batch):
    found = memory.plan(members, lambda n: 100 + 100 * n, limit)
    assert found.batch == batch
    assert found.needed == 100 + 100 * members
    assert 100 + 100 * batch <= limit


def test_a_member_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"one member needs 2.0 KiB, more than .* 1.9 KiB"):
        memory.plan(8, lambda n: 1024 * (n + 1), 1950)


def test_bytes_are_read_easily():
    numbers = [0, 5, 1023, 1024, 1536, 2**20, 5 * 2**30, 3 * 2**50]
    texts = ["0 bytes", "5 bytes", "1,023 bytes", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 GiB"]
    assert [memory.text(x) for x in numbers] == [*texts, "3,072.0 TiB"]


def test_there_is_some():
    assert memory.available() > 2**28


def test_the_computers_share_is_what_a_container_may_take(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "max")
    (tmp_path / "max").write_text("1000000\n")
    assert memory.available() == 750_000
    (tmp_path / "max").write_text("max\n")
    assert memory.available() > 2**28


def with_replay(steps=256):
    env = ActionChoice(continuous=True)
    options = {"num_envs": 4, "learning_starts": 16, "batch_size": 8, "num_updates": 1}
    return SAC(
        env,
        env.default_params,
        total_steps=steps,
        buffer_size=20_000,
        hidden_sizes=(8,),
        **options,
    )


def test_a_population_four_times_too_large_trains_in_batches(tmp_path):
    """The programs that run are within the limit, and so is what stays behind."""
    agent, rates = with_replay(), np.linspace(1e-4, 1e-3, 16).tolist()
    stacked = stack_agents([agent] * 16)
    limit = needed_bytes(stacked, 4)
    assert needed_bytes(stacked, 16) > 3.9 * limit
    lines = []
    checkpoints = Checkpoints(tmp_path)

    def train(limit, checkpoints=None):
        return jaxrl.sweep(
            agent,
            {"learning_rate": rates},
            memory=limit,
            announce=lines.append,
            checkpoints=checkpoints,
        )

    population = train(limit, checkpoints)
    sizes = [len(rows) for rows, _ in population.batches]
    assert sizes == [4] * 4
    assert "trained in 4 batches of at most 4" in lines[1]
    left = sum(
        x.nbytes
        for _, trained in population.batches
        for x in jax.tree.leaves(trained.states._replace(key=None))
    )
    assert left < limit / 4
    whole = train(None)
    assert [len(rows) for rows, _ in whole.batches] == [16]
    # One program's rounding is not another's: the same up to that.
    for name in ("critic_loss", "episode_return"):
        assert_close(population.metrics[name], whole.metrics[name], 1e-2)
    # Going on under another limit keeps the batches that it was begun with.
    again = train(None, checkpoints)
    assert [len(rows) for rows, _ in again.batches] == sizes
    with pytest.raises(ValueError, match="its replay memory was not kept"):
        jaxrl.train(agent.replace(total_steps=512), start=population.select(0))


def test_a_single_run_does_not_copy_its_replay_all_the_time():
    agent = with_replay()
    state = jax.eval_shape(agent.init, jax.random.key(0))
    needed = needed_bytes(stack_agents([agent]), 1)
    assert needed < 2 * nbytes(state.source.replay)


def test_one_that_does_not_fit_at_all_runs_nothing():
    with pytest.raises(ValueError, match="one member needs"):
        jaxrl.sweep(toy(), seeds=4, memory=100)
    with pytest.raises(ValueError, match="memory=0: must be at least 1"):
        jaxrl.sweep(toy(), seeds=4, memory=0)
