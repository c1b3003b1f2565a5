"""Recorded steps for offline learning: read, checked, written.

    recording = datasets.read("hopper-medium.hdf5", env, env_params)
    data = recording.dataset(env, env_params)  # on the device, for an agent's `data`
    recording = datasets.subsample(datasets.join([recording, another]), steps=10_000)

Files have D4RL's layout: `observations`, `actions`, `rewards`, `terminals`, and two that not all of
D4RL's own have: `timeouts` and `next_observations`. Minari datasets are read by `minari:ID` (extra
`minari`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs_jax.checks import KEYS, check, check_layout, clipped
from envs_jax.recording import REFERENCES, Recording, arrays_of, join, subsample

__all__ = ["Recording", "blank", "env_of", "join", "read", "read_all", "subsample", "write"]


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

    An episode that was cut is whole where it has reached the environment's time limit; without a
    limit, where the data says that it ended. In the others the recording stopped.

    Actions up to a hundredth of a half-width outside their box are clipped, with a warning where it
    is more than rounding.

    Args:
        reference: returns of a random and of an expert policy, between which scores are normalised.
            By default those that the data says of itself: the attributes "random_return" and
            "expert_return" of a file, "ref_min_score" and "ref_max_score" of a Minari dataset.

    Raises:
        ValueError, one line: no such file, not readable, a key missing or of the wrong type or
            length, numbers that are not finite, actions outside their box, no steps.
    """
    given = getattr(env_params, "max_steps_in_episode", None)
    limit = None if given is None else int(given)
    if str(source).startswith("minari:"):
        recording = _read_minari(str(source)[len("minari:") :], limit)
    else:
        recording = _read_hdf5(Path(source), limit)
    if reference is not None:
        recording.info.update(random_return=float(reference[0]), expert_return=float(reference[1]))
    check(str(source), recording, env, env_params)
    return clipped(str(source), recording, env.action_space(env_params))


def env_of(source: str | Path) -> str | None:
    """The environment that a file says it is of, where it does.

    Raises: ValueError, one line: no such file, or not readable.
    """
    if str(source).startswith("minari:"):
        return None
    with _opened(Path(source)) as file:
        name = _plain(file.attrs.get("env"))
    return name if isinstance(name, str) else None


def read_all(
    sources: Sequence[str | Path],
    env: Any,
    env_params: Any,
    reference: tuple[float, float] | None = None,
    steps: int | None = None,
) -> Recording:
    """Recordings of one environment as `read` reads each, one after the other.

    Args:
        steps: episodes drawn at random that hold at least so many, always the same ones; None: all.

    Raises:
        ValueError, one line: what `read` raises, `steps` larger than there are.
    Warns where the recordings name different reference returns and `reference` is not given.
    """
    joined = join([read(source, env, env_params, reference) for source in sources])
    return joined if steps is None else subsample(joined, steps)


