"""Recorded steps for offline learning: read, checked, written.

    recording = datasets.read("hopper-medium.hdf5", env, env_params)
    data = recording.dataset(env, env_params)  # on the device, for an agent's `data`

Files have D4RL's layout: `observations`, `actions`, `rewards`, `terminals`, and two that not all of
D4RL's own have: `timeouts` and `next_observations`. Minari datasets are read by `minari:ID` (extra
`minari`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # how far actions may lie outside their box, in half-widths: rounding


@dataclasses.dataclass(frozen=True)
class Recording:
    """Steps (M, ...) one after the other, episode after episode.

    Attributes:
        action: in the environment's own units; integers where discrete.
        terminated, truncated: the episode ended in a terminal state, or was cut there. The last
            step of an episode has one of them or both.
        next_obs: the observation the step led to, before any reset.
        info: what the file says about itself: "env", "kind", "policy", "seeds", and
            "random_return" and "expert_return", between which scores are normalised.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: np.ndarray
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def episode(self) -> np.ndarray:
        """The number of each step's episode (M,), from 0."""
        ended = self.terminated | self.truncated
        return np.concatenate([[0], np.cumsum(ended[:-1])]).astype(np.int64)

    @property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted returns, one per episode."""
        return np.bincount(self.episode, self.reward.astype(np.float64))

    def score(self, returns: Any) -> np.ndarray | None:
        """100 (R - random) / (expert - random), or None if the reference returns are unknown."""
        low, high = self.info.get("random_return"), self.info.get("expert_return")
        if low is None or high is None or high == low:
            return None
        return 100 * (np.asarray(returns) - low) / (high - low)

    def dataset(self, env: Any, env_params: Any) -> Any:
        """The steps on the device (`jaxrl.parts.replay.Dataset`), actions scaled to [-1, 1]."""
        import jax.numpy as jnp

        from jaxrl import spaces
        from jaxrl.parts.replay import Dataset

        space = env.action_space(env_params)
        discrete = spaces.is_discrete(space)
        action = self.action.astype(np.int32 if discrete else np.float32)
        of_step = self.episode_returns[self.episode]
        return Dataset(
            obs=jnp.asarray(self.obs),
            action=jnp.asarray(action) if discrete else spaces.from_box(space, jnp.asarray(action)),
            reward=jnp.asarray(self.reward),
            terminated=jnp.asarray(self.terminated),
            truncated=jnp.asarray(self.truncated),
            next_obs=jnp.asarray(self.next_obs),
            best_first=jnp.asarray(np.argsort(-of_step, kind="stable").astype(np.int32)),
        )


def read(
    source: str | Path,
    env: Any,
    env_params: Any,
    reference: tuple[float, float] | None = None,
) -> Recording:
    """A D4RL-style HDF5 file, or `minari:ID`, checked against the environment's spaces.

    Steps whose successor is not recorded are left out: without `next_observations`, an episode's
    observations follow each other, and the last step of one that was cut has no successor. Without
    `timeouts`, an episode is cut when it has reached the environment's time limit. With
    `next_observations`, it is also cut where the next step does not begin where this one led.

    Args:
        reference: returns of a random and of an expert policy, between which scores are normalised.
            By default those that the data says of itself: the attributes "random_return" and
            "expert_return" of a file, "ref_min_score" and "ref_max_score" of a Minari dataset.

    Raises:
        ValueError, one line: no such file, not readable, a key missing or of the wrong type or
            length, numbers that are not finite, actions outside their box, no steps.
    """
    if str(source).startswith("minari:"):
        recording = _read_minari(str(source)[len("minari:") :])
    else:
        limit = getattr(env_params, "max_steps_in_episode", None)
        recording = _read_hdf5(Path(source), None if limit is None else int(limit))
    if reference is not None:
        recording.info.update(random_return=float(reference[0]), expert_return=float(reference[1]))
    _check(str(source), recording, env, env_params)
    return recording


def write(path: Path, recording: Recording) -> None:
    """Write a file in D4RL's layout, from which `read` restores the recording.

    The file is replaced as a whole or not at all. Raises ValueError (one line) if it cannot be
    written.
    """
    import h5py

    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(unfinished, "w") as file:
            for key, field in KEYS.items():
                value = getattr(recording, field)
                file.create_dataset(key, data=value, compression="gzip", compression_opts=1)
            file.attrs.update(recording.info)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def blank(env: Any, env_params: Any) -> Recording:
    """One step of zeros: data of the right shapes for an agent that will act but not learn."""
    from jaxrl import spaces

    shape = env.observation_space(env_params).shape
    space = env.action_space(env_params)
    discrete = spaces.is_discrete(space)
    action = np.zeros(1, np.int32) if discrete else np.zeros((1, *space.shape), np.float32)
    obs, flag = np.zeros((1, *shape), np.float32), np.ones(1, bool)
    return Recording(obs, action, np.zeros(1, np.float32), flag, flag, obs)


REFERENCES = ("random_return", "expert_return")  # between which scores are normalised
KEYS = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "terminals": "terminated",
    "timeouts": "truncated",
    "next_observations": "next_obs",
}


def _read_hdf5(path: Path, limit: int | None) -> Recording:
    import h5py

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with h5py.File(path) as file:
            arrays = {k: np.asarray(file[k]) for k in KEYS if k in file}
            info = {k: _plain(v) for k, v in file.attrs.items()}
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({error})") from None
    for key in ("observations", "actions", "rewards", "terminals"):
        if key not in arrays:
            raise ValueError(f"{path}: has no {key!r}; D4RL's layout has {', '.join(KEYS)}")
    for key, value in arrays.items():
        if value.dtype.kind not in "fiub":
            raise ValueError(f"{path}: {key!r} holds {value.dtype}, not numbers")
        if value.ndim == 0:
            raise ValueError(f"{path}: {key!r} has no rows")
    steps = len(arrays["rewards"])
    for key, value in arrays.items():
        if len(value) != steps:
            raise ValueError(f"{path}: {key!r} has {len(value)} rows, 'rewards' has {steps}")
    if not steps:
        raise ValueError(f"{path}: holds no steps")
    for key in REFERENCES:
        if key in info and not isinstance(info[key], int | float):
            raise ValueError(f"{path}: its attribute {key!r} is {info[key]!r}, not a number")
    obs = _number(arrays["observations"])
    terminated = arrays["terminals"].reshape(-1).astype(bool)
    if "timeouts" in arrays:
        truncated = arrays["timeouts"].reshape(-1).astype(bool)
    else:
        truncated = _timeouts(terminated, limit)
    recording = Recording(
        obs,
        _number(arrays["actions"]),
        arrays["rewards"].reshape(-1).astype(np.float32),
        terminated,
        truncated,
        _number(arrays["next_observations"]) if "next_observations" in arrays else obs,
        info,
    )
    return _cut(recording) if "next_observations" in arrays else _follow(recording)


def _read_minari(name: str) -> Recording:
    try:
        import minari
    except ImportError:
        raise ValueError(f"minari:{name} needs the extra: pip install -e '.[minari]'") from None
    try:
        dataset = minari.load_dataset(name)
        episodes, metadata = list(dataset.iterate_episodes()), dataset.storage.metadata
    except (FileNotFoundError, ValueError, OSError, KeyError) as error:
        raise ValueError(f"minari:{name} cannot be loaded: {error}") from None
    if not sum(len(episode.rewards) for episode in episodes):
        raise ValueError(f"minari:{name}: holds no steps")
    for episode in episodes:
        if not isinstance(episode.observations, np.ndarray):
            raise ValueError(f"minari:{name}: only observations that are one array are supported")

    def join(parts: list[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts])

    truncated = [np.array(episode.truncations, bool) for episode in episodes]
    for episode, cut in zip(episodes, truncated, strict=True):
        if len(cut) and not (cut[-1] or episode.terminations[-1]):
            cut[-1] = True  # the recording stopped: the next row belongs to another episode
    return Recording(
        _number(join([episode.observations[:-1] for episode in episodes])),
        _number(join([episode.actions for episode in episodes])),
        join([episode.rewards for episode in episodes]).astype(np.float32),
        join([episode.terminations for episode in episodes]).astype(bool),
        join(truncated),
        _number(join([episode.observations[1:] for episode in episodes])),
        {"env": name} | _references(metadata),
    )


def _references(metadata: dict[str, Any]) -> dict[str, float]:
    """The returns that Minari normalises scores between, where a dataset has them."""
    scores = [metadata.get(key) for key in ("ref_min_score", "ref_max_score")]
    if any(score is None for score in scores):
        return {}
    return dict(zip(REFERENCES, map(float, scores), strict=True))  # type: ignore[arg-type]


def _timeouts(terminated: np.ndarray, limit: int | None) -> np.ndarray:
    """Where unmarked episodes were cut: at the limit, counted from the last end."""
    truncated = np.zeros(len(terminated), bool)
    length = 0
    for i, end in enumerate(terminated):
        length += 1
        truncated[i] = limit is not None and length == limit
        length = 0 if end or truncated[i] else length
    return truncated


def _cut(recording: Recording) -> Recording:
    """Mark the ends of episodes that no flag tells of: the next step begins elsewhere."""
    if recording.obs.shape != recording.next_obs.shape:
        return recording  # which `_check` refuses
    led_to, begins = (x.reshape(len(recording), -1) for x in (recording.next_obs, recording.obs))
    follows = np.isclose(led_to[:-1], begins[1:], rtol=1e-4, atol=1e-6).all(axis=1)
    elsewhere = np.append(~follows, False) & ~recording.terminated
    return dataclasses.replace(recording, truncated=recording.truncated | elsewhere)


def _follow(recording: Recording) -> Recording:
    """Take each observation's successor from the next row; leave out the steps that have none."""
    next_obs = np.concatenate([recording.obs[1:], recording.obs[-1:]])
    usable = recording.terminated | ~recording.truncated
    usable[-1] = recording.terminated[-1]
    # An episode whose cut step is left out is cut one step earlier.
    truncated = np.concatenate([~usable[1:], [False]]) & ~recording.terminated
    return Recording(
        recording.obs[usable],
        recording.action[usable],
        recording.reward[usable],
        recording.terminated[usable],
        truncated[usable],
        next_obs[usable],
        recording.info,
    )


