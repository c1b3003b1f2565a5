"""Whether recorded steps can be of an environment: shapes, finite numbers, actions of its space."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np

from envs_jax.recording import Recording, arrays_of

ROUNDING = 1e-4  # how far actions may lie outside their box unmentioned, in half-widths
SLACK = 1e-2  # how far they may lie outside at all, to be clipped
# The names of arrays in files, and of the fields that hold them.
KEYS = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "terminals": "terminated",
    "timeouts": "truncated",
    "next_observations": "next_obs",
    # Our own:
    "stopped": "stopped",
    "log_probs": "log_prob",
}


D4RL = [key for key in KEYS if key not in ("stopped", "log_probs")]

NUMBERS = ("rewards", "terminals", "timeouts", "stopped", "log_probs")  # one for each step


def check_layout(file: Any) -> None:
    """Raise ValueError unless an HDF5 file has arrays of numbers, as many rows of each, that fit.

    Nothing is read yet: a file of a few bytes may declare terabytes, or lead to other files.
    """
    import h5py

    from jaxrl.training.memory import free, readable

    for key in ("observations", "actions", "rewards", "terminals"):
        if key not in file:
            raise ValueError(f"has no {key!r}; D4RL's layout has {', '.join(D4RL)}")
    there = [key for key in KEYS if key in file]
    for key in there:
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{key!r} is a link; only what the file itself holds is read")
        values = file[key]
        if not isinstance(values, h5py.Dataset):
            raise ValueError(f"{key!r} is no array")
        if values.external or values.is_virtual:
            raise ValueError(f"{key!r} lies in other files, which are not read")
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{key!r} holds {values.dtype}, not numbers")
        if not values.shape:
            raise ValueError(f"{key!r} has no rows")
        if key in NUMBERS and math.prod(values.shape[1:]) != 1:
            raise ValueError(
                f"{key!r} are of shape {values.shape[1:]}, a number for each step is needed"
            )
    rows = {key: file[key].shape[0] for key in there}
    steps = rows["rewards"]
    for key, number in rows.items():
        if number != steps:
            raise ValueError(f"{key!r} has {number} rows, 'rewards' has {steps}")
    if not steps:
        raise ValueError("holds no steps")
    nbytes = sum(math.prod(file[key].shape) * file[key].dtype.itemsize for key in there)
    if nbytes > free():
        raise ValueError(
            f"declares {readable(nbytes)}, more than the {readable(free())} of memory that are free"
        )


def check(source: str, recording: Recording, env: Any, env_params: Any) -> None:
    """Raise ValueError unless the steps can be of this environment."""
    from jaxrl import spaces

    if not len(recording):
        raise ValueError(f"{source}: holds no step whose successor is known")
    keys = {field: key for key, field in KEYS.items()}
    shape = env.observation_space(env_params).shape
    for field in ("obs", "next_obs"):
        recorded = getattr(recording, field).shape[1:]
        if recorded != shape:
            raise ValueError(
                f"{source}: {keys[field]!r} are of shape {recorded}, those of {env.name} of {shape}"
            )
    arrays = arrays_of(recording)
    for field in ("obs", "action", "reward", "next_obs", "log_prob"):
        if field not in arrays:
            continue
        values = arrays[field]
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if bad.any():
            raise ValueError(f"{source}: {keys[field]!r} at index {bad.argmax()} is not finite")
    space, action = env.action_space(env_params), recording.action
    if spaces.is_discrete(space):
        whole = action.ndim == 1 and bool((action == np.round(action)).all())
        if not whole:
            raise ValueError(f"{source}: 'actions' are not whole numbers, which {env.name} needs")
        bad = (action < 0) | (action >= space.n)
        accepted = f"0 to {space.n - 1}"
    else:
        if action.shape[1:] != space.shape:
            raise ValueError(
                f"{source}: 'actions' are of shape {action.shape[1:]}, "
                f"those of {env.name} of {space.shape}"
            )
        bad = _excess(action, space) > SLACK
        accepted = f"the box of {env.name}"
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(
            f"{source}: 'actions' at index {i} are {action[i].tolist()}, outside {accepted}"
        )


def clipped(source: str, recording: Recording, space: Any) -> Recording:
    """The recording with its actions within their box, and a warning where that changes much."""
    from jaxrl import spaces

    if spaces.is_discrete(space):
        return recording
    excess = _excess(recording.action, space)
    moved = int((excess > ROUNDING).sum())
    if moved:
        warnings.warn(
            f"{source}: {moved} of {len(excess)} actions lie outside their box, by up to "
            f"{100 * excess.max():.2g} % of a half-width: they are clipped to it",
            stacklevel=3,
        )
    low, high = _box(space)
    return dataclasses.replace(recording, action=np.clip(recording.action, low, high))


def _excess(action: np.ndarray, space: Any) -> np.ndarray:
    """How far each action (M,) lies outside its box, in half-widths of the worst dimension."""
    low, high = _box(space)
    outside = np.maximum(low - action, action - high) / ((high - low) / 2)
    return np.maximum(outside.reshape(len(action), -1).max(axis=1), 0)


def _box(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a box (*shape); a dimension without finite ones is taken as [-1, 1]."""
    low = np.broadcast_to(np.asarray(space.low, np.float32), space.shape)
    high = np.broadcast_to(np.asarray(space.high, np.float32), space.shape)
    from jaxrl.spaces import LARGEST_BOUND

    bounded = (low > -LARGEST_BOUND) & (high < LARGEST_BOUND)
    return np.where(bounded, low, -1), np.where(bounded, high, 1)
