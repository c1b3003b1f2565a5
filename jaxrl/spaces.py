"""What the engine needs to know of action and observation spaces: discrete ones and boxes."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import masks

LARGEST_BOUND = 1e9  # a bound beyond it, such as the largest float, only says that there is none


def is_discrete(space: Any) -> bool:
    """Whether a space is of integers 0..n-1."""
    return hasattr(space, "n") and not getattr(space, "shape", ())


def is_box(space: Any) -> bool:
    """Whether a space is of arrays of numbers of one shape."""
    return all(hasattr(space, name) for name in ("low", "high", "shape"))


def action_size(space: Any) -> int:
    """Number of actions of a discrete space, number of dimensions of a continuous one."""
    return int(space.n) if is_discrete(space) else int(np.prod(space.shape))


# Actions ----------------------------------------------------------------------------------------


def random_action(space: Any, key: jax.Array, num: int, mask: jax.Array | None = None) -> jax.Array:
    """`num` uniform actions; continuous ones over the whole box [-1, 1] (num, D).

    Args:
        mask: which discrete actions may be taken (num, A), if not all.
    """
    size = action_size(space)
    if mask is not None:
        return masks.masked(jax.random.uniform(key, (num, size)), mask).argmax(-1)
    if is_discrete(space):
        return jax.random.randint(key, (num,), 0, size)
    return jax.random.uniform(key, (num, size), jnp.float32, minval=-1.0, maxval=1.0)


def to_env(space: Any, action: jax.Array) -> jax.Array:
    """An agent's action in the environment's own units; integers are those already."""
    return action if is_discrete(space) else to_box(space, action)


def to_box(space: Any, action: jax.Array) -> jax.Array:
    """An agent's action (..., D), whose natural box is [-1, 1], clipped and scaled to the space's.

    A dimension without two honest bounds is passed on as it is, within the bound that it has.
    """
    low, high, bounded = _bounds(space)
    left, right = jnp.where(bounded, low, -1.0), jnp.where(bounded, high, 1.0)
    scaled = left + (jnp.clip(action, -1.0, 1.0) + 1) / 2 * (right - left)
    boxed = jnp.where(bounded, scaled, jnp.clip(action, low, high))
    return boxed.reshape(*action.shape[:-1], *space.shape)


def from_box(space: Any, action: jax.Array) -> jax.Array:
    """The inverse of `to_box`: actions (..., *shape) of a box as an agent's (..., D), clipped."""
    low, high, bounded = _bounds(space)
    low, high = jnp.where(bounded, low, -1.0), jnp.where(bounded, high, 1.0)
    action = action.reshape(*action.shape[: action.ndim - len(space.shape)], -1)
    scaled = jnp.clip((action - low) / (high - low) * 2 - 1, -1.0, 1.0)
    return jnp.where(bounded, scaled, action)


def _bounds(space: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Bounds of a box (D,), infinite where it has none, and whether both are there."""
    low = jnp.broadcast_to(jnp.asarray(space.low, jnp.float32), space.shape).reshape(-1)
    high = jnp.broadcast_to(jnp.asarray(space.high, jnp.float32), space.shape).reshape(-1)
    low = jnp.where(low > -LARGEST_BOUND, low, -jnp.inf)
    high = jnp.where(high < LARGEST_BOUND, high, jnp.inf)
    return low, high, jnp.isfinite(low) & jnp.isfinite(high)


# Observations -----------------------------------------------------------------------------------


def encoded_shape(space: Any) -> tuple[int, ...]:
    """Shape of one observation after `encode`."""
    return (int(space.n),) if is_discrete(space) else tuple(space.shape)


def encode(space: Any, obs: jax.Array) -> jax.Array:
    """Observations as networks take them: integers as one-hot vectors, bytes within [0, 1]."""
    if is_discrete(space):
        return jax.nn.one_hot(obs, int(space.n), dtype=jnp.float32)
    if obs.dtype == jnp.uint8:
        return obs.astype(jnp.float32) / 255
    # Double precision, as environments have it in x64 mode, must not widen what is learnt.
    return obs.astype(jnp.float32) if jnp.issubdtype(obs.dtype, jnp.floating) else obs


def part(env: Any, obs: Any, name: str) -> Any:
    """The entries (..., size) of observations that an environment's `slices` name; "": all."""
    return obs[..., env.slices[name]] if name else obs


def parts_of(env: Any, obs: jax.Array) -> dict[str, jax.Array]:
    """The parts (..., *shape) of observations (..., D), by name, as an environment's `parts` says.

    `parts` is {name: shape}, in the order in which the numbers of each stand in the vector.
    """
    found, start = {}, 0
    for name, shape in env.parts.items():
        size = math.prod(shape)
        found[name] = obs[..., start : start + size].reshape(*obs.shape[:-1], *shape)
        start += size
    return found


# What agents require ----------------------------------------------------------------------------


def name_of(env: Any) -> str:
    """What an environment is called in a line."""
    if isinstance(env, str | type):
        return repr(env) if isinstance(env, str) else env.__name__
    return str(getattr(env, "name", type(env).__name__))


def warn_of_bounds(action: Any, name: str) -> None:
    """Warn, once for each environment, of actions that have no bounds."""
    if is_discrete(action):
        return
    unbounded = _unbounded(
        tuple(np.broadcast_to(action.low, action.shape).ravel().tolist()),
        tuple(np.broadcast_to(action.high, action.shape).ravel().tolist()),
    )
    if unbounded:
        _warn_of_bounds(name, unbounded)


@functools.lru_cache(maxsize=64)
def _unbounded(low: tuple[float, ...], high: tuple[float, ...]) -> int:
    outside = [a <= -LARGEST_BOUND or b >= LARGEST_BOUND for a, b in zip(low, high, strict=True)]
    return sum(outside)


@functools.lru_cache(maxsize=64)  # once for each environment, not for each member of a sweep
def _warn_of_bounds(name: str, dimensions: int) -> None:
    warnings.warn(
        f"{name} has {dimensions} action dimensions without finite bounds: agents explore them "
        "in [-1, 1], unscaled",
        stacklevel=6,
    )


def require(space: Any, kind: str, agent: str, env: Any) -> None:
    """Raise ValueError unless an action space is of `kind`, "discrete" or "continuous"."""
    actual = "discrete" if is_discrete(space) else "continuous"
    if actual != kind:
        raise ValueError(f"{agent} needs {kind} actions, but {name_of(env)} has {actual} ones")


def part_shape(env: Any, shape: tuple[int, ...], name: str, field: str) -> tuple[int, ...]:
    """Shape of a part of one observation (*shape); where the environment has no `slices`, of all.

    Raises: ValueError (one line) where its `slices` do not name the part.
    """
    parts = getattr(env, "slices", None)
    if parts is None:
        return shape
    if name and name not in parts:
        raise ValueError(
            f"{field}={name!r} is no part of the observations of {name_of(env)}: "
            f"it has {', '.join(parts)}"
        )
    return tuple(part(env, np.broadcast_to(0.0, shape), name).shape)


def require_image(shape: tuple[int, ...], agent: str) -> None:
    """Raise ValueError unless observations are (H, W, C) images of at least 3x3 pixels."""
    if len(shape) != 3 or min(shape[:2]) < 3:
        raise ValueError(f"{agent}: network='cnn' needs (H, W, C) observations, not {shape}")
