"""Craftax and Craftax-Classic (Matthews et al. 2024, arXiv:2402.16801), an optional extra."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.suites import OPTIONS, SuiteEnv, imported
from envs_jax.wrappers import strong


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}."""
    return dict(OPTIONS)


def build(suite: str, name: str) -> CraftaxEnv:
    """The environment `name`. ValueError if the extra is not installed."""
    make = imported("craftax.craftax_env", suite, name).make_craftax_env_from_name
    return CraftaxEnv(make(name, auto_reset=False), f"{suite}/{name}")


class CraftaxEnv(SuiteEnv):
    """A Craftax environment; its parameters are Craftax's own, by their names there."""

    def __init__(self, env: Any, name: str):
        super().__init__(env, name)
        self._theirs = env.default_params
        values = {f.name: getattr(self._theirs, f.name) for f in dataclasses.fields(self._theirs)}
        self._limit: int = values.pop("max_timesteps")
        numbers = {name: x for name, x in values.items() if isinstance(x, bool | int | float)}
        fields = dict.fromkeys(["max_steps_in_episode", *numbers], jax.Array)
        params: Any = struct.dataclass(type("CraftaxParams", (), {"__annotations__": fields}))
        self._params = params(self._limit, **numbers)

    @property
    def time_limit(self) -> int:
        return self._limit

    @property
    def num_actions(self) -> int:
        return self._env.num_actions

    @property
    def default_params(self) -> Any:
        return strong(self._params)

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        return self._env.reset_env(key, self._own(params))

    def play(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
        own = self._own(params)
        obs, state, reward, _, info = self._env.step_env(key, state, action, own)
        # Theirs ends at the time limit as well: there it reports achievements, to be recorded.
        endless = own.replace(max_timesteps=jnp.iinfo(jnp.int32).max)
        return obs, state, reward, self._env.is_terminal(state, endless), info

    def _own(self, params: Any) -> Any:
        values = vars(params).copy()
        return self._theirs.replace(max_timesteps=values.pop("max_steps_in_episode"), **values)