def _check(source: str, recording: Recording, env: Any, env_params: Any) -> None:
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
    for field in ("obs", "action", "reward", "next_obs"):
        values = getattr(recording, field)
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
        low, high = _box(space)
        slack = TOLERANCE * (high - low) / 2
        outside = (action < low - slack) | (action > high + slack)
        bad = outside.reshape(len(action), -1).any(axis=1)
        accepted = f"the box of {env.name}"
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(
            f"{source}: 'actions' at index {i} are {action[i].tolist()}, outside {accepted}"
        )


def _box(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a box (*shape); a dimension without finite ones is taken as [-1, 1]."""
    low = np.broadcast_to(np.asarray(space.low, np.float32), space.shape)
    high = np.broadcast_to(np.asarray(space.high, np.float32), space.shape)
    from jaxrl.spaces import LARGEST_BOUND

    bounded = (low > -LARGEST_BOUND) & (high < LARGEST_BOUND)
    return np.where(bounded, low, -1), np.where(bounded, high, 1)


def _number(values: np.ndarray) -> np.ndarray:
    """Floats in single precision; integers and flags as they are."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values.astype(np.int32) if values.dtype.itemsize > 4 else values


def _plain(value: Any) -> Any:
    """An HDF5 attribute as Python's own type."""
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode()
    return None if isinstance(value, float) and math.isnan(value) else value
