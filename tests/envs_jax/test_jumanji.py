"""jumanji/: its own steps, observations as vectors, time limits that truncate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from tests.envs_jax.suite_checks import check_against, check_environment, check_training
from tests.envs_jax.test_envs import QUICK

jumanji = pytest.importorskip("jumanji")

NAMES = [id.removeprefix("jumanji/") for id in envs_jax.list_envs() if id.startswith("jumanji/")]
QUICK_ONES = ("Game2048-v1", "Minesweeper-v0")


def own_loop(name):
    env = jumanji.make(name)
    sizes = np.atleast_1d(env.action_spec.num_values)

    def vector(observation):
        leaves = jax.tree.leaves(observation)
        return jnp.concatenate([jnp.asarray(x, jnp.float32).reshape(-1) for x in leaves])

    def reset(key):
        state, timestep = env.reset(key)
        return vector(timestep.observation), state

    def step(key, state, action):
        if len(sizes) > 1:
            places = np.cumprod([1, *sizes[:0:-1]])[::-1]
            action = (action // jnp.asarray(places)) % jnp.asarray(sizes)
        state, timestep = env.step(state, action)
        return vector(timestep.observation), state, timestep.reward, timestep.last()

    return reset, step


@pytest.mark.parametrize("name", QUICK_ONES)
def test_steps_are_jumanji_s_own(name):
    env, params = check_environment(f"jumanji/{name}")
    check_against(env, params, *own_loop(name), legal=True)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:scatter inputs have incompatible types:FutureWarning"
)  # BinPack
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK_ONES])
def test_steps_of_all_others_are_jumanji_s_own(name):
    env, params = check_environment(f"jumanji/{name}")
    check_against(env, params, *own_loop(name), num_steps=12)
    legal = check_against(env, params, *own_loop(name), num_steps=12, legal=True)
    assert np.isfinite(legal[0]).all()


def test_time_limit_is_not_the_end():
    """Where jumanji's own step, at its own limit, says that the episode is over."""
    name = "RubiksCube-partly-scrambled-v0"
    env, params = envs_jax.make(f"jumanji/{name}")
    theirs = jumanji.make(name)
    assert params.max_steps_in_episode == theirs.time_limit == 20
    step = jax.jit(env.step_env, compiler_options=QUICK)
    _, state = env.reset(jax.random.key(0), params)
    for time in range(1, 21):  # four equal turns are none: it is never solved
        _, state, _, terminated, _ = step(jax.random.key(1), state, jnp.array(0), params)
        assert (bool(terminated), bool(env.is_truncated(state, params))) == (False, time == 20)


def test_slices_name_the_parts_of_an_observation():
    env, params = envs_jax.make("jumanji/Minesweeper-v0")
    (obs, masked), state = env.reset(jax.random.key(0), params)
    assert list(env.slices) == ["board", "action_mask", "num_mines", "step_count"]
    assert (obs[env.slices["board"]] == -1).all()
    assert obs[env.slices["num_mines"]].tolist() == [10]
    mask = env.action_mask(state, params)
    np.testing.assert_array_equal(obs[env.slices["action_mask"]], mask)
    np.testing.assert_array_equal(masked, mask)
    plain, params = envs_jax.make("jumanji/Minesweeper-v0", masked=False)
    np.testing.assert_array_equal(plain.reset(jax.random.key(0), params)[0], obs)
    _, state, _, _, _ = env.step_env(jax.random.key(1), state, jnp.array(37), params)
    explored = np.flatnonzero(~env.action_mask(state, params))
    assert explored.tolist() == [37]


@pytest.mark.slow
def test_trains():
    check_training(*envs_jax.make("jumanji/Snake-v1"))
