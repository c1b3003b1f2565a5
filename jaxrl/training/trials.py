"""Optuna's samplers over populations: a batch of trials is asked for, trained at once, and told."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrl.agent import Agent
from jaxrl.training.population import Population
from jaxrl.training.search import Lin, Log, Space, plain, whole_numbers
from jaxrl.training.sweep import sweep

if TYPE_CHECKING:
    from optuna import Study

SEARCH = "optuna_search"


class Trials(NamedTuple):
    """What a search by Optuna gave.

    Attributes:
        study: Optuna's, with all trials: `study.best_params`, `optuna.visualization`, ...
        population: that of the batch with the best trial.
        best: the best trial's setting, as `jaxrl.override` and `jaxrl.sweep` take it.
    """

    study: Study
    population: Population
    best: dict[str, Any]


# Longer than sixty lines because each of its arguments is documented; the body is not.
def optuna_search(
    agent: Agent,
    space: Space,
    *,
    trials: int,
    batch: int,
    study: Study | None = None,
    seed: int = 0,
    seeds: int | Sequence[int] = 1,
    episodes: int = 64,
    **options: Any,
) -> Trials:
    """Let Optuna choose settings, `batch` at a time, each batch trained as one population.

    A trial's value, to be maximised, is the mean over its seeds and over `episodes` fresh episodes
    of the return of the final policies. A trial with a member that has diverged has failed. All
    batches run the same programs, where they differ in traced hyper-parameters only.

    Args:
        space: name -> `Lin`, `Log` (uniform, log-uniform; whole numbers where the hyper-parameter
            is one) or a list of values, which are categories.
        trials: how many in all, a multiple of `batch`.
        study: one that is there, also with trials of before; it has to maximise. None: a new one
            in memory, by a tree-structured Parzen estimator (Bergstra et al. 2011) that `seed`
            seeds, whose trials under way count as bad ones (`constant_liar`): else a batch would be
            of one place.
        seeds: of each trial, as for `jaxrl.sweep`.
        options: further arguments of `jaxrl.sweep`: memory, callbacks, record, ...

    Raises:
        ValueError: Optuna is not installed; as `jaxrl.sweep`; a study that minimises, or has
            several objectives. The trials of a batch that could not be trained have failed.
        KeyboardInterrupt: training was stopped; the trials of batches before stay in `study`.
    """
    optuna = _optuna()
    if batch < 1 or trials < 1 or trials % batch:
        raise ValueError(f"{SEARCH}: trials={trials} must be a multiple of batch={batch}")
    if "checkpoints" in options:
        raise ValueError(f"{SEARCH}: takes no checkpoints; a study in a storage keeps its trials")
    axes = {name: _distribution(agent, name, axis) for name, axis in space.items()}
    asked_for = {name: axis.distribution for name, axis in axes.items()}
    if study is None:
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
    if [direction.name for direction in study.directions] != ["MAXIMIZE"]:
        raise ValueError(f"{SEARCH}: the study has to maximise one value, the return")
    found, best = None, -np.inf
    for _ in range(trials // batch):
        asked = [study.ask(asked_for) for _ in range(batch)]
        settings = [{k: axes[k].value(x) for k, x in trial.params.items()} for trial in asked]
        with _failed(study, asked):
            population = sweep(agent, settings, seeds=seeds, **options).whole()
            returns = population.evaluate(episodes).returns.reshape(batch, -1).mean(axis=1)
        for trial, value, setting in zip(asked, returns.tolist(), settings, strict=True):
            if np.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if value > best:
                found, best = Trials(study, population, setting), value
    if found is None:
        raise ValueError(f"{SEARCH}: every trial has diverged")
    return found


@contextlib.contextmanager
def _failed(study: Study, trials: list[Any]) -> Iterator[None]:
    """Tell that the trials have failed where what is done within does."""
    optuna = _optuna()
    try:
        yield
    except BaseException:
        for trial in trials:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A distribution of Optuna's, and the values that its categories stand for."""

    distribution: Any
    values: Mapping[Any, Any] | None = None

    def value(self, chosen: Any) -> Any:
        return chosen if self.values is None else self.values[chosen]


def _distribution(agent: Agent, name: str, axis: Any) -> _Axis:
    """Raises: ValueError where an axis is empty, or no axis."""
    optuna = _optuna()
    if isinstance(axis, Lin | Log):
        is_log = isinstance(axis, Log)
        if not axis.low <= axis.high or (is_log and axis.low <= 0):
            raise ValueError(f"{SEARCH}: {name}={axis} is no range")
        if name in whole_numbers(agent, [name]):
            low, high = int(axis.low), int(axis.high)
            return _Axis(optuna.distributions.IntDistribution(low, high, log=is_log))
        return _Axis(optuna.distributions.FloatDistribution(axis.low, axis.high, log=is_log))
    choices = [] if isinstance(axis, str) or not np.iterable(axis) else [plain(x) for x in axis]
    if not choices:
        raise ValueError(f"{name}={axis!r}: give a list of values, jaxrl.Lin or jaxrl.Log")
    values = {_category(choice): choice for choice in choices}
    return _Axis(optuna.distributions.CategoricalDistribution(tuple(values)), values)


def _category(value: Any) -> Any:
    """A value as a category of Optuna's, which are numbers and words: (64, 64) as 64x64."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError("optuna is not installed: pip install -e '.[optuna]'") from None
    return optuna
