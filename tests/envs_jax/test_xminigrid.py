"""xminigrid/: XLand-MiniGrid's own steps, with one-hot tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from tests.envs_jax.suite_checks import check_against, check_environment, check_training

xminigrid = pytest.importorskip("xminigrid")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

ROOM = "xminigrid/MiniGrid-EmptyRandom-5x5"
DOOR = "xminigrid/MiniGrid-DoorKey-5x5"


def own_loop(name):
    env, own = xminigrid.make(name)

    def encoded(timestep):
        tiles, colours = jnp.moveaxis(timestep.observation, -1, 0)
        return jnp.concatenate([jnp.eye(13)[tiles], jnp.eye(12)[colours]], axis=-1)

    def reset(key):
        timestep = env.reset(own, key)
        return encoded(timestep), timestep

    def step(key, timestep, action):
        timestep = env.step(own, timestep, action)
        ended = timestep.last() & (timestep.state.step_num < own.max_steps)
        return encoded(timestep), timestep, timestep.reward, ended

    return reset, step


@pytest.mark.parametrize("id", [ROOM, DOOR])
def test_steps_are_xminigrid_s_own(id):
    env, params = check_environment(id)
    rewards, ends = check_against(env, params, *own_loop(id[10:]), num_steps=80)
    if id == ROOM:
        assert ends
        assert rewards.max() > 0


def test_the_reward_follows_the_time_limit():
    env, params = envs_jax.make(ROOM)
    step = jax.jit(env.step_env)

    def first_goal(limit):
        changed = params.replace(max_steps_in_episode=jnp.int32(limit))
        _, state = env.reset(jax.random.key(0), changed)
        for key in jax.random.split(jax.random.key(1), 200):
            action = jax.random.randint(key, (), 0, 3)
            _, state, reward, terminated, _ = step(key, state, action, changed)
            if terminated:
                return float(reward), int(state.time)
        return None

    (long, steps), (longer, _) = first_goal(1000), first_goal(2000)
    np.testing.assert_allclose([long, longer], [1 - 0.9 * steps / n for n in (1000, 2000)], 1e-5)
    assert step._cache_size() == 1


@pytest.fixture
def benchmark(tmp_path):
    """A file of two rulesets: go to the red ball, or to the green one."""
    from xminigrid.benchmarks import save_bz2_pickle

    goals = np.array([[1, 3, 1, 0, 0], [1, 3, 2, 0, 0]], np.uint8)  # AgentNear(tile, colour)
    tiles = np.array([[[3, 1], [3, 2]]] * 2, np.uint8)
    path = tmp_path / "two"
    rules = np.zeros((2, 1, 7), np.uint8)
    of_each = np.zeros(2, np.uint8)
    rulesets = {"goals": goals, "rules": rules, "init_tiles": tiles, "num_rules": of_each}
    save_bz2_pickle({name: jnp.asarray(x) for name, x in rulesets.items()}, str(path))
    return str(path)


def test_xland_draws_its_rules_from_a_benchmark(benchmark):
    env, params = check_environment("xminigrid/XLand-MiniGrid-R1-9x9", benchmark=benchmark)
    keys = jax.random.split(jax.random.key(0), 64)
    _, state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)
    goals = np.asarray(state.inner.state.goal_encoding)
    assert {tuple(goal) for goal in goals.tolist()} == {(1, 3, 1, 0, 0), (1, 3, 2, 0, 0)}


def test_a_benchmark_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(xminigrid.benchmarks, "DATA_PATH", str(tmp_path))

    def fail(*args):
        raise OSError("no network")

    monkeypatch.setattr(xminigrid.benchmarks, "_download_from_hf", fail)
    for benchmark, message in (("trivial-21k", "no network"), ("trivial", "trivial-21k")):
        with pytest.raises(ValueError, match=message) as error:
            envs_jax.make("xminigrid/XLand-MiniGrid-R1-9x9", benchmark=benchmark)
        assert "\n" not in str(error.value)


def test_trains():
    check_training(*envs_jax.make(ROOM))
