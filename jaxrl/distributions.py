"""Action distributions as plain pytrees. Batch axes lead; an action's own axis is the last."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Categorical(NamedTuple):
    """Categorical over the last axis of `logits` (..., A); actions are integers (...)."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.logits)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


class Normal(NamedTuple):
    """Diagonal normal over the last axis; `mean`, `log_std` and actions are (..., D)."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * z**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        per_dim = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.sum(jnp.broadcast_to(per_dim, self.mean.shape), axis=-1)


class TanhNormal(NamedTuple):
    """tanh of a diagonal normal: actions (..., D) in (-1, 1) (Haarnoja et al. 2018, app. C)."""

    mean: jax.Array
    log_std: jax.Array

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A sample and its log-probability; exact where `log_prob` would have to invert tanh."""
        normal = Normal(self.mean, self.log_std)
        u = normal.sample(key)
        return jnp.tanh(u), normal.log_prob(u) - jnp.sum(_log_tanh_slope(u), axis=-1)

    def sample(self, key: jax.Array) -> jax.Array:
        return jnp.tanh(Normal(self.mean, self.log_std).sample(key))

    def mode(self) -> jax.Array:
        """tanh of the normal's mode: what SAC acts with when deterministic."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: jax.Array) -> jax.Array:
        # Actions at the very edge of the box came from a rounded tanh; keep their inverse finite.
        edge = 1 - jnp.finfo(action.dtype).eps
        u = jnp.arctanh(jnp.clip(action, -edge, edge))
        normal = Normal(self.mean, self.log_std)
        return normal.log_prob(u) - jnp.sum(_log_tanh_slope(u), axis=-1)


def _log_tanh_slope(u: jax.Array) -> jax.Array:
    """log(1 - tanh(u)^2) without cancellation at large |u|."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
