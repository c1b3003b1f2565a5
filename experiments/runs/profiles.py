"""Final returns of run folders on a common scale, for performance profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.runs.folder import RunFolder
from jaxrl.report import results, sweeps
from jaxrl.report.profiles import Scores, of_settings
from jaxrl.report.results import Setting
from jaxrl.training.history import mean

Scale = tuple[float, float]  # returns at which scores are 0 and 1


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
        scores: of each setting, agent or run.
        names: what their labels are, such as "learning_rate" or "agent".
        scales: of each environment that has one; without any, scores are returns.
    """

    scores: list[Scores]
    names: str
    scales: dict[str, Scale]


def compare(folders: Sequence[RunFolder], references: Mapping[str, Scale]) -> Comparison:
    """The settings of one run, or of several runs the best setting of each.

    Runs of one agent in different environments are one curve. Where an agent has two runs in one
    environment, each run is a curve of its own, and there can be one environment only. Several
    environments get a common scale: the references, else the least and the highest of their runs.

    Raises: ValueError where a run has not ended, or the runs cannot be compared.
    """
    envs = list(dict.fromkeys(folder.config["env"] for folder in folders))
    for env in references:
        if env not in envs:
            raise ValueError(f"--reference {env}=...: the runs are of {', '.join(envs)}")
    if len(folders) == 1:
        settings, returns = final_returns(folders[0])
        values = [setting.hyperparameters for setting in settings]
        scores, scales = of_settings(values, returns, folders[0].config["agent"]), dict(references)
        names = ", ".join(sweeps.varied(values)) or "agent"
        return Comparison([scaled(s, envs, scales) for s in scores], names, scales)
    names, groups = _groups(folders)
    _require_same(groups, envs)
    scores = [Scores(label, [group[env] for env in envs]) for label, group in groups.items()]
    scales = dict(references)
    if len(envs) > 1:
        scales = {env: scales.get(env) or _seen(groups, env) for env in envs}
    return Comparison([scaled(s, envs, scales) for s in scores], names, scales)


def final_returns(folder: RunFolder) -> tuple[list[Setting], list[np.ndarray]]:
    """A run's settings and the final returns of the members of each; NaN: it has diverged.

    Raises: ValueError where it has not ended.
    """
    summary = folder.summary
    final = np.asarray([member["final_return"] for member in summary["members"]], dtype=float)
    settings = [Setting(s["hyperparameters"], s["members"]) for s in summary["settings"]]
    return settings, [final[setting.members] for setting in settings]


def scaled(scores: Scores, envs: Sequence[str], scales: Mapping[str, Scale]) -> Scores:
    """Scores of which each environment's 0 and 1 are where its scale says."""
    return Scores(
        scores.label,
        [
            (returns - scales[env][0]) / (scales[env][1] - scales[env][0])
            if env in scales
            else returns
            for env, returns in zip(envs, scores.strata, strict=True)
        ],
    )


def _groups(folders: Sequence[RunFolder]) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
    """Label -> environment -> final returns of the best setting; and what the labels are."""
    pairs = [(folder.config["agent"], folder.config["env"]) for folder in folders]
    by_agent = len(set(pairs)) == len(pairs)
    names = {folder.path: folder.path.resolve().name for folder in folders}
    if len(set(names.values())) < len(names):
        names = {path: str(path) for path in names}
    groups: dict[str, dict[str, np.ndarray]] = {}
    for folder, (agent, env) in zip(folders, pairs, strict=True):
        _, returns = final_returns(folder)
        best = results.best_of(np.asarray([mean(x) for x in returns]))
        label = agent if by_agent else names[folder.path]
        groups.setdefault(label, {})[env] = returns[best]
    return ("agent" if by_agent else "run"), groups


def _seen(groups: Mapping[str, Mapping[str, np.ndarray]], env: str) -> Scale:
    """The least and the highest return in an environment; of equal ones, one apart."""
    returns = np.concatenate([group[env] for group in groups.values()])
    if not np.isfinite(returns).any():
        raise ValueError(f"no run in {env} has a final return")
    low, high = float(np.nanmin(returns)), float(np.nanmax(returns))
    return (low, high) if low < high else (low, low + 1)


def _require_same(groups: Mapping[str, Mapping[str, np.ndarray]], envs: Sequence[str]) -> None:
    for label, group in groups.items():
        for env in envs:
            if env not in group:
                raise ValueError(
                    f"{label} has no run in {env}: a profile compares on the same environments"
                )
