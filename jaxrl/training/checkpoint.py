"""Checkpoints: the whole state of a population between two chunks, and what it has shown so far.

    FOLDER/ITERATION/                   orbax: the members' states, and what they belong to
    FOLDER/history/FIRST-ITERATION.npz  metrics and evaluations since the save before

A save writes the history first and the states behind it, each under a temporary name until it is
whole: a kill at any moment leaves the save before as it was. States carry a checksum, without which
a flipped bit would train on.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.training import hosts
from jaxrl.training.history import History
from jaxrl.training.hosts import from_numpy, is_key, to_numpy
from jaxrl.training.members import shared_arrays

HISTORY = "history"
ENVIRONMENT = "environment's options or wrappers"
BATCHES = "batches.json"


class Saved(NamedTuple):
    """What a run is resumed from: states of all members, and what they have shown."""

    iteration: int
    states: Any
    history: History
    seconds: float  # that the run had taken, without compiling


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where, how often and how many checkpoints are kept.

    Attributes:
        folder: theirs alone; made where it is missing.
        every: seconds from one save to the next; the last state is saved in any case.
        keep: how many of the newest are kept. The one with the best return so far is kept as well.
    """

    folder: Path
    every: float = 60.0
    keep: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # a string is a path too
        if not self.every >= 0:
            raise ValueError(f"checkpoints: every={self.every} must be 0 seconds or more")
        if self.keep < 1:
            raise ValueError(f"checkpoints: keep={self.keep} must be at least 1")

    def of_batch(self, number: int) -> Checkpoints:
        """Those of one batch of several."""
        return dataclasses.replace(self, folder=self.folder / str(number))

    def batch_size(self, number: int, decide: Callable[[], int]) -> int:
        """How many members train at once from batch `number` on.

        What was decided when the run began is settled: another memory limit later must not sort
        members into other batches.

        Raises: ValueError where that cannot be written down.
        """
        path = self.folder / BATCHES
        known: dict[str, int] = {}
        if hosts.is_writer() and path.exists():
            known = json.loads(path.read_text())
        size: int | None = hosts.of_writer(known.get(str(number)))
        if size is not None:
            return size
        size = decide()
        if hosts.is_writer():
            part = path.with_suffix(".part")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                part.write_text(json.dumps(known | {str(number): size}))
                part.replace(path)
            except OSError as error:
                raise ValueError(f"cannot write to {self.folder}: {error.strerror}") from None
        return size


def identity(agents: Any, seeds: list[int]) -> dict[str, Any]:
    """What a checkpoint belongs to: all that the members' runs follow from, but their length."""
    fields: dict[str, Any] = {}
    for h in agents.hyperparameters():
        value = getattr(agents, h.name)
        fields[h.name] = np.asarray(value).tolist() if h.kind == "traced" else value
    del fields["total_steps"]
    recorded = shared_arrays(agents)
    return fields | {
        "agent": agents.name,
        "environment": agents.env.name,
        ENVIRONMENT: describe(agents.env),
        "environment parameters": checksum(agents.env_params),
        "recorded data": checksum(recorded) if recorded else None,
        "seeds": seeds,
    }


def describe(env: Any) -> dict[str, Any]:
    """What tells an environment from others of its name: its options, and what it wraps.

    The class; what its constructors took, where the instance keeps it under the same name; options
    of every environment; arrays; and the same of the environments within. Whatever else an instance
    holds, such as a counter, may change with use.
    """
    taken = {"resets", "pool_size", "end_broken"}
    for cls in type(env).__mro__[:-1]:
        constructor = vars(cls).get("__init__")
        if constructor is not None:
            taken |= set(inspect.signature(constructor).parameters)
    plain: dict[str, Any] = {"class": f"{type(env).__module__}.{type(env).__qualname__}"}
    for name, value in sorted(vars(env).items()):
        if callable(getattr(value, "step", None)) and callable(getattr(value, "reset", None)):
            plain[name] = describe(value)
        elif isinstance(value, np.ndarray | jax.Array):
            plain[name] = checksum(value)
        elif name.lstrip("_") in taken and isinstance(value, bool | int | float | str | tuple):
            plain[name] = repr(value)
    return plain


def open_store(
    checkpoints: Checkpoints | None, agents: Any, seeds: list[int], like: Any
) -> tuple[Store | None, Saved | None]:
    """The store of stacked agents' states `like` these, and what it holds; on one process only.

    What it holds is passed to all processes.

    Raises: ValueError as `Store` and `Store.restore` do.
    """
    if checkpoints is None:
        return None, None
    store = Store(checkpoints, identity(agents, seeds)) if hosts.is_writer() else None
    return store, hosts.of_writer(store.restore(like) if store else None)


