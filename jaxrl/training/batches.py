"""Training a batch of members that share one program: the loop between its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxrl.agent import Tag
from jaxrl.training.callbacks import Callback, Progress, Saving, Signals, closing, shown
from jaxrl.training.checkpoint import Checkpoints, Saved, open_store
from jaxrl.training.engine import Engine
from jaxrl.training.history import History, mean
from jaxrl.training.placement import Placement
from jaxrl.training.population import Run
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
    """

    number: int
    members: list[int]
    agents: Any
    seeds: list[int]
    program_size: int = 1
    compile_seconds: float = 0.0


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
    store, saved = open_store(checkpoints, batch.agents, batch.seeds, engine.like)
    with closing([store] if store else []):
        history = _begin(engine, batch, schedule, saved or start)
        del saved, start  # states are not twice in memory
        saving = [Saving(store, history)] if store else []
        with closing([signals := Signals()]):
            own = [*callbacks, signals, *saving]
            history, interrupted = _loop(engine, batch, schedule, own, history)
    return Run(
        batch.agents,
        engine.result(),
        history.trimmed(),
        batch.compile_seconds + engine.compile_seconds,
        engine.seconds,
        interrupted,
    )


def _begin(engine: Engine, batch: Batch, schedule: Schedule, start: Saved | None) -> History:
    """Give the engine its first states; the history up to there."""
    first = 0 if start is None else start.history.first
    history = History.empty(len(batch.members), schedule.episodes, first)
    if start is None:
        engine.start(batch.seeds)
        return history
    engine.load(start.states)
    engine.began -= start.seconds
    return history.then(start.history)


def _loop(
    engine: Engine,
    batch: Batch,
    schedule: Schedule,
    callbacks: Sequence[Callback],
    history: History,
) -> tuple[History, bool]:
    """From the history's last iteration to the end, or to where a callback stops it."""
    t, agree, total_steps = history.stop, engine.placement.agree, batch.agents.total_steps
    over = t >= schedule.last or bool((history.steps_taken >= total_steps).all())
    interrupted = False
    while not over:
        stop, before = schedule.stop(t, engine.rate), history
        history = history.then(engine.advance(t, stop))
        t = stop
        if schedule.evaluates(t) or (schedule.evaluations and engine.finished):
            result = engine.evaluate(Tag.EVALUATE, t, schedule.episodes)
            history = history.evaluated({"returns": result.returns, **result.info})
        progress = _progress(batch, schedule, history, history.after(before), engine.seconds)
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
