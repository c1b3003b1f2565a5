"""Callbacks: what happens between the chunks of a run. Progress, sinks, signals, saving are some.

After each chunk all callbacks are asked whether to stop, then whether they want the states, then
called. A plain function of one `Progress` is a callback too.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.training.checkpoint import Store
from jaxrl.training.exchange import Exchange
from jaxrl.training.history import History


class Progress(NamedTuple):
    """What a callback gets between chunks.

    Attributes:
        iteration, iterations: done, and of the whole run.
        env_steps, total_steps: done, and of the whole run, of all members together.
        seconds: that the batch has taken, without compiling.
        metrics: means over the chunk and the members, NaN where there is no value. Where the chunk
            ended with an evaluation, also `evaluation_return`, and `evaluation_NAME` for what the
            agent records.
        by_member: the same for each member (members,).
        members: their numbers in the sweep's table.
        batch: which of the run's batches this is, from 0.
        seeds: the members' root seeds.
        history: all that the batch has shown so far.
        first: iterations done before this chunk.
        over: whether it was the batch's last chunk; not known yet where `stops` is asked.
        exchanges: what population-based training has exchanged so far.
        hyperparameters: of a search that changes them while it runs, what this chunk was trained
            with: name -> values (members,); in successive halving, of those that are left.
    """

    iteration: int
    iterations: int
    env_steps: int
    total_steps: int
    seconds: float
    metrics: dict[str, float]
    by_member: dict[str, np.ndarray]
    members: list[int]
    batch: int
    seeds: Sequence[int] = ()
    history: History = History.empty(0, 0)
    first: int = 0
    over: bool = False
    exchanges: Sequence[Exchange] = ()
    hyperparameters: Mapping[str, Sequence[Any]] = {}


def shown(chunk: History) -> dict[str, np.ndarray]:
    """What is shown of a chunk: metrics (members, n) and episodes (members, episodes) by name."""
    values = dict(chunk.metrics)
    if chunk.num_evaluations:
        for name, episodes in chunk.evaluations.items():
            if name != "env_steps":
                label = "evaluation_return" if name == "returns" else f"evaluation_{name}"
                values[label] = episodes[:, -1]
    return values


class Callback:
    """Base of callbacks: override what you need.

    With several processes each has its own callbacks; where one stops or wants states, all do.
    """

    def stops(self, progress: Progress) -> bool:
        """Whether the run ends here. Asked first, of all."""
        return False

    def due(self, progress: Progress) -> bool:
        """Whether it wants the states now; `progress.over` is known."""
        return False

    def __call__(self, progress: Progress, states: Any | None) -> None:
        """A chunk is done. `states` of all members, in NumPy, where it was due, else None."""

    def close(self) -> None:
        """The run is over, however it ended."""


class Guarded(Callback):
    """A user's callback or plain function.

    One that cannot write, on a full disk, is warned of and called no more: the run goes on.
    """

    def __init__(self, callback: Callback | Callable[[Progress], None]) -> None:
        self.name = getattr(callback, "__name__", type(callback).__name__)
        self.callback = callback if isinstance(callback, Callback) else _Function(callback)

    def stops(self, progress: Progress) -> bool:
        return self.callback.stops(progress)

    def due(self, progress: Progress) -> bool:
        return self.callback.due(progress)

    def __call__(self, progress: Progress, states: Any | None) -> None:
        try:
            self.callback(progress, states)
        except OSError as error:
            warnings.warn(f"{self.name} ends here: {error}", stacklevel=2)
            with contextlib.suppress(OSError):
                self.callback.close()
            self.callback = Callback()

    def close(self) -> None:
        try:
            self.callback.close()
        except OSError as error:
            warnings.warn(f"{self.name} cannot be closed: {error}", stacklevel=2)


class _Function(Callback):
    """A plain function of one `Progress`."""

    def __init__(self, function: Callable[[Progress], None]) -> None:
        self.function = function

    def __call__(self, progress: Progress, states: Any | None) -> None:
        self.function(progress)


def guarded(callbacks: Iterable[Callback | Callable[[Progress], None]]) -> list[Callback]:
    """Callbacks that a user passed, each on its guard.

    Raises: ValueError where one of them cannot be called.
    """
    callbacks = list(callbacks)
    for callback in callbacks:
        if not callable(callback):
            raise ValueError(f"callbacks: {callback!r} is not a function of one Progress")
    return [Guarded(callback) for callback in callbacks]


@contextlib.contextmanager
def closing(closeable: Iterable[Callback | Store]) -> Iterator[None]:
    """Close all of them at the end, the last one first, whatever ends it."""
    with contextlib.ExitStack() as stack:
        for each in closeable:
            stack.callback(each.close)
        yield


class OnNaN(Callback):
    """Warns of members whose loss, returns or parameters are not finite, and stops if asked to.

    `then` says what becomes of them.

    Raises: ValueError where `on_nan` is not "report" or "stop".
    """

    def __init__(self, on_nan: str, then: str = "it is left out of all statistics") -> None:
        if on_nan not in ("report", "stop"):
            raise ValueError(f"on_nan={on_nan!r} is not one of report, stop")
        self.is_stopping, self.then = on_nan == "stop", then

    def stops(self, progress: Progress) -> bool:
        diverged_at = progress.history.diverged_at
        rows = np.flatnonzero(diverged_at >= progress.first).tolist()
        for i in rows:
            warnings.warn(
                f"member {progress.members[i]} (seed {progress.seeds[i]}) has a loss, returns or "
                f"parameters that are not finite after iteration {diverged_at[i]:.0f}: {self.then}",
                stacklevel=2,
            )
        return self.is_stopping and bool(rows)


class Signals(Callback):
    """Ctrl-C, SIGTERM or SIGHUP finish the chunk under way and keep what was computed.

    A second one ends the run at once. It listens from its construction until it is closed. SIGTERM
    is what clusters send before they kill, SIGHUP what a terminal does that is closed; under
    `nohup` that stays ignored.
    """

    def __init__(self) -> None:
        self.asked, self.previous = threading.Event(), {}
        if threading.current_thread() is threading.main_thread():
            which = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
            heard = [s for s in which if s and signal.getsignal(s) is not signal.SIG_IGN]
            self.previous = {s: signal.signal(s, self._on_signal) for s in heard}

    def _on_signal(self, signum: int, frame: Any) -> None:
        if self.asked.is_set():
            raise KeyboardInterrupt
        self.asked.set()

    def stops(self, progress: Progress) -> bool:
        return self.asked.is_set()

    def close(self) -> None:
        for which, handler in self.previous.items():
            signal.signal(which, handler)


class Saving(Callback):
    """Saves the states, and what is new in the history, when time is up and at the end.

    `history` is what the store holds already.
    """

    def __init__(self, store: Store, history: History) -> None:
        self.store, self.saved = store, history

    def due(self, progress: Progress) -> bool:
        return progress.over or self.store.due()

    def __call__(self, progress: Progress, states: Any | None) -> None:
        if states is None:
            return
        new = progress.history.after(self.saved)
        score = (progress.history if progress.history.num_evaluations else new).score()
        taken = progress.history.steps_taken.tolist()
        reached = {"seconds": progress.seconds, "env_steps": taken}
        if progress.exchanges:
            reached["exchanges"] = [entry._asdict() for entry in progress.exchanges]
        has_ended = progress.iteration >= progress.iterations or (
            min(taken) * len(taken) >= progress.total_steps
        )
        if self.store.save(progress.iteration, states, new, score, reached, has_ended):
            self.saved = progress.history
