"""A point in a maze, with a reward at its goal alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

STEP = 0.15  # what an action of 1 moves
WALL = 0.4  # it lies on y = 0 from x = -1 to this
GOAL, RADIUS = (-0.7, 0.6), 0.25
START = (-0.7, -0.6)
SPREAD = 0.2  # of the start, to each side


@struct.dataclass
class State:
    position: jax.Array  # (2,)
    time: jax.Array


@struct.dataclass
class Params:
    noise: jax.Array  # deviation of what is added to each move
    max_steps_in_episode: jax.Array


class PointMaze(Environment):
    """A point in a box of +-1, with a wall that has to be walked around; reward 1 at the goal.

    Start and goal are on the same side, below and above the wall. The two actions move the point by
    up to `STEP` each, and `noise` adds to that. It slides along the wall and the box; the
    observation is its place.
    """

    @property
    def default_params(self) -> Params:
        return Params(jnp.float32(0.0), jnp.int32(100))

    def reset_env(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        apart = jax.random.uniform(key, (2,), jnp.float32, -SPREAD, SPREAD)
        position = jnp.asarray(START, jnp.float32) + apart
        return position, State(position, jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Params
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        push = STEP * jnp.clip(action, -1, 1) + params.noise * jax.random.normal(
            key, (2,), jnp.float32
        )
        position = move(state.position, push)
        reached = jnp.linalg.norm(position - jnp.asarray(GOAL)) < RADIUS
        state = State(position, state.time + 1)
        return position, state, reached.astype(jnp.float32), reached, {}

    @property
    def num_actions(self) -> int:
        return 2

    def action_space(self, params: Params | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params: Params) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,))


def move(position: jax.Array, push: jax.Array) -> jax.Array:
    """Where a push (2,) takes the point (2,): not through the wall, nor out of the box.

    >>> move(jnp.array([0.0, -0.1]), jnp.array([0.1, 0.3])).round(2).tolist()  # along the wall
    [0.1, -0.1]
    >>> move(jnp.array([0.6, -0.1]), jnp.array([0.1, 0.3])).round(2).tolist()  # around its end
    [0.7, 0.2]
    """
    to = jnp.clip(position + push, -1, 1)
    crosses = (position[1] >= 0) != (to[1] >= 0)
    share = position[1] / jnp.where(crosses, position[1] - to[1], 1)
    at = position[0] + share * (to[0] - position[0])
    return jnp.where(crosses & (at < WALL), jnp.stack([to[0], position[1]]), to)
