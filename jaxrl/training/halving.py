"""Successive halving: all settings for a few steps, the best of them for more, and so on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.agent import Agent
from jaxrl.training.batches import Batch, train_batch
from jaxrl.training.callbacks import Callback, OnNaN, Progress, closing, guarded
from jaxrl.training.checkpoint import Checkpoints, Saved
from jaxrl.training.members import stack_agents
from jaxrl.training.population import Population, Rung
from jaxrl.training.run import Run
from jaxrl.training.schedule import Schedule
from jaxrl.training.search import Space, settings_of
from jaxrl.training.sweep import Member, by_program, members_of
from jaxrl.training.together import require_memory, require_ranked

SEARCH = "successive halving"


# Longer than sixty lines because each of its arguments is documented; the body is not.
def halving(
    agent: Agent,
    space: Space | Sequence[Mapping[str, Any]],
    *,
    eta: int = 3,
    fewest_steps: int = 1,
    seeds: int | Sequence[int] = 1,
    random: int | None = None,
    search_seed: int = 0,
    memory: int | None = None,
    evaluations: int = 0,
    episodes: int = 64,
    announce: Callable[[str], None] | None = None,
    callbacks: Iterable[Callback | Callable[[Progress], None]] = (),
    checkpoints: Checkpoints | None = None,
    on_nan: str = "report",
    record: Sequence[str] | None = None,
) -> Population:
    """Train all settings for a while, then the best 1/eta of them on, until few are left.

    With n settings there are s = floor(log_eta n) selections; before the last rung, and eta times
    fewer steps before each one below, the best floor(n / eta^k) settings remain and go on from the
    states that they have (Jamieson & Talwalkar 2016, arXiv:1502.07943; one bracket of Hyperband,
    Li et al. 2018, arXiv:1603.06560). The last rung ends after `agent.total_steps`, which all
    schedules follow from the beginning. A setting survives with all its seeds; it is ranked by the
    mean over them of the return over the training episodes that ended in the last quarter of the
    iterations done (if none did, since the start; of agents without episodes of their own, of the
    newest evaluation). Settings with a member that has diverged rank last, and before them those
    in which no episode has ended. A rung is one program.

    Args:
        space, seeds, random, search_seed, memory, evaluations, episodes, announce, callbacks,
            checkpoints, on_nan, record: as for `jaxrl.sweep`. `announce` is told all rungs, and
            their steps in total, before anything compiles.
        eta: of that many settings one remains at each selection, 2 or more.
        fewest_steps: of the first rung: there are fewer selections where it would have less.

    Returns:
        A population of all members: in `history` and `env_steps` each as far as it came. `rungs`
        says who was trained for how long, and their scores.

    Raises:
        ValueError: as `jaxrl.sweep`; settings that differ in a static hyper-parameter; fewer
            than eta of them; too few steps for a selection; members that do not fit into memory
            at once; an agent whose iterations vary in length.
    """
    if record is not None:
        agent = agent.replace(record=tuple(record))
    if random is not None and random < 1:
        raise ValueError(f"random={random}: must be at least 1")
    announce = announce or (lambda line: None)
    own = [*guarded(callbacks), OnNaN(on_nan)]
    with closing(own):
        settings = settings_of(space, random, search_seed)
        members = members_of(agent, settings, seeds)
        _require_one_program(members)
        require_ranked(agent, evaluations, SEARCH)
        rungs = plan_rungs(agent, len(settings), eta, fewest_steps)
        copies = len(members) // len(settings)
        announce(line_of(agent, rungs, copies))
        agents = stack_agents([member.agent for member in members])
        schedule = Schedule(agent.num_iterations, evaluations, episodes)
        saves = checkpoints is not None
        seconds = require_memory(agents, len(members), schedule, memory, announce, saves, SEARCH)
        climb = _Climb(members, copies, eta, rungs, schedule, checkpoints)
        return climb.run(own, seconds)


class Rungs(NamedTuple):
    """Settings of each rung, and the iterations after which it ends."""

    settings: list[int]
    until: list[int]

    def iterations(self) -> int:
        """Of all settings of one seed together."""
        spans = np.diff([0, *self.until])
        return int(np.dot(self.settings, spans))


def plan_rungs(agent: Agent, settings: int, eta: int, fewest_steps: int = 1) -> Rungs:
    """The rungs for so many settings.

    Raises: ValueError where there is nothing to select.
    """
    if eta < 2:
        raise ValueError(f"{SEARCH}: eta={eta}: must be at least 2")
    if settings < eta:
        raise ValueError(
            f"{SEARCH}: {settings} settings are fewer than eta={eta}, of which one remains: "
            "nothing would be selected"
        )
    iterations = agent.num_iterations
    fewest = max(1, math.ceil(fewest_steps / agent.steps_per_iteration))
    selections = 0
    while eta ** (selections + 1) <= min(settings, iterations // fewest):
        selections += 1
    if not selections:
        raise ValueError(
            f"{SEARCH}: total_steps={agent.total_steps} leave less than {fewest_steps:,} steps, or "
            f"one iteration of {agent.steps_per_iteration}, before a selection with eta={eta}"
        )
    kept = [settings // eta**k for k in range(selections + 1)]
    return Rungs(kept, [iterations // eta ** (selections - k) for k in range(selections + 1)])


def line_of(agent: Agent, rungs: Rungs, copies: int) -> str:
    """All rungs and what they take in total, in a line."""
    each = agent.steps_per_iteration
    parts = [
        f"{number * copies:,} until {until * each:,}"
        for number, until in zip(rungs.settings, rungs.until, strict=True)
    ]
    total, whole = (
        x * copies * each for x in (rungs.iterations(), rungs.settings[0] * rungs.until[-1])
    )
    return (
        f"{SEARCH}: members {', '.join(parts)} {agent.unit}; {total:,} in all, where a sweep of "
        f"them takes {whole:,}"
    )


def _require_one_program(members: list[Member]) -> None:
    if len(by_program([member.agent for member in members])) == 1:
        return
    static = {h.name for h in members[0].agent.hyperparameters() if h.kind == "static"}
    first = members[0].setting
    differ = [k for k in first if k in static and any(m.setting[k] != first[k] for m in members)]
    raise ValueError(
        f"{SEARCH}: {', '.join(differ)} is static, a program for each of its values; members of a "
        "rung are in one program: search traced hyper-parameters (`jaxrl list AGENT` marks them)"
    )


def ranking(history: Any, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the members (members,), and their settings' places (settings,), best first.

    `copies` members of one setting follow each other. Of equal settings the first is the better.
    """
    scores = history.returns_since(history.stop - math.ceil(history.stop / 4))
    scores = np.where(np.isnan(scores), history.returns_since(0), scores)
    of_settings = scores.reshape(-1, copies)
    known = np.where(np.isnan(of_settings), 0.0, of_settings).sum(axis=1)
    number = (~np.isnan(of_settings)).sum(axis=1)
    means = np.where(number > 0, known / np.maximum(number, 1), np.finfo(np.float64).min)
    return scores, np.argsort(-means, kind="stable")


