"""Flow matching: a velocity field that carries normal noise to data along straight lines."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Velocity = Callable[
    [jax.Array, jax.Array], jax.Array
]  # places (..., D), times (..., 1) -> (..., D)


def matching_error(velocity: Velocity, key: jax.Array, data: jax.Array) -> jax.Array:
    """Squared errors (..., D) of the velocity at a random time of each datum's line (..., D).

        |v(x_t, t) - (x_1 - x_0)|^2,  x_t = (1 - t) x_0 + t x_1,  x_0 normal, t uniform

    (Lipman et al. 2023, arXiv:2210.02747, eq. 23, with the least deviation at 0.) Its mean is least
    for E[x_1 - x_0 | x_t], whose flow has the data's density at t = 1.

    >>> still = lambda x, t: jnp.zeros_like(x)
    >>> matching_error(still, jax.random.key(0), jnp.ones((4, 2))).shape
    (4, 2)
    """
    noise_key, time_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, data.shape, data.dtype)
    time = jax.random.uniform(time_key, (*data.shape[:-1], 1), data.dtype)
    return (velocity((1 - time) * noise + time * data, time) - (data - noise)) ** 2


def carry(velocity: Velocity, noise: jax.Array, num_steps: int) -> jax.Array:
    """Where the flow takes noise (..., D) from t = 0 to 1, by Euler steps of 1 / num_steps.

    >>> to_three = lambda x, t: (3 - x) / (1 - t)
    >>> carry(to_three, jnp.zeros((2, 1)), num_steps=4).tolist()
    [[3.0], [3.0]]
    """

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        time = jnp.full((*x.shape[:-1], 1), i.astype(x.dtype) / num_steps)
        return x + velocity(x, time) / num_steps

    return lax.fori_loop(0, num_steps, step, noise)
