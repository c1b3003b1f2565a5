"""Bridges: actions as the ends of paths of learnt noisy steps, with the path's cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxrl.parts.networks import dense_product, features

UNIT_SCALE_BIAS = math.log(math.e - 1)  # softplus of it is 1


class Noise(NamedTuple):
    """What a path is made from: `base` (..., D) in (-1, 1) and `steps` (K, ..., D), normal."""

    base: jax.Array
    steps: jax.Array


class BridgeStep(nn.Module):
    """Drift and scale of one step of the bridge, from [obs, z]; scale 1 and a small drift first.

    A `body`, if there is one, stands between observations and the rest.
    """

    width: int
    action_size: int
    input_norm: bool
    obs_ndim: int
    body: Callable[[jax.Array], jax.Array] | None = None
    precision: str = "float32"

    @nn.compact
    def __call__(self, obs: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer = partial(nn.Dense, dot_general=partial(dense_product, operands=self.precision))
        x = jnp.concatenate([features(self.body, obs, self.obs_ndim), z], axis=-1)
        if self.input_norm:
            x = nn.LayerNorm()(x)
        x = nn.LayerNorm()(nn.elu(layer(self.width)(x)))
        drift = layer(self.action_size, kernel_init=nn.initializers.xavier_uniform())(x)
        scale = layer(
            self.action_size,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(UNIT_SCALE_BIAS),
        )(x)
        return drift, nn.softplus(scale)


def step_cost(scale: jax.Array, squared_shift: jax.Array) -> jax.Array:
    """KL divergence (...) of a normal step from its reference, 1/2 sum_d [s^2 - 1 - 2 log s + m^2].

    Args:
        scale: s (..., D), the step's deviation in those of the reference.
        squared_shift: m^2 (..., D), the square of how far its mean is off, in the same.

    >>> float(step_cost(jnp.array([1.0]), jnp.array([2.0])))
    1.0
    """
    excess = scale**2 - 1 - 2 * jnp.log(scale) + squared_shift
    return 0.5 * excess.sum(axis=-1)


def bridge(drift_and_scale: Any, params: Any, noise: Noise) -> tuple[jax.Array, jax.Array]:
    """Actions tanh(z_K) (..., D) and path costs (...) of paths made from `noise`.

    With h = 1/K and z_0 = artanh(base), whose density is that of the reference process at rest,

        z_{k+1} = z_k + h b_k(z_k) + sqrt(2 h) sigma_k(z_k) eps_k,
        C = 1/2 sum_{k,d} [sigma^2 - 1 - log sigma^2 + h (b + 2 tanh z)^2 / 2]:

    the KL divergence of its steps from those of the reference, b = -2 tanh z and sigma = 1, summed
    along the path. The reference is the Langevin process of the density sech^2, whose tanh is
    uniform.

    Args:
        drift_and_scale: (params of step k, z) -> (b, sigma).
        params: stacked (K, ...).

    >>> reference = lambda _, z: (-2 * jnp.tanh(z), jnp.ones_like(z))  # which costs nothing
    >>> noise = Noise(jnp.full((1, 1), 0.5), jnp.ones((2, 1, 1)))
    >>> action, cost = bridge(reference, jnp.zeros(2), noise)
    >>> action.shape, cost.tolist()
    ((1, 1), [0.0])
    """
    h = 1.0 / len(noise.steps)

    def step(carry, row):
        z, cost = carry
        params_k, eps = row
        drift, scale = drift_and_scale(params_k, z)
        cost = cost + step_cost(scale, 0.5 * h * (drift + 2 * jnp.tanh(z)) ** 2)
        z = z + h * drift + math.sqrt(2 * h) * scale * eps
        return (z, cost), None

    edge = 1 - jnp.finfo(noise.base.dtype).eps
    start = jnp.arctanh(jnp.clip(noise.base, -edge, edge))
    carry = start, jnp.zeros_like(start[..., 0])
    (z, cost), _ = lax.scan(step, carry, (params, noise.steps))
    return jnp.tanh(z), cost


def antithetic(noise: Noise) -> Noise:
    """Each path (leading axis of `base`) and its mirror image."""
    return Noise(
        jnp.concatenate([noise.base, -noise.base]),
        jnp.concatenate([noise.steps, -noise.steps], axis=1),
    )
