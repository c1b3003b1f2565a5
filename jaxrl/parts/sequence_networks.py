"""Autoregressive policies: a GRU, a causal transformer with a cache, a table; and a pointer.

Each but the last reads tokens (B, N) one after the other and gives, after each, the logits of the
next. There are two ways, which give the same numbers: all at once, `network.apply(params, tokens)`,
to learn; and token by token with a memory, to write:

    memory = network.initial(B)
    memory, hidden = network.apply(params, memory, token, place, method="read")
    logits = network.apply(params, hidden, method="logits")
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.parts.initializers import orthogonal

MOST_ROWS = 2**17  # of a table


class Outputs(NamedTuple):
    """What a network makes of tokens (B, N): after each of them.

    Attributes:
        logits: (B, N, V) of the next token.
        hidden: (B, N, W), from which they follow.
    """

    logits: jax.Array
    hidden: jax.Array


class Gru(nn.Module):
    """Embedding -> GRU (Cho et al. 2014) -> linear head, near uniform at first.

    Attributes:
        vocabulary: V.
        length: N, tokens of prompt and answer.
        width: W, of the embedding and the core.

    >>> network, tokens = Gru(vocabulary=5, length=4, width=8), jnp.zeros((3, 4), jnp.int32)
    >>> outputs, params = jax.eval_shape(network.init_with_output, jax.random.key(0), tokens)
    >>> outputs.logits.shape, outputs.hidden.shape
    ((3, 4, 5), (3, 4, 8))
    """

    vocabulary: int
    length: int
    width: int = 64

    def setup(self) -> None:
        self.embedding = nn.Embed(self.vocabulary, self.width)
        self.core = nn.GRUCell(self.width, recurrent_kernel_init=orthogonal())
        self.head = nn.Dense(self.vocabulary, kernel_init=orthogonal(0.01))

    def initial(self, batch: int) -> jax.Array:
        """The memory (B, W) before anything is read."""
        return jnp.zeros((batch, self.width), jnp.float32)

    def read(
        self, memory: jax.Array, token: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The memory after token (B,) number `place` (), and the hidden state (B, W)."""
        return self.core(memory, self.embedding(token))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Of the next token, (..., V)."""
        return self.head(hidden)

    def __call__(self, tokens: jax.Array) -> Outputs:
        def advance(network: Gru, memory: jax.Array, token: jax.Array) -> Any:
            return network.read(memory, token, jnp.int32(0))

        scan = nn.scan(
            advance,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        _, hidden = scan(self, self.initial(tokens.shape[0]), tokens)
        return Outputs(self.logits(hidden), hidden)


class Block(nn.Module):
    """Causal attention and an MLP of four times the width, each on normalised input and added.

    `dot_general` is that of its dense layers; None: flax's own.
    """

    width: int
    heads: int
    dot_general: Any = None

    def setup(self) -> None:
        dense = partial(nn.Dense, dot_general=self.dot_general)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(), nn.LayerNorm()
        self.queries_keys_values = dense(3 * self.width)
        self.mix = dense(self.width)
        self.expand, self.contract = dense(4 * self.width), dense(self.width)

    def project(self, x: jax.Array) -> list[jax.Array]:
        """Queries, keys and values (B, N, heads, W / heads) of x (B, N, W)."""
        parts = jnp.split(self.queries_keys_values(self.attention_norm(x)), 3, axis=-1)
        return [part.reshape(*part.shape[:-1], self.heads, -1) for part in parts]

    def attend(
        self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array
    ) -> jax.Array:
        """x (B, N, W) with what its queries find among M keys, where `seen` (N, M) lets them."""
        scores = jnp.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        found = jnp.einsum("bhnm,bmhd->bnhd", weights, value)
        x = x + self.mix(found.reshape(x.shape))
        return x + self.contract(nn.gelu(self.expand(self.mlp_norm(x))))


class Transformer(nn.Module):
    """A causal transformer with learnt positions (Vaswani et al. 2017; norms first, GPT-2's order).

    Its memory holds the keys and values of all tokens read, so that one more token costs one row
    of attention.

    Attributes:
        vocabulary: V.
        length: N, tokens of prompt and answer.
        width: W, a multiple of `heads`.
        layers, heads: how many.

    >>> network = Transformer(vocabulary=5, length=4, width=8, layers=1)
    >>> tokens = jnp.zeros((3, 4), jnp.int32)
    >>> outputs, params = jax.eval_shape(network.init_with_output, jax.random.key(0), tokens)
    >>> outputs.logits.shape, outputs.hidden.shape
    ((3, 4, 5), (3, 4, 8))
    """

    vocabulary: int
    length: int
    width: int = 64
    layers: int = 2
    heads: int = 2

    def setup(self) -> None:
        self.embedding = nn.Embed(self.vocabulary, self.width)
        self.positions = nn.Embed(self.length, self.width)
        self.blocks = [Block(self.width, self.heads) for _ in range(self.layers)]
        self.norm = nn.LayerNorm()
        self.head = nn.Dense(self.vocabulary, kernel_init=orthogonal(0.01))

    def initial(self, batch: int) -> list[tuple[jax.Array, jax.Array]]:
        """Keys and values of each layer, (B, N, heads, W / heads): none yet."""
        shape = batch, self.length, self.heads, self.width // self.heads
        zeros = jnp.zeros(shape, jnp.float32)
        return [(zeros, zeros) for _ in range(self.layers)]

    def read(
        self, memory: list[tuple[jax.Array, jax.Array]], token: jax.Array, place: jax.Array
    ) -> tuple[list[tuple[jax.Array, jax.Array]], jax.Array]:
        """The memory after token (B,) number `place` (), and the hidden state (B, W)."""
        x = (self.embedding(token) + self.positions(place))[:, None]
        seen = jnp.arange(self.length)[None] <= place
        after = []
        for block, (keys, values) in zip(self.blocks, memory, strict=True):
            query, key, value = block.project(x)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, key, place, axis=1)
            values = jax.lax.dynamic_update_slice_in_dim(values, value, place, axis=1)
            x = block.attend(x, query, keys, values, seen)
            after.append((keys, values))
        return after, self.norm(x)[:, 0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Of the next token, (..., V)."""
        return self.head(hidden)

    def __call__(self, tokens: jax.Array) -> Outputs:
        size = tokens.shape[1]
        x = self.embedding(tokens) + self.positions(jnp.arange(size))
        seen = jnp.tril(jnp.ones((size, size), bool))
        for block in self.blocks:
            query, key, value = block.project(x)
            x = block.attend(x, query, key, value, seen)
        hidden = self.norm(x)
        return Outputs(self.logits(hidden), hidden)


class Table(nn.Module):
    """A row of logits for every sequence that can have been read: no two contexts share a number.

    With it every expectation can be summed up over all answers. Logits start at 0. What it reads
    last, at place N - 1, has no row: nothing follows it.

    Attributes:
        vocabulary: V.
        length: N; there are V + V^2 + ... + V^(N - 1) rows.

    >>> network, tokens = Table(vocabulary=3, length=4), jnp.zeros((2, 4), jnp.int32)
    >>> params = jax.eval_shape(network.init, jax.random.key(0), tokens)
    >>> params["params"]["rows"].shape
    (39, 3)
    """

    vocabulary: int
    length: int

    def setup(self) -> None:
        shape = number_of_rows(self.vocabulary, self.length), self.vocabulary
        self.rows = self.param("rows", nn.initializers.zeros, shape, jnp.float32)

    def initial(self, batch: int) -> jax.Array:
        """What has been read (B,), as a number to the base V."""
        return jnp.zeros((batch,), jnp.int32)

    def read(
        self, memory: jax.Array, token: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The memory after token (B,) number `place` (), and the row's logits (B, V)."""
        memory = (memory * self.vocabulary + token).astype(jnp.int32)
        return memory, self.rows[self.first_rows()[place] + memory]

    def first_rows(self) -> jax.Array:
        """The first row (N,) of those for i + 1 tokens read; the last has none, and stands on 0."""
        first = [number_of_rows(self.vocabulary, i + 1) for i in range(self.length)]
        return jnp.asarray(first, jnp.int32)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The row itself."""
        return hidden

    def __call__(self, tokens: jax.Array) -> Outputs:
        read, rows = jnp.zeros_like(tokens[:, 0]), []
        for i in range(tokens.shape[1]):
            read = read * self.vocabulary + tokens[:, i]
            rows.append(self.first_rows()[i] + read)
        hidden = self.rows[jnp.stack(rows, axis=1)]
        return Outputs(hidden, hidden)


class Pointer(nn.Module):
    """Scores of any number of candidates by their features, and one of choosing none of them.

    Candidate e has (W z_e) . q(h) / sqrt(width), where z_e are its features and h is an MLP of the
    state (Vinyals et al. 2015, arXiv:1506.03134, with dot products). The parameters do not depend
    on how many candidates there are, and their order does not matter. Near uniform at first.

    Attributes:
        width: of both hidden layers, and of what is multiplied.

    >>> network, state, candidates = Pointer(width=8), jnp.zeros((3, 5)), jnp.zeros((3, 4, 2))
    >>> jax.eval_shape(network.init_with_output, jax.random.key(0), state, candidates)[0].shape
    (3, 5)
    """

    width: int = 64

    @nn.compact
    def __call__(self, state: jax.Array, candidates: jax.Array) -> jax.Array:
        """Logits (..., E + 1) at states (..., S) of E candidates (..., E, D); the last: none."""
        hidden = nn.tanh(nn.Dense(self.width)(state))
        hidden = nn.tanh(nn.Dense(self.width)(hidden))
        query = nn.Dense(self.width, kernel_init=orthogonal(0.01), name="query")(hidden)
        keys = nn.Dense(self.width, use_bias=False, name="keys")(candidates)
        scores = jnp.einsum("...w,...ew->...e", query, keys) / self.width**0.5
        none = nn.Dense(1, kernel_init=orthogonal(0.01), name="none")(hidden)
        return jnp.concatenate([scores, none], axis=-1)


def number_of_rows(vocabulary: int, length: int) -> int:
    """Sequences of 1 to length - 1 tokens: what a `Table` has a row for.

    >>> number_of_rows(3, 4)
    39
    """
    return sum(vocabulary**i for i in range(1, length))
