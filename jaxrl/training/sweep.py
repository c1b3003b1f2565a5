"""Populations: any mix of hyper-parameters and seeds, one program per static setting."""

from __future__ import annotations

import contextlib
import numbers
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.agent import Agent
from jaxrl.files import existing
from jaxrl.parts.trees import nbytes
from jaxrl.training import hosts
from jaxrl.training.batches import Batch, train_batch
from jaxrl.training.callbacks import Callback, OnNaN, Progress, closing, guarded
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.engine import needed_bytes, shapes
from jaxrl.training.members import shared_arrays, stack_agents
from jaxrl.training.memory import Plan, available, plan, readable
from jaxrl.training.meter import metered
from jaxrl.training.population import Population
from jaxrl.training.run import Run
from jaxrl.training.schedule import Schedule
from jaxrl.training.search import Space, override, require_few, settings_of


# Longer than sixty lines because each of its arguments is documented; the body is not.
def sweep(
    agent: Agent,
    space: Space | Sequence[Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    random: int | None = None,
    search_seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    evaluations: int = 0,
    episodes: int = 64,
    announce: Callable[[str], None] | None = None,
    callbacks: Iterable[Callback | Callable[[Progress], None]] = (),
    checkpoints: Checkpoints | None = None,
    on_nan: str = "report",
    data_parallel: bool = False,
    record: Sequence[str] | None = None,
    progress: bool = False,
) -> Population:
    """Train every setting with every seed, in one program per distinct static setting.

    Args:
        agent: what the settings override.
        space: name -> values. Names are fields of the agent, traced or static, or `env.NAME` for a
            field of the environment's parameters. Instead, a list of settings, each name -> value,
            or nothing: only seeds.
        seeds: how many (0..n-1), or which.
        random: draw this many settings instead of the grid.
        search_seed: of what is drawn: another one, other settings.
        batch_size: train at most this many members at once, one batch after the other. One, where
            the environment steps on the host.
        memory: bytes that a program may take on the local devices together, on a CPU with what a
            save copies; None: what they have.
            Members that do not fit train in the largest batches that do, and the replay memories of
            a finished batch are not kept but in its checkpoint.
        evaluations, episodes: as for `jaxrl.train`.
        announce: called with a line for each program before anything compiles, and with its memory
            plan before it runs.
        callbacks: called between chunks: functions of one `Progress`, or `jaxrl.Callback`s.
        checkpoints: where to save during training, a folder within for each batch, from 0. A sweep
            whose folder has checkpoints already is resumed from the newest.
        on_nan: a member whose loss, returns or parameters become non-finite is warned of and stays
            out of all statistics, and the others train on ("report"), or the sweep ends ("stop").
        data_parallel: members train one after the other, the environments of each spread over the
            local devices: for runs that are large, not many.
        record: names in the environment's `info` that are summed over each episode and shown.
        progress: show a bar, in a terminal or a notebook, and what is announced above it;
            elsewhere a few lines on standard error.

    Raises:
        ValueError: an unknown name, a value outside its range, an empty axis, no members, an
            unknown `on_nan`, a member that does not fit into memory; checkpoints of another sweep,
            or none that can be read.
    """
    for name, value in (("random", random), ("batch_size", batch_size), ("memory", memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if record is not None:
        agent = agent.replace(record=tuple(record))
    if search_seed < 0:
        raise ValueError(f"search_seed={search_seed}: must be at least 0")
    own = [*guarded(callbacks), OnNaN(on_nan)]
    size = 1 if data_parallel else batch_size
    if size is None and getattr(agent.env, "on_host", False):
        size = 1

    def say(line: str) -> None:
        if announce is not None:
            announce(line)
        elif meter is not None:
            meter.announce(line)

    def size_of(members: list[Member], number: int) -> tuple[int, float]:
        chosen, seconds = size, 0.0
        if chosen is None:
            limit = available() if memory is None else memory
            schedule = Schedule(members[0].agent.num_iterations, evaluations, episodes)
            chosen, seconds = _largest_batch(members, number, limit, schedule, checkpoints, say)
        if checkpoints and (line := _disk_line(members, chosen, checkpoints)):
            say(line)
        return chosen, seconds

    trained: list[tuple[list[int], Run]] = []
    with closing(own), contextlib.ExitStack() as stack:
        members = members_of(agent, settings_of(space, random, search_seed), seeds)
        meter = stack.enter_context(metered(progress, _total_steps(members)))
        own = [*guarded([meter] if meter else []), *own]
        programs = by_program([member.agent for member in members])
        for line in _announcements(members, programs):
            say(line)
        for batch in _batches(members, programs, size_of):
            schedule = Schedule(batch.agents.num_iterations, evaluations, episodes)
            folder = checkpoints.of_batch(batch.number) if checkpoints else None
            run = train_batch(batch, schedule, own, folder, data_parallel=data_parallel)
            if batch_size is None and len(batch.members) < batch.program_size:
                run = run.without_replay()
            trained.append((batch.members, run))
            if run.interrupted:
                break
    return Population.of_batches([member.row for member in members], trained)


class Member(NamedTuple):
    """An agent of a sweep, the setting that made it, and its root seed."""

    agent: Agent
    setting: dict[str, Any]
    seed: int

    @property
    def row(self) -> dict[str, Any]:
        """Its row in the table."""
        return {**self.setting, "seed": self.seed}


def members_of(
    agent: Agent, settings: list[dict[str, Any]], seeds: int | Sequence[int]
) -> list[Member]:
    """Every setting with every seed, seeds fastest."""
    is_number = isinstance(seeds, numbers.Integral)  # NumPy's too
    if is_number:
        require_few(int(seeds), "members")  # type: ignore[arg-type]
    roots = [int(seed) for seed in (range(seeds) if is_number else seeds)]  # type: ignore[arg-type,union-attr]
    require_few(len(settings) * len(roots), "members")
    if not roots:
        raise ValueError(f"seeds={seeds!r}: at least one is needed")
    return [
        Member(override(agent, setting), setting, seed) for setting in settings for seed in roots
    ]


def _total_steps(members: list[Member]) -> int:
    return sum(m.agent.num_iterations * m.agent.steps_per_iteration for m in members)


def by_program(agents: list[Agent]) -> list[list[int]]:
    """Numbers of agents that share a program: equal static fields, equal shapes of the traced."""
    programs: dict[Any, list[int]] = {}
    for i, agent in enumerate(agents):
        leaves, structure = jax.tree.flatten(agent)
        programs.setdefault((structure, *map(jnp.shape, leaves)), []).append(i)
    return list(programs.values())


def _announcements(members: list[Member], programs: list[list[int]]) -> Iterator[str]:
    """A line for each program: how many members, and what is static of their setting."""
    for number, rows in enumerate(programs, 1):
        first = members[rows[0]]
        static = [h.name for h in first.agent.hyperparameters() if h.kind == "static"]
        setting = [f", {name}={x}" for name, x in first.setting.items() if name in static]
        count = "1 member" if len(rows) == 1 else f"{len(rows)} members"
        yield f"program {number} of {len(programs)}: {count}{''.join(setting)}"


def _batches(
    members: list[Member],
    programs: list[list[int]],
    size_of: Callable[[list[Member], int], tuple[int, float]],
) -> Iterator[Batch]:
    """The batches of each program in turn; `size_of` is asked when its program is reached."""
    number = 0
    for rows in programs:
        size, compile_seconds = size_of([members[i] for i in rows], number)
        for first in range(0, len(rows), size):
            chosen = rows[first : first + size]
            agents = stack_agents([members[i].agent for i in chosen])
            seeds = [members[i].seed for i in chosen]
            yield Batch(number, chosen, agents, seeds, len(rows), compile_seconds)
            number, compile_seconds = number + 1, 0.0


def _disk_line(members: list[Member], size: int, checkpoints: Checkpoints) -> str:
    """What the checkpoints of a program take on the disk, in a line; "" where it is not much."""
    agents = stack_agents([member.agent for member in members])
    states = shapes(agents, len(members))
    whole, kept = nbytes(states), nbytes(agents.without_replay(states))
    at_once = min(size, len(members)) / len(members)
    # While one is written the newest are there still, and so is the best, but for its replay.
    during = (checkpoints.keep + 1) * (kept + at_once * (whole - kept)) + kept
    after = (checkpoints.keep + 1) * (whole if checkpoints.keep_replay else kept)
    if max(during, after) < WORTH_A_LINE:
        return ""
    free = shutil.disk_usage(existing(checkpoints.folder)).free
    line = f"disk: checkpoints take up to {readable(during)} during training, {readable(after)} "
    return f"{line}afterwards ({readable(free)} free)"


WORTH_A_LINE = 2**30  # bytes


def _largest_batch(
    members: list[Member],
    number: int,
    limit: int,
    schedule: Schedule,
    checkpoints: Checkpoints | None,
    announce: Callable[[str], None],
) -> tuple[int, float]:
    """How many members of a program train at once within the limit, and the seconds to compile.

    Where checkpoints were begun with another number, that one stands.
    """
    agents, compile_seconds = stack_agents([member.agent for member in members]), 0.0
    copies = min(len(members), jax.local_device_count())

    def needed(size: int) -> int:
        nonlocal compile_seconds
        episodes = schedule.episodes if schedule.evaluations else 0
        saves = checkpoints is not None
        bytes_needed, seconds = needed_bytes(agents, size, schedule.length, episodes, saves)
        compile_seconds += seconds
        return bytes_needed

    def decide() -> int:
        shared = nbytes(shared_arrays(agents)) * copies
        chosen: Plan = hosts.of_writer(plan(len(members), needed, limit, shared))
        announce(chosen.line())
        return chosen.batch

    size = checkpoints.batch_size(number, decide) if checkpoints else decide()
    return size, compile_seconds
