"""Learning curves: mean over seeds with a confidence band, one line per setting.

Matplotlib is imported by the functions that draw, so that importing this module is free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl import files
from jaxrl.report.stats import mean_ci

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

MAX_LEGEND = 8  # more lines than this cannot be told apart by a legend


@dataclasses.dataclass(frozen=True)
class Curve:
    """The runs of one setting over the same environment steps.

    `steps` is (bins,), `returns` (runs, bins) with NaN where a run has no value; `setting` holds
    the hyper-parameters that set this curve apart from the others of its figure.
    """

    label: str
    steps: np.ndarray
    returns: np.ndarray
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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

    Up to `MAX_LEGEND` curves are named in a legend. More are coloured by the first number that
    their settings differ in, shown by a colour bar, logarithmic where the numbers are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    scale = _colour_scale(curves) if len(curves) > MAX_LEGEND else None
    for i, curve in enumerate(curves):
        colour = scale[1].to_rgba(curve.setting[scale[0]]) if scale else _category(i, len(curves))
        _draw(axes, curve, colour, faint=len(curves) > MAX_LEGEND)
    if scale:
        figure.colorbar(scale[1], ax=axes, label=scale[0], pad=0.02)
    elif len(curves) > MAX_LEGEND:
        figure.legend(loc="outside right upper", frameon=False, fontsize="x-small")
    elif len(curves) > 1:
        axes.legend(framealpha=0.85, edgecolor="none", fontsize="small")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    # A band of two or three runs can be far wider than all that was seen: it is cut off instead.
    seen = np.concatenate([curve.returns[np.isfinite(curve.returns)] for curve in curves])
    if seen.size and seen.min() < seen.max():
        margin = 0.05 * (seen.max() - seen.min())
        axes.set_ylim(seen.min() - margin, seen.max() + margin)
    axes.set_xlim(0, max(curve.steps[-1] + curve.steps[0] for curve in curves))
    axes.xaxis.set_major_formatter(_steps_formatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
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


def _draw(axes: Axes, curve: Curve, colour: Any, *, faint: bool) -> None:
    mean, low, high = mean_ci(curve.returns)
    axes.plot(curve.steps, mean, color=colour, linewidth=1.2 if faint else 1.8, label=curve.label)
    axes.fill_between(
        curve.steps, low, high, color=colour, alpha=0.08 if faint else 0.18, linewidth=0
    )


def _colour_scale(curves: Sequence[Curve]) -> tuple[str, ScalarMappable] | None:
    """The first number in which the settings differ, and its colour map."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    for name in curves[0].setting:
        values = [curve.setting.get(name) for curve in curves]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < len(values) or len(set(numbers)) < 2:
            continue
        low, high = min(numbers), max(numbers)
        logarithmic = low > 0 and high / low >= 10
        norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
        return name, ScalarMappable(norm=norm, cmap="viridis")
    return None


def _category(i: int, n: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](i) if n <= 10 else colormaps["turbo"](i / max(n - 1, 1))


def _steps_formatter() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")
