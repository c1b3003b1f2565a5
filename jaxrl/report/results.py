"""What the members of a run gave, by the settings that they had: aggregates, the best, curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.report.formatting import setting_text
from jaxrl.report.plots import Curve, bin_episodes
from jaxrl.report.stats import iqm_ci, mean_ci, probability_of_improvement


class Setting(NamedTuple):
    """A setting, and the numbers of the members that have it."""

    hyperparameters: dict[str, Any]
    members: list[int]


def settings_of(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """The settings of a table with a row for each member, in the order in which they come.

    >>> rows = [{"a": 1, "seed": 0}, {"a": 2, "seed": 0}, {"a": 1, "seed": 1}]
    >>> [tuple(setting) for setting in settings_of(rows)]
    [({'a': 1}, [0, 2]), ({'a': 2}, [1])]
    """
    found: dict[Any, Setting] = {}
    for number, row in enumerate(rows):
        values = {name: value for name, value in row.items() if name != "seed"}
        key = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in values.items())
        found.setdefault(key, Setting(values, [])).members.append(number)
    return list(found.values())


def by_setting(values: np.ndarray, settings: Sequence[Setting]) -> np.ndarray:
    """Values of members (members,) as an array (seeds, settings), NaN where there are fewer."""
    table = np.full((max(len(s.members) for s in settings), len(settings)), np.nan)
    for column, setting in enumerate(settings):
        table[: len(setting.members), column] = np.asarray(values)[setting.members]
    return table


def aggregates(values: np.ndarray, settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    """Of each setting's members, as arrays (settings,): what they have in common of `values`.

    "mean" with Student's t interval "mean_low", "mean_high", and "iqm", the interquartile mean,
    with its bootstrap interval, likewise.
    """
    table = by_setting(values, settings)
    estimates = {"mean": mean_ci(table), "iqm": iqm_ci(table)}
    return {
        name + end: column
        for name, columns in estimates.items()
        for end, column in zip(("", "_low", "_high"), columns, strict=True)
    }


def best_of(means: np.ndarray) -> int:
    """Which setting is the best, by the means of each; the first where none has one."""
    return int(np.argmax(np.where(np.isnan(means), -np.inf, means)))


def improvement(
    values: np.ndarray, settings: Sequence[Setting], best: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How likely a member of the best setting has more than one of each: arrays (settings,).

    Probability, and the ends of its interval. The best has none over itself: NaN.
    """
    table = by_setting(values, settings)
    of_best = np.broadcast_to(table[:, best : best + 1], table.shape)
    found = probability_of_improvement([of_best], [table])
    for column in found:
        column[best] = np.nan
    return found


def member_columns(
    rows: Sequence[Mapping[str, Any]],
    measures: Mapping[str, np.ndarray],
    steps: np.ndarray,
    diverged_at: Sequence[Any] | np.ndarray,
    unit: str = "env_steps",
) -> dict[str, Any]:
    """A table of members as columns: number, setting, seed, measures, steps and divergence."""
    names = list(rows[0])
    return {
        "member": range(len(rows)),
        **{name: [row[name] for row in rows] for name in names},
        **measures,
        unit: steps,
        "diverged_at": diverged_at,
    }


def curves_of(
    settings: Sequence[Setting],
    steps: np.ndarray,
    metrics: Mapping[str, np.ndarray],
    evaluations: Mapping[str, np.ndarray],
    name: str = "",
) -> list[Curve]:
    """A learning curve for each setting; `name` goes before the setting in their labels.

    Returns of training episodes; where there are none, of evaluations during training.

    Args:
        steps, metrics, evaluations: of all members, as `jaxrl.History` has them.

    Raises: ValueError where there are neither.
    """
    during = evaluations.get("returns")
    if "episode_return" not in metrics and (during is None or not during.shape[1]):
        raise ValueError("there are no returns to draw: it needs evaluations during training")

    def curve(setting: Setting) -> Curve:
        rows = setting.members
        label = " ".join(filter(None, [name, setting_text(setting.hyperparameters)]))
        if "episode_return" in metrics:
            returns, episodes = metrics["episode_return"][rows], metrics["episodes"][rows]
            return Curve(label, *bin_episodes(steps[rows], returns, episodes))
        at = np.nanmax(evaluations["env_steps"][rows], axis=0)
        return Curve(label, at, evaluations["returns"][rows].mean(axis=2))

    return [curve(setting) for setting in settings]