class Store:
    """The checkpoints of one population, open for writing: by one process at a time.

    `belongs_to` describes the population (JSON values by name); what was saved for another is
    refused.

    Raises: ValueError where the folder cannot be written, or another process writes to it.
    """

    def __init__(self, checkpoints: Checkpoints, belongs_to: dict[str, Any]) -> None:
        from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        _quieten()
        self.every = checkpoints.every
        self.folder = checkpoints.folder.absolute()
        self.belongs_to = json.loads(json.dumps(belongs_to))
        try:
            (self.folder / HISTORY).mkdir(parents=True, exist_ok=True)
            self.lock = (self.folder / ".lock").open("w")
            self.lock.write("x" * 4096)  # found out now if the disk is full
            self.lock.flush()
        except OSError as error:
            raise ValueError(f"cannot write to {checkpoints.folder}: {error.strerror}") from None
        try:
            import fcntl  # there is none on Windows

            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise ValueError(f"{checkpoints.folder} is in use by another process") from None
        preserved = [
            LatestN(checkpoints.keep),
            BestN(get_metric_fn=lambda metrics: metrics["return"], n=1),
        ]
        options = CheckpointManagerOptions(
            multiprocessing_options=_alone(),
            create=False,  # it is there; orbax refuses to make one for one process of several
            preservation_policy=AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=True,  # what a kill has left
        )
        self.manager = CheckpointManager(self.folder, options=options)
        self.saved_at = time.perf_counter()
        self.iteration = 0  # up to which everything is saved

    def restore(self, like: Any) -> Saved | None:
        """The newest checkpoint that is whole, as states like `like`; None where there is none.

        Raises:
            ValueError: there are some, but of another population, or none of them is whole.
        """
        try:
            saved = _newest(self.manager, self.folder, like, self.belongs_to)
        except ValueError:
            self.close()
            raise
        self.iteration = saved.iteration if saved else 0
        # What a run that was stopped had saved later is about to be done again.
        for step in self.manager.all_steps():
            if step > self.iteration:
                self.manager.delete(step)
        for _, stop, path in _pieces(self.folder):
            if stop > self.iteration:
                path.unlink()
        return saved

    def due(self) -> bool:
        """Whether the time for another save has come."""
        return time.perf_counter() - self.saved_at >= self.every

    def save(
        self,
        iteration: int,
        states: Any,
        history: History,
        score: float,
        seconds: float,
    ) -> bool:
        """Save states after `iteration`, and the history since the last save that succeeded.

        Returns once the states are copied; they are written while training goes on. Where that
        fails, as on a full disk, it warns and returns False: what was saved before stays.
        """
        self.saved_at = time.perf_counter()
        path = self.folder / HISTORY / f"{self.iteration:010d}-{iteration:010d}.npz"
        try:
            _write(path, history.to_arrays())
            self._save_states(iteration, states, score, seconds)
        except Exception as error:  # whatever a writer raises, also that of the save before
            path.unlink(missing_ok=True)
            self._warn_of(error)
            return False
        self.iteration = iteration
        return True

    def _save_states(self, iteration: int, states: Any, score: float, seconds: float) -> None:
        from orbax.checkpoint.args import Composite, JsonSave, StandardSave

        states = to_numpy(states)
        about = {
            "belongs_to": self.belongs_to,
            "checksum": checksum(states),
            "jax": jax.__version__,
            "seconds": seconds,
        }
        self.manager.save(
            iteration,
            args=Composite(states=StandardSave(states), about=JsonSave(_sealed(about))),
            metrics={"return": score if np.isfinite(score) else -1e30},
        )

    def _warn_of(self, error: Exception) -> None:
        line = " ".join(str(error).split())[:200]
        warnings.warn(
            f"cannot save to {self.folder} ({line}): training goes on, what was saved before stays",
            stacklevel=4,
        )

    def close(self) -> None:
        """Wait until everything is written."""
        try:
            self.manager.wait_until_finished()
            self.manager.close()
        except Exception as error:
            self._warn_of(error)
        self.lock.close()


def exists(folder: Path) -> bool:
    """Whether a folder of `Checkpoints` holds a checkpoint of any program."""
    return any(folder.glob("*/[0-9]*"))


def read(folder: Path, like: Any) -> Saved:
    """The newest checkpoint of a folder that is whole, while nothing or something writes to it.

    Raises: ValueError where there is none.
    """
    from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

    folder = folder.absolute()
    _quieten()
    options = CheckpointManagerOptions(read_only=True, multiprocessing_options=_alone())
    with CheckpointManager(folder, options=options) as manager:
        saved = _newest(manager, folder, like, None)
    if saved is None:
        raise ValueError(f"{folder} holds no checkpoint")
    return saved


