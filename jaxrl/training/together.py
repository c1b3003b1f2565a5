"""What searches share whose members train at once, in one program, and are compared as they go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxrl.agent import Agent
from jaxrl.parts.trees import nbytes
from jaxrl.training import hosts
from jaxrl.training.engine import needed_bytes
from jaxrl.training.members import shared_arrays
from jaxrl.training.memory import available, plan
from jaxrl.training.schedule import Schedule


def require_traced(agent: Agent, names: Sequence[str], search: str) -> None:
    """Raise ValueError where a hyper-parameter is static: another value is another program."""
    static = {h.name for h in agent.hyperparameters() if h.kind == "static"}
    for name in names:
        if name in static:
            raise ValueError(
                f"{search}: {name} is static, a program for each of its values; all members are in "
                "one program: search traced hyper-parameters (`jaxrl list AGENT` marks them)"
            )


def require_ranked(agent: Agent, evaluations: int, search: str) -> None:
    """Raise ValueError where members cannot be compared after equal numbers of steps."""
    state: Any = jax.eval_shape(agent.init, jax.random.key(0))
    if agent.env_steps(state) is not None:
        raise ValueError(
            f"{search}: iterations of {agent.name} vary in length, so that members could not be "
            "compared after equal numbers of steps"
        )
    if agent.actors(state) is None and not evaluations:
        raise ValueError(
            f"{search}: {agent.name} has no training episodes to rank members by: give it "
            "evaluations, after which they are ranked"
        )


def require_memory(
    agents: Any,
    members: int,
    schedule: Schedule,
    memory: int | None,
    announce: Callable[[str], None],
    saves: bool,
    search: str,
) -> float:
    """Announce what memory all members need at once; returns the seconds spent on compiling.

    Raises: ValueError where they do not fit.
    """
    limit, seconds = available() if memory is None else memory, 0.0

    def needed(size: int) -> int:
        nonlocal seconds
        episodes = schedule.episodes if schedule.evaluations else 0
        gathers = schedule.every > 0
        number, spent = needed_bytes(agents, size, schedule.length, episodes, saves, gathers)
        seconds += spent
        return number

    shared = nbytes(shared_arrays(agents)) * min(members, jax.local_device_count())
    chosen = hosts.of_writer(plan(members, needed, limit, shared))
    if chosen.batch < members:
        line = chosen.line().split(": trained in")[0]
        raise ValueError(
            f"{search}: all {members} members train at once, and {chosen.batch} fit ({line})"
        )
    announce(chosen.line())
    return seconds
