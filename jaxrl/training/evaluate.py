"""Evaluation by whole episodes, in environments and with keys of its own."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.agent import Agent, memoryless
from jaxrl.parts.rollout import draw_pool, recorded, reset, step_envs

DEFAULT_MAX_STEPS = 10_000


class Evaluation(NamedTuple):
    """Episodes (..., episodes).

    Attributes:
        returns: undiscounted.
        lengths: in steps.
        finished: whether each ended within its cap.
        info: sums over each episode of what the agent records, name -> (..., episodes).
    """

    returns: jax.Array
    lengths: jax.Array
    finished: jax.Array
    info: dict[str, jax.Array] = {}  # noqa: RUF012  (never changed in place)


@partial(jax.jit, static_argnames=("episodes", "deterministic"))
def evaluate(
    agent: Agent,
    state: Any,
    key: jax.Array,
    episodes: int = 64,
    max_steps: int | jax.Array | None = None,
    deterministic: bool = True,
) -> Evaluation:
    """Run the agent's policy for `episodes` episodes from fresh resets.

    Args:
        max_steps: cap on an episode; defaults to the environment's own time limit
            (`env_params.max_steps_in_episode`), else 10,000. An episode that reaches the cap
            counts with its return so far and is marked as not finished.
        deterministic: act by the policy's mode instead of sampling from it.
    """
    env, env_params = agent.env, agent.env_params
    if max_steps is None:
        max_steps = getattr(env_params, "max_steps_in_episode", DEFAULT_MAX_STEPS)
    # An agent of a user's own may return a plain function.
    policy = memoryless(agent.policy(state, deterministic))
    act = jax.vmap(policy.step)
    reset_key, pool_key, key = jax.random.split(key, 3)
    pool = draw_pool(pool_key, env, env_params)

    def running(carry):
        t, _, evaluation = carry
        return (t < max_steps) & ~evaluation.finished.all()

    def body(carry):
        t, actors, (returns, lengths, finished, sums) = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(key, t))
        # Episodes after the first of each environment do not count, so memory is never reset.
        memory, action = act(actors.memory, actors.obs, jax.random.split(act_key, episodes))
        stepped = step_envs(env_key, env, env_params, actors, pool, action)
        env_state, obs, reward, terminated, truncated, _, info = stepped

        def add(total, x):
            return total + jnp.where(finished, 0, x)

        evaluation = Evaluation(
            add(returns, reward),
            lengths + ~finished,
            finished | terminated | truncated,
            jax.tree.map(add, sums, recorded(info, agent.record)),
        )
        return t + 1, actors._replace(env_state=env_state, obs=obs, memory=memory), evaluation

    actors = reset(reset_key, env, env_params, episodes, memory=policy.initial())
    zeros = jnp.zeros((episodes,))
    nothing = Evaluation(
        zeros,
        jnp.zeros((episodes,), jnp.int32),
        jnp.zeros((episodes,), bool),
        dict.fromkeys(agent.record, zeros),
    )
    return jax.lax.while_loop(running, body, (jnp.zeros((), jnp.int32), actors, nothing))[2]
