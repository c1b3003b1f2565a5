"""Action chunks: values of all their prefixes at once, and which prefix of which chunk is best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.parts.networks import dense_product, features
from jaxrl.parts.sequence_networks import Block


class PrefixCritic(nn.Module):
    """Q_h(s, a_1, ..., a_h) of every prefix of action chunks: a causal transformer.

    It reads [s, a_1, ..., a_H]; the output at a_h is Q_h, by one linear read-out for all h. What
    comes after a_h is not seen there (Chen et al. 2026).

    Attributes:
        obs_ndim: axes of one observation.
        width: of the tokens, a multiple of `heads`.
        layers, heads: how many.
        body: a flax module or a function, of observations (B, *observation) to features (B, ...).
        precision: "float32", or "bfloat16" for the operands of dense layers' products.

    >>> critic, obs, chunks = PrefixCritic(1, width=8), jnp.zeros((5, 3)), jnp.zeros((5, 7, 4, 2))
    >>> jax.eval_shape(critic.init_with_output, jax.random.key(0), obs, chunks)[0].shape
    (5, 7, 4)
    """

    obs_ndim: int
    width: int = 128
    layers: int = 2
    heads: int = 8
    body: Callable[[jax.Array], jax.Array] | None = None
    precision: str = "float32"

    @nn.compact
    def __call__(self, obs: jax.Array, chunks: jax.Array) -> jax.Array:
        """Q (B, N, H) of N chunks of H actions (B, N, H, D) at each observation (B, ...)."""
        dot = partial(dense_product, operands=self.precision)
        layer = partial(nn.Dense, dot_general=dot)
        state = layer(self.width)(features(self.body, jnp.asarray(obs, jnp.float32), self.obs_ndim))
        actions = layer(self.width)(jnp.asarray(chunks, jnp.float32))
        *batch, length, _ = actions.shape
        state = jnp.broadcast_to(state[:, None, None], (*batch, 1, self.width))
        places = self.param(
            "places", nn.initializers.normal(0.02), (length + 1, self.width), jnp.float32
        )
        x = jnp.concatenate([state, actions], axis=2) + places
        x = x.reshape(-1, length + 1, self.width)
        seen = jnp.tril(jnp.ones((length + 1, length + 1), bool))
        for _ in range(self.layers):
            block = Block(self.width, self.heads, dot)
            query, key, value = block.project(x)
            x = block.attend(x, query, key, value, seen)
        read_out = layer(1, kernel_init=nn.initializers.normal(0.01))
        return read_out(nn.LayerNorm()(x[:, 1:])).reshape(*batch, length)


class Chosen(NamedTuple):
    """What `best_prefix` chose: indices of a chunk and of a length, and that prefix's Q, (...)."""

    chunk: jax.Array
    length: jax.Array
    value: jax.Array


def best_prefix(q: jax.Array, baseline: float | jax.Array = 0.0) -> Chosen:
    """argmax over chunks and lengths of Q - baseline, of Q (..., N, L); the longest among equals.

    >>> q = jnp.array([[1.0, 3.0], [4.0, 2.0]])  # two chunks, two lengths
    >>> [int(x) for x in best_prefix(q)]
    [1, 0, 4]
    >>> [int(x) for x in best_prefix(q, baseline=jnp.array([3.5, 2.0]))]
    [0, 1, 3]
    """
    (num_chunks, num_lengths), batch = q.shape[-2:], q.shape[:-2]
    longest_first = jnp.swapaxes(q - baseline, -1, -2)[..., ::-1, :].reshape(*batch, -1)
    place = longest_first.argmax(axis=-1).astype(jnp.int32)
    chunk, length = place % num_chunks, num_lengths - 1 - place // num_chunks
    flat = q.reshape(*batch, -1)
    value = jnp.take_along_axis(flat, (chunk * num_lengths + length)[..., None], axis=-1)[..., 0]
    return Chosen(chunk, length, value)
