"""What training gives back: a run, of one agent or of a batch of them, and a population of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agent import Tag
from jaxrl.training.engine import Engine
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.exchange import Exchange, ancestors
from jaxrl.training.history import History
from jaxrl.training.members import map_members
from jaxrl.training.placement import Placement


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained agent, or a batch of them with a leading axis of members on all arrays.

    Attributes:
        agent, state: what `agent.policy(state)`, `evaluate` and further training take.
        history: metrics and evaluations; see `History`.
        compile_seconds, run_seconds: time spent compiling, and all the rest.
        interrupted: the run was stopped early, by Ctrl-C, a callback, or as `on_nan` says.
        exchanges: of a batch that was trained by `jaxrl.pbt`.
    """

    agent: Any
    state: Any
    history: History
    compile_seconds: float
    run_seconds: float
    interrupted: bool
    exchanges: Sequence[Exchange] = ()

    @property
    def iteration(self) -> Any:
        """Iterations done; of a batch, those of each member (members,)."""
        ran = ~np.isnan(self.history.env_steps)
        return self.history.first + ran.sum(axis=-1)

    def rows(self, rows: np.ndarray) -> Run:
        """The run of some members of a batch."""
        agent, state = (
            map_members(lambda x: x[rows], self.agent),
            jax.tree.map(lambda x: x[rows], self.state),
        )
        return dataclasses.replace(self, agent=agent, state=state, history=self.history.rows(rows))

    def without_replay(self) -> Run:
        """The same with what its members need to act, not to train on."""
        return dataclasses.replace(self, state=self.agent.without_replay(self.state))

    def __len__(self) -> int:
        if np.ndim(self.history.diverged_at) == 0:
            raise TypeError("this is the run of a single agent, which has no members")
        return len(self.history.diverged_at)

    def __getitem__(self, i: int) -> Run:
        """Member `i` of a batch as the run of an agent that acts, evaluates and trains further."""
        if not 0 <= i < len(self):
            raise IndexError(f"member {i} of a batch of {len(self)}")
        agent = map_members(lambda x: jnp.asarray(x[i]), self.agent)
        state = jax.tree.map(lambda x: jnp.asarray(x[i]), self.state)
        return dataclasses.replace(self, agent=agent, state=state, history=self.history.member(i))


class Rung(NamedTuple):
    """Members of a successive halving that trained at once.

    Attributes:
        iteration: until when.
        members: their numbers.
        scores: what they were ranked by (members,), NaN where no episode had ended, minus infinity
            of those that have diverged.
    """

    iteration: int
    members: list[int]
    scores: list[float]


@dataclasses.dataclass(frozen=True)
class Population:
    """What a sweep trained: a table of its members, and the batches that they trained in.

    Attributes:
        table: a row per member, by number: its overrides and its "seed"; of population-based
            training, the values that it has in the end.
        batches: the numbers of the members that trained together, and their run; of a successive
            halving, of those that ended together.
        rungs: of a successive halving.
    """

    table: list[dict[str, Any]]
    batches: list[tuple[list[int], Run]]
    rungs: Sequence[Rung] = ()

    @classmethod
    def of_batches(
        cls, table: list[dict[str, Any]], batches: list[tuple[list[int], Run]]
    ) -> Population:
        """That of batches of the table's rows: only the members that ran, numbered anew."""
        ran = sorted(i for members, _ in batches for i in members)
        number = {i: n for n, i in enumerate(ran)}
        numbered = [([number[i] for i in members], run) for members, run in batches]
        return cls([table[i] for i in ran], numbered)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Run:
        """Member `i` as an ordinary run: its agent and state act, evaluate and train further."""
        for members, run in self.batches:
            if i in members:
                return run[members.index(i)]
        raise IndexError(f"member {i} of a population of {len(self)}")

    @cached_property
    def history(self) -> History:
        """That of all members (members, ...), NaN where one has no such iteration."""
        members = [members for members, _ in self.batches]
        return History.gather(members, [run.history for _, run in self.batches])

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """What members copied of each other in population-based training, else nothing."""
        return self.batches[0][1].exchanges

    def schedule(self, i: int) -> list[dict[str, Any]]:
        """How the hyper-parameters of member `i` came to be, in population-based training.

        A row for each exchange, in order: the "iteration" after which it was, the "member" whose
        copy it is in the end, and that one's values from there on.
        """
        return [
            {"iteration": e.iteration, "member": m, **{k: v[m] for k, v in e.values.items()}}
            for e, m in zip(self.exchanges, ancestors(self.exchanges, i), strict=True)
        ]

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling."""
        return sum(run.compile_seconds for _, run in self.batches)

    @property
    def run_seconds(self) -> float:
        """All the rest of the time."""
        return sum(run.run_seconds for _, run in self.batches)

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped early; `table` then lists the members that ran."""
        return any(run.interrupted for _, run in self.batches)

    def whole(self) -> Population:
        """This population; KeyboardInterrupt where it was stopped early. For scripts."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self

    def evaluate(self, episodes: int = 64, seed: int = 0, deterministic: bool = True) -> Evaluation:
        """Evaluate all members in fresh episodes; arrays (members, episodes).

        Keys follow from each member's root key and `seed`, so a member's figure does not depend on
        who else is in the population. Those of a member that has diverged, or with a return that is
        not finite, are NaN.
        """
        rows: list[Any] = [None] * len(self)
        for members, run in self.batches:
            engine = Engine(run.agent, Placement.of_members(len(run)))
            engine.load(run.state)
            result = engine.evaluate(Tag.TEST, seed, episodes, deterministic)
            finite = np.isfinite(result.returns).all(axis=1) & np.isnan(run.history.diverged_at)
            for values in (result.returns, *result.info.values()):
                values[~finite] = np.nan
            for row, i in enumerate(members):
                rows[i] = jax.tree.map(lambda x, row=row: x[row], result)
        return jax.tree.map(lambda *xs: np.stack(xs), *rows)
