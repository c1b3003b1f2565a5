"""Initial weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import initializers
from flax.typing import Initializer


def orthogonal(scale: float = 1.0) -> Initializer:
    """flax's orthogonal initializer, which under `jax.vmap` makes one array after the other.

    It calls LAPACK. Batched by vmap, that call's CPU kernel waits for threads of the pool that runs
    the programs of all CPU devices, and hangs for ever where those wait for others of its kind.

    >>> weights = orthogonal()(jax.random.key(0), (4, 2))
    >>> (weights.T @ weights).round(6).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    plain = initializers.orthogonal(scale)

    def initialise(
        key: jax.Array, shape: Any, dtype: Any = jnp.float32, **kwargs: Any
    ) -> jax.Array:
        one = jax.custom_batching.sequential_vmap(lambda key: plain(key, shape, dtype, **kwargs))
        weights: jax.Array = one(key)
        return weights

    return initialise