def write(path: Path, recording: Recording) -> None:
    """Write a file in D4RL's layout, from which `read` restores the recording.

    The file is replaced as a whole or not at all. Raises ValueError (one line) if it cannot be
    written.
    """
    import h5py

    from jaxrl import files

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as whole, h5py.File(whole, "w") as file:
            arrays = arrays_of(recording)
            for key, field in KEYS.items():
                if field in arrays:
                    file.create_dataset(
                        key, data=arrays[field], compression="gzip", compression_opts=1
                    )
            file.attrs.update(recording.info)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def blank(env: Any, env_params: Any) -> Recording:
    """Two steps: data of the right shapes for an agent that will act but not learn.

    Each is an episode, and their returns differ, which some agents ask of what they learn from.
    """
    from jaxrl import spaces

    shape = env.observation_space(env_params).shape
    space = env.action_space(env_params)
    discrete = spaces.is_discrete(space)
    action = np.zeros(2, np.int32) if discrete else np.zeros((2, *space.shape), np.float32)
    obs, flag = np.zeros((2, *shape), np.float32), np.ones(2, bool)
    return Recording(obs, action, np.arange(2, dtype=np.float32), flag, flag, obs)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An HDF5 file; whatever goes wrong with it is one line that names it, a ValueError."""
    import h5py

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with h5py.File(path) as file:
            yield file
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged file makes its reader raise
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a readable HDF5 file ({line})") from None


def _read_hdf5(path: Path, limit: int | None) -> Recording:
    with _opened(path) as file:
        check_layout(file)
        arrays = {k: np.asarray(file[k]) for k in KEYS if k in file}
        info = {k: _plain(v) for k, v in file.attrs.items()}
    for key in REFERENCES:
        if info.get(key) is not None and not _is_number(info[key]):
            raise ValueError(f"{path}: its attribute {key!r} is {info[key]!r}, not a number")
    obs = _number(path, "observations", arrays)
    terminated = _flags(path, "terminals", arrays)
    if "timeouts" in arrays:
        truncated = _flags(path, "timeouts", arrays)
    else:
        truncated = _timeouts(terminated, limit)
    flagged = truncated
    if "stopped" in arrays:  # which says more than lengths do
        flagged, limit = truncated & ~_flags(path, "stopped", arrays), None
    recording = Recording(
        obs,
        _number(path, "actions", arrays),
        _single(arrays["rewards"]).reshape(-1),
        terminated,
        truncated,
        _number(path, "next_observations", arrays) if "next_observations" in arrays else obs,
        info,
        log_prob=_single(arrays["log_probs"]).reshape(-1) if "log_probs" in arrays else None,
    )
    if "next_observations" in arrays:
        return _with_stops(_cut(recording), flagged, limit)
    return _follow(_with_stops(recording, flagged, limit))


def _read_minari(name: str, limit: int | None) -> Recording:
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

    def rows(parts: list[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in parts])

    arrays = {
        "observations": rows([episode.observations[:-1] for episode in episodes]),
        "actions": rows([episode.actions for episode in episodes]),
        "next_observations": rows([episode.observations[1:] for episode in episodes]),
        "terminations": rows([episode.terminations for episode in episodes]),
        "truncations": rows([episode.truncations for episode in episodes]),
    }
    source = f"minari:{name}"
    flagged = _flags(source, "truncations", arrays)
    last = np.cumsum([len(episode.rewards) for episode in episodes]) - 1
    truncated, terminated = flagged.copy(), _flags(source, "terminations", arrays)
    truncated[last] |= ~terminated[last]  # the next row is of another episode
    recording = Recording(
        _number(source, "observations", arrays),
        _number(source, "actions", arrays),
        _single(rows([episode.rewards for episode in episodes])),
        terminated,
        truncated,
        _number(source, "next_observations", arrays),
        {"env": name} | _references(metadata),
    )
    return _with_stops(recording, flagged, limit)


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


def _with_stops(recording: Recording, flagged: np.ndarray, limit: int | None) -> Recording:
    """Mark where the recording alone has stopped an episode.

    Args:
        flagged: where the data says that an episode was cut (M,).
        limit: steps after which the environment cuts one; None: where it is flagged.
    """
    long_enough = np.zeros(len(recording), bool)
    if limit is not None:
        long_enough[recording.last] = recording.episode_lengths >= limit
    whole = recording.terminated | (flagged if limit is None else long_enough)
    ended = recording.terminated | recording.truncated
    ended[-1:] = True
    return dataclasses.replace(recording, stopped=ended & ~whole)


def _cut(recording: Recording) -> Recording:
    """Mark the ends of episodes that no flag tells of: the next step begins elsewhere."""
    if recording.obs.shape != recording.next_obs.shape:
        return recording  # which `checks.check` refuses
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
    assert recording.stopped is not None
    stopped = np.concatenate([recording.stopped[1:], [False]]) & truncated
    whole = dataclasses.replace(recording, truncated=truncated, next_obs=next_obs, stopped=stopped)
    return whole.take(usable)


def _flags(source: str | Path, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """A flag for each step (M,). Raises: ValueError where one is neither 0 nor 1."""
    values = arrays[key].reshape(-1)
    bad = (values != 0) & (values != 1)
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(f"{source}: {key!r} at index {i} is {values[i]}, neither 0 nor 1")
    return values.astype(bool)


def _number(source: str | Path, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Floats in single precision, integers in no more than 32 bits, flags as they are.

    Raises: ValueError where an integer has more.
    """
    values = arrays[key]
    if values.dtype.kind == "f":
        return _single(values)
    if values.dtype.kind == "b" or values.dtype.itemsize < 4:
        return values
    range = np.iinfo(np.int32)
    bad = (values < range.min) | (values > range.max)
    if bad.any():
        row = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
        raise ValueError(f"{source}: {key!r} at index {row} does not fit into 32 bits")
    return values.astype(np.int32)


def _single(values: np.ndarray) -> np.ndarray:
    """In single precision: infinite where it does not fit, which `checks.check` refuses."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _is_number(value: Any) -> bool:
    """Whether an attribute is a number that single precision can hold."""
    largest = float(np.finfo(np.float32).max)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= largest


def _plain(value: Any) -> Any:
    """An HDF5 attribute as Python's own type."""
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return None if isinstance(value, float) and math.isnan(value) else value
