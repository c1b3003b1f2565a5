"""The point maze: its wall, its goal, its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax import mazes

KEY = jax.random.key(0)
ENV = mazes.PointMaze()


def walk(places, params=ENV.default_params):
    """The point after heading for each of the places in turn, and whether it reached the goal."""
    step, state = jax.jit(ENV.step_env), ENV.reset_env(KEY, params)[1]
    for place in places:
        for _ in range(40):
            heading = np.asarray(place) - np.asarray(state.position)
            if np.linalg.norm(heading) < 0.05:
                break
            _, state, reward, terminated, _ = step(KEY, state, jnp.asarray(heading * 5), params)
            assert reward == terminated
            if terminated:
                return np.asarray(state.position), True
    return np.asarray(state.position), False


def test_the_way_leads_around_the_wall():
    envs_jax.check(ENV, ENV.default_params)
    assert walk([(0.7, -0.5), (0.7, 0.6), mazes.GOAL])[1]
    place, reached = walk([(-0.7, -0.3), mazes.GOAL])  # straight on
    assert not reached
    assert place[1] < 0


@pytest.mark.parametrize("side", [-1, 1])
def test_nothing_crosses_the_wall(side):
    rng = np.random.default_rng(0)
    start = np.column_stack(
        [rng.uniform(-1, mazes.WALL - 0.3, 500), side * rng.uniform(0.01, 1, 500)]
    )
    to = np.asarray(jax.vmap(mazes.move)(start, rng.uniform(-0.3, 0.3, (500, 2))))
    assert (side * to[:, 1] >= 0).all()
    assert (np.abs(to) <= 1).all()


def test_noise_is_added_to_each_move():
    params = ENV.default_params.replace(noise=jnp.float32(0.02))
    state = mazes.State(jnp.array([0.7, 0.0]), jnp.int32(0))
    keys = jax.random.split(KEY, 2000)
    obs = jax.vmap(ENV.step_env, (0, None, None, None))(keys, state, jnp.array([0.0, 1.0]), params)[
        0
    ]
    np.testing.assert_allclose(obs.mean(axis=0), [0.7, mazes.STEP], atol=0.002)
    np.testing.assert_allclose(obs.std(axis=0), 0.02, rtol=0.1)
