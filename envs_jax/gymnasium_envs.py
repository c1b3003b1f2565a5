"""Environments of gymnasium (Towers et al. 2024, arXiv:2407.17032), which run on the host."""

from __future__ import annotations

import contextlib
import zlib
from collections import OrderedDict
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnax.environments import spaces
from gymnax.environments.environment import Environment
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from envs_jax.physics import quiet
from envs_jax.suites import SuiteParams
from envs_jax.wrappers import constructor_options

_TAKEN = gymnasium.spaces.Box | gymnasium.spaces.Discrete
BATCHES = 8  # of environments that are kept; those that were not used for longest are closed


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: those of the environment's own constructor."""
    spec = _spec(name)
    try:
        made_by = spec.entry_point
        if isinstance(made_by, str):
            made_by = gymnasium.envs.registration.load_env_creator(made_by)
        own = constructor_options(made_by) | spec.kwargs
    except (ImportError, gymnasium.error.Error, TypeError, ValueError):
        own = dict(spec.kwargs)  # `build` says what is missing
    kinds = bool | int | float | str | tuple | None
    return {x: own[x] for x in own if isinstance(own[x], kinds) and x != "render_mode"}


def build(suite: str, name: str, **settings: Any) -> GymnasiumEnv:
    """The environment `name` of gymnasium's registry, or module:NAME.

    ValueError if there is none, if what it needs is not installed, or of spaces that agents do not
    take.
    """
    spec = _spec(name)
    options = tuple(sorted(settings.items()))
    make = partial(_make, name, options)
    try:
        env = make()
    except (ImportError, gymnasium.error.Error) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{suite}/{name} cannot be made: {line}") from None
    seen, taken = env.observation_space, env.action_space
    env.close()
    for kind, space in (("observation", seen), ("action", taken)):
        if not isinstance(space, _TAKEN):
            raise ValueError(f"{suite}/{name}: agents do not take its {kind}s, {space}")
    limit = spec.max_episode_steps or 10_000
    return GymnasiumEnv(make, f"{suite}/{name}", options, seen, taken, limit)


def _spec(name: str) -> Any:
    try:
        return gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"unknown environment 'gymnasium/{name}': {line}") from None


def _make(name: str, options: tuple[tuple[str, Any], ...]) -> gymnasium.Env[Any, Any]:
    # The time limit is ours: a traced parameter, as everywhere else.
    arguments = {"max_episode_steps": -1, "disable_env_checker": True, **dict(options)}
    with quiet() if "mujoco" in str(gymnasium.spec(name).entry_point) else contextlib.nullcontext():
        env = gymnasium.make(name, **arguments)
    if isinstance(env.observation_space, _TAKEN):
        return env
    return gymnasium.wrappers.FlattenObservation(env)


@struct.dataclass
class HostState:
    """Where an environment is on the host, and the steps since its reset."""

    batch: jax.Array  # int32 scalar: a number of the environments that were reset together
    row: jax.Array  # int32 scalar: which of them
    time: jax.Array  # int32 scalar


