"""Learning curves: mean over seeds with a confidence band, one line per setting.

Matplotlib is imported by the functions that draw, so that importing this module is free.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl import files
from jaxrl.report.stats import FEW, mean_ci

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CURVES = 8  # more lines than this cannot be told apart: the best few are drawn then
BEST = 5
SPAN = 12


@dataclasses.dataclass(frozen=True)
class Curve:
    """The runs of one setting over the same environment steps.

    `steps` is (bins,), `returns` (runs, bins) with NaN where a run has no value.
    """

    label: str
    steps: np.ndarray
    returns: np.ndarray


def bin_episodes(
    env_steps: np.ndarray, returns: np.ndarray, episodes: np.ndarray, bins: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Mean return of the training episodes that ended in each of `bins` equal spans of steps.

    All arguments are (runs, iterations): steps taken by the end of the iteration, mean return of
    the `episodes` that ended in it; NaN pads. Gives the spans' centres (bins,) and the means
    (runs, bins). A span in which no episode ended takes a straight line between its neighbours;
    before a run's first episode and after its last it is NaN. Fewer iterations give fewer bins.
    """
    bins = min(bins, env_steps.shape[1])
    edges = np.linspace(0.0, np.nanmax(env_steps), bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    binned = np.full((len(env_steps), bins), np.nan)
    for row, x, y, n in zip(binned, env_steps, returns, episodes, strict=True):
        seen = np.isfinite(x) & np.isfinite(y) & (n > 0)
        place = np.clip(np.searchsorted(edges, x[seen], side="left") - 1, 0, bins - 1)
        count = np.bincount(place, weights=n[seen], minlength=bins)
        total = np.bincount(place, weights=(n * y)[seen], minlength=bins)
        full = np.flatnonzero(count)
        if full.size:
            row[:] = np.interp(
                centres, centres[full], total[full] / count[full], left=np.nan, right=np.nan
            )
    return centres, binned


def learning_curves(
    curves: Sequence[Curve],
    *,
    title: str = "",
    xlabel: str = "environment steps",
    ylabel: str = "return of training episodes",
) -> Figure:
    """A figure of `curves`: mean over runs, band of the 95 % t interval of that mean.

    The interval of fewer than `FEW` runs reaches far beyond all that was seen: there the band is
    the range of the runs. A line above the figure says which.

    Of more than `MAX_CURVES` the `BEST`, by their last returns, are named in the legend, best
    first, and the others are thin grey lines behind them; there each run is smoothed, by the mean
    over a `SPAN`th of its points around each.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    named, others = list(curves), []
    if len(curves) > MAX_CURVES:
        ranked = [smoothed(c) for c in sorted(curves, key=_last_return, reverse=True)]
        named, others = ranked[:BEST], ranked[BEST:]
        ylabel += " (smoothed)"
    few = max(len(curve.returns) for curve in curves) < FEW
    for i, curve in enumerate(named):
        _draw(axes, curve, f"C{i}", few, alpha=0.18 if len(named) <= BEST else 0.1)
    if any(len(curve.returns) > 1 for curve in curves):
        text = "bands: range of the runs" if few else "bands: 95 % t interval of the mean"
        axes.set_title(text, loc="right", fontsize="x-small", color="0.45")
    for i, curve in enumerate(others):
        label = f"the other {len(others)}" if i == 0 else None
        style: dict[str, Any] = {"color": "0.75", "linewidth": 0.8, "zorder": 1}
        axes.plot(curve.steps, mean_ci(curve.returns)[0], label=label, **style)
    if len(curves) > 1:
        axes.legend(framealpha=0.85, edgecolor="none", fontsize="small")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    # The band of a few runs can be far wider than all that was seen: it is cut off instead.
    seen = np.concatenate([curve.returns[np.isfinite(curve.returns)] for curve in curves])
    if seen.size and seen.min() < seen.max():
        margin = 0.05 * (seen.max() - seen.min())
        axes.set_ylim(seen.min() - margin, seen.max() + margin)
    axes.set_xlim(0, max(curve.steps[-1] + curve.steps[0] for curve in curves))
    axes.xaxis.set_major_formatter(steps_formatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def smoothed(curve: Curve) -> Curve:
    """Each run's mean over a `SPAN`th of its points around each; NaN stays, and counts for none."""
    half = len(curve.steps) // (2 * SPAN)
    there = np.isfinite(curve.returns)
    ones = np.ones(2 * half + 1)

    def around(row: np.ndarray) -> np.ndarray:
        return np.convolve(row, ones)[half : half + len(row)]

    total = np.stack([around(row) for row in np.where(there, curve.returns, 0.0)])
    number = np.stack([around(row) for row in there.astype(float)])
    returns = np.where(there, total / np.maximum(number, 1), np.nan)
    return dataclasses.replace(curve, returns=returns)


def labels_of(has_episodes: bool, unit: str) -> dict[str, str]:
    """The labels of learning curves over a run's steps, of training episodes or evaluations."""
    what = "training episodes" if has_episodes else "evaluations"
    return {"xlabel": unit, "ylabel": f"return of {what}"}


def shown(figure: Figure) -> Figure:
    """The figure, which a notebook shows where a cell ends with it.

    A notebook knows how to show figures only once pyplot has made one.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        known = shell.display_formatter.formatters.values()
        if not any(type(figure) in formatter.type_printers for formatter in known):
            from IPython.core.pylabtools import select_figure_formats

            select_figure_formats(shell, {"png"})
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write `figure` to `path`, in the format its ending names.

    Raises: ValueError where that is no format that can be written; OSError where it cannot be.
    """
    ending = Path(path).suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if ending not in known:
        raise ValueError(
            f"cannot write a figure as {Path(path).name!r}: known endings are "
            + ", ".join(sorted(known))
        )
    with files.replacing(Path(path)) as file:
        figure.savefig(file, format=ending)


def _draw(axes: Axes, curve: Curve, colour: str, few: bool, alpha: float) -> None:
    mean, low, high = mean_ci(curve.returns)
    if few:
        seen = np.isfinite(curve.returns)
        low = np.where(seen, curve.returns, np.inf).min(axis=0)
        high = np.where(seen, curve.returns, -np.inf).max(axis=0)
        low, high = (np.where(seen.any(axis=0), x, np.nan) for x in (low, high))
    axes.plot(curve.steps, mean, color=colour, linewidth=1.8, label=curve.label)
    axes.fill_between(curve.steps, low, high, color=colour, alpha=alpha, linewidth=0)


def _last_return(curve: Curve) -> float:
    """The mean over the last tenth of a curve; least where it has none."""
    mean = mean_ci(curve.returns)[0]
    last = mean[-max(1, len(mean) // 10) :]
    return float(np.nanmean(last)) if np.isfinite(last).any() else -np.inf


def steps_formatter() -> Any:
    """Numbers of steps as axes show them: 50k, 2M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")
