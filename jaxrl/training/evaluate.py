"""Evaluation by whole episodes, in environments and with keys of its own."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agent import Agent, memoryless
from jaxrl.parts.rollout import draw, entries, reset, step_envs

# An episode ends by the environment's own flags. Only one that never ends is cut, after the steps
# that `env_params.max_steps_in_episode` allows, but no fewer and no more than these.
FEWEST_STEPS, MOST_STEPS = 10_000, 200_000


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
        max_steps: guard against episodes that never end; by default at least 10,000. An episode
            that reaches it counts with its return so far and is marked as not finished, with a
            warning.
        deterministic: act by the policy's mode instead of sampling from it.
    """
    evaluation: Evaluation = _evaluate(agent, state, key, episodes, max_steps, deterministic)
    if not isinstance(evaluation.finished, jax.core.Tracer):
        warn_of_unfinished(evaluation)
    return evaluation


def warn_of_unfinished(evaluation: Evaluation) -> None:
    """Warn where episodes were cut by the guard; called on the host."""
    unfinished = int((~np.asarray(evaluation.finished)).sum())
    if unfinished:
        warnings.warn(
            f"{unfinished} of {np.size(evaluation.finished)} evaluation episodes were cut off "
            f"unfinished after {np.max(evaluation.lengths):,} steps: their returns are too small",
            stacklevel=3,
        )


@partial(jax.jit, static_argnames=("episodes", "deterministic"))
def _evaluate(
    agent: Agent,
    state: Any,
    key: jax.Array,
    episodes: int,
    max_steps: int | jax.Array | None,
    deterministic: bool,
) -> Evaluation:
    env, env_params = agent.env, agent.env_params
    if max_steps is None:
        limit = getattr(env_params, "max_steps_in_episode", 0)
        max_steps = jnp.clip(limit, FEWEST_STEPS, MOST_STEPS)
    # An agent of a user's own may return a plain function.
    policy = memoryless(agent.policy(state, deterministic))
    act = jax.vmap(policy.step)
    reset_key, _, key = jax.random.split(key, 3)

    def running(carry):
        t, _, evaluation = carry
        return (t < max_steps) & ~evaluation.finished.all()

    def body(carry):
        t, actors, (returns, lengths, finished, sums) = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(key, t))
        # Episodes after the first of each environment do not count, so memory is never reset, and
        # they may begin where the first ones began.
        memory, action = act(actors.memory, actors.obs, jax.random.split(act_key, episodes))
        draws = draw(env_key, env, env_params, (episodes,), (first.obs, first.env_state))
        stepped = step_envs(draws, env, env_params, actors, action)
        env_state, obs, reward, terminated, truncated, _, info = stepped

        def add(total, x):
            return total + jnp.where(finished, 0, x)

        evaluation = Evaluation(
            add(returns, reward),
            lengths + ~finished,
            finished | terminated | truncated,
            jax.tree.map(add, sums, entries(info, agent.reported)),
        )
        return t + 1, actors._replace(env_state=env_state, obs=obs, memory=memory), evaluation

    first = reset(reset_key, env, env_params, episodes, memory=policy.initial())
    zeros = jnp.zeros((episodes,), jnp.float32)
    nothing = Evaluation(
        zeros,
        jnp.zeros((episodes,), jnp.int32),
        jnp.zeros((episodes,), bool),
        dict.fromkeys(agent.reported, zeros),
    )
    return jax.lax.while_loop(running, body, (jnp.zeros((), jnp.int32), first, nothing))[2]
