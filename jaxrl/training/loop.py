"""The loop over iterations, inside a compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def iterate(
    step: Callable[..., Any], agents: Any, states: Any, t: Any, stop: Any, length: int
) -> Any:
    """Run `step(states, t)` for t..stop-1, its metrics written to `length` rows (NaN: not run).

    The loop stands outside of any vmap over members, so that t is never batched and a cond on it
    stays a branch. Members that have taken all their steps (which only happens early where
    iterations vary in length) are held still until the slowest is done.
    """

    step = jax.jit(step)  # traced once, though both its shapes and itself are asked for

    def row(states, metrics, held, i):
        env_steps = agents.env_steps(states)
        if env_steps is None:
            env_steps = jnp.broadcast_to((i + 1) * agents.steps_per_iteration, held.shape)
        metrics = {k: jnp.where(held, jnp.nan, v) for k, v in metrics.items()}
        return {"metrics": metrics, "env_steps": jnp.where(held, -1, env_steps)}

    def body(carry):
        i, states, rows = carry
        held = finished(agents, states)
        new, metrics = step(states, i)
        if agents.env_steps(states) is not None:
            new = jax.tree.map(lambda old, new: _where(held, old, new), states, new)
        written = row(new, metrics, held, i)
        rows = jax.tree.map(lambda all_rows, x: all_rows.at[i - t].set(x), rows, written)
        return i + 1, new, rows

    def unfinished(carry):
        i, states, _ = carry
        return (i < stop) & ~jnp.all(finished(agents, states))

    metrics = jax.eval_shape(lambda s: step(s, t)[1], states)
    shapes = jax.eval_shape(row, states, metrics, finished(agents, states), t)
    empty = jax.tree.map(
        lambda s: jnp.full(
            (length, *s.shape), jnp.nan if jnp.issubdtype(s.dtype, jnp.floating) else -1, s.dtype
        ),
        shapes,
    )
    _, states, rows = lax.while_loop(unfinished, body, (t, states, empty))
    return states, rows


def finished(agents: Any, states: Any) -> jax.Array:
    """Which members have taken all their steps; where iterations are of one length, `t` tells."""
    env_steps = agents.env_steps(states)
    if env_steps is None:
        return jnp.zeros(states.key.shape, bool)
    return env_steps >= agents.total_steps


def all_finite(agents: Any, states: Any) -> jax.Array:
    """Which members' parameters are all finite (members,)."""
    leaves = jax.tree.leaves(agents.learned(states))
    real = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    finite = jnp.ones(states.key.shape, bool)
    for x in real:
        finite &= jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return finite


def _where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)
