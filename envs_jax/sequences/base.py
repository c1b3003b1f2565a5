"""Tasks for sequence policies: a prompt, an answer token by token, a verifier at its end."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from jaxrl.parts.sequences import Verdict


@struct.dataclass
class State:
    prompt: Any  # int32 (P,), or what a task has in its place
    tokens: jax.Array  # int32 (L,), those from `time` on do not count
    time: jax.Array  # tokens written so far


class SequenceEnv(Environment):
    """One episode is one answer: an action writes a token, the reward comes with the last.

    Observations are one-hot rows of prompt and answer (P + L, V), zeros where nothing is written
    yet, so that any agent can act here. A loop that writes whole answers at once takes `prompt` and
    `verify` themselves.

    A subclass sets vocabulary V, prompt_length P and answer_length L and implements `prompt`,
    `verify` and `demonstration`. `info["correct"]` is 1 at the end of a right answer.
    """

    resets = "fresh"
    pool_size = 16
    end_broken = False
    reports = ("correct",)

    id = ""
    vocabulary = 2
    prompt_length = 1
    answer_length = 1
    end_token = -1  # the token that ends an answer early; -1: none does

    # What a task provides ---------------------------------------------------------------------

    def prompt(self, key: jax.Array, params: Any) -> Any:
        """Draw a prompt, int32 (P,)."""
        raise NotImplementedError

    def verify(self, prompt: Any, answer: jax.Array, params: Any) -> Verdict:
        """What an answer, int32 (L,), is worth; what follows its end token does not count."""
        raise NotImplementedError

    def demonstration(self, key: jax.Array, prompt: Any, params: Any) -> jax.Array:
        """A right answer, int32 (L,)."""
        raise NotImplementedError

    # gymnax's interface -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.id

    @property
    def num_actions(self) -> int:
        return self.vocabulary

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, State]:
        prompt = self.prompt(key, params)
        state = State(prompt, jnp.zeros(self.answer_length, jnp.int32), jnp.int32(0))
        return self.observe_state(state, params), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Any
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        action = jnp.asarray(action, jnp.int32)
        tokens = state.tokens.at[state.time].set(action)
        state = State(state.prompt, tokens, state.time + 1)
        done = (state.time >= self.answer_length) | (action == self.end_token)
        verdict = self.verify(state.prompt, tokens, params)
        reward, correct = (jnp.where(done, x, 0.0) for x in (verdict.reward, verdict.correct))
        info = {"correct": correct.astype(jnp.float32)}
        obs = self.observe_state(state, params)
        return obs, state, reward.astype(jnp.float32), done, info

    def is_truncated(self, state: State, params: Any) -> jax.Array:
        return state.time >= params.max_steps_in_episode

    def observe_state(self, state: State, params: Any) -> jax.Array:
        return self.observe(state.prompt, state.tokens, state.time, params)

    def observe(self, prompt: Any, tokens: jax.Array, time: jax.Array, params: Any) -> jax.Array:
        """The observation before token number `time`, float32 (P + L, V)."""
        whole = jnp.concatenate([prompt, tokens])
        written = jnp.arange(len(whole)) < self.prompt_length + time
        one_hot = jax.nn.one_hot(whole, self.vocabulary, dtype=jnp.float32)
        return one_hot * written[:, None]

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(self.vocabulary)

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (self.prompt_length + self.answer_length, self.vocabulary))


def number(x: Any) -> jax.Array:
    """A verdict's number, float32."""
    return jnp.asarray(x, jnp.float32)


def drawn(key: jax.Array, shape: tuple[int, ...], low: Any, high: Any) -> jax.Array:
    """Uniform integers in [low, high), int32 also in double precision."""
    return jax.random.randint(key, shape, low, high, jnp.int32)
