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
        truncated: None where nothing asks for it. A lean memory has lost the observation at which
            an episode was cut, and so cannot use that step; windows of steps end there.
    """

    obs: Any
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    next_obs: Any
    truncated: jax.Array | None


class Batch(NamedTuple):
    """Sampled steps (B, ...); `valid` (B,) is false where the successor is not known.

    Sampled as windows of n steps, a row has the rewards (B, n) of all of them, of which the first
    `num_steps` (B,) count: the window ends where its episode does, or what is stored. `terminated`
    and `next_obs` are then those of its last step, `obs` and `action` those of its first.

    Sampled as whole windows, it has `action`, `terminated`, `next_obs` and `valid` (B, n, ...) of
    every step, and `obs` of the first. Beyond its length a window repeats its last step, which is
    valid there only if that terminated: nothing that is done afterwards changes anything.
    """

    obs: Any
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    next_obs: Any
    valid: jax.Array
    num_steps: jax.Array | None = None  # None: single steps


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


def create(obs: Any, action: Any, num_rows: int, lean: bool, windows: bool = False) -> Replay:
    """An empty memory of `num_rows` rows for observations and actions like those given (N, ...).

    Args:
        lean: store observations once, without successors.
        windows: whether more than single steps will be sampled.

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
        truncated=rows(envs, bool) if lean or windows else None,
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
    n_step: int = 1,
    whole: bool = False,
) -> Batch:
    """Steps drawn uniformly, with replacement, from what is stored.

    Args:
        written: rows written so far, ever; at least 1, in a lean memory 2.
        newest: draw only from this many newest rows.
        n_step: draw windows of this many steps, by their first ones.
        whole: keep all their steps.
    """
    num_rows, num_envs = replay.reward.shape
    lean = replay.next_obs is None

    def take(rows: Any, row: jax.Array, env: jax.Array) -> Any:
        return jax.tree.map(lambda x: x[row, env], rows)

    def ended(row: jax.Array) -> jax.Array:
        assert replay.truncated is not None
        return replay.terminated[row, env] | replay.truncated[row, env]

    stored = jnp.minimum(written, num_rows if newest is None else min(newest, num_rows))
    row_key, env_key = jax.random.split(key)
    # The successor of a lean memory's newest row is not stored yet.
    age = jax.random.randint(row_key, (batch_size,), 1 if lean else 0, stored)
    row = (written - 1 - age) % num_rows
    env = jax.random.randint(env_key, (batch_size,), 0, num_envs)
    obs = take(replay.obs, row, env)
    reward, last, num_steps = replay.reward[row, env], row, None
    action, known_successor, within = replay.action[row, env], age < stored, None
    if n_step > 1 or whole:
        window = [(row + i) % num_rows for i in range(n_step)]
        reward = jnp.stack([replay.reward[each, env] for each in window], axis=1)
        known = jnp.maximum(age + 1 - int(lean), 1)  # steps up to the newest with a successor
        num_steps = window_length(jnp.stack([ended(each) for each in window], axis=1), known)
        last = (row + num_steps - 1) % num_rows
    if whole:
        assert num_steps is not None
        within, offset = steps_of_windows(num_steps, n_step)
        last, env, known_successor = (
            (row[:, None] + offset) % num_rows,
            env[:, None],
            known_successor[:, None],
        )
        action = replay.action[last, env]
    terminated = replay.terminated[last, env]
    if replay.next_obs is None:
        assert replay.truncated is not None
        next_obs = take(replay.obs, (last + 1) % num_rows, env)
        # With a single row stored, its successor is not.
        valid = (terminated | ~replay.truncated[last, env]) & known_successor
    else:
        next_obs = take(replay.next_obs, last, env)
        valid = jnp.ones(last.shape, bool)
    if within is not None:
        valid &= within | terminated
    return Batch(obs, action, reward, terminated, next_obs, valid, num_steps)


def steps_of_windows(num_steps: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Which places (B, n) of windows of `num_steps` (B,) are within them, and the steps there.

    Places beyond have the last step.

    >>> within, step = steps_of_windows(jnp.array([2, 3]), size=3)
    >>> within.tolist(), step.tolist()
    ([[True, True, False], [True, True, True]], [[0, 1, 1], [0, 1, 2]])
    """
    place = jnp.arange(size, dtype=num_steps.dtype)
    return place < num_steps[:, None], jnp.minimum(place, num_steps[:, None] - 1)


def window_length(ended: jax.Array, known: jax.Array) -> jax.Array:
    """Steps (B,) of windows (B, n): up to the first that ended its episode, at most those known.

    >>> ended = jnp.array([[False, True, False], [False, False, False], [False, False, True]])
    >>> window_length(ended, known=jnp.array([3, 2, 9])).tolist()
    [2, 2, 3]
    """
    size = ended.shape[1]
    first = jnp.where(ended.any(axis=1), ended.argmax(axis=1) + 1, size)
    return jnp.minimum(first, known)


def draw(
    key: jax.Array,
    data: Dataset,
    batch_size: int,
    best: float | jax.Array = 1.0,
    n_step: int = 1,
    whole: bool = False,
) -> Batch:
    """Steps drawn uniformly, with replacement, from a dataset.

    Args:
        best: draw only from this share of its steps, those of the episodes with the highest
            returns.
        n_step: draw windows of this many steps, by their first ones.
        whole: keep all their steps.
    """
    size = len(data.reward)
    eligible = jnp.clip(jnp.ceil(best * size).astype(jnp.int32), 1, size)
    i = data.best_first[jax.random.randint(key, (batch_size,), 0, eligible)]
    reward, last, num_steps = data.reward[i], i, None
    action, valid = data.action[i], jnp.ones((batch_size,), bool)
    if n_step > 1 or whole:
        window = jnp.minimum(i[:, None] + jnp.arange(n_step), size - 1)
        num_steps = window_length((data.terminated | data.truncated)[window], size - i)
        reward, last = data.reward[window], i + num_steps - 1
    if whole:
        assert num_steps is not None
        within, offset = steps_of_windows(num_steps, n_step)
        last = i[:, None] + offset
        action, valid = data.action[last], within | data.terminated[last]
    return Batch(
        data.obs[i],
        action,
        reward,
        data.terminated[last],
        data.next_obs[last],
        valid,
        num_steps,
    )


def valid_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of the values (B,) whose step is valid; 0 where none is.

    >>> float(valid_mean(jnp.array([1.0, 2.0, 6.0]), jnp.array([True, True, False])))
    1.5
    """
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)
