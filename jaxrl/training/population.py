"""What a sweep gives back: a population of runs.

What reports need, such as pandas and matplotlib, is imported by the methods that report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxrl.agent import Tag
from jaxrl.training.engine import Engine
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.exchange import Exchange, ancestors
from jaxrl.training.history import History, mean
from jaxrl.training.placement import Placement
from jaxrl.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from jaxrl.report.plots import Curve
    from jaxrl.report.results import Setting


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
        evaluated: name -> (members,), where they were evaluated after training already.
    """

    table: list[dict[str, Any]]
    batches: list[tuple[list[int], Run]]
    rungs: Sequence[Rung] = ()
    evaluated: Mapping[str, np.ndarray] | None = None

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

    @cached_property
    def final(self) -> Mapping[str, np.ndarray]:
        """What members reach in 64 fresh episodes after training, which run once: (members,).

        "final_return", "final_length" and what the agent records, each a mean over episodes. NaN
        for a member that has diverged.
        """
        if self.evaluated is not None:
            return self.evaluated
        result = self.evaluate()
        missing = np.isnan(result.returns)
        episodes = {"final_return": result.returns, "final_length": result.lengths, **result.info}
        return {k: np.where(missing, np.nan, x).mean(axis=1) for k, x in episodes.items()}

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, each with the numbers of its members.

        Where members copied each other, each stands by itself.
        """
        from jaxrl.report.results import Setting, settings_of

        if self.exchanges:
            return [Setting(*settings_of([row])[0][:1], [i]) for i, row in enumerate(self.table)]
        return settings_of(self.table)

    @property
    def contenders(self) -> np.ndarray:
        """Which settings may be the best (settings,): of a halving, those of its last rung."""
        last = self.rungs[-1].members if self.rungs else range(len(self))
        return np.asarray([setting.members[0] in last for setting in self.settings])

    @property
    def best_member(self) -> int:
        """The member that `best` gives, as its number in the table."""
        members = self.settings[self._best_setting].members
        returns = self.final["final_return"][members]
        return members[int(np.argmax(np.where(np.isnan(returns), -np.inf, returns)))]

    @property
    def _best_setting(self) -> int:
        from jaxrl.report import results

        table = results.by_setting(self.final["final_return"], self.settings)
        return results.best_of(np.where(self.contenders, mean(table, axis=0), np.nan))

    def best(self) -> Run:
        """Of the setting with the highest mean final return, the member with the highest.

        A setting that is good with several seeds is good for more than luck.
        """
        return self[self.best_member]

    def to_dataframe(self) -> DataFrame:
        """A row per member: its setting, its seed, what it reached (see `final`), its steps.

        "diverged_at" is NaN where all is finite.
        """
        import pandas as pd

        from jaxrl.report.results import member_columns

        history = self.history
        columns = member_columns(self.table, self.final, history.steps_taken, history.diverged_at)
        return pd.DataFrame(columns).set_index("member")

    def summary(self) -> DataFrame:
        """A row per setting, the best first: what its members' final returns have in common.

        Columns: the hyper-parameters, "seeds", "mean" and "iqm" (the interquartile mean), and
        "improvement", the probability that a member of the best setting returns more than one of
        this; each with the ends of its 95 % interval, as "mean_low" and "mean_high". Intervals of
        means are Student's t, the others stratified bootstraps: `jaxrl.report.stats`.
        """
        import pandas as pd

        from jaxrl.report import results

        returns, settings = self.final["final_return"], self.settings
        better = results.improvement(returns, settings, self._best_setting)
        rows = pd.DataFrame([setting.hyperparameters for setting in settings])
        rows["seeds"] = [len(setting.members) for setting in settings]
        for name, column in results.aggregates(returns, settings).items():
            rows[name] = column
        for end, column in zip(("", "_low", "_high"), better, strict=True):
            rows[f"improvement{end}"] = column
        return rows.sort_values("mean", ascending=False, kind="stable", ignore_index=True)

    def curves(self) -> list[Curve]:
        """A learning curve for each setting: `label`, `steps` (bins,), `returns` (seeds, bins).

        Returns of training episodes; where there are none, of evaluations during training.

        Raises: ValueError where there are neither.
        """
        from jaxrl.report.results import curves_of

        return curves_of(self.settings, self.history.env_steps, *self.history[1:3])

    def plot(self, what: str | None = None) -> Figure:
        """A figure of it, as run folders have them: its `savefig(path)` keeps it.

        Args:
            what: "sweep", final returns over the hyper-parameters that differ; "curves", learning
                curves by setting; "profile", the share of seeds above each final return, by
                setting. None: "sweep" where settings differ, else "curves".

        Raises: ValueError where `what` is none of these, or there is nothing to draw.
        """
        from jaxrl.report import plots, profiles, sweeps

        agent = self.batches[0][1].agent
        title = f"{agent.name} on {agent.env.name}"
        settings = [setting.hyperparameters for setting in self.settings]
        if what is None:
            what = "sweep" if sweeps.varied(settings) else "curves"
        if what == "curves":
            labels = plots.labels_of("episode_return" in self.history.metrics, agent.unit)
            return plots.shown(plots.learning_curves(self.curves(), title=title, **labels))
        if what not in ("sweep", "profile"):
            raise ValueError(f"plot({what!r}): it is one of sweep, curves, profile")
        returns = [self.final["final_return"][setting.members] for setting in self.settings]
        if what == "sweep":
            return plots.shown(sweeps.sweep_figure(settings, returns, title=title))
        scores = profiles.of_settings(settings, returns, agent.name)
        names = ", ".join(sweeps.varied(settings))
        return plots.shown(profiles.profile_figure(scores, title, names=names))
