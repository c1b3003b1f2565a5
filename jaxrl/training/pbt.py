"""Population-based training: members copy the best and change what they copied, as they train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxrl.agent import Agent
from jaxrl.training.batches import Batch, train_batch
from jaxrl.training.callbacks import Callback, OnNaN, Progress, closing, guarded
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.exchange import Selection
from jaxrl.training.members import stack_agents
from jaxrl.training.population import Population
from jaxrl.training.schedule import Schedule
from jaxrl.training.search import (
    Lin,
    Log,
    Space,
    override,
    plain,
    require_few,
    settings_of,
    whole_numbers,
)
from jaxrl.training.together import require_memory, require_ranked, require_traced

SEARCH = "population-based training"
EXCHANGES = 20  # of a run, where `every` does not say


# Longer than sixty lines because each of its arguments is documented; the body is not.
def pbt(
    agent: Agent,
    space: Space,
    *,
    random: int | None = None,
    start: Sequence[Mapping[str, Any]] | None = None,
    share: float = 0.25,
    every: int | None = None,
    resample: float = 0.25,
    seed: int = 0,
    memory: int | None = None,
    evaluations: int = 0,
    episodes: int = 64,
    announce: Callable[[str], None] | None = None,
    callbacks: Iterable[Callback | Callable[[Progress], None]] = (),
    checkpoints: Checkpoints | None = None,
    on_nan: str = "report",
    record: Sequence[str] | None = None,
) -> Population:
    """Train a population whose worst members copy the best ones, again and again.

    Every `every` steps the worst `share` of the members, and all that have diverged, take over the
    whole state (parameters, optimiser, environments, replay) and the hyper-parameters of members
    drawn from the best `share`, and change the hyper-parameters: each is drawn anew from its range
    with probability `resample`, else perturbed: of a `Log` range times 1.2 or 0.8, of a `Lin` range
    by a fifth of it up or down, of a list to the value before or behind; never beyond the range
    (Jaderberg et al. 2017, arXiv:1711.09846, truncation selection). A member keeps its root key.
    Members are ranked by their mean return over the training episodes that have ended since the
    exchange before; of agents without episodes of their own, by the newest evaluation. Those in
    which no episode has ended neither copy nor are copied.

    Between exchanges the members are one program, and it is the same one throughout.

    Args:
        space: name -> range or list of traced hyper-parameters, `env.NAME` for parameters of the
            environment. Members begin with its grid, each with a root seed of its own.
        random: instead, begin with this many settings drawn from the ranges.
        start: instead, begin with these settings, which name all of the space.
        every: steps of each member from one exchange to the next, rounded to whole iterations;
            None: a twentieth of the run.
        seed: of all that is drawn. Root seeds are seed * n, ..., seed * n + n - 1 for n members:
            another seed is another population.
        memory, evaluations, episodes, announce, callbacks, checkpoints, record: as for
            `jaxrl.sweep`. The members' final hyper-parameters are in the population's `table`, what
            they were before in `exchanges` and `schedule(i)`.
        on_nan: a member that diverges is replaced at the next exchange ("report"), or training ends
            ("stop").

    Raises:
        ValueError: as `jaxrl.sweep`; a hyper-parameter that is static; fewer than two members; a
            share outside (0, 0.5]; members that do not fit into memory at once; an agent whose
            iterations vary in length.
    """
    if record is not None:
        agent = agent.replace(record=tuple(record))
    announce = announce or (lambda line: None)
    selection = Selection(dict(space), share, resample, seed)
    settings = _settings(agent, selection, random, start)
    require_ranked(agent, evaluations, SEARCH)
    schedule = Schedule(
        agent.num_iterations, evaluations, episodes, every=iterations_between(agent, every)
    )
    own = [*guarded(callbacks), OnNaN(on_nan, "the next exchange replaces it")]
    with closing(own):
        agents = stack_agents([override(agent, setting) for setting in settings])
        number, steps = len(settings), schedule.every * agent.steps_per_iteration
        announce(
            f"{SEARCH}: {number} members in one program, an exchange every {steps:,} {agent.unit}"
        )
        seconds = require_memory(
            agents, number, schedule, memory, announce, checkpoints is not None, SEARCH
        )
        seeds = [seed * number + i for i in range(number)]
        search = {SEARCH: described(selection) | {"every": schedule.every}}
        batch = Batch(0, list(range(number)), agents, seeds, number, seconds, search, selection)
        folder = checkpoints.of_batch(0) if checkpoints else None
        run = train_batch(batch, schedule, own, folder)
    last = run.exchanges[-1].values
    table = [{**{k: v[i] for k, v in last.items()}, "seed": s} for i, s in enumerate(seeds)]
    return Population(table, [(list(range(number)), run)])


def _settings(
    agent: Agent,
    selection: Selection,
    random: int | None,
    start: Sequence[Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    """What the members begin with. Raises: ValueError where anything does not fit."""
    space, seed = selection.space, selection.seed
    if random is not None and random < 1:
        raise ValueError(f"random={random}: must be at least 1")
    if seed < 0:
        raise ValueError(f"seed={seed}: must be at least 0")
    whole = whole_numbers(agent, space)
    _require_selection(agent, selection, whole)
    settings = [dict(s) for s in start] if start else settings_of(space, random, seed)
    require_few(len(settings), "members")
    if len(settings) < 2:
        raise ValueError(f"{SEARCH}: it takes at least 2 members that copy each other")
    largest = 2**32 // len(settings) - 1
    if seed > largest:
        raise ValueError(f"seed={seed}: must be at most {largest:,} for {len(settings)} members")
    for setting in settings:
        if set(setting) != set(space):
            raise ValueError(f"{SEARCH}: start={setting} does not name {', '.join(space)}")
    return [{k: round(v) if k in whole else v for k, v in s.items()} for s in settings]


def _require_selection(agent: Agent, selection: Selection, whole: set[str]) -> None:
    """Raise ValueError where shares are none, or a value of a range is not accepted."""
    if not 0 < selection.share <= 0.5:
        raise ValueError(f"{SEARCH}: share={selection.share} is outside (0, 0.5]")
    if not 0 <= selection.resample <= 1:
        raise ValueError(f"{SEARCH}: resample={selection.resample} is outside [0, 1]")
    if not selection.space:
        raise ValueError(f"{SEARCH}: there is no hyper-parameter to change")
    require_traced(agent, list(selection.space), SEARCH)
    for name, axis in selection.space.items():
        is_range = isinstance(axis, Lin | Log)
        ends = axis[:2] if is_range else [plain(x) for x in axis]
        for value in ends:
            if isinstance(value, str | tuple | bool):
                raise ValueError(f"{SEARCH}: {name}={value!r} is not a number")
            override(agent, {name: int(value) if name in whole else value})
        if is_range and not ends[0] <= ends[1]:
            raise ValueError(f"{SEARCH}: {name}={axis} must run from low to high")
        if isinstance(axis, Log) and axis.low <= 0:
            raise ValueError(f"{SEARCH}: {name}={axis}: a log range needs ends above 0")


def iterations_between(agent: Agent, every: int | None) -> int:
    """Iterations from one exchange to the next. Raises: ValueError where they are none."""
    if every is None:
        return max(1, math.ceil(agent.num_iterations / EXCHANGES))
    if every < 1:
        raise ValueError(f"{SEARCH}: every={every}: must be at least 1")
    return max(1, round(every / agent.steps_per_iteration))


def described(selection: Selection) -> dict[str, Any]:
    """All that a selection follows from, as JSON has it."""
    space = {
        name: [type(axis).__name__, axis.low, axis.high]
        if isinstance(axis, Lin | Log)
        else [plain(x) for x in axis]
        for name, axis in selection.space.items()
    }
    content = {f.name: getattr(selection, f.name) for f in dataclasses.fields(selection)}
    return content | {"space": space}
