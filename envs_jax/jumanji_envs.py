"""Jumanji (Bonnet et al. 2023, arXiv:2306.09884): combinatorial problems, an optional extra."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.suites import OPTIONS, SuiteEnv, SuiteState, imported


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}."""
    return OPTIONS | {"masked": True}


def build(suite: str, name: str, masked: bool) -> JumanjiEnv:
    """The environment `name`. ValueError if the extra is not installed."""
    env = JumanjiEnv(imported("jumanji", suite, name).make(name), f"{suite}/{name}")
    env.masked = masked and "action_mask" in env.slices
    return env


class JumanjiEnv(SuiteEnv):
    """A problem of jumanji for one agent; illegal actions have the consequences they have there.

    The arrays of an observation are one vector, whose parts `slices` names; actions of several
    numbers are counted through, as by `jnp.ravel_multi_index`.
    """

    def __init__(self, env: Any, name: str):
        super().__init__(env, name)
        self._limit: int = getattr(env, "time_limit", 10_000)  # others end by themselves
        if hasattr(env, "time_limit"):
            env.time_limit = np.iinfo(np.int32).max  # of theirs, an episode would be terminated

    @property
    def time_limit(self) -> int:
        return self._limit

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(np.atleast_1d(self._env.action_spec.num_values).tolist())

    @property
    def num_actions(self) -> int:
        return int(np.prod(self._sizes))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where in the observation vector each of jumanji's arrays is, by its name."""
        timestep = jax.eval_shape(self._env.reset, jax.random.key(0))[1]
        found, end = {}, 0
        for path, x in jax.tree_util.tree_leaves_with_path(timestep.observation):
            begin, end = end, end + int(np.prod(x.shape))
            found[jax.tree_util.keystr(path, simple=True, separator=".")] = slice(begin, end)
        return found

    def action_mask(self, state: SuiteState, params: Any) -> jax.Array:
        return state.inner[1]

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        state, timestep = self._env.reset(key)
        return _vector(timestep.observation), (state, self._mask(timestep.observation))

    def play(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
        if len(self._sizes) > 1:
            action = jnp.stack(jnp.unravel_index(action, self._sizes))
        inner, timestep = self._env.step(state[0], action)
        state = inner, self._mask(timestep.observation)
        obs = _vector(timestep.observation)
        return obs, state, timestep.reward, timestep.last(), timestep.extras

    def _mask(self, observation: Any) -> jax.Array:
        mask = getattr(observation, "action_mask", None)
        return jnp.ones(self.num_actions, bool) if mask is None else mask.ravel()


def _vector(observation: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(observation)])
