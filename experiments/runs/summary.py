"""summary.json and metrics.npz: what a run gave."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.runs.experiment import Experiment, hyperparameters
from experiments.runs.formatting import steps_name
from jaxrl.report.stats import mean_ci
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
    settings = []
    for setting, rows in _groups(experiment, population, rows_of):
        if rows:  # none where the run was interrupted before
            settings.append(
                {
                    "hyperparameters": setting,
                    "members": rows,
                    "measures": {name: _mean(x[rows]) for name, x in values.items()},
                    "recorded": {name: _mean(x[rows]) for name, x in sums.items()},
                }
            )
    base = hyperparameters(experiment.agent)
    overall = _mean(values["return"])
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
        "best": max(_whole(settings, population), key=_mean_return),
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


def _groups(
    experiment: Experiment, population: Population, rows_of: list[dict[str, Any]]
) -> list[tuple[dict[str, Any], list[int]]]:
    """Settings and their members; where members copied each other, each stands by itself."""
    if population.exchanges:
        return [(row, [i]) for i, row in enumerate(rows_of)]
    return [
        (setting, [i for i, row in enumerate(rows_of) if row == setting])
        for setting in experiment.settings
    ]


def _whole(settings: list[dict[str, Any]], population: Population) -> list[dict[str, Any]]:
    """Those that may be the best: of a halving, what its last rung has trained."""
    last = population.rungs[-1].members if population.rungs else range(len(population))
    return [setting for setting in settings if setting["members"][0] in last]


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
        values["best_return"] = np.fmax(np.nanmax(during, axis=1), final)
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


def _mean(values: np.ndarray) -> dict[str, Any]:
    mean, *interval = map(float, mean_ci(values))
    return {"mean": mean, "ci95": interval}


def _mean_return(setting: dict[str, Any]) -> float:
    mean: float = setting["measures"]["return"]["mean"]
    return -np.inf if np.isnan(mean) else mean


def _iteration(diverged_at: float) -> int | None:
    return None if np.isnan(diverged_at) else int(diverged_at)
