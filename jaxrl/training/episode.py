"""One episode of a trained agent, of which every step is kept: to look at, not to measure."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agent import Agent, memoryless
from jaxrl.parts.rollout import draw, reset, step_envs

STEPS = 100  # that the program takes at once


class Episode(NamedTuple):
    """In NumPy, a row for each step (T, ...).

    Attributes:
        states, obs: of the environment, before the step.
        actions: in the environment's own units.
        rewards: of the step.
    """

    states: Any
    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray

    def __len__(self) -> int:
        return len(self.rewards)

    def state(self, step: int) -> Any:
        """The environment's state before one step."""
        return jax.tree.map(lambda x: x[step], self.states)


def episode(
    agent: Agent, state: Any, key: jax.Array, max_steps: int = 10_000, deterministic: bool = True
) -> Episode:
    """An episode from a fresh reset to its end, or to `max_steps`."""
    reset_key, key = jax.random.split(key)
    policy = memoryless(agent.policy(state, deterministic))
    actors = reset(reset_key, agent.env, agent.env_params, 1, memory=policy.initial())
    parts: list[Any] = []
    for first in range(0, max_steps, STEPS):
        actors, part, done = _steps(agent, state, actors, key, first, deterministic)
        ends = np.flatnonzero(np.asarray(done))
        last = min(ends[0] + 1 if len(ends) else STEPS, max_steps - first)
        parts.append(jax.tree.map(lambda x, last=last: np.asarray(x)[:last], part))
        if len(ends):
            break
    joined: Episode = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return joined


@partial(jax.jit, static_argnames=("deterministic",))
def _steps(
    agent: Agent, state: Any, actors: Any, key: jax.Array, first: Any, deterministic: bool
) -> tuple[Any, Episode, jax.Array]:
    env, env_params = agent.env, agent.env_params
    act = jax.vmap(memoryless(agent.policy(state, deterministic)).step)

    def body(actors, t):
        act_key, env_key = jax.random.split(jax.random.fold_in(key, t))
        memory, action = act(actors.memory, actors.obs, act_key[None])
        draws = draw(env_key, env, env_params, (1,), (actors.obs, actors.env_state))
        stepped = step_envs(draws, env, env_params, actors, action)
        env_state, obs, reward, terminated, truncated, *_ = stepped
        seen = Episode(
            *[
                jax.tree.map(lambda x: x[0], part)
                for part in (actors.env_state, actors.obs, action, reward)
            ]
        )
        actors = actors._replace(env_state=env_state, obs=obs, memory=memory)
        return actors, (seen, (terminated | truncated)[0])

    actors, (seen, done) = jax.lax.scan(body, actors, first + jnp.arange(STEPS))
    return actors, seen, done
