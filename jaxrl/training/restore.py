"""Reading checkpoints (see `checkpoint`), while nothing or something writes to them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import files
from jaxrl.parts.trees import by_name
from jaxrl.training.exchange import Exchange
from jaxrl.training.history import History
from jaxrl.training.hosts import from_numpy, is_key
from jaxrl.training.identity import ENVIRONMENT, checksum

HISTORY, REPLAY = "history", "replay"
OPENINGS = 20  # how often it is tried, while a run replaces checkpoints
WORST = -1e30  # the score of a checkpoint without a return


class Saved(NamedTuple):
    """What a run is resumed from: states of all members, and what they have shown."""

    iteration: int
    states: Any
    history: History
    seconds: float  # that the run had taken, without compiling
    is_without_replay: bool = False  # where there was one, but it was not kept
    exchanges: Sequence[Exchange] = ()  # of population-based training, so far


class Wanted(NamedTuple):
    """Shapes of the states that are to be read.

    Attributes:
        whole, kept: with replay memories and without; the same where there are none.
        replay: whether to read those, where they were kept.
        unsaid: what a checkpoint belongs to that does not say it: defaults of what came later.
    """

    whole: Any
    kept: Any
    replay: bool
    unsaid: Mapping[str, Any] = {}


def exists(folder: Path) -> bool:
    """Whether a folder of `Checkpoints` holds a checkpoint of any program."""
    return any(folder.glob("*/[0-9]*"))


def read(folder: Path, like: Any, which: str | int = "newest", kept: Any = None) -> Saved:
    """A checkpoint of a folder, while nothing or something writes to it.

    Args:
        like: the shapes of the states.
        kept: the same without replay memories, which are not read; None: there are none.
        which: "newest" that is whole; "best", the one with the highest mean return over members of
            those that are kept; or the iteration after which it was saved.

    Raises: ValueError where there is none, or not the one asked for.
    """
    folder, wanted = folder.absolute(), Wanted(like, like if kept is None else kept, replay=False)
    for _ in range(5):  # all may have been replaced by a run that goes on
        with _reading(folder) as manager:
            if which == "newest":
                saved = newest(manager, folder, wanted, None)
            else:
                saved = _chosen(manager, folder, wanted, which)
        if saved is not None:
            return saved
    raise ValueError(f"{folder} holds no checkpoint")


def members(folder: Path) -> int:
    """How many members a folder's checkpoints hold; 0 where there is none to be read."""
    found = _newest_about(folder)
    return len(found[1]["belongs_to"]["seeds"]) if found else 0


def belongs_to(folder: Path) -> dict[str, Any]:
    """What a folder's newest checkpoint belongs to (`identity`); nothing where there is none."""
    found = _newest_about(folder)
    return found[1]["belongs_to"] if found else {}


def read_history(folder: Path) -> History:
    """What the members of a folder have shown until its newest checkpoint.

    Raises: ValueError where there is none.
    """
    found = _newest_about(folder)
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint")
    return _history_until(folder, *found)


