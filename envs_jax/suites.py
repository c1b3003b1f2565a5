"""What the suites of others share: one adapter to gymnax's interface, and how they are imported."""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from envs_jax.wrappers import finite, strong
from jaxrl import Masked

OPTIONS = {"resets": "pool", "pool_size": 16, "end_broken": False}


@struct.dataclass
class SuiteParams:
    """Traced parameters of an environment whose suite has none."""

    max_steps_in_episode: jax.Array  # int32 scalar: episodes are truncated after this many steps


@struct.dataclass
class SuiteState:
    """The suite's own state, and the steps since the reset."""

    inner: Any
    time: jax.Array  # int32 scalar


class SuiteEnv(Environment):
    """An environment of another suite, in gymnax's interface.

    A subclass says how to reset and to step, and how many steps an episode has; the time limit is
    ours, so that an episode that is cut off is truncated and not terminated.
    """

    resets = "pool"  # they generate a level, or an opponent makes the first move
    pool_size = 16
    end_broken = False  # see `wrappers.finite`
    masked = False  # whether observations say which actions are legal (`jaxrl.Masked`)

    def __init__(self, env: Any, name: str):
        self._env = env
        self._name = name

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        """(observation, the suite's state) at the start of an episode."""
        raise NotImplementedError

    def play(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[str, Any]]:
        """(observation, the suite's state, reward, terminated, info) after one step."""
        raise NotImplementedError

    @property
    def time_limit(self) -> int:
        """Steps after which an episode is truncated by default."""
        raise NotImplementedError

    @property
    def num_actions(self) -> int:
        raise NotImplementedError

    def action_mask(self, state: SuiteState, params: Any) -> jax.Array:
        """Which actions are legal in a state, bool (num_actions,): all, unless the suite says."""
        return jnp.ones(self.num_actions, bool)

    @property
    def name(self) -> str:
        return self._name

    @property
    def reports(self) -> tuple[str, ...]:
        """Entries of `info` that every agent sums over episodes, unasked."""
        return ("broken",) if self.end_broken else ()

    @property
    def default_params(self) -> Any:
        return SuiteParams(jnp.asarray(self.time_limit, jnp.int32))

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, SuiteState]:
        obs, inner = self.start(key, params)
        state = SuiteState(strong(inner), jnp.zeros((), jnp.int32))
        return self._masked(jnp.asarray(obs, jnp.float32), state, params), state

    def step_env(
        self, key: jax.Array, state: SuiteState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, SuiteState, jax.Array, jax.Array, dict[str, Any]]:
        obs, inner, reward, terminated, info = self.play(key, state.inner, action, params)
        obs, reward = jnp.asarray(obs, jnp.float32), jnp.asarray(reward, jnp.float32)
        terminated, info = jnp.asarray(terminated, bool), strong(info)
        if self.end_broken:
            obs, reward, terminated, info = finite(obs, reward, terminated, info)
        state = SuiteState(strong(inner), strong(state.time + 1))
        return self._masked(obs, state, params), state, reward, terminated, info

    def _masked(self, obs: jax.Array, state: SuiteState, params: Any) -> Any:
        return Masked(obs, self.action_mask(state, params)) if self.masked else obs

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self._observation_shape, jnp.float32)

    @cached_property
    def _observation_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.start, jax.random.key(0), self.default_params)[0].shape


def imported(module: str, suite: str, name: str) -> Any:
    """A module of an optional suite. ValueError (one line) where the suite is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ValueError(
            f"{suite}/{name} needs an extra package: pip install -e '.[{suite}]'"
        ) from None


def one_hot(symbols: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Grids of symbols (H, W, len(sizes)) as float32 one-hot vectors (H, W, sum(sizes))."""
    layers = [jax.nn.one_hot(symbols[..., i], size) for i, size in enumerate(sizes)]
    return jnp.concatenate(layers, axis=-1)
