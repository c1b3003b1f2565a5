"""Replay memory on the device: a ring of rows, each one step of all N environments.

It holds no write pointer. Before iteration t a run has written t * num_steps rows, whichever member
it is, so one unbatched number places every write of a whole population, and only data is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl.parts.rollout import Transition


class Replay(NamedTuple):
    """Arrays (rows, N, ...), each in its own dtype; observations may be pytrees of them.

    Attributes:
        obs, action, reward, terminated: of each step.
        next_obs: the observation the step led to, before any reset. None in a lean memory, which
            reads it off the next row.
        truncated: None except in a lean memory, which has lost the observation at which an episode
            was cut, and so cannot use that step.
    """

    obs: Any
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    next_obs: Any
    truncated: jax.Array | None


class Batch(NamedTuple):
    """Sampled steps (B, ...); `valid` (B,) is false where the successor is not known."""

    obs: Any
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    next_obs: Any
    valid: jax.Array


class Dataset(NamedTuple):
    """Recorded steps (M, ...) in the order of their episodes, which nothing changes.

    Attributes:
        action: within [-1, 1] where continuous.
        best_first: indices (M,) of the steps by their episodes' returns, highest first.
        return_range: the lowest and the highest return of whole episodes (2,).
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: jax.Array
    best_first: jax.Array
    return_range: jax.Array


def create(obs: Any, action: Any, num_rows: int, lean: bool) -> Replay:
    """An empty memory of `num_rows` rows for observations and actions like those given (N, ...).

    >>> from jaxrl.parts.trees import nbytes
    >>> memory = create(jnp.zeros((2, 3)), jnp.zeros(2, int), num_rows=4, lean=False)
    >>> memory.obs.shape, nbytes(memory)
    ((4, 2, 3), 264)
    """

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros((num_rows, *shape), dtype)

    def rows_of(tree: Any) -> Any:
        return jax.tree.map(lambda x: rows(x.shape, x.dtype), tree)

    envs = action.shape[:1]
    return Replay(
        obs=rows_of(obs),
        action=rows(action.shape, action.dtype),
        reward=rows(envs, jnp.float32),
        terminated=rows(envs, bool),
        next_obs=None if lean else rows_of(obs),
        truncated=rows(envs, bool) if lean else None,
    )


def add(replay: Replay, written: jax.Array, steps: Transition) -> Replay:
    """Overwrite the oldest rows with a rollout's T rows, T a divisor of the number of rows.

    Args:
        written: rows written before this, ever.
    """
    start = written % replay.reward.shape[0]

    def write(rows: jax.Array, new: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(rows, new.astype(rows.dtype), start, axis=0)

    def write_all(rows: Any, new: Any) -> Any:
        return jax.tree.map(write, rows, new)

    return Replay(
        obs=write_all(replay.obs, steps.obs),
        action=write(replay.action, steps.action),
        reward=write(replay.reward, steps.reward),
        terminated=write(replay.terminated, steps.terminated),
        next_obs=None if replay.next_obs is None else write_all(replay.next_obs, steps.final_obs),
        truncated=None if replay.truncated is None else write(replay.truncated, steps.truncated),
    )


def sample(
    key: jax.Array,
    replay: Replay,
    written: jax.Array,
    batch_size: int,
    newest: int | None = None,
) -> Batch:
    """Steps drawn uniformly, with replacement, from what is stored.

    Args:
        written: rows written so far, ever; at least 1, in a lean memory 2.
        newest: draw only from this many newest rows.
    """
    num_rows, num_envs = replay.reward.shape
    lean = replay.next_obs is None

    def take(rows: Any, row: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[row, env], rows)

    stored = jnp.minimum(written, num_rows if newest is None else min(newest, num_rows))
    row_key, env_key = jax.random.split(key)
    # The successor of a lean memory's newest row is not stored yet.
    age = jax.random.randint(row_key, (batch_size,), 1 if lean else 0, stored)
    row = (written - 1 - age) % num_rows
    env = jax.random.randint(env_key, (batch_size,), 0, num_envs)
    if replay.next_obs is None:
        assert replay.truncated is not None
        next_obs = take(replay.obs, (row + 1) % num_rows)
        terminated = replay.terminated[row, env]
        # With a single row stored, its successor is not.
        valid = (terminated | ~replay.truncated[row, env]) & (age < stored)
    else:
        next_obs, terminated = take(replay.next_obs, row), replay.terminated[row, env]
        valid = jnp.ones((batch_size,), bool)
    return Batch(
        take(replay.obs, row),
        replay.action[row, env],
        replay.reward[row, env],
        terminated,
        next_obs,
        valid,
    )


def draw(key: jax.Array, data: Dataset, batch_size: int, best: float | jax.Array = 1.0) -> Batch:
    """Steps drawn uniformly, with replacement, from a dataset.

    Args:
        best: draw only from this share of its steps, those of the episodes with the highest
            returns.
    """
    size = len(data.reward)
    eligible = jnp.clip(jnp.ceil(best * size).astype(jnp.int32), 1, size)
    i = data.best_first[jax.random.randint(key, (batch_size,), 0, eligible)]
    return Batch(
        data.obs[i],
        data.action[i],
        data.reward[i],
        data.terminated[i],
        data.next_obs[i],
        jnp.ones((batch_size,), bool),
    )


def valid_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of the values (B,) whose step is valid; 0 where none is.

    >>> float(valid_mean(jnp.array([1.0, 2.0, 6.0]), jnp.array([True, True, False])))
    1.5
    """
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)
