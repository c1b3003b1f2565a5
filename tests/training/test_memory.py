"""Memory plans: a population that does not fit trains in batches that do, with the same results."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

import jaxrl
from agents.off_policy.sac import SAC
from jaxrl import Checkpoints
from jaxrl.agent import Tag
from jaxrl.parts.trees import nbytes
from jaxrl.training import memory
from jaxrl.training.engine import Engine, compiled, needed_bytes
from jaxrl.training.members import stack_agents
from jaxrl.training.placement import Placement
from jaxrl.training.schedule import Schedule
from tests.helpers import Toy, ToyState, assert_close
from tests.probes import ActionChoice
from tests.training.test_sweep import ENV, toy


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
    assert [memory.readable(x) for x in numbers] == [*texts, "3,072.0 TiB"]


def test_there_is_some():
    assert memory.available() > 2**28


def test_the_computers_share_is_of_what_a_container_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 200000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.available() == 450_000  # of a million: of what is taken, a third is given back
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 2**28


def test_the_computers_share_is_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", Path("/nowhere"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000))
    assert memory.available() == 3000


class HoardState(NamedTuple):
    key: jax.Array
    weight: jax.Array
    actors: Any
    replay: jax.Array


class Hoard(Toy):
    """A toy that keeps a large array, as a replay memory is one."""

    def init(self, key):
        return HoardState(*super().init(key), jnp.zeros((20_000, 4)))

    def step(self, state, t):
        new, metrics = super().step(ToyState(*state[:3]), t)
        return HoardState(*new, state.replay.at[t].set(state.weight)), metrics

    def without_replay(self, state):
        return state._replace(replay=None)


def test_a_population_four_times_too_large_trains_in_batches(tmp_path):
    """The programs that run are within the limit, and so is what stays behind."""
    agent = Hoard(ENV, ENV.default_params, total_steps=8 * 20)
    rates = np.linspace(0.1, 0.9, 16).tolist()
    stacked = stack_agents([agent] * 16)
    length = Schedule(20).length
    limit, seconds = needed_bytes(stacked, 4, length, saves=True)
    assert needed_bytes(stacked, 16, length, saves=True)[0] > 3.9 * limit
    assert seconds > 0
    lines = []
    checkpoints = Checkpoints(tmp_path)

    def train(limit, checkpoints=None):
        return jaxrl.sweep(
            agent, {"rate": rates}, memory=limit, announce=lines.append, checkpoints=checkpoints
        )

    population = train(limit, checkpoints)
    sizes = [len(members) for members, _ in population.batches]
    assert sizes == [4] * 4
    assert "trained in 4 batches of at most 4" in lines[1]
    states = [run.state._replace(key=None) for _, run in population.batches]
    assert sum(x.nbytes for x in jax.tree.leaves(states)) < limit / 4
    whole = train(None)
    assert [len(members) for members, _ in whole.batches] == [16]
    # One program's rounding is not another's: the same up to that.
    assert_close(population.history.metrics, whole.history.metrics, 1e-4)
    # Under another limit a resumed run keeps the batches that it was begun with.
    again = train(None, checkpoints)
    assert [len(members) for members, _ in again.batches] == sizes
    with pytest.raises(ValueError, match="its replay memory was not kept"):
        jaxrl.train(agent.replace(total_steps=8 * 40), start=population[0])


def test_evaluations_and_saves_are_part_of_the_plan():
    agent = toy()
    stacked, length = stack_agents([agent] * 4), Schedule(agent.num_iterations).length
    alone = needed_bytes(stacked, 4, length)[0]
    state = jax.eval_shape(agent.init, jax.random.key(0))
    assert needed_bytes(stacked, 4, length, saves=True)[0] == alone + 4 * 4 * nbytes(state)
    assert needed_bytes(stacked, 4, length, episodes=1)[0] == alone
    episodes = 100_000  # whose environments take more than training does
    env_state = nbytes(jax.eval_shape(ENV.reset, jax.random.key(0), ENV.default_params))
    many, seconds = needed_bytes(stacked, 4, length, episodes)
    assert many > 4 * episodes * env_state
    assert seconds > 0


def test_the_program_that_the_plan_has_compiled_is_the_one_that_evaluates():
    agent = toy()
    stacked = stack_agents([agent] * 4)
    needed_bytes(stacked, 4, Schedule(agent.num_iterations).length, episodes=3)
    engine = Engine(stacked, Placement.of_members(4))
    engine.start([0, 1, 2, 3])
    before = engine.compile_seconds
    engine.evaluate(Tag.EVALUATE, 0, 3)
    assert engine.compile_seconds == before


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda x: x[:, None, None] * jnp.ones((1, 2**31 - 1, 2**31 - 1)), "array of shape"),
        (lambda x: jax.lax.map(lambda y: y * jnp.ones((2**31, 2**31)), x), "array of shape"),
        (lambda x: x.astype(int) + 10**18, "value 1000000000000000000"),
    ],
)
def test_a_size_that_no_machine_can_hold_is_a_line_and_not_the_end_of_the_process(function, line):
    with pytest.raises(ValueError, match=f"a size is too large.*{line}"):
        compiled(jax.jit(lambda x: function(x).sum()), jnp.ones(2))


def test_a_single_run_does_not_copy_its_replay_all_the_time():
    env = ActionChoice(continuous=True)
    options = {"num_envs": 4, "learning_starts": 16, "batch_size": 8, "num_updates": 1}
    agent = SAC(
        env,
        env.default_params,
        total_steps=256,
        buffer_size=20_000,
        hidden_sizes=(8,),
        **options,
    )
    state = jax.eval_shape(agent.init, jax.random.key(0))
    needed, _ = needed_bytes(stack_agents([agent]), 1, Schedule(agent.num_iterations).length)
    assert needed < 2 * nbytes(state.source.replay)


def test_one_that_does_not_fit_at_all_runs_nothing():
    with pytest.raises(ValueError, match="one member needs"):
        jaxrl.sweep(toy(), seeds=4, memory=100)
    with pytest.raises(ValueError, match="memory=0: must be at least 1"):
        jaxrl.sweep(toy(), seeds=4, memory=0)
