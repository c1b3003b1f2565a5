"""Sums, differences and parities: an answer is one number, with tokens to think in before it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.sequences.base import SequenceEnv, drawn, number
from jaxrl.parts.sequences import Verdict


@struct.dataclass
class SumParams:
    modulus: jax.Array  # int32; digits are drawn below it
    max_steps_in_episode: jax.Array


class Sum(SequenceEnv):
    """Two digits a and b -> a scratch token, then (a + b) mod 10. Reward 1 if that is right.

    The scratch token may be anything; demonstrations write what is carried.

    Args:
        digits: how many there are, and the vocabulary; `modulus` may be less.
    """

    id = "sequences/sum"
    prompt_length = 2
    answer_length = 2

    def __init__(self, digits: int = 10):
        if digits < 2:
            raise ValueError(f"{self.id}: digits={digits} is less than 2")
        self.digits = digits
        self.vocabulary = digits

    @property
    def default_params(self) -> SumParams:
        return SumParams(jnp.int32(self.digits), jnp.int32(self.answer_length))

    def prompt(self, key: jax.Array, params: SumParams) -> jax.Array:
        return drawn(key, (2,), 0, params.modulus)

    def verify(self, prompt: jax.Array, answer: jax.Array, params: SumParams) -> Verdict:
        correct = number(answer[1] == prompt.sum() % params.modulus)
        return Verdict(correct, correct, correct[None], answer[1])

    def demonstration(self, key: jax.Array, prompt: jax.Array, params: SumParams) -> jax.Array:
        total = prompt.sum()
        answer = jnp.stack([total // params.modulus, total % params.modulus])
        return answer.astype(jnp.int32)


@struct.dataclass
class ParityParams:
    fewest: jax.Array  # int32, bits of a prompt
    most: jax.Array
    partial: jax.Array  # in [0, 1]: share of the reward that right running parities earn
    max_steps_in_episode: jax.Array


END = 2


class Parity(SequenceEnv):
    """4 to 8 bits -> their running parities, the last of which is the parity; then the end token.

    The last token before the end is the answer; the thoughts before it may be left out. Tokens: 0,
    1, and 2 for the end, with which short prompts are filled.

    Rewards of the channels: right or not; share of the running parities that are right.

    Args:
        bits: that prompts have room for; `fewest` and `most` may be less.
    """

    id = "sequences/parity"
    vocabulary = 3
    end_token = END

    def __init__(self, bits: int = 8):
        if bits < 1:
            raise ValueError(f"{self.id}: bits={bits} is less than 1")
        self.bits = bits
        self.prompt_length, self.answer_length = bits, bits + 1

    @property
    def default_params(self) -> ParityParams:
        fewest, most = jnp.int32(min(4, self.bits)), jnp.int32(self.bits)
        return ParityParams(fewest, most, jnp.float32(0), jnp.int32(self.answer_length))

    def prompt(self, key: jax.Array, params: ParityParams) -> jax.Array:
        length_key, bits_key = jax.random.split(key)
        length = drawn(length_key, (), params.fewest, params.most + 1)
        bits = drawn(bits_key, (self.bits,), 0, 2)
        return jnp.where(jnp.arange(self.bits) < length, bits, END)

    def verify(self, prompt: jax.Array, answer: jax.Array, params: ParityParams) -> Verdict:
        running = jnp.cumsum(jnp.where(prompt == END, 0, prompt)) % 2
        bits = (prompt != END).sum()
        ends = answer == END
        length = jnp.where(ends.any(), ends.argmax(), self.answer_length)
        last = jnp.where(length > 0, answer[jnp.maximum(length - 1, 0)], END)
        correct = number(last == running[-1])
        place = jnp.arange(self.bits)
        right = (answer[:-1] == running) & (place < jnp.minimum(bits, length))
        share = right.sum() / bits
        reward = (1 - params.partial) * correct + params.partial * share
        rewards = jnp.stack([correct, number(share)])
        return Verdict(number(reward), correct, rewards, last.astype(jnp.int32))

    def demonstration(self, key: jax.Array, prompt: jax.Array, params: ParityParams) -> jax.Array:
        running = jnp.cumsum(jnp.where(prompt == END, 0, prompt)) % 2
        thoughts = jnp.where(prompt == END, END, running)
        return jnp.append(thoughts, END).astype(jnp.int32)


@struct.dataclass
class TwoTasksParams:
    target: jax.Array  # in [0, 1]: share of prompts that ask for sums; the others: differences
    max_steps_in_episode: jax.Array


class TwoTasks(SequenceEnv):
    """A task and some digits -> their running sums, or running differences, modulo `digits`.

    A prompt is [task, a, b, c], where `digits` stands for sums and `digits` + 1 for differences.
    The answer is [a + b, a + b + c] or [a - b, a - b - c], of which the last is what counts.
    Fine-tuned on one task (`target` = 1), a policy may forget the other.

    Rewards of the channels: right or not; share of the running results that are right.

    Args:
        digits: how many there are.
        terms: digits of a prompt.
    """

    id = "sequences/two_tasks"

    def __init__(self, digits: int = 10, terms: int = 3):
        if digits < 2:
            raise ValueError(f"{self.id}: digits={digits} is less than 2")
        if terms < 2:
            raise ValueError(f"{self.id}: terms={terms} is less than 2")
        self.digits, self.terms = digits, terms
        self.vocabulary = digits + 2
        self.prompt_length, self.answer_length = 1 + terms, terms - 1

    @property
    def default_params(self) -> TwoTasksParams:
        return TwoTasksParams(jnp.float32(0.5), jnp.int32(self.answer_length))

    def prompt(self, key: jax.Array, params: TwoTasksParams) -> jax.Array:
        task_key, digits_key = jax.random.split(key)
        is_target = jax.random.uniform(task_key, (), jnp.float32) < params.target
        task = jnp.where(is_target, self.digits, self.digits + 1).astype(jnp.int32)
        digits = drawn(digits_key, (self.terms,), 0, self.digits)
        return jnp.concatenate([task[None], digits])

    def results(self, prompt: jax.Array) -> jax.Array:
        """The right answer, int32 (L,)."""
        sign = jnp.where(prompt[0] == self.digits, 1, -1)
        running = prompt[1] + jnp.cumsum(sign * prompt[2:])
        return (running % self.digits).astype(jnp.int32)

    def verify(self, prompt: jax.Array, answer: jax.Array, params: TwoTasksParams) -> Verdict:
        right = answer == self.results(prompt)
        correct, share = number(right[-1]), right.mean(dtype=jnp.float32)
        return Verdict(correct, correct, jnp.stack([correct, share]), answer[-1])

    def demonstration(self, key: jax.Array, prompt: jax.Array, params: TwoTasksParams) -> jax.Array:
        return self.results(prompt)
