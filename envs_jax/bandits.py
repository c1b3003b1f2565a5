"""Bandits: episodes of one step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment
from jax.typing import ArrayLike

PEAKS = (-0.6, 0.6)
WIDTH = 0.2


def two_peaks(action: ArrayLike) -> jax.Array:
    """The reward of an action in [-1, 1]: two peaks of height 1, elementwise over any shape."""
    return sum(
        (jnp.exp(-(((jnp.asarray(action) - peak) / WIDTH) ** 2)) for peak in PEAKS), jnp.zeros(())
    )


@struct.dataclass
class State:
    time: jax.Array


@struct.dataclass
class Params:
    max_steps_in_episode: jax.Array


class TwoPeaks(Environment):
    """One continuous action; its reward is `two_peaks` of it, the observation always 1."""

    @property
    def default_params(self) -> Params:
        return Params(jnp.int32(1))

    def reset_env(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        return jnp.ones(1), State(jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Params
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        done = jnp.bool_(True)
        return jnp.ones(1), State(state.time + 1), two_peaks(action[0]), done, {}

    @property
    def num_actions(self) -> int:
        return 1

    def action_space(self, params: Params | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params: Params) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))
