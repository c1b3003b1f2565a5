"""Checkpoints: the whole state of a population between two chunks, and what it has shown so far.

    FOLDER/ITERATION/                   orbax: the members' states, what they belong to, and apart
                                        from the states the replay memories, where there are any
    FOLDER/history/FIRST-ITERATION.npz  metrics and evaluations since the save before

A save writes the history first and the states behind it, each under a temporary name until it is
whole: a kill at any moment leaves the save before as it was. States carry a checksum, without which
a flipped bit would train on.

Replay memories are most of what is on disk, and only training on needs them: those of checkpoints
that are kept for being the best are removed, and all of them once the run has ended.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import files
from jaxrl.training import hosts
from jaxrl.training.history import History
from jaxrl.training.hosts import to_numpy
from jaxrl.training.identity import checksum, defaults
from jaxrl.training.restore import (
    HISTORY,
    REPLAY,
    WORST,
    Saved,
    Wanted,
    alone,
    apart,
    members,
    mend_scores,
    newest,
    pieces,
    quieten,
    score_of,
    without_empty,
)

BATCHES = "batches.json"


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where, how often and how many checkpoints are kept.

    Attributes:
        folder: theirs alone; made where it is missing.
        every: seconds from one save to the next; the last state is saved in any case.
        keep: how many of the newest are kept. The one with the best return so far is kept as well.
        keep_replay: also when the run has ended. Without it a run that is then extended collects a
            new one first.
    """

    folder: Path
    every: float = 60.0
    keep: int = 2
    keep_replay: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # a string is a path too
        if not files.is_utf8(self.folder.absolute()):  # which orbax needs
            raise ValueError(f"checkpoints: {self.folder} is no name in UTF-8")
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
        members into other batches. Where that is damaged, the batch's checkpoints tell it.

        Raises: ValueError where that cannot be written down.
        """
        path = self.folder / BATCHES
        known = _batch_sizes(path) if hosts.is_writer() else {}
        size: int | None = hosts.of_writer(known.get(str(number)))
        if size is not None:
            return size
        saved = members(self.folder / str(number)) if hosts.is_writer() else 0
        size = hosts.of_writer(saved) or decide()
        if hosts.is_writer():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write_text(path, json.dumps(known | {str(number): size}))
            except OSError as error:
                raise ValueError(f"cannot write to {self.folder}: {error.strerror}") from None
        return size


def open_store(
    checkpoints: Checkpoints | None, agents: Any, belongs_to: dict[str, Any], like: Any
) -> tuple[Store | None, Saved | None]:
    """The store of states `like` these, and what it holds; on one process only.

    What it holds is passed to all processes. The rest is as for `Store`.

    Raises: ValueError as `Store` and `Store.restore` do.
    """
    if checkpoints is None:
        return None, None
    store = None
    if hosts.is_writer():
        store = Store(checkpoints, belongs_to, agents.without_replay, defaults(agents))
    return store, hosts.of_writer(store.restore(like) if store else None)


class Store:
    """The checkpoints of one population, open for writing: by one process at a time.

    `belongs_to` describes the population (JSON values by name); what was saved for another is
    refused. `without_replay` takes the replay memories out of states; `unsaid` is what earlier
    checkpoints do not say that they belong to.

    Raises: ValueError where the folder cannot be written, or another process writes to it.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        belongs_to: dict[str, Any],
        without_replay: Callable[[Any], Any],
        unsaid: dict[str, Any],
    ) -> None:
        from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        quieten()
        self.every, self.keep = checkpoints.every, checkpoints.keep
        self.keep_replay, self.has_ended = checkpoints.keep_replay, False
        self.without_replay = without_replay
        self.folder = checkpoints.folder.absolute()
        self.belongs_to, self.unsaid = json.loads(json.dumps([belongs_to, unsaid]))
        try:
            (self.folder / HISTORY).mkdir(parents=True, exist_ok=True)
            self.lock = files.locking(self.folder / ".lock")
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
        preserved = [LatestN(checkpoints.keep), BestN(get_metric_fn=score_of, n=1)]
        options = CheckpointManagerOptions(
            multiprocessing_options=alone(),
            best_fn=score_of,  # without it scores are not on disk, and all are kept after a resume
            create=False,  # it is there; orbax refuses to make one for one process of several
            preservation_policy=AnyPreservationPolicy(preserved),
            cleanup_tmp_directories=True,  # what a kill has left
        )
        try:
            mend_scores(self.folder)
            for part in (self.folder / HISTORY).glob("*.part"):  # what a kill has left
                part.unlink()
            self.manager = CheckpointManager(self.folder, options=options)
        except Exception as error:  # whatever a damaged file makes its reader raise
            self.lock.close()
            line = " ".join(str(error).split())[:200]
            raise ValueError(f"{checkpoints.folder} cannot be opened: {line}") from None
        self.saved_at = time.perf_counter()
        self.iteration = 0  # up to which everything is saved

    def restore(self, like: Any) -> Saved | None:
        """The newest checkpoint that is whole, as states like `like`; None where there is none.

        Raises:
            ValueError: there are some, but of another population, or none of them is whole.
        """
        try:
            wanted = Wanted(like, self.without_replay(like), replay=True, unsaid=self.unsaid)
            saved = newest(self.manager, self.folder, wanted, self.belongs_to)
        except ValueError:
            self.close()
            raise
        self.iteration = saved.iteration if saved else 0
        # What a run that was stopped had saved later is about to be done again.
        for step in self.manager.all_steps():
            if step > self.iteration:
                self.manager.delete(step)
        for _, stop, path in pieces(self.folder):
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
        reached: dict[str, Any],
        has_ended: bool = False,
    ) -> bool:
        """Save states after `iteration`, and the history since the last save that succeeded.

        `reached` is what else there is to say, JSON by name: `env_steps` of each member, `seconds`
        that the run has taken, `exchanges` of population-based training. Where the run `has_ended`,
        replay memories are left out, and those on disk removed at last.

        Returns once the states are copied; they are written while training goes on. Where that
        fails, as on a full disk, it warns and returns False: what was saved before stays.
        """
        self.saved_at = time.perf_counter()
        path = self.folder / HISTORY / f"{self.iteration:010d}-{iteration:010d}.npz"
        try:
            with files.replacing(path) as file:
                np.savez(file, **history.to_arrays())  # type: ignore[arg-type]
            self._save_states(iteration, states, score, reached, has_ended)
        except Exception as error:  # whatever a writer raises, also that of the save before
            path.unlink(missing_ok=True)
            self._warn_of(error)
            return False
        self.iteration, self.has_ended = iteration, has_ended
        if not self.keep_replay:
            self._remove_replays(sorted(self.manager.all_steps())[: -self.keep])
        return True

    def _save_states(
        self,
        iteration: int,
        states: Any,
        score: float,
        reached: dict[str, Any],
        has_ended: bool,
    ) -> None:
        from orbax.checkpoint.args import Composite, JsonSave, StandardSave

        states = to_numpy(states)
        kept = self.without_replay(states)
        replay = apart(states, kept)
        about = {
            "belongs_to": self.belongs_to,
            "checksum": checksum(kept),
            "jax": jax.__version__,
            **reached,
        }
        parts = {"states": StandardSave(without_empty(kept))}
        if replay and not (has_ended and not self.keep_replay):
            about["replay_checksum"] = checksum(replay)
            parts[REPLAY] = StandardSave(without_empty(replay))
        self.manager.save(
            iteration,
            args=Composite(**parts, about=JsonSave(_sealed(about))),
            metrics={"return": score if np.isfinite(score) else WORST},
        )

    def _remove_replays(self, steps: list[int]) -> None:
        for step in steps:
            shutil.rmtree(self.folder / str(step) / REPLAY, ignore_errors=True)

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
            if self.has_ended and not self.keep_replay:
                self._remove_replays(self.manager.all_steps())
            self.manager.close()
        except Exception as error:
            self._warn_of(error)
        finally:
            self.lock.close()


def _batch_sizes(path: Path) -> dict[str, int]:
    """What batches.json says, nothing where it is missing or, with a warning, damaged."""
    try:
        content = json.loads(path.read_text())
        if all(type(size) is int and size > 0 for size in content.values()):
            return dict(content)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):  # no text, JSON, or object
        pass
    warnings.warn(
        f"{path} is damaged, it should say how many members each batch has: their checkpoints do",
        stacklevel=3,
    )
    return {}


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """JSON with a checksum of its own: a flipped bit in it must not look like another run's."""
    text = json.dumps(content)
    return {"text": text, "checksum": zlib.crc32(text.encode())}