class GymnasiumEnv(Environment):
    """An environment that lives on the host, called from within the program, in order.

    Environments that were reset together, by vmap, are a vector environment of gymnasium and step
    in one call. Their seeds follow from the keys. A state says only which environment is meant: it
    cannot be stepped twice, and after a resume in another process its episode begins anew.
    """

    resets = "fresh"
    on_host = True  # members of a population train one after the other

    def __init__(self, make: Any, name: str, options: Any, seen: Any, taken: Any, limit: int):
        self._make, self._name, self._options, self._limit = make, name, options, limit
        self._seen, self._taken = _space(seen), _space(taken)
        self._first_seen = int(getattr(seen, "start", 0))  # discrete spaces may start elsewhere
        self._first_taken = int(getattr(taken, "start", 0))
        self._batches: OrderedDict[int, SyncVectorEnv] = OrderedDict()
        obs = jax.ShapeDtypeStruct(self._seen.shape, self._seen.dtype)
        number, flag = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.bool_)
        reward = jax.ShapeDtypeStruct((), np.float32)
        self._reset = _called(self._reset_batch, (obs, number, number), name)
        self._step = _called(self._step_batch, (obs, obs, reward, flag, flag), name)

    @property
    def name(self) -> str:
        return self._name

    @property
    def default_params(self) -> SuiteParams:
        return SuiteParams(jnp.asarray(self._limit, jnp.int32))

    @property
    def num_actions(self) -> int:
        discrete = isinstance(self._taken, spaces.Discrete)
        return self._taken.n if discrete else int(np.prod(self._taken.shape))

    def action_space(self, params: SuiteParams | None = None) -> Any:
        return self._taken

    def observation_space(self, params: SuiteParams) -> Any:
        return self._seen

    def reset(self, key: jax.Array, params: SuiteParams | None = None) -> tuple[Any, HostState]:
        obs, batch, row = self._reset(_seed(key))
        return obs, HostState(batch, row, jnp.zeros((), jnp.int32))

    def step(
        self, key: jax.Array, state: HostState, action: Any, params: SuiteParams | None = None
    ) -> tuple[Any, HostState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        params = self.default_params if params is None else params
        time = state.time + 1
        cut = time >= params.max_steps_in_episode
        action = jnp.asarray(action, self._taken.dtype)
        obs, final_obs, reward, terminated, truncated = self._step(
            state.batch, state.row, action, cut, _seed(key)
        )
        time = jnp.where(terminated | truncated, 0, time)
        info = {"final_observation": final_obs}
        return obs, HostState(state.batch, state.row, time), reward, terminated, truncated, info

    # On the host --------------------------------------------------------------------------------

    def _reset_batch(self, seeds: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = zlib.crc32(seeds.tobytes()) >> 1  # the same numbers in every run of a seed
        obs = self._fresh(batch, seeds)
        rows = np.arange(len(seeds), dtype=np.int32)
        return obs, np.full_like(rows, batch), rows

    def _fresh(self, batch: int, seeds: np.ndarray) -> np.ndarray:
        """Observations of a batch of environments that are made or, if there already, reset."""
        envs = self._batches.pop(batch, None)
        if envs is None or envs.num_envs != len(seeds):
            makes = [self._make] * len(seeds)
            envs = SyncVectorEnv(makes, autoreset_mode=AutoresetMode.DISABLED)
        self._batches[batch] = envs
        if len(self._batches) > BATCHES:
            self._batches.popitem(last=False)[1].close()
        return self._observed(envs.reset(seed=[int(seed) for seed in seeds])[0])

    def _step_batch(
        self,
        batch: np.ndarray,
        rows: np.ndarray,
        actions: np.ndarray,
        cut: np.ndarray,
        seeds: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        """(obs, final_obs, reward, terminated, truncated) of a batch; what has ended is reset."""
        number, whole = int(batch[0]), np.arange(len(rows))
        if number not in self._batches:  # a run that was resumed
            self._fresh(number, seeds)
        envs: Any = self._batches[number]
        self._batches.move_to_end(number)
        if envs.num_envs != len(rows) or (rows != whole).any() or (batch != number).any():
            raise ValueError(
                f"{self._name}: {envs.num_envs} environments that were reset together on the host "
                f"have to be stepped together, not {len(rows)} of them"
            )
        final_obs, reward, terminated, truncated, _ = envs.step(actions + self._first_taken)
        truncated = truncated | cut
        obs, done = final_obs, terminated | truncated
        if done.any():
            drawn = [int(seed) for seed in seeds]
            obs, _ = envs.reset(seed=drawn, options={"reset_mask": done})
        return (
            self._observed(obs),
            self._observed(final_obs),
            np.asarray(reward, np.float32),
            terminated,
            truncated,
        )

    def _observed(self, obs: np.ndarray) -> np.ndarray:
        obs = obs - self._first_seen if self._first_seen else obs
        return np.asarray(obs, self._seen.dtype)


def _space(space: Any) -> spaces.Box | spaces.Discrete:
    """A space of gymnasium as one of gymnax; bytes stay bytes, other numbers are float32."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return spaces.Discrete(int(space.n))
    dtype = jnp.uint8 if space.dtype == np.uint8 else jnp.float32
    return spaces.Box(space.low.astype(dtype), space.high.astype(dtype), space.shape, dtype)


def _seed(key: jax.Array) -> jax.Array:
    return jax.random.bits(key, (), jnp.uint32)


def _called(function: Any, results: tuple[Any, ...], name: str) -> Any:
    """A function of arrays (n, ...) on the host as one of scalars, which vmap batches into a call.

    `results` are the shapes of what it returns for one environment.
    """

    every = jax.tree.map(lambda _: True, results)  # is batched

    def call(*args: jax.Array) -> Any:
        n = args[0].shape[0]
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), results)
        return io_callback(
            lambda *args: function(*map(np.asarray, args)), shapes, *args, ordered=True
        )

    batched = custom_vmap(call)

    @batched.def_vmap
    def of_members(size: int, is_batched: Any, *args: jax.Array) -> Any:
        if size > 1:
            raise ValueError(
                f"{name} steps on the host, for one member at a time: it takes no population of "
                f"{size}"
            )
        one = [x[0] if given else x for x, given in zip(args, is_batched, strict=True)]
        return jax.tree.map(lambda x: x[None], batched(*one)), every

    @custom_vmap
    def single(*args: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[0], batched(*(x[None] for x in args)))

    @single.def_vmap
    def together(size: int, is_batched: Any, *args: jax.Array) -> Any:
        whole = [
            x if given else jnp.broadcast_to(x, (size, *x.shape))
            for x, given in zip(args, is_batched, strict=True)
        ]
        return batched(*whole), every

    return single
