"""Wrappers that change what an agent sees, does or is rewarded with.

Each is an environment of gymnax's interface around another, taken apart into `reset_env` and
`step_env` like it; so an episode starts anew around all of it, from the agent's kind of resets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from envs_jax.wrappers import strong
from jaxrl import environments, masks
from jaxrl import spaces as jaxrl_spaces


def preprocessed(env: Any, action_repeat: int, clip_reward: float, frame_stack: int) -> Any:
    """The environment as these options of `make` have it."""
    if action_repeat != 1:
        env = ActionRepeat(env, action_repeat)
    if clip_reward:
        env = ClipReward(env, clip_reward)
    return env if frame_stack == 1 else FrameStack(env, frame_stack)


class Wrapper(Environment):
    """Another environment as it is; what subclasses change is a method or two.

    Raises: ValueError where its `step` is its own, which a wrapper around `step_env` would bypass.
    """

    def __init__(self, env: Any):
        if not environments.is_taken_apart(type(env)):
            raise ValueError(
                f"{type(self).__name__}: {jaxrl_spaces.name_of(env)} has a step of its own, which "
                "it would bypass: it needs gymnax's, made of step_env"
            )
        self._env = env
        self.resets = getattr(env, "resets", "fresh")
        self.pool_size = getattr(env, "pool_size", 16)
        # Steps that one action takes, of those that an episode's limit counts.
        self.action_repeat: int = getattr(env, "action_repeat", 1)

    @property
    def name(self) -> str:
        return jaxrl_spaces.name_of(self._env)

    @property
    def reports(self) -> tuple[str, ...]:
        """Entries of `info` that every agent sums over episodes, unasked."""
        return tuple(getattr(self._env, "reports", ()))

    @property
    def default_params(self) -> Any:
        return self._env.default_params

    @property
    def num_actions(self) -> int:
        return self._env.num_actions

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        return self._env.step_env(key, state, action, params)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        return self._env.reset_env(key, params)

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        return self._env.is_truncated(state, params)

    def is_terminated(self, state: Any, params: Any) -> jax.Array:
        return self._env.is_terminated(state, params)

    def action_space(self, params: Any = None) -> Any:
        return self._env.action_space(params)

    def observation_space(self, params: Any) -> Any:
        return self._env.observation_space(params)


class ActionRepeat(Wrapper):
    """Takes each action `times` times in a row, and adds up the rewards.

    Fewer where the episode ends within: its last observation, and what ended it, are then those of
    the step that did. Of `info` numbers that are not whole are added up, as a record of an episode
    adds them, and the rest is the last step's.
    """

    def __init__(self, env: Any, times: int):
        super().__init__(env)
        if times < 1:
            raise ValueError(f"{self.name}: action_repeat={times} is outside [1, inf)")
        if environments.interface(env, env.default_params).masked:
            raise ValueError(
                f"{self.name}: action_repeat={times} would take actions that are masked by then"
            )
        self._times = times
        self.action_repeat *= times

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        keys = jax.random.split(key, self._times)

        def again(before: Any, key: jax.Array) -> tuple[Any, None]:
            _, state, reward, terminated, info = before
            over = terminated | self._env.is_truncated(state, params)
            stepped = self._env.step_env(key, state, action, params)
            obs, state, added, terminated, entries = strong(stepped)
            entries = {name: _added(name, info[name], x) for name, x in entries.items()}
            after = obs, state, reward + added, terminated, entries
            return jax.tree.map(lambda x, y: jnp.where(over, x, y), before, after), None

        first = strong(self._env.step_env(keys[0], state, action, params))
        return jax.lax.scan(again, first, keys[1:])[0]


def _added(name: str, before: jax.Array, x: jax.Array) -> jax.Array:
    is_sum = jnp.issubdtype(x.dtype, jnp.floating) and name not in environments.GYMNAX_INFO
    return before + x if is_sum else x


class ClipReward(Wrapper):
    """Rewards clipped to [-limit, limit] (Mnih et al. 2015, with limit 1).

    `info["unclipped_reward"]` is the reward itself, summed over episodes by every agent.
    """

    def __init__(self, env: Any, limit: float):
        super().__init__(env)
        if not limit > 0:
            raise ValueError(f"{self.name}: clip_reward={limit} is outside (0, inf)")
        self._limit = limit

    @property
    def reports(self) -> tuple[str, ...]:
        return (*super().reports, "unclipped_reward")

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        obs, state, reward, terminated, info = self._env.step_env(key, state, action, params)
        info = info | {"unclipped_reward": reward}
        return obs, state, jnp.clip(reward, -self._limit, self._limit), terminated, info


class Partial(Wrapper):
    """Shows only some entries of observations that are vectors: positions, say, but no velocities.

    What is hidden makes a process that only a memory can tell the state of (Ni et al. 2022,
    arXiv:2110.05038).
    """

    def __init__(self, env: Any, seen: tuple[int, ...]):
        super().__init__(env)
        space = env.observation_space(env.default_params)
        shape: tuple[int, ...] = tuple(getattr(space, "shape", ()))
        if len(shape) != 1 or not seen or not all(0 <= i < shape[0] for i in seen):
            raise ValueError(f"{self.name}: seen={seen} are not entries of observations {shape}")
        self._seen = np.asarray(seen)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        obs, state = self._env.reset_env(key, params)
        return masks.map_obs(lambda x: x[self._seen], obs), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        obs, *rest = self._env.step_env(key, state, action, params)
        return masks.map_obs(lambda x: x[self._seen], obs), *rest

    def observation_space(self, params: Any) -> spaces.Box:
        space = self._env.observation_space(params)
        low, high = (  # which may follow from traced parameters
            jnp.broadcast_to(bound, space.shape)[self._seen] for bound in (space.low, space.high)
        )
        return spaces.Box(low, high, low.shape, space.dtype)


@struct.dataclass
class StackState:
    """The inner state, and the frames of the current observation (..., channels of all)."""

    inner: Any
    frames: jax.Array

    @property
    def time(self) -> jax.Array:
        """Steps since the reset."""
        return self.inner.time


class FrameStack(Wrapper):
    """Observations are the last `frames` ones, oldest first, joined along the last axis.

    An episode starts with its first observation `frames` times. Vectors (D,) become
    (frames x D,), images (H, W, C) (H, W, frames x C), in their own type.
    """

    def __init__(self, env: Any, frames: int):
        super().__init__(env)
        if frames < 1:
            raise ValueError(f"{self.name}: frame_stack={frames} is outside [1, inf)")
        space = env.observation_space(env.default_params)
        if not getattr(space, "shape", ()):
            raise ValueError(
                f"{self.name}: frame_stack={frames} needs observations that are vectors or images, "
                f"not {space}"
            )
        self._frames = frames

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, StackState]:
        obs, state = self._env.reset_env(key, params)
        frames = jnp.concatenate([masks.split(obs)[0]] * self._frames, axis=-1)
        return masks.map_obs(lambda _: frames, obs), StackState(state, frames)

    def step_env(
        self, key: jax.Array, state: StackState, action: jax.Array, params: Any
    ) -> tuple[Any, StackState, jax.Array, jax.Array, dict[str, Any]]:
        obs, inner, *rest = self._env.step_env(key, state.inner, action, params)
        newest, _ = masks.split(obs)
        frames = jnp.concatenate([state.frames[..., newest.shape[-1] :], newest], axis=-1)
        return masks.map_obs(lambda _: frames, obs), StackState(inner, frames), *rest

    def is_truncated(self, state: StackState, params: Any) -> jax.Array:
        return self._env.is_truncated(state.inner, params)

    def is_terminated(self, state: StackState, params: Any) -> jax.Array:
        return self._env.is_terminated(state.inner, params)

    def observation_space(self, params: Any) -> spaces.Box:
        space = self._env.observation_space(params)

        def stacked(bound: Any) -> Any:
            if not jnp.ndim(bound):
                return bound
            return jnp.concatenate([jnp.broadcast_to(bound, space.shape)] * self._frames, axis=-1)

        shape = (*space.shape[:-1], space.shape[-1] * self._frames)
        return spaces.Box(stacked(space.low), stacked(space.high), shape, space.dtype)


class Flat(Wrapper):
    """Observations of a Dict or Tuple space, also of nested ones, as one vector.

    Its parts follow each other in the space's order: boxes in row-major order, discrete ones as
    one-hot vectors, bytes within [0, 1]. `slices` says where each is: `obs[env.slices["goal"]]`,
    with "/" between the names of nested ones and numbers for those of a Tuple. A part named
    "action_mask", of one entry per action, is no part of it but masks actions (`jaxrl.Masked`), as
    in PettingZoo and RLlib; what is then a single array stays in its own shape and type.
    """

    def __init__(self, env: Any):
        super().__init__(env)
        space = env.observation_space(env.default_params)
        if not hasattr(space, "spaces"):
            raise ValueError(f"Flat: {self.name} has {space} as its observation space: it is flat")
        for path, part in _parts(space, ()):
            if path != ("action_mask",) and not (
                jaxrl_spaces.is_discrete(part) or jaxrl_spaces.is_box(part)
            ):
                raise ValueError(
                    f"Flat: {self.name} has a {type(part).__name__} as {'/'.join(map(str, path))} "
                    "of its observation space; it takes Discrete and Box"
                )
        self._parts = [part for part in _parts(space, ()) if part[0] != ("action_mask",)]
        self._masked = "action_mask" in _children(space)
        sizes = [int(np.prod(jaxrl_spaces.encoded_shape(part))) for _, part in self._parts]
        ends = np.cumsum(sizes).tolist()
        names = ["/".join(map(str, path)) for path, _ in self._parts]
        self.slices = {n: slice(e - s, e) for n, s, e in zip(names, sizes, ends, strict=True)}

    def reset_env(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        obs, state = self._env.reset_env(key, params)
        return self._flat(obs), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[Any, Any, jax.Array, jax.Array, dict[str, Any]]:
        obs, *rest = self._env.step_env(key, state, action, params)
        return self._flat(obs), *rest

    def observation_space(self, params: Any) -> Any:
        if self._is_single:
            return self._parts[0][1]
        low, high = (
            jnp.concatenate([_bound(part, name) for _, part in self._parts])
            for name in ("low", "high")
        )
        return spaces.Box(low, high, low.shape, jnp.float32)

    @property
    def _is_single(self) -> bool:
        return self._masked and len(self._parts) == 1

    def _flat(self, obs: Any) -> Any:
        leaves = [_at(obs, path) for path, _ in self._parts]
        if self._is_single:
            flat = jnp.asarray(leaves[0])
        else:
            flat = jnp.concatenate(
                [
                    jnp.asarray(jaxrl_spaces.encode(part, jnp.asarray(x)), jnp.float32).ravel()
                    for x, (_, part) in zip(leaves, self._parts, strict=True)
                ]
            )
        if not self._masked:
            return flat
        return masks.Masked(flat, jnp.asarray(_at(obs, ("action_mask",)), bool))


def _children(space: Any) -> dict[Any, Any]:
    """The spaces that a Dict or Tuple is of, by their names or numbers."""
    inner = space.spaces
    return dict(inner.items() if isinstance(inner, Mapping) else enumerate(inner))


def _parts(space: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every box and discrete space within, and the names that lead to it."""
    if not hasattr(space, "spaces"):
        yield path, space
        return
    for name, inner in _children(space).items():
        yield from _parts(inner, (*path, name))


def _at(obs: Any, path: tuple[Any, ...]) -> Any:
    """A part of an observation, which may be of dicts, tuples and classes with fields."""
    for name in path:
        is_field = isinstance(name, str) and not isinstance(obs, Mapping)
        obs = getattr(obs, name) if is_field else obs[name]
    return obs


def _bound(space: Any, name: str) -> jax.Array:
    """A bound of an encoded part, flat."""
    shape = jaxrl_spaces.encoded_shape(space)
    if jaxrl_spaces.is_discrete(space) or np.dtype(space.dtype) == np.uint8:
        return jnp.full(int(np.prod(shape)), name == "high", jnp.float32)
    return jnp.broadcast_to(jnp.asarray(getattr(space, name), jnp.float32), shape).ravel()