class _Climb:
    """The members on their way up the rungs."""

    def __init__(
        self,
        members: list[Member],
        copies: int,
        eta: int,
        rungs: Rungs,
        schedule: Schedule,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.members, self.copies, self.eta = members, copies, eta
        self.rungs, self.schedule, self.checkpoints = rungs, schedule, checkpoints
        self.trained: list[tuple[list[int], Run]] = []
        self.climbed: list[Rung] = []

    def run(self, own: list[Callback], compile_seconds: float) -> Population:
        chosen, start = list(range(len(self.members))), None
        for number in range(len(self.rungs.until)):
            run = self._train(number, chosen, start, own, compile_seconds)
            compile_seconds = 0.0
            scores, order = ranking(run.history, self.copies)
            self.climbed.append(Rung(int(run.history.stop), list(chosen), scores.tolist()))
            last = number == len(self.rungs.until) - 1
            if last or run.interrupted or (scores == -np.inf).all():
                self.trained.append((chosen, run))
                break
            best = np.sort(order[: self.rungs.settings[number + 1]])
            stays = np.zeros(len(chosen), bool).reshape(-1, self.copies)
            stays[best] = True
            chosen, start = self._select(chosen, run, stays.ravel())
        table = [member.row for member in self.members]
        return Population(table, self.trained, tuple(self.climbed))

    def _train(
        self,
        number: int,
        chosen: list[int],
        start: Saved | None,
        own: list[Callback],
        compile_seconds: float,
    ) -> Run:
        until = self.rungs.until[number]
        search = {SEARCH: {"eta": self.eta, "until": until, "members": chosen}}
        agents = stack_agents([self.members[i].agent for i in chosen])
        seeds = [self.members[i].seed for i in chosen]
        settings = [self.members[i].setting for i in chosen]
        shared = [name for name in settings[0] if all(name in other for other in settings)]
        searched = {name: [setting[name] for setting in settings] for name in shared}
        batch = Batch(
            number, chosen, agents, seeds, len(chosen), compile_seconds, search, searched=searched
        )
        folder = self.checkpoints.of_batch(number) if self.checkpoints else None
        return train_batch(batch, self.schedule._replace(until=until), own, folder, start)

    def _select(self, chosen: list[int], run: Run, stays: np.ndarray) -> tuple[list[int], Saved]:
        """Those who stay, and what they go on from; the others are done, without their replays."""
        leaves, goes = np.flatnonzero(stays), np.flatnonzero(~stays)
        state = jax.tree.map(lambda x: x[leaves], run.state)
        done = run.rows(goes)
        self.trained.append(([chosen[i] for i in goes], done.without_replay()))
        start = Saved(int(run.history.stop), state, run.history.rows(leaves), 0.0)
        return [chosen[i] for i in leaves], start
