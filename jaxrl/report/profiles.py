"""Performance profiles: the share of runs above each score, and interquartile means beside them.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(arXiv:2108.13264). Matplotlib is imported by the functions that draw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.report.formatting import value_text
from jaxrl.report.plots import BEST, MAX_CURVES
from jaxrl.report.stats import FEW, iqm_ci, performance_profile
from jaxrl.report.sweeps import varied

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 201  # of a profile


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is compared: a label, and the scores (runs,) of each environment, on a common scale."""

    label: str
    strata: Sequence[np.ndarray]

    @property
    def iqm(self) -> tuple[float, float, float]:
        """Interquartile mean with its stratified bootstrap interval."""
        value, low, high = map(float, iqm_ci(*self.strata))
        return value, low, high


def of_settings(
    settings: Sequence[Mapping[str, Any]], returns: Sequence[np.ndarray], name: str
) -> list[Scores]:
    """Final returns by setting; of more than `MAX_CURVES` the `BEST`, by their means, best first.

    Labels are the values of what differs, as `varied` names it; `name` where nothing does.
    """
    names = list(varied(settings))
    scores = [
        Scores(", ".join(value_text(setting[k]) for k in names) or name, [x])
        for setting, x in zip(settings, returns, strict=True)
    ]
    if len(scores) <= MAX_CURVES:
        return scores
    means = [np.nanmean(r) if np.isfinite(r).any() else -np.inf for r in returns]
    return [scores[i] for i in np.argsort(means, kind="stable")[::-1][:BEST]]


def profile_figure(
    compared: Sequence[Scores],
    title: str = "",
    *,
    label: str = "final return",
    names: str = "",
) -> Figure:
    """Left, the share of runs above each score, with 95 % bands; right, interquartile means.

    Bands and intervals are of stratified bootstraps; bands of fewer than `FEW` runs are left out.
    `names` says what the labels of the scores are.

    Raises: ValueError where no run has a finite score.
    """
    from matplotlib.figure import Figure

    seen = np.concatenate([np.ravel(x) for scores in compared for x in scores.strata])
    seen = seen[np.isfinite(seen)]
    if not seen.size:
        raise ValueError("no run has a final return: there is nothing to compare")
    margin = 0.03 * (np.ptp(seen) or max(abs(seen[0]), 1.0))
    at = np.linspace(seen.min() - margin, seen.max() + margin, POINTS)
    height = max(3.6, 0.9 + 0.42 * len(compared))
    figure = Figure(figsize=(9.6, height), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    # A band of a few runs is as high as the axis, and hides the others.
    few = min(sum(len(x) for x in scores.strata) for scores in compared) < FEW
    for i, scores in enumerate(compared):
        share, low, high = performance_profile(scores.strata, at)
        left.step(at, share, where="post", color=f"C{i}", linewidth=1.8)
        if not few:
            left.fill_between(at, low, high, step="post", color=f"C{i}", alpha=0.15, linewidth=0)
    left.set(xlabel=f"{label} $x$", ylabel="share of runs above $x$")
    left.set_xlim(at[0], at[-1])
    left.set_ylim(-0.02, 1.02)
    _means(right, compared, label)
    right.set_ylabel(names.replace("_", " "))
    right.set_xlim(at[0], at[-1])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def _means(axes: Axes, compared: Sequence[Scores], label: str) -> None:
    """A bar per interval, the mean as a line within it, in the order and colours of the profile."""
    height = min(0.5, 0.1 * len(compared))
    for i, scores in enumerate(compared):
        value, low, high = scores.iqm
        if np.isfinite(low):
            axes.barh(i, high - low, left=low, height=height, color=f"C{i}", alpha=0.45)
        ends = [i - height / 2, i + height / 2]
        axes.plot([value, value], ends, color=f"C{i}", linewidth=2.2)
    axes.set_yticks(range(len(compared)), [scores.label for scores in compared])
    axes.set_ylim(len(compared) - 0.4, -0.6)
    axes.set_xlabel(f"interquartile mean of {label}")
