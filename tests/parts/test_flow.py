"""Flow matching against normals, whose velocity and whose least error are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.flow import carry, matching_error


def of_normal(mean, std):
    """E[x_1 - x_0 | x_t = x] for data of N(mean, std^2): both are jointly normal with x_t."""

    def velocity(x, t):
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


@pytest.mark.parametrize("num_steps", [1, 7])
def test_a_point_is_reached_exactly_whatever_the_steps(num_steps):
    noise = jnp.linspace(-2, 2, 6).reshape(3, 2)
    ends = carry(of_normal(0.7, 0.0), noise, num_steps)
    np.testing.assert_allclose(ends, 0.7, atol=1e-6)


def test_noise_is_carried_to_the_quantiles_of_the_data():
    """In one dimension the flow keeps order, so it is x -> mean + std x."""
    noise = jnp.linspace(-2, 2, 9)[:, None]
    ends = carry(of_normal(0.5, 0.3), noise, num_steps=500)
    np.testing.assert_allclose(ends, 0.5 + 0.3 * noise, atol=5e-3)


def test_steps_are_euler_s():
    """x' = x t, by hand in three steps: at t = 0, 1/3, 2/3."""
    end = carry(lambda x, t: x * t, jnp.array([[2.0]]), num_steps=3)
    assert float(end[0, 0]) == pytest.approx(2 * (1 + 1 / 9) * (1 + 2 / 9), rel=1e-6)


def test_the_error_of_the_best_velocity_is_the_variance_that_is_left():
    """For data of N(m, 1) it is 1 / ((1 - t)^2 + t^2) at time t, and pi / 2 in the mean.

    With the best velocity shifted by c, it is c^2 more.
    """
    mean, shift = 0.4, 0.5
    data = mean + jax.random.normal(jax.random.key(1), (200_000, 1))
    best = of_normal(mean, 1.0)
    errors = [
        float(matching_error(velocity, jax.random.key(0), data).mean())
        for velocity in (best, lambda x, t: best(x, t) + shift)
    ]
    assert errors[0] == pytest.approx(np.pi / 2, abs=0.02)
    assert errors[1] - errors[0] == pytest.approx(shift**2, abs=0.01)
