"""Reading checkpoints (see `checkpoint`), while nothing or something writes to them."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.training.history import History
from jaxrl.training.hosts import from_numpy, is_key
from jaxrl.training.identity import ENVIRONMENT, checksum

HISTORY = "history"


class Saved(NamedTuple):
    """What a run is resumed from: states of all members, and what they have shown."""

    iteration: int
    states: Any
    history: History
    seconds: float  # that the run had taken, without compiling


def exists(folder: Path) -> bool:
    """Whether a folder of `Checkpoints` holds a checkpoint of any program."""
    return any(folder.glob("*/[0-9]*"))


def read(folder: Path, like: Any, which: str | int = "newest") -> Saved:
    """A checkpoint of a folder, while nothing or something writes to it.

    Args:
        which: "newest" that is whole; "best", the one with the highest mean return over members of
            those that are kept; or the iteration after which it was saved.

    Raises: ValueError where there is none, or not the one asked for.
    """
    folder = folder.absolute()
    if which == "newest":
        for _ in range(5):  # all may have been replaced by a run that goes on
            with _reading(folder) as manager:
                saved = newest(manager, folder, like, None)
            if saved is not None:
                return saved
        raise ValueError(f"{folder} holds no checkpoint")
    with _reading(folder) as manager:
        steps = sorted(manager.all_steps())
        step: Any = manager.best_step() if which == "best" else which
        if step not in steps:
            raise ValueError(
                f"{folder} holds no checkpoint {which!r}: there are newest, best and "
                + ", ".join(map(str, steps))
            )
        try:
            return _restore(manager, folder, step, like, None)
        except Exception as error:
            line = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder / str(step)} cannot be read: {line}") from None


def members(folder: Path) -> int:
    """How many members a folder's checkpoints hold; 0 where there is none to be read."""
    from orbax.checkpoint.args import Composite, JsonRestore

    if not any(folder.glob("[0-9]*")):
        return 0
    with _reading(folder.absolute()) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                about = _opened(manager.restore(step, args=Composite(about=JsonRestore())).about)
            except Exception:  # whatever a damaged file makes its reader raise
                continue
            return len(about["belongs_to"]["seeds"])
    return 0


def read_history(folder: Path) -> History:
    """What the members of a folder have shown until its newest checkpoint.

    Raises: ValueError where there is none, or a part of it is missing.
    """
    with _reading(folder.absolute()) as manager:
        step = manager.latest_step()
    if step is None:
        raise ValueError(f"{folder} holds no checkpoint")
    return _history_until(folder, step)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[Any]:
    """A manager of a folder's checkpoints that writes nothing."""
    from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

    quieten()
    options = CheckpointManagerOptions(
        read_only=True, multiprocessing_options=alone(), best_fn=score_of
    )
    with CheckpointManager(folder, options=options) as manager:
        yield manager


def score_of(metrics: dict[str, float]) -> float:
    """What the best checkpoint is chosen by."""
    return metrics["return"]


def _no_pages(record: logging.LogRecord) -> bool:
    """False for what orbax logs at length: errors that it raises as well, tasks it forgets."""
    return "orbax" not in record.pathname and "async_deserialize" not in record.getMessage()


def alone() -> Any:
    """Options of orbax by which this process waits for no other."""
    from orbax.checkpoint.options import MultiprocessingOptions

    if jax.process_count() == 1:
        return MultiprocessingOptions()
    this = jax.process_index()
    return MultiprocessingOptions(this, {this}, f"process {this}")


def quieten() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_no_pages)


def newest(manager: Any, folder: Path, like: Any, belongs_to: Any) -> Saved | None:
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return _restore(manager, folder, step, like, belongs_to)
        except _Foreign as error:
            raise ValueError(f"{folder}: {error}") from None
        except Exception as error:  # whatever a damaged file makes its reader raise
            if not (folder / str(step)).exists():
                continue  # a run that goes on has just replaced it
            line = " ".join(str(error).split())[:200]
            warnings.warn(
                f"{folder / str(step)} is damaged ({type(error).__name__}: {line}); "
                "falling back to the checkpoint before it",
                stacklevel=2,
            )
    if any((folder / str(step)).exists() for step in steps):
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
    for first, stop, path in pieces(folder):
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


def pieces(folder: Path) -> list[tuple[int, int, Path]]:
    pieces = []
    for path in (folder / HISTORY).glob("*.npz"):
        first, stop = map(int, path.stem.split("-"))
        pieces.append((first, stop, path))
    return sorted(pieces)


class _Foreign(Exception):
    """A checkpoint of another population."""


def _opened(sealed: dict[str, Any]) -> dict[str, Any]:
    if zlib.crc32(sealed["text"].encode()) != sealed["checksum"]:
        raise ValueError("its description's checksum is another")
    content: dict[str, Any] = json.loads(sealed["text"])
    return content
