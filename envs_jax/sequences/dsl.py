"""Expressions in prefix notation, and the stack machine that computes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from envs_jax.sequences.base import SequenceEnv, drawn, number
from jaxrl.parts.sequences import Verdict

MODULUS = 17  # tokens below it are values
X, Y = 17, 18
ADD, SUB, MUL, MOD, MAX, MIN, NEG = range(19, 26)
END = 26
LENGTH = 7  # tokens of an expression
DEPTH = 4  # of the stack: no expression of LENGTH tokens needs more
CANDIDATES = 8  # drawn for a prompt, of which the first valid one is taken


def run(expression: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The value () in 0..16 of an expression (7,), and whether it is valid.

    Prefix notation is read from the right: a value is pushed, an operator takes its first operand
    from the top. The end token fills the rest of a short expression. Invalid: an operand is missing
    or left over, the stack overflows, MOD 0, x or y is no value, or something follows the end.
    Everything is modulo 17, NEG a too; MOD, MAX and MIN are those of the numbers 0..16.
    """

    def step(carry: Any, token: jax.Array) -> Any:
        stack, size, valid = carry
        first = stack[jnp.maximum(size - 1, 0)]
        second = stack[jnp.maximum(size - 2, 0)]
        is_end, is_operator = token == END, (token >= ADD) & (token < END)
        takes = jnp.where(is_operator, jnp.where(token == NEG, 1, 2), 0)
        value = jnp.where(token == X, x, jnp.where(token == Y, y, token))
        results = jnp.stack(
            [
                first + second,
                first - second,
                first * second,
                first % jnp.maximum(second, 1),
                jnp.maximum(first, second),
                jnp.minimum(first, second),
                -first,
            ]
        )
        result = jnp.where(is_operator, results[jnp.clip(token - ADD, 0, 6)], value) % MODULUS
        after = size - takes + 1
        fits = (size >= takes) & (after <= DEPTH) & ~((token == MOD) & (second == 0))
        valid &= jnp.where(is_end, size == 0, fits)  # nothing stands to the right of an end
        place = jnp.clip(after - 1, 0, DEPTH - 1)
        stack = jnp.where(is_end, stack, stack.at[place].set(result))
        size = jnp.where(is_end, size, jnp.clip(after, 0, DEPTH))
        return (stack, size, valid), ()

    start = jnp.zeros(DEPTH, jnp.int32), jnp.int32(0), jnp.bool_(True)
    tokens = expression.astype(jnp.int32)
    (stack, size, valid), _ = lax.scan(step, start, tokens, reverse=True)
    valid &= (size == 1) & (x < MODULUS) & (y < MODULUS)
    return jnp.where(valid, stack[0], 0), valid


def random_expression(key: jax.Array, most_operators: jax.Array) -> jax.Array:
    """A well-formed expression (7,) with at most so many operators, filled up with the end token.

    Its number of operators is uniform as far as seven tokens have room for them.
    """
    number_key, token_key = jax.random.split(key)
    operators = drawn(number_key, (), 0, jnp.clip(most_operators, 0, LENGTH - 1) + 1)

    def step(carry: Any, draws: Any) -> Any:
        needed, left = carry  # operands that are still to come, operators that may
        place, key = draws
        room = LENGTH - place - 1  # tokens after this one
        kind_key, leaf_key, literal_key = jax.random.split(key, 3)
        operator = drawn(kind_key, (), ADD, END)
        # One that takes two leaves one operand more to come; without room for it, none does.
        operator = jnp.where(needed + 1 > room, NEG, operator)
        takes_operator = (left > 0) & (needed <= room)
        leaf = drawn(leaf_key, (), 0, 3)
        literal = drawn(literal_key, (), 0, 10)
        leaf = jnp.where(leaf == 0, literal, jnp.where(leaf == 1, X, Y))
        token = jnp.where(needed == 0, END, jnp.where(takes_operator, operator, leaf))
        change = jnp.where(takes_operator, jnp.where(operator == NEG, 0, 1), -1)
        needed = jnp.where(needed == 0, 0, needed + change)
        return (needed, left - takes_operator.astype(jnp.int32)), token.astype(jnp.int32)

    draws = jnp.arange(LENGTH, dtype=jnp.int32), jax.random.split(token_key, LENGTH)
    return lax.scan(step, (jnp.int32(1), operators), draws)[1]


@struct.dataclass
class Params:
    most_operators: jax.Array  # int32, in the expressions of prompts
    max_steps_in_episode: jax.Array


class Dsl(SequenceEnv):
    """x, y and an expression of them -> its value modulo 17, one token.

    A prompt is [x, y, expression of 7 tokens]; see `run`. Rewards of the channels: the right value;
    whether the answer is a value at all.
    """

    id = "sequences/dsl"
    vocabulary = END + 1
    prompt_length = 2 + LENGTH
    answer_length = 1
    values = MODULUS  # there are, the tokens below

    @property
    def default_params(self) -> Params:
        return Params(jnp.int32(3), jnp.int32(self.answer_length))

    def run(self, expression: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        """`run`, for agents, which know of no module here."""
        return run(expression, x, y)

    def prompt(self, key: jax.Array, params: Params) -> jax.Array:
        inputs_key, key = jax.random.split(key)
        x, y = drawn(inputs_key, (2,), 0, MODULUS)
        keys = jax.random.split(key, CANDIDATES)
        drafts = jax.vmap(random_expression, (0, None))(keys, params.most_operators)
        valid = jax.vmap(run, (0, None, None))(drafts, x, y)[1]
        # Only MOD 0 makes one invalid; should all be, x alone is the prompt.
        alone = jnp.full(LENGTH, END, jnp.int32).at[0].set(X)
        expression = jnp.where(valid.any(), drafts[valid.argmax()], alone)
        return jnp.concatenate([jnp.stack([x, y]), expression])

    def verify(self, prompt: jax.Array, answer: jax.Array, params: Params) -> Verdict:
        value, valid = run(prompt[2:], prompt[0], prompt[1])
        correct = number(valid & (answer[0] == value))
        rewards = jnp.stack([correct, number(answer[0] < MODULUS)])
        return Verdict(correct, correct, rewards, answer[0])

    def demonstration(self, key: jax.Array, prompt: jax.Array, params: Params) -> jax.Array:
        return run(prompt[2:], prompt[0], prompt[1])[0][None]
