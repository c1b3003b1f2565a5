"""What the engine needs to know of gymnax's action and observation spaces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_discrete(space: Any) -> bool:
    """Whether actions of a space are integers 0..n-1."""
    return hasattr(space, "n")


def require(space: Any, kind: str, agent: str, env: Any) -> None:
    """Raise ValueError unless an action space is of `kind`, "discrete" or "continuous"."""
    found = "discrete" if is_discrete(space) else "continuous"
    if found != kind:
        raise ValueError(f"{agent} needs {kind} actions, but {env.name} has {found} ones")


def action_size(space: Any) -> int:
    """Number of actions of a discrete space, number of dimensions of a continuous one."""
    return space.n if is_discrete(space) else int(np.prod(space.shape))


def random_action(space: Any, key: jax.Array, num: int) -> jax.Array:
    """`num` uniform actions; continuous ones over the whole box [-1, 1] (num, D)."""
    size = action_size(space)
    if is_discrete(space):
        return jax.random.randint(key, (num,), 0, size)
    return jax.random.uniform(key, (num, size), minval=-1.0, maxval=1.0)


def to_box(space: Any, action: jax.Array) -> jax.Array:
    """An agent's action (..., D), whose natural box is [-1, 1], clipped and scaled to the space's.

    A dimension without finite bounds is passed on as it is.
    """
    low, high, bounded = _bounds(space)
    scaled = low + (jnp.clip(action, -1.0, 1.0) + 1) / 2 * (high - low)
    boxed = jnp.where(bounded, scaled, action)
    return boxed.reshape(*action.shape[:-1], *space.shape)


def to_env(space: Any, action: jax.Array) -> jax.Array:
    """An agent's action in the environment's own units; integers are those already."""
    return action if is_discrete(space) else to_box(space, action)


def from_box(space: Any, action: jax.Array) -> jax.Array:
    """The inverse of `to_box`: actions (..., *shape) of a box as an agent's (..., D), clipped."""
    low, high, bounded = _bounds(space)
    action = action.reshape(*action.shape[: action.ndim - len(space.shape)], -1)
    scaled = jnp.clip((action - low) / (high - low) * 2 - 1, -1.0, 1.0)
    return jnp.where(bounded, scaled, action)


def _bounds(space: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Bounds of a box (D,), [-1, 1] where it has none, and where it has."""
    low = jnp.broadcast_to(jnp.asarray(space.low, jnp.float32), space.shape).reshape(-1)
    high = jnp.broadcast_to(jnp.asarray(space.high, jnp.float32), space.shape).reshape(-1)
    bounded = jnp.isfinite(low) & jnp.isfinite(high)
    return jnp.where(bounded, low, -1.0), jnp.where(bounded, high, 1.0), bounded


def require_info(names: tuple[str, ...], env: Any, env_params: Any, agent: str) -> None:
    """Raise ValueError unless the environment reports each name in `info`, a number per step."""
    if not names:
        return

    def step(key: jax.Array) -> dict[str, Any]:
        _, state = env.reset(key, env_params)
        space = env.action_space(env_params)
        action = random_action(space, key, 1)
        if not is_discrete(space):
            action = to_box(space, action)
        info: dict[str, Any] = env.step(key, state, action[0], env_params)[-1]
        return info

    shapes = jax.eval_shape(step, jax.random.key(0))
    own = ("terminated", "truncated", "discount")
    numbers = [name for name, x in shapes.items() if not jnp.shape(x) and name not in own]
    for name in names:
        if name not in numbers or name in ("return", "length"):
            there = f"it has {', '.join(sorted(numbers))}" if numbers else "it has none"
            raise ValueError(
                f"{agent}: record={name!r} is not a number in the info of {env.name}; {there}"
            )


def require_image(shape: tuple[int, ...], agent: str) -> None:
    """Raise ValueError unless observations are (H, W, C) images of at least 3x3 pixels."""
    if len(shape) != 3 or min(shape[:2]) < 3:
        raise ValueError(f"{agent}: network='cnn' needs (H, W, C) observations, not {shape}")
