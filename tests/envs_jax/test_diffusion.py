"""Samplers as environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.diffusion import SAMPLERS, Ring
from tests.envs_jax.suite_checks import check_environment

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_an_environment(name):
    env, params = check_environment(f"diffusion/{name}")
    _, state = env.reset_env(KEY, params)
    assert env.step_env(KEY, state, jnp.zeros(4), params)[4].keys() == {"path_cost"}
    assert float(env.step_env(KEY, state, jnp.zeros(4), params)[4]["path_cost"]) == 0
    assert float(env.step_env(KEY, state, 0.2 * jnp.ones(4), params)[4]["path_cost"]) > 0


def test_an_episode():
    env, params = envs_jax.make("diffusion/ring", modes=3, steps=2)
    obs, state = env.reset_env(KEY, params)
    assert float(jnp.linalg.norm(state.goal)) == pytest.approx(1)
    np.testing.assert_allclose(obs, [*state.x, 1, 0, *state.goal])
    obs, state, reward, done, _ = env.step_env(KEY, state, jnp.zeros(4), params)
    assert (float(reward), bool(done)) == (0, False)
    np.testing.assert_allclose(obs, [*state.x, 0, 1, *state.goal])
    _, state, reward, done, _ = env.step_env(KEY, state, jnp.zeros(4), params)
    assert bool(done)
    assert float(reward) == pytest.approx(float(state.goal @ state.x))


def test_where_the_data_is():
    env = Ring(modes=4)
    params = env.default_params.replace(weights=jnp.array([1.0, 2.0, 0.0, 1.0]))
    data = env.data(params)
    np.testing.assert_allclose(data.means, [[2, 0], [0, 2], [-2, 0], [0, -2]], atol=1e-6)
    np.testing.assert_allclose(jnp.exp(data.log_weights), [0.25, 0.5, 0, 0.25])
    shift, scale = env.controls(jnp.array([0.5, -1.0, 0.0, 1.0]))
    np.testing.assert_allclose(shift, [3, -6])
    np.testing.assert_allclose(scale, [1, np.exp(2)], rtol=1e-6)


@pytest.mark.parametrize("option", ["modes", "steps"])
def test_refuses(option):
    with pytest.raises(ValueError, match=f"^diffusion/ring: {option}=0 is less than 1$"):
        envs_jax.make("diffusion/ring", **{option: 0})
