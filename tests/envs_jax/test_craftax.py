"""craftax/: Craftax's own steps, its time limit ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from tests.envs_jax.suite_checks import check_against, check_environment, check_training

pytest.importorskip("craftax")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

CLASSIC = "craftax/Craftax-Classic-Symbolic-v1"


@pytest.mark.parametrize("id", [CLASSIC, "craftax/Craftax-Symbolic-v1"])
def test_steps_are_craftax_s_own(id):
    from craftax.craftax_env import make_craftax_env_from_name

    env, params = check_environment(id)
    theirs = make_craftax_env_from_name(id.removeprefix("craftax/"), auto_reset=False)
    own = theirs.default_params

    def reset(key):
        return theirs.reset(key, own)

    def step(key, state, action):
        return theirs.step(key, state, action, own)[:4]

    check_against(env, params, reset, step)


@pytest.mark.parametrize("name", ["Craftax-Classic-Pixels-v1", "Craftax-Pixels-v1"])
def test_pixels_lie_in_the_unit_interval(name):
    env, params = envs_jax.make(f"craftax/{name}")
    obs, _ = env.reset(jax.random.key(0), params)
    assert obs.shape == env.observation_space(params).shape
    assert 0 <= obs.min() < obs.max() <= 1


def test_time_limit_and_death_are_told_apart():
    env, params = envs_jax.make(CLASSIC)
    step = jax.jit(env.step_env)
    _, state = env.reset(jax.random.key(0), params)
    noop, key = jnp.array(0), jax.random.key(1)
    short = params.replace(max_steps_in_episode=jnp.int32(1))
    # An achievement that was reached is reported where the episode is cut.
    reached = state.replace(inner=state.inner.replace(achievements=state.inner.achievements | True))
    _, after, _, terminated, info = step(key, reached, noop, short)
    assert (bool(terminated), bool(env.is_truncated(after, short))) == (False, True)
    assert info["Achievements/collect_wood"] == 100
    dying = state.replace(inner=state.inner.replace(player_health=jnp.int32(0)))
    _, after, _, terminated, _ = step(key, dying, noop, short)
    assert (bool(terminated), bool(env.is_truncated(after, short))) == (True, True)


def test_parameters_of_craftax_are_traced():
    env, params = envs_jax.make("craftax/Craftax-Classic-Symbolic-v1")
    assert params.spawn_cow_chance == np.float32(0.1)
    step = jax.jit(env.step_env)
    _, state = env.reset(jax.random.key(0), params)

    def light(day_length):
        changed = params.replace(day_length=jnp.int32(day_length))
        return step(jax.random.key(1), state, jnp.array(0), changed)[1].inner.light_level

    assert light(300) != light(3)
    assert step._cache_size() == 1


def test_trains():
    check_training(*envs_jax.make(CLASSIC))