def _newest_about(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest iteration that says what it belongs to, and what it says."""
    if not any(folder.glob("[0-9]*")):
        return None
    with _reading(folder.absolute()) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                return step, _about(manager, step)
            except Exception:  # whatever a damaged file makes its reader raise
                continue
    return None


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[Any]:
    """A manager of a folder's checkpoints that writes nothing."""
    from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

    quieten()
    options = CheckpointManagerOptions(read_only=True, multiprocessing_options=alone())
    manager = None
    for _ in range(OPENINGS):
        # Between listing the checkpoints and looking at them, a run may have replaced one; orbax
        # asks first whether it is there, then whether it is a folder.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            manager = CheckpointManager(folder, options=options)
            break
    if manager is None:
        raise ValueError(f"{folder}: its checkpoints are replaced faster than they can be listed")
    with manager:
        yield manager


def score_of(metrics: dict[str, float]) -> float:
    """What the best checkpoint is chosen by."""
    return metrics["return"]


def saved_score(folder: Path, step: int) -> float:
    """The score of a checkpoint; the worst where it has none, or a damaged one."""
    try:
        return float(score_of(json.loads(_score_path(folder, step).read_text())))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return WORST


def mend_scores(folder: Path) -> None:
    """Write the worst score over damaged ones: orbax reads all, and none may be damaged."""
    for path in folder.glob("[0-9]*/metrics/metrics"):
        step = path.parent.parent.name
        if step.isdigit() and saved_score(folder, int(step)) == WORST:
            files.write_text(path, json.dumps({"return": WORST}))


def _score_path(folder: Path, step: int) -> Path:
    return folder / str(step) / "metrics" / "metrics"  # as orbax has it


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


@functools.cache
def quieten() -> None:
    """Keep to itself what orbax says of arrays that it was still reading where one was damaged."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_no_pages)
    show = sys.unraisablehook

    def unless_orbax(event: Any) -> None:
        if str(event.exc_value) != "Event loop is closed":
            show(event)

    sys.unraisablehook = unless_orbax


def newest(manager: Any, folder: Path, wanted: Wanted, belongs_to: Any) -> Saved | None:
    """The newest checkpoint that is whole; None where there is none, or no longer."""
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            return _restore(manager, folder, step, wanted, belongs_to)
        except _Foreign as error:
            raise ValueError(f"{folder}: {error}") from None
        except Exception as error:  # whatever a damaged file makes its reader raise
            if _went_on(folder, steps):
                return None
            line = " ".join(str(error).split())[:200]
            warnings.warn(
                f"{folder / str(step)} is damaged ({type(error).__name__}: {line}); "
                "falling back to the checkpoint before it",
                stacklevel=2,
            )
    if steps:
        raise ValueError(f"{folder}: none of its checkpoints can be read")
    return None


def _chosen(manager: Any, folder: Path, wanted: Wanted, which: str | int) -> Saved | None:
    """The best checkpoint, or that of an iteration; None where a run has just replaced it."""
    steps = sorted(manager.all_steps())
    step: Any = which
    if which == "best" and steps:
        step = max(steps, key=lambda step: (saved_score(folder, step), step))
    if step not in steps:
        raise ValueError(
            f"{folder} holds no checkpoint {which!r}: there are newest, best and "
            + ", ".join(map(str, steps))
        )
    try:
        return _restore(manager, folder, step, wanted, None)
    except Exception as error:
        if _went_on(folder, steps):
            return None
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / str(step)} cannot be read: {line}") from None


def _went_on(folder: Path, steps: list[int]) -> bool:
    """Whether a run has replaced some of these checkpoints since they were listed."""
    with _reading(folder) as manager:
        return set(manager.all_steps()) != set(steps)


def _restore(manager: Any, folder: Path, step: int, wanted: Wanted, belongs_to: Any) -> Saved:
    about = _about(manager, step)
    theirs = about["belongs_to"]
    ours = belongs_to or theirs
    theirs = {name: x for name, x in wanted.unsaid.items() if name in ours} | theirs
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
    path = folder / str(step)
    stored = _stored(path, "states")
    like = wanted.whole if _named(stored) == _named(_words(wanted.whole)) else wanted.kept
    differing = {name.split(".")[0] for name, _ in _named(stored) ^ _named(_words(like))}
    if differing:
        raise _Foreign(
            "saved by another version of jaxrl, whose states differ in "
            f"{', '.join(sorted(differing))}: they cannot be read any more"
        )
    arrays = by_name(_read_part(manager, step, "states", stored))
    states = _filled(like, arrays)
    if checksum(states) != about["checksum"]:
        raise ValueError("its checksum is another")
    is_without = like is not wanted.whole
    if is_without and wanted.replay and (path / REPLAY).exists():
        replay = _read_part(manager, step, REPLAY, _stored(path, REPLAY))
        if checksum(replay) != about["replay_checksum"]:
            raise ValueError("the checksum of its replay memory is another")
        like, is_without = wanted.whole, False
        states = _filled(like, arrays | by_name(replay))
    states = from_numpy(states, like)
    history = _history_until(folder, step, about)
    exchanges = [Exchange(**entry) for entry in about.get("exchanges", [])]
    return Saved(step, states, history, about["seconds"], is_without, exchanges)


def apart(whole: Any, kept: Any) -> dict[str, Any]:
    """By name, what is in a tree and not in what is kept of it."""
    names = by_name(kept)
    return {name: x for name, x in by_name(whole).items() if name not in names}


def without_empty(tree: Any) -> Any:
    """A tree without its arrays of no elements, which orbax does not save."""
    return jax.tree.map(lambda x: x if x.size else None, tree)


def _words(like: Any) -> Any:
    """Shapes as they are stored: random keys as their words."""
    return jax.tree.map(lambda x: jax.eval_shape(jax.random.key_data, x) if is_key(x) else x, like)


def _named(tree: Any) -> set[tuple[str, Any]]:
    return {(name, x.shape) for name, x in by_name(tree).items() if 0 not in x.shape}


def _stored(path: Path, part: str) -> Any:
    """What a part of a checkpoint holds, as orbax describes it."""
    from orbax.checkpoint import StandardCheckpointHandler

    return StandardCheckpointHandler().metadata(path / part).tree


def _read_part(manager: Any, step: int, part: str, stored: Any) -> Any:
    from orbax.checkpoint.args import Composite, StandardRestore

    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored)
    return manager.restore(step, args=Composite(**{part: StandardRestore(target)}))[part]


def _filled(like: Any, arrays: dict[str, Any]) -> Any:
    """Arrays in the structure of `like`, matched by the names of fields.

    Fields that hold no array, or none of any size, may have come or gone since.
    """
    leaves = [
        arrays[name] if x.size else np.empty(x.shape, x.dtype) for name, x in by_name(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _history_until(folder: Path, iteration: int, about: dict[str, Any]) -> History:
    """The history from the start to an iteration: NaN, and a warning, for each part that is lost.

    Raises: ValueError where not even the number of steps is known.
    """
    number = len(about["belongs_to"]["seeds"])
    history = History.missing(number, 0, 0)
    lost: list[int] = []

    def lose(stop: int, why: str) -> None:
        nonlocal history
        first = history.stop
        warnings.warn(f"{why}: metrics of iterations {first + 1} to {stop} are lost", stacklevel=2)
        history = history.then(History.missing(number, first, stop))
        lost.extend(range(first, stop))

    for first, stop, path in pieces(folder):
        if first < history.stop or stop > iteration:
            continue  # of what is being saved right now
        if first > history.stop:
            lose(first, f"{path.parent} has a gap")
        try:
            history = history.followed_by(_piece(path, number, first, stop))
        except Exception as error:  # whatever a damaged file makes its reader raise
            lose(stop, f"{path} is damaged ({type(error).__name__})")
    if history.stop < iteration:
        lose(iteration, f"{folder / HISTORY} ends early")
    if not lost:
        return history
    if len(lost) == iteration and "env_steps" not in about:  # earlier checkpoints do not say
        raise ValueError(f"{folder / HISTORY}: nothing of it can be read")
    return history.interpolated(lost, about.get("env_steps"))


def _piece(path: Path, members: int, first: int, stop: int) -> History:
    """A file's part of the history. Raises: ValueError where it is not what its name says."""
    with path.open("rb") as file, np.load(file) as arrays:
        piece = History.from_arrays(dict(arrays), stop)
    shapes = {x.shape for x in (piece.env_steps, *piece.metrics.values())}
    if shapes != {(members, stop - first)} or piece.diverged_at.shape != (members,):
        raise ValueError("its arrays have other shapes")
    return piece


def pieces(folder: Path) -> list[tuple[int, int, Path]]:
    """The files of a history: first and last iteration, and path, in order."""
    names = [
        (re.fullmatch(r"(\d+)-(\d+)", path.stem), path) for path in (folder / HISTORY).glob("*.npz")
    ]
    return sorted((int(name[1]), int(name[2]), path) for name, path in names if name)


class _Foreign(Exception):
    """A checkpoint of another population."""


def _about(manager: Any, step: int) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises: ValueError where that is damaged."""
    from orbax.checkpoint.args import Composite, JsonRestore

    sealed = manager.restore(step, args=Composite(about=JsonRestore())).about
    if zlib.crc32(sealed["text"].encode()) != sealed["checksum"]:
        raise ValueError("its description's checksum is another")
    content: dict[str, Any] = json.loads(sealed["text"])
    return content
