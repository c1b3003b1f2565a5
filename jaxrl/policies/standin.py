"""A stand-in for an environment: its spaces and nothing else, with which an agent can act."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete:
    """The integers 0..n-1."""

    n: int
    dtype: Any = jnp.int32
    shape: tuple[int, ...] = ()

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (), 0, self.n).astype(self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Arrays of numbers between bounds."""

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high)


class Params(NamedTuple):
    max_steps_in_episode: int = 1  # agents may ask for a time limit; acting does not depend on it


PARAMS = Params()


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn:
    """Has the interface of gymnax 1.0 and the spaces of an environment, and no dynamics.

    It resets and steps to zeros, so that an agent's `init` gives a state of the right shapes.
    """

    name: str
    observation: Discrete | Box
    action: Discrete | Box
    parts: dict[str, tuple[int, ...]] | None = None  # of observations, see `spaces.parts_of`
    default_params: Params = PARAMS
    acts_only: ClassVar[bool] = True  # an agent need not learn here

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, Any]:
        return jnp.zeros(self.observation.shape, self.observation.dtype), ()

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> tuple[Any, ...]:
        obs, state = self.reset(key)
        no = jnp.zeros((), bool)
        return obs, state, jnp.zeros(()), no, no, {"final_observation": obs}

    def observation_space(self, params: Any = None) -> Discrete | Box:
        return self.observation

    def action_space(self, params: Any = None) -> Discrete | Box:
        return self.action
