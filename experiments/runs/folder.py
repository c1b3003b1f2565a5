"""Run folders: all that is needed to repeat a run, and all that it gave.

    config.json    agent, environment, hyper-parameters, settings, seeds, versions, device, commit
    metrics.npz    arrays over (members, iterations), NaN where a member has no such iteration:
                   `env_steps` (or `gradient_steps`) taken by the end of the iteration, and each of
                   the agent's metrics;
                   `final_returns`, `final_lengths` and `final_NAME` of what is recorded (members,
                   episodes) of the final evaluation; `evaluation_steps` (members, k) and
                   `evaluation_returns`, `evaluation_NAME` (members, k, episodes) of those during
                   training, where there were any
    checkpoints/   the whole state of all members (`jaxrl.training.checkpoint`), a folder for each
                   batch of members that trained at once: what a resumed run starts from, and the
                   trained agents
    log.jsonl      means over members, a line for each chunk, written during training
    summary.json   final returns per member and per setting, steps, seconds
    results.csv    a row for each member: setting, seed, what it reached
    curve.png      learning curves

Members are numbered as in `members` of summary.json. Of several processes one writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np

from experiments.runs import config as configuration
from experiments.runs import jsonfile, schema
from experiments.runs.config import (
    FORMAT,
    Config,
    experiment_of,
    of_experiment,
    origin,
    trained_agent,
    with_steps,
)
from experiments.runs.experiment import Experiment
from experiments.runs.saved import last_returns, saved_history, saved_members
from experiments.runs.summary import arrays, results_text, training_arrays
from jaxrl import files
from jaxrl.agent import Agent
from jaxrl.report.formatting import steps_name
from jaxrl.report.stats import mean_ci
from jaxrl.training import hosts, restore
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.population import Population

CONFIG, SUMMARY, METRICS, LOG = "config.json", "summary.json", "metrics.npz", "log.jsonl"
RESULTS = "results.csv"
Asked = TypeVar("Asked")


class TrainedMember(NamedTuple):
    """A member of a run as it was saved.

    Attributes:
        number: in the run's table.
        agent, state: what `agent.policy(state)` and `jaxrl.evaluate` take.
        setting: what sets it apart from the others, but for its seed.
        iteration: after which it was saved.
    """

    number: int
    agent: Agent
    state: Any
    setting: dict[str, Any]
    seed: int
    iteration: int


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run as it lies on disk."""

    path: Path
    config: Config

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path, experiment: Experiment, command: str) -> Iterator[Self]:
        """The folder of a new run, removed again if the run fails before anything is trained.

        Of several processes that want the same folder one gets it.

        Raises: ValueError where it already holds a run or anything else, or cannot be written.
        """
        if not files.is_utf8(path.absolute()):
            raise ValueError(f"{path} is no name in UTF-8: choose another --out")
        folder = cls(path, of_experiment(experiment, command))
        if not hosts.is_writer():
            yield folder
            return
        existed = path.exists()
        try:
            folder._claim()
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}") from None
        try:
            yield folder
        except BaseException:
            if not folder.has_begun:
                folder._remove(whole=not existed)
            raise

    def _claim(self) -> None:
        """Make the folder this process's own, by the file that nobody else can make any more."""
        self.path.mkdir(parents=True, exist_ok=True)
        there = {file.name for file in self.path.iterdir()}
        if there - {CONFIG}:
            what = "already holds a run" if CONFIG in there else "is not empty"
            raise ValueError(f"{self.path} {what}: choose another --out")
        try:
            jsonfile.write(self.path / CONFIG, self.config, new=True)
        except FileExistsError:
            raise ValueError(f"{self.path} already holds a run: choose another --out") from None

    def _remove(self, whole: bool) -> None:
        """Remove what was made for a run that did not begin, as far as that goes."""
        for name in ("checkpoints", "wandb"):  # all that is made before the first chunk
            shutil.rmtree(self.path / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # which must not hide why the run did not begin
            (self.path / CONFIG).unlink()
            if whole:
                self.path.rmdir()

    @classmethod
    def open(cls, path: Path) -> Self:
        """A run that is there.

        Raises: ValueError where there is none, a damaged one, or one of a newer jaxrl.
        """
        if not (path / CONFIG).exists():
            raise ValueError(f"{path} is not a run: it has no {CONFIG}")
        return cls(path, configuration.read(path / CONFIG))

    def resume(self, steps: int | None = None, command: str = "") -> Self:
        """The folder as a run that goes on, up to `steps` per member where they are given.

        What is new is written by `write_config`, once the run does go on.

        Raises: ValueError where nothing is left to do, or the run cannot be resumed.
        """
        finished = self.has_ended and not self.summary["interrupted"]
        if steps is None and finished:
            raise ValueError(f"{self.path} is finished: give --steps N, more than it has, to go on")
        content = self.config if steps is None else with_steps(self.config, steps, self.path)
        resumed = [*content["resumed"], origin(command)]
        return dataclasses.replace(self, config=content | {"format": FORMAT, "resumed": resumed})

    def write_config(self) -> None:
        """Write down what the run is to do, where that has changed."""
        if hosts.is_writer() and jsonfile.read(self.path / CONFIG) != jsonfile.plain(self.config):
            jsonfile.write(self.path / CONFIG, self.config)

    def experiment(self) -> Experiment:
        """What the run is to do. Raises: ValueError where this code cannot do it any more."""
        try:
            return experiment_of(self.config)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def can_be_resumed(self) -> bool:
        """Whether anything was saved."""
        return restore.exists(self.checkpoints)

    @property
    def has_begun(self) -> bool:
        """Whether anything was trained: the first chunk makes the log, empty on a full disk."""
        return self.log.exists() or self.can_be_resumed

    @property
    def has_ended(self) -> bool:
        """Whether its results are there: of a resumed run, those since it was last resumed."""
        if not (self.path / SUMMARY).exists():
            return False
        content = jsonfile.read(self.path / SUMMARY) or {}  # `summary` tells of damage
        return not content or content.get("resumes", 0) == configuration.resumes(self.config)

    @property
    def summary(self) -> dict[str, Any]:
        """Raises: ValueError where the run has not ended, or its summary is damaged."""
        if not self.has_ended:
            raise ValueError(f"{self.path} has not ended: it has no {SUMMARY}")
        return schema.read(self.path / SUMMARY, schema.SummaryFile)

    @property
    def unit(self) -> str:
        """What the run's steps are: "environment steps", "gradient steps", "answers"."""
        unit: str = self.config["unit"]
        return unit

    def metrics(self) -> dict[str, np.ndarray]:
        """The arrays of metrics.npz, and the steps as "steps", whatever their unit.

        Of a run that has not ended, those of training until its newest checkpoints.

        Raises: ValueError where they are damaged.
        """
        name = steps_name(self.unit)
        if self.has_ended:
            members = len(self.summary["members"])
            metrics = schema.read_arrays(self.path / METRICS, members, (name, "env_steps"))
        else:
            metrics = training_arrays(self.unit, saved_history(self.checkpoints, self.listing))
        metrics["steps"] = metrics[name if name in metrics else "env_steps"]
        return metrics

    def save(
        self,
        experiment: Experiment,
        population: Population,
        evaluation: Evaluation,
        summary: dict[str, Any],
    ) -> None:
        """Write metrics, results and summary of a population that was trained and evaluated.

        Raises: OSError, as on a full disk.
        """
        self.write_config()
        files.write_text(self.path / RESULTS, results_text(experiment, population, evaluation))
        with files.replacing(self.path / METRICS) as file:
            metrics: dict[str, Any] = arrays(experiment, population, evaluation)
            np.savez_compressed(file, **metrics)
        jsonfile.write(self.path / SUMMARY, summary)

    @property
    def listing(self) -> dict[str, Any]:
        """Members, settings and the members of each checkpoint's batch.

        Of a run that has ended they are its summary's; of one that is under way or was killed,
        those of its members that were saved.

        Raises: ValueError where nothing was saved.
        """
        if not self.has_ended:
            return saved_members(self.path, self.checkpoints, self.config)
        content = self.summary
        if "checkpoints" not in content:
            raise ValueError(f"{self.path} was written by another version of jaxrl: too old")
        return content

    def agent(self, values: dict[str, Any]) -> Agent:
        """The agent of one member. Raises: ValueError where this code has no such agent."""
        try:
            return trained_agent(self.config, values)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def chosen(self, asked: Asked, best: bool) -> Asked | int:
        """The member that is the best where that is asked for; else who is: a number, several.

        The best is that of `jaxrl.Population.best`: of the setting with the highest mean return,
        the member with the highest. It is of the final evaluation, or, of a run that has not ended,
        of what was saved so far.

        Raises: ValueError where no member has a return.
        """
        if not best:
            return asked
        if self.has_ended:
            rows = [row.get("final_return") for row in self.summary["members"]]
            returns = np.asarray([np.nan if x is None else float(x) for x in rows])
            settings = [self.summary["best"]]
        else:
            returns = last_returns(self.metrics())
            settings = self.listing["settings"]
        means = [mean_ci(returns[setting["members"]])[0] for setting in settings if setting]
        if np.isnan(means).all():
            raise ValueError(f"{self.path}: --best: no member has a return yet")
        members = [setting for setting in settings if setting][int(np.nanargmax(means))]["members"]
        return int(members[int(np.nanargmax(returns[members]))])

    def members(
        self, only: int | Collection[int] | None = None, checkpoint: str | int = "newest"
    ) -> Iterator[TrainedMember]:
        """Each member, or some, as a checkpoint holds it: "newest", "best" or of an iteration.

        The best is that of the highest mean return over the members of a batch.

        Raises: ValueError where there is no such member, or its state cannot be read.
        """
        listing = self.listing
        rows = listing["members"]
        chosen = range(len(rows)) if only is None else [only] if isinstance(only, int) else only
        for number in chosen:
            if not 0 <= number < len(rows):
                raise ValueError(f"member {number} is outside 0..{len(rows) - 1} of {self.path}")
        settings = {i: s["hyperparameters"] for s in listing["settings"] for i in s["members"]}
        newest = {i: k for k, numbers in enumerate(listing["checkpoints"]) for i in numbers}
        for batch, numbers in enumerate(listing["checkpoints"]):
            wanted = [i for i in numbers if i in chosen and newest[i] == batch]
            if not wanted:
                continue
            agents = {i: self.agent(rows[i]["hyperparameters"]) for i in wanted}
            saved = self._restore(batch, agents[wanted[0]], len(numbers), checkpoint)
            for i in wanted:
                place = numbers.index(i)
                state = jax.tree.map(lambda x, place=place: x[place], saved.states)
                seed, agent, setting = rows[i]["seed"], agents[i], settings[i]
                if saved.exchanges:  # since which its hyper-parameters are others
                    own = {k: values[place] for k, values in saved.exchanges[-1].values.items()}
                    agent, setting = self.agent(rows[i]["hyperparameters"] | own), setting | own
                yield TrainedMember(i, agent, state, setting, seed, saved.iteration)

    def states(self, batch: int, agent: Agent, members: int) -> Any:
        """The newest saved states of a batch of so many members, of which `agent` is one.

        Raises: ValueError where they cannot be read.
        """
        return self._restore(batch, agent, members, "newest").states

    def _restore(self, batch: int, agent: Agent, members: int, which: str | int) -> restore.Saved:
        keys = jax.eval_shape(jax.vmap(jax.random.key), np.zeros(members, np.uint32))
        like = jax.eval_shape(jax.vmap(agent.init), keys)
        kept = agent.without_replay(like)  # to act takes no replay
        return restore.read(self.checkpoints / str(batch), like, which, kept)
