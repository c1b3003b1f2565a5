"""Answers between two objectives: a set of bins on a quarter circle, and dominated ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.sequences.base import SequenceEnv, drawn, number
from jaxrl.parts.sequences import Verdict


@struct.dataclass
class Params:
    weight: jax.Array  # of the first objective in the scalar reward; the second has the rest
    dominated: jax.Array  # in (0, 1): how far out the dominated answers lie
    max_steps_in_episode: jax.Array


class Pareto(SequenceEnv):
    """No prompt -> m answers of one token each; each is worth a vector of two.

    Token b below `bins` is (cos t, sin t) with t from 0 to pi / 2: none of them is better than
    another in both. Token bins + b is `dominated` times that. The scalar reward is that of the best
    answer of the set, weight r_1 + (1 - weight) r_2; right is a set that holds the best bin.

    Args:
        answers: how many are written, m.
        bins: points on the front; twice as many tokens.
    """

    id = "sequences/pareto"
    prompt_length = 1  # one token that is always 0: a policy needs something to begin with

    def __init__(self, answers: int = 3, bins: int = 16):
        if not 1 <= answers <= 6:
            raise ValueError(f"{self.id}: answers={answers} is not from 1 to 6")
        if not 2 <= bins <= 16:
            raise ValueError(f"{self.id}: bins={bins} is not from 2 to 16")
        self.answers, self.bins = answers, bins
        self.vocabulary, self.answer_length = 2 * bins, answers

    @property
    def default_params(self) -> Params:
        return Params(jnp.float32(0.5), jnp.float32(0.7), jnp.int32(self.answer_length))

    def vectors(self, params: Params) -> jax.Array:
        """What each token is worth, (V, 2)."""
        t = jnp.linspace(0, jnp.pi / 2, self.bins, dtype=jnp.float32)
        front = jnp.stack([jnp.cos(t), jnp.sin(t)], axis=-1)
        return jnp.concatenate([front, params.dominated * front])

    def prompt(self, key: jax.Array, params: Params) -> jax.Array:
        return jnp.zeros(1, jnp.int32)

    def verify(self, prompt: jax.Array, answer: jax.Array, params: Params) -> Verdict:
        vectors = self.vectors(params)
        worth = vectors @ jnp.stack([params.weight, 1 - params.weight])
        reward = worth[answer].max()
        # Two bins may be worth the same but for rounding.
        correct = number(reward >= worth.max() - 1e-5)
        ordered = jnp.sort(answer)
        places = self.vocabulary ** jnp.arange(self.answers, dtype=jnp.int32)
        same = (ordered * places).sum(dtype=jnp.int32)
        return Verdict(number(reward), correct, vectors[answer], same)

    def demonstration(self, key: jax.Array, prompt: jax.Array, params: Params) -> jax.Array:
        """Bins of the front, uniformly: the best one need not be among them."""
        return drawn(key, (self.answers,), 0, self.bins)
