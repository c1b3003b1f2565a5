"""Guidance by a gradient, and what the density wanted costs: closed forms of one normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from envs_jax.diffusion import Ring
from experiments.studies import guided_diffusion as study

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TEMPERATURE, STD, RADIUS = 0.8, 0.4, 2.0
GOAL = jnp.array([0.6, -0.8])


def test_the_gradient_is_exact_for_one_normal():
    env = Ring(modes=1, steps=3)
    agent = study.by_gradient(env, env.default_params, TEMPERATURE)
    measured = jax.jit(lambda key: study.measures_of(agent, (), key, number=2))(jax.random.key(0))
    np.testing.assert_allclose(measured["kl"], 0, atol=1e-5)
    np.testing.assert_allclose(measured["excess"], 0, atol=1e-4)
    np.testing.assert_allclose(measured["reward"], 0, atol=0.03)  # a mean of 4,096 samples


def test_the_gradient_is_not_exact_for_more():
    env = Ring(modes=3, steps=3)
    agent = study.by_gradient(env, env.default_params, TEMPERATURE)
    assert float(agent.tilted_kl((), GOAL)) > 0.05


def test_the_density_wanted():
    env = Ring(modes=1, steps=3)
    agent = agents.get("guidance")(env, env.default_params).replace(temperature=TEMPERATURE)
    density, reward, divergence = study.wanted(agent, GOAL)
    axis = np.asarray(env.axis(env.default_params), np.float64)
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-4)
    mean = np.array([RADIUS, 0]) + STD**2 * np.asarray(GOAL) / TEMPERATURE
    np.testing.assert_allclose(reward, mean @ np.asarray(GOAL), rtol=1e-5)
    np.testing.assert_allclose(divergence, STD**2 / (2 * TEMPERATURE**2), rtol=1e-5)


def test_a_sampler_of_one_normal_has_no_error_of_its_own():
    one, three = (
        agents.get("guidance")(env, env.default_params)
        for env in (Ring(modes=1, steps=3), Ring(modes=3, steps=3))
    )
    assert abs(study.own_error(one)) < 1e-5
    assert study.own_error(three) > 0.01


def test_a_picture_keeps_the_mass():
    density = np.arange(16.0).reshape(4, 4)
    picture = study.coarse(density)
    assert picture.shape == (2, 2)
    assert picture.mean() == density.mean()
    assert picture[0, 0] == density[:2, :2].mean()
