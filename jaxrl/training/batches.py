"""Training a batch of members that share one program: the loop between its chunks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.agent import Tag
from jaxrl.training.callbacks import Callback, Progress, Saving, Signals, closing, shown
from jaxrl.training.checkpoint import Checkpoints, Saved, open_store
from jaxrl.training.engine import Engine
from jaxrl.training.exchange import Exchange, Selection
from jaxrl.training.history import History, mean
from jaxrl.training.identity import identity
from jaxrl.training.members import values_of, with_values
from jaxrl.training.placement import Placement
from jaxrl.training.run import Run
from jaxrl.training.schedule import Schedule


class Batch(NamedTuple):
    """Members that train at once.

    Attributes:
        number: which of the run's batches, from 0.
        members: their numbers in the sweep's table.
        agents: one stacked agent, a leading axis of members on all that they do not share.
        seeds: one root seed per member.
        program_size: how many members its program has, in all batches.
        compile_seconds: spent already on compiling what it runs.
        search: what else its checkpoints belong to, JSON by name: the search that it is part of.
        selection: how members copy each other between chunks, in population-based training.
        searched: of successive halving, the members' hyper-parameters: name -> values (members,).
    """

    number: int
    members: list[int]
    agents: Any
    seeds: list[int]
    program_size: int = 1
    compile_seconds: float = 0.0
    search: Mapping[str, Any] = {}
    selection: Selection | None = None
    searched: Mapping[str, list[Any]] = {}


class Evolution:
    """The agents of a batch over time, whose traced values change where members copy each other.

    Attributes:
        agents: as they are now.
        exchanges: all so far, the first of which holds the values that members began with.
    """

    def __init__(self, batch: Batch) -> None:
        self.agents, self.selection = batch.agents, batch.selection
        self.exchanges: list[Exchange] = []
        if self.selection is not None:
            self.exchanges = [Exchange.none(values_of(self.agents, self.selection.space))]

    def restore(self, exchanges: Sequence[Exchange]) -> None:
        """Go on after these exchanges, where there were any."""
        if exchanges:
            self.exchanges = list(exchanges)
            self._take(exchanges[-1].values)

    def exchange(self, engine: Engine, history: History) -> History:
        """The worst members go on as copies of the best, with changed hyper-parameters."""
        assert self.selection is not None
        t, before = history.stop, self.exchanges[-1]
        scores = history.returns_since(before.iteration)
        parents, values = self.selection(t, scores, before.values)
        self._take(values)
        engine.gather(self.agents, parents)
        kept = values_of(self.agents, self.selection.space)
        self.exchanges.append(Exchange(t, scores.tolist(), parents.tolist(), kept))
        return history.mended(parents != np.arange(len(parents)))

    def _take(self, values: Mapping[str, Any]) -> None:
        arrays = {name: np.asarray(column) for name, column in values.items()}
        self.agents = with_values(self.agents, arrays)


def train_batch(
    batch: Batch,
    schedule: Schedule,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    start: Saved | None = None,
    data_parallel: bool = False,
) -> Run:
    """Train a batch: from its checkpoint, else from `start`, else from fresh states.

    With `data_parallel` the environments of its only member are spread over the local devices.

    A member whose loss, returns or parameters are not finite trains on, to no effect on the others;
    from there on its metrics and returns are NaN, which is "missing" everywhere.
    """
    members, env = len(batch.members), batch.agents.env
    if getattr(env, "on_host", False) and (members > 1 or data_parallel):
        raise ValueError(
            f"{env.name} steps on the host, for one member at a time on one device: not for "
            f"{members} with data_parallel={data_parallel}"
        )
    placement = Placement.of_environments() if data_parallel else Placement.of_members(members)
    engine = Engine(batch.agents, placement, schedule.length)
    belongs_to = identity(batch.agents, batch.seeds) | dict(batch.search)
    store, saved = open_store(checkpoints, batch.agents, belongs_to, engine.like)
    evolution = Evolution(batch)
    with closing([store] if store else []):
        history = _begin(engine, batch, schedule, saved or start, evolution)
        there = history if saved else History.empty(members, schedule.episodes, history.first)
        del saved, start  # states are not twice in memory
        saving = [Saving(store, there)] if store else []
        with closing([signals := Signals()]):
            own = [*callbacks, signals, *saving]
            history, interrupted = _loop(engine, batch, schedule, own, history, evolution)
    return Run(
        evolution.agents,
        engine.result(),
        history.trimmed(),
        batch.compile_seconds + engine.compile_seconds,
        engine.seconds,
        interrupted,
        tuple(evolution.exchanges),
    )


def _begin(
    engine: Engine, batch: Batch, schedule: Schedule, start: Saved | None, evolution: Evolution
) -> History:
    """Give the engine its first states; the history up to there.

    A replay memory that was not kept is filled again, with a warning, where there is more to do.
    """
    first = 0 if start is None else start.history.first
    history = History.empty(len(batch.members), schedule.episodes, first)
    if start is None:
        engine.start(batch.seeds)
        return history
    evolution.restore(start.exchanges)
    engine.load(start.states, evolution.agents)
    engine.began -= start.seconds
    history = history.then(start.history)
    if start.is_without_replay and not _is_over(batch, schedule, history):
        warnings.warn(
            "its replay memory was not kept when it ended: the policy collects it anew, which "
            "counts for nothing; from here on it is not the run that was never stopped",
            stacklevel=4,
        )
        engine.refill(history.stop)
    return history


def _is_over(batch: Batch, schedule: Schedule, history: History) -> bool:
    """Whether nothing is left to do after this history."""
    taken = history.steps_taken
    return history.stop >= schedule.last or bool((taken >= batch.agents.total_steps).all())


def _loop(
    engine: Engine,
    batch: Batch,
    schedule: Schedule,
    callbacks: Sequence[Callback],
    history: History,
    evolution: Evolution,
) -> tuple[History, bool]:
    """From the history's last iteration to the end, or to where a callback stops it."""
    t, agree = history.stop, engine.placement.agree
    over, interrupted = _is_over(batch, schedule, history), False
    while not over:
        if schedule.exchanges(t):
            history = evolution.exchange(engine, history)
        stop, before = schedule.stop(t, engine.rate), history
        history = history.then(engine.advance(t, stop))
        t = stop
        if schedule.evaluates(t) or (schedule.evaluations and engine.finished):
            result = engine.evaluate(Tag.EVALUATE, t, schedule.episodes)
            history = history.evaluated({"returns": result.returns, **result.info})
        progress = _progress(batch, schedule, history, history.after(before), engine.seconds)
        searched = evolution.exchanges[-1].values if evolution.exchanges else batch.searched
        progress = progress._replace(exchanges=tuple(evolution.exchanges), hyperparameters=searched)
        stops = [callback.stops(progress) for callback in callbacks]  # all are asked
        interrupted = agree(any(stops))
        over = interrupted or engine.finished or t >= schedule.last
        progress = progress._replace(over=over)
        is_due = [callback.due(progress) for callback in callbacks]
        states = engine.states_on_host() if agree(any(is_due)) else None
        for callback, due in zip(callbacks, is_due, strict=True):
            callback(progress, states if due else None)
    return history, interrupted


def _progress(
    batch: Batch, schedule: Schedule, history: History, chunk: History, seconds: float
) -> Progress:
    """What the callbacks get to see after a chunk."""
    values = shown(chunk)
    return Progress(
        history.stop,
        schedule.iterations,
        int(history.steps_taken.sum()),
        batch.agents.total_steps * len(batch.members),
        seconds,
        {name: float(mean(x)) for name, x in values.items()},
        {name: mean(x, axis=1) for name, x in values.items()},
        batch.members,
        batch.number,
        batch.seeds,
        history,
        chunk.first,
    )
