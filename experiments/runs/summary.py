"""summary.json, metrics.npz and results.csv: what a run gave."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.runs.experiment import Experiment, hyperparameters
from jaxrl.report import results
from jaxrl.report.formatting import exact_text, steps_name
from jaxrl.report.results import Setting
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.history import History
from jaxrl.training.population import Population


class Seconds(NamedTuple):
    """That the final evaluation took, to compile and to run."""

    compiling: float
    running: float


def arrays(
    experiment: Experiment, population: Population, evaluation: Evaluation
) -> dict[str, np.ndarray]:
    """The content of metrics.npz: of training (members, iterations), then (members, episodes)."""
    content = training_arrays(experiment.unit, population.history)
    content["final_returns"] = np.asarray(evaluation.returns)
    content["final_lengths"] = np.asarray(evaluation.lengths)
    return content | {f"final_{name}": values for name, values in recorded(evaluation).items()}


def training_arrays(unit: str, history: History) -> dict[str, np.ndarray]:
    """Of the content of metrics.npz, what training showed, with evaluations in its course."""
    content = {steps_name(unit): history.env_steps, **history.metrics}
    during = dict(history.evaluations)
    steps = during.pop("env_steps", None)
    if steps is not None and steps.shape[1]:
        content["evaluation_steps"] = steps
        content |= {f"evaluation_{name}": values for name, values in during.items()}
    return content


def recorded(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Sums per episode of what the environment reports and the run records, NaN as returns are."""
    missing = np.isnan(evaluation.returns)
    return {name: np.where(missing, np.nan, x) for name, x in evaluation.info.items()}


def summarise(
    experiment: Experiment,
    population: Population,
    evaluation: Evaluation,
    seconds: Seconds,
    resumes: int = 0,
) -> dict[str, Any]:
    """The content of summary.json. An interval of fewer than two members is [null, null].

    Args:
        seconds: that the evaluation took.
        resumes: how often the run was resumed.

    A member whose loss, returns or parameters were not finite has the iteration in "diverged_at",
    null for a return, and no part in any mean.
    """
    values = measures(experiment, population, evaluation)
    sums = {name: x.mean(axis=1) for name, x in recorded(evaluation).items()}
    rows_of = [{k: v for k, v in row.items() if k != "seed"} for row in population.table]
    groups = population.settings
    compared = {name: _aggregates(x, groups) for name, x in (values | sums).items()}
    means = np.asarray([each["mean"] for each in compared["return"]], dtype=float)
    best = results.best_of(np.where(population.contenders, means, np.nan))
    better = np.transpose(results.improvement(values["return"], groups, best)).tolist()
    settings = [
        {
            "hyperparameters": group.hyperparameters,
            "members": group.members,
            "measures": {name: compared[name][i] for name in values},
            "recorded": {name: compared[name][i] for name in sums},
            "improvement": {"probability": better[i][0], "ci95": better[i][1:]},
        }
        for i, group in enumerate(groups)
    ]
    base = hyperparameters(experiment.agent)
    overall = _aggregates(values["return"], [Setting({}, list(range(len(population))))])[0]
    return {
        "unit": experiment.unit,
        "data": list(experiment.data),
        "final_return_mean": overall["mean"],
        "final_return_ci95": overall["ci95"],
        "episodes_per_member": evaluation.returns.shape[1],
        "unfinished_episodes": int((~np.asarray(evaluation.finished)).sum()),
        **_speed(experiment.unit, population, seconds),
        "interrupted": population.interrupted,
        "resumes": resumes,
        "best": settings[best],
        "settings": settings,
        "members": [
            {
                "hyperparameters": base | rows_of[i],
                "seed": row["seed"],
                "final_return": values["return"][i],
                "recorded": {name: x[i] for name, x in sums.items()},
                "diverged_at": _iteration(population.history.diverged_at[i]),
            }
            for i, row in enumerate(population.table)
        ],
        "checkpoints": [x.members for x in population.rungs]
        or [members for members, _ in population.batches],
        **_searched(population),
    }


def _searched(population: Population) -> dict[str, Any]:
    """What a search did: the rungs of a halving, the exchanges of population-based training."""
    content: dict[str, Any] = {}
    if population.rungs:
        steps = np.nanmax(population.history.env_steps, axis=0)
        content["rungs"] = [
            rung._asdict() | {"steps": int(steps[rung.iteration - 1])} for rung in population.rungs
        ]
    if population.exchanges:
        content["exchanges"] = [exchange._asdict() for exchange in population.exchanges]
    return content


def results_text(experiment: Experiment, population: Population, evaluation: Evaluation) -> str:
    """results.csv: a row for each member, with values as the command line takes them.

    Cells are empty where there is no value.
    """
    values = measures(experiment, population, evaluation)
    named = {f"final_{k}" if k in ("return", "score") else k: x for k, x in values.items()}
    missing = np.isnan(evaluation.returns)
    named["final_length"] = np.where(missing, np.nan, evaluation.lengths).mean(axis=1)
    named |= {name: x.mean(axis=1) for name, x in recorded(evaluation).items()}
    history, unit = population.history, steps_name(experiment.unit)
    diverged_at = [_iteration(x) for x in history.diverged_at]
    columns = results.member_columns(
        population.table, named, history.steps_taken, diverged_at, unit
    )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    return file.getvalue()


def _cell(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    return "" if missing else exact_text(value)


def measures(
    experiment: Experiment, population: Population, evaluation: Evaluation
) -> dict[str, np.ndarray]:
    """What members are compared by (members,).

    Where agents were evaluated during training, "best" values are those of each member's best
    evaluation, beside those of its final policy. Where the data's reference returns are known,
    scores are returns normalised by them, 0 for a random policy and 100 for an expert.
    """
    final = np.asarray(evaluation.returns).mean(axis=1)
    values = {"return": final}
    during = np.asarray(population.history.evaluations["returns"]).mean(axis=2)
    if during.shape[1]:
        values["best_return"] = np.fmax(np.fmax.reduce(during, axis=1), final)
    if experiment.recording is not None:
        for name, returns in list(values.items()):
            score = experiment.recording.score(returns)
            if score is not None:
                values[name.replace("return", "score")] = score
    return values


def _speed(unit: str, population: Population, evaluation: Seconds) -> dict[str, Any]:
    """Steps of all members, per second of training, and all the time that was spent."""
    name = steps_name(unit)
    steps = float(np.nansum(np.nanmax(population.history.env_steps, axis=1)))
    return {
        name: int(steps),
        f"{name}_per_second": steps / population.run_seconds,
        "compile_seconds": population.compile_seconds + evaluation.compiling,
        "run_seconds": population.run_seconds,
        "evaluation_seconds": evaluation.running,
    }


def _aggregates(values: np.ndarray, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Of each setting the mean and the interquartile mean, with their intervals."""
    found = results.aggregates(values, settings)
    return [
        {
            "mean": row["mean"],
            "ci95": [row["mean_low"], row["mean_high"]],
            "iqm": row["iqm"],
            "iqm_ci95": [row["iqm_low"], row["iqm_high"]],
        }
        for row in (
            {name: float(column[i]) for name, column in found.items()} for i in range(len(settings))
        )
    ]


def _iteration(diverged_at: float) -> int | None:
    return None if np.isnan(diverged_at) else int(diverged_at)
