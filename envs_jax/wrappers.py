"""Wrappers around gymnax environments: stable types, sticky actions, steps that are finite."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from jaxrl import masks


def strong(tree: Any) -> Any:
    """The same values, every leaf an array that is not weakly typed.

    Several environments reset to Python scalars and step to strongly typed arrays: their states
    would change type, and a jitted step would compile twice.
    """
    return jax.tree.map(_strong, tree)


def _strong(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x  # a PRNG key: never weak
    return jnp.asarray(x, dtype=jnp.result_type(x))


def overrides_step(env: Environment) -> bool:
    """Whether an environment's `step` is more than its `step_env` and a reset."""
    return type(env).step is not Environment.step


def constructor_options(constructor: Any) -> dict[str, Any]:
    """{name: default} of the constructor arguments that have a default."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is not parameter.empty
    }


def finite(
    obs: Any, reward: jax.Array, terminated: jax.Array, info: dict[str, Any]
) -> tuple[Any, jax.Array, jax.Array, dict[str, Any]]:
    """A step as agents can learn from it, whatever the simulator returned.

    A step to an observation or a reward that is not finite ends its episode with reward 0, at an
    observation whose broken numbers are 0; `info["broken"]` is 1 there, else 0.
    """
    sound = jnp.isfinite(masks.split(obs)[0])
    broken = ~(sound.all() & jnp.isfinite(reward))
    info = info | {"broken": broken.astype(jnp.float32)}
    obs = masks.map_obs(lambda x: jnp.where(sound, x, 0), obs)
    return obs, jnp.where(broken, 0, reward), terminated | broken, info


class Typed(Environment):
    """A gymnax environment as agents expect it; the outermost wrapper of what `make` returns.

    Observations are float32 (discrete ones int32, of which agents make one-hot vectors; bytes stay
    bytes, which agents scale to [0, 1] where networks take them), rewards are float32, and states
    have the same types after a reset as after a step. Keys and dynamics are the inner
    environment's own.
    """

    resets = "fresh"
    pool_size = 16
    end_broken = False  # see `finite`

    def __init__(self, env: Environment, name: str):
        self._env = env
        self._name = name
        space = env.observation_space(env.default_params)
        self._dtype = jnp.int32 if isinstance(space, spaces.Discrete) else jnp.float32

    @property
    def name(self) -> str:
        return self._name

    @property
    def reports(self) -> tuple[str, ...]:
        """Entries of `info` that every agent sums over episodes, unasked."""
        return ("broken",) if self.end_broken else ()

    @property
    def default_params(self) -> Any:
        # Copied, since gymnax shares some arrays between instances and a caller may donate them.
        return jax.tree.map(jnp.copy, strong(self._env.default_params))

    @property
    def num_actions(self) -> int:
        return self._env.num_actions

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[str, Any]]:
        obs, state, reward, terminated, info = self._env.step_env(key, state, action, params)
        obs, reward = self._observation(obs), jnp.asarray(reward, jnp.float32)
        terminated, info = jnp.asarray(terminated, bool), strong(info)
        if self.end_broken:
            obs, reward, terminated, info = finite(obs, reward, terminated, info)
        return obs, strong(state), reward, terminated, info

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        obs, state = self._env.reset_env(key, params)
        return self._observation(obs), strong(state)

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        return self._env.is_truncated(state, params)

    def is_terminated(self, state: Any, params: Any) -> jax.Array:
        return self._env.is_terminated(state, params)

    def action_space(self, params: Any = None) -> Any:
        return self._env.action_space(self.default_params if params is None else params)

    def observation_space(self, params: Any) -> spaces.Box | spaces.Discrete:
        space = self._env.observation_space(params)
        if isinstance(space, spaces.Discrete):
            return space
        kept = jnp.uint8 if space.dtype == jnp.uint8 else jnp.float32
        return spaces.Box(space.low, space.high, space.shape, kept)

    def state_space(self, params: Any) -> Any:
        return self._env.state_space(params)

    def _observation(self, obs: Any) -> Any:
        return masks.map_obs(self._converted, obs)

    def _converted(self, obs: Any) -> jax.Array:
        is_bytes = getattr(obs, "dtype", None) == jnp.uint8
        return jnp.asarray(obs, jnp.uint8 if is_bytes else self._dtype)


class TypedStep(Typed):
    """The same for an environment whose `step` is its own: DeepSea counts across episodes in it."""

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any = None
    ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        params = self.default_params if params is None else params
        obs, state, reward, terminated, truncated, info = self._env.step(key, state, action, params)
        info = strong(info) | {"final_observation": self._observation(info["final_observation"])}
        return (
            self._observation(obs),
            strong(state),
            jnp.asarray(reward, jnp.float32),
            jnp.asarray(terminated, bool),
            jnp.asarray(truncated, bool),
            info,
        )


@struct.dataclass
class StickyState:
    """The inner state, and the last action that the environment received."""

    inner: Any
    last_action: jax.Array

    @property
    def time(self) -> jax.Array:
        """Steps since the reset."""
        return self.inner.time


class Sticky(Environment):
    """Repeats the last action, with a fixed probability, instead of taking the new one.

    As in the Arcade Learning Environment (Machado et al. 2018, arXiv:1709.06009, section 5); at
    the start of an episode the last action is 0, which is MinAtar's no-op.
    """

    def __init__(self, env: Environment, probability: float):
        self._env = env
        self._probability = probability

    @property
    def default_params(self) -> Any:
        return self._env.default_params

    @property
    def num_actions(self) -> int:
        return self._env.num_actions

    def step_env(
        self, key: jax.Array, state: StickyState, action: jax.Array, params: Any
    ) -> tuple[Any, StickyState, jax.Array, jax.Array, dict[str, Any]]:
        key_step, key_stick = jax.random.split(key)
        stuck = jax.random.bernoulli(key_stick, self._probability)
        action = jnp.where(stuck, state.last_action, jnp.asarray(action, jnp.int32))
        obs, inner, reward, terminated, info = self._env.step_env(
            key_step, state.inner, action, params
        )
        return obs, StickyState(inner, action), reward, terminated, info

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, StickyState]:
        obs, inner = self._env.reset_env(key, params)
        return obs, StickyState(inner, jnp.zeros((), jnp.int32))

    def is_truncated(self, state: StickyState, params: Any) -> jax.Array:
        return self._env.is_truncated(state.inner, params)

    def is_terminated(self, state: StickyState, params: Any) -> jax.Array:
        return self._env.is_terminated(state.inner, params)

    def action_space(self, params: Any = None) -> Any:
        return self._env.action_space(params)

    def observation_space(self, params: Any) -> Any:
        return self._env.observation_space(params)
