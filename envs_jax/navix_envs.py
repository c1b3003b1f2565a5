"""NAVIX (Pignatelli et al. 2024, arXiv:2407.19396): MiniGrid in JAX, an optional extra."""

from __future__ import annotations

from typing import Any

import jax

from envs_jax.catalogue import unknown
from envs_jax.suites import OPTIONS, SuiteEnv, imported, one_hot

_OBSERVATIONS = ("symbolic", "symbolic_first_person")
_SYMBOLS = (11, 6, 4)  # objects, colours, and states of a door or directions of the player


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: the whole grid is seen, or what lies around and before the player."""
    return OPTIONS | {"observation": _OBSERVATIONS[0]}


def build(suite: str, name: str, observation: str) -> NavixEnv:
    """The environment `name`. ValueError if the extra is not installed, or for an observation."""
    if observation not in _OBSERVATIONS:
        raise ValueError(f"{suite}/{name}: {unknown('observation', observation, _OBSERVATIONS)}")
    navix = imported("navix", suite, name)
    env = navix.make(name, observation_fn=getattr(navix.observations, observation))
    return NavixEnv(env, f"{suite}/{name}", observation)


class NavixEnv(SuiteEnv):
    """A grid world, seen as one-hot objects, colours and states (H, W, 21).

    A symbol without a meaning there, such as state 254 of KeyCorridor's locked door, is zeros.
    """

    def __init__(self, env: Any, name: str, observation: str):
        super().__init__(env, name)
        self._observation = observation

    @property
    def time_limit(self) -> int:
        return self._env.max_steps

    @property
    def num_actions(self) -> int:
        return len(self._env.action_set)

    def start(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        timestep = self._env.reset(key)
        return one_hot(timestep.observation, _SYMBOLS), timestep

    def play(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> Any:
        # `step` would begin the next episode one step late.
        env = self._env.replace(max_steps=params.max_steps_in_episode)
        timestep = env._step(state, action)
        obs = one_hot(timestep.observation, _SYMBOLS)
        return obs, timestep, timestep.reward, timestep.is_termination(), {}