def _no_pages(record: logging.LogRecord) -> bool:
    """False for what orbax logs at length: errors that it raises as well, tasks it forgets."""
    return "orbax" not in record.pathname and "async_deserialize" not in record.getMessage()


def _alone() -> Any:
    """Options of orbax by which this process waits for no other."""
    from orbax.checkpoint.options import MultiprocessingOptions

    if jax.process_count() == 1:
        return MultiprocessingOptions()
    this = jax.process_index()
    return MultiprocessingOptions(this, {this}, f"process {this}")


def _quieten() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_no_pages)


def _newest(manager: Any, folder: Path, like: Any, belongs_to: Any) -> Saved | None:
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return _restore(manager, folder, step, like, belongs_to)
        except _Foreign as error:
            raise ValueError(f"{folder}: {error}") from None
        except Exception as error:  # whatever a damaged file makes its reader raise
            line = " ".join(str(error).split())[:200]
            warnings.warn(
                f"{folder / str(step)} is damaged ({type(error).__name__}: {line}); "
                "falling back to the checkpoint before it",
                stacklevel=2,
            )
    if steps:
        raise ValueError(f"{folder}: none of its checkpoints can be read")
    return None


def _restore(manager: Any, folder: Path, step: int, like: Any, belongs_to: Any) -> Saved:
    from orbax.checkpoint.args import Composite, JsonRestore

    about = _opened(manager.restore(step, args=Composite(about=JsonRestore())).about)
    theirs, ours = about["belongs_to"], belongs_to or about["belongs_to"]
    other = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if ENVIRONMENT in other and ENVIRONMENT not in theirs:
        other.remove(ENVIRONMENT)  # earlier checkpoints do not say
    if other:
        raise _Foreign(f"saved with another {', '.join(sorted(other))}")
    if about["jax"] != jax.__version__:
        warnings.warn(
            f"saved with jax {about['jax']}, going on with {jax.__version__}: "
            "the same up to rounding",
            stacklevel=2,
        )
    words = jax.tree.map(lambda x: jax.eval_shape(jax.random.key_data, x) if is_key(x) else x, like)
    states = _read_states(manager, folder, step, words)
    if checksum(states) != about["checksum"]:
        raise ValueError("its checksum is another")
    states = from_numpy(states, like)
    return Saved(step, states, _history_until(folder, step), about["seconds"])


def _read_states(manager: Any, folder: Path, step: int, like: Any) -> Any:
    """Saved arrays in the structure of `like`, matched by the names of fields.

    Fields that hold no array may have come or gone since. Raises _Foreign where others have.
    """
    from orbax.checkpoint import StandardCheckpointHandler
    from orbax.checkpoint.args import Composite, StandardRestore

    def by_name(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}

    stored = StandardCheckpointHandler().metadata(folder / str(step) / "states").tree
    ours, theirs = ({(k, x.shape) for k, x in by_name(tree).items()} for tree in (like, stored))
    other = sorted({name.split(".")[0] for name, _ in ours ^ theirs})
    if other:
        raise _Foreign(
            f"saved by another version of jaxrl, whose states differ in {', '.join(other)}: "
            "they cannot be read any more"
        )
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored)
    arrays = by_name(manager.restore(step, args=Composite(states=StandardRestore(target))).states)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in by_name(like)])


def _history_until(folder: Path, iteration: int) -> History:
    """The history from the start to an iteration, without a gap."""
    history, reached = None, 0
    for first, stop, path in _pieces(folder):
        if stop > iteration:
            break
        if first != reached:
            raise ValueError(f"{path} begins at {first} instead of {reached}")
        with path.open("rb") as file, np.load(file) as arrays:
            new = History.from_arrays(dict(arrays), stop)
        history = new if history is None else history.then(new)
        reached = stop
    if history is None or reached != iteration:
        raise ValueError(f"{folder / HISTORY} ends at {reached} instead of {iteration}")
    return history


def _pieces(folder: Path) -> list[tuple[int, int, Path]]:
    pieces = []
    for path in (folder / HISTORY).glob("*.npz"):
        first, stop = map(int, path.stem.split("-"))
        pieces.append((first, stop, path))
    return sorted(pieces)


class _Foreign(Exception):
    """A checkpoint of another population."""


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, in order, random keys as their words."""
    value = 0
    for array in jax.tree.leaves(to_numpy(tree)):
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, value)
    return value


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """JSON with a checksum of its own: a flipped bit in it must not look like another run's."""
    text = json.dumps(content)
    return {"text": text, "checksum": zlib.crc32(text.encode())}


def _opened(sealed: dict[str, Any]) -> dict[str, Any]:
    if zlib.crc32(sealed["text"].encode()) != sealed["checksum"]:
        raise ValueError("its description's checksum is another")
    content: dict[str, Any] = json.loads(sealed["text"])
    return content


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file that is there whole or not at all."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
