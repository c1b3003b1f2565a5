"""Curves over environment steps, as studies keep and draw them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40


def binned(env_steps: np.ndarray, values: np.ndarray, total: int) -> np.ndarray:
    """Means (members, BINS) of what was measured in each equal span of steps, NaN where nothing."""
    result = np.full((len(values), BINS), np.nan)
    for row, x, y in zip(result, env_steps, values, strict=True):
        seen = np.isfinite(x) & np.isfinite(y)
        place = np.clip((x[seen] / total * BINS).astype(int), 0, BINS - 1)
        count = np.bincount(place, minlength=BINS)
        row[count > 0] = np.bincount(place, y[seen], BINS)[count > 0] / count[count > 0]
    return result


def draw(axes: Axes, cells: Mapping[str, Any], name: str, label: str) -> None:
    """A line per cell of its curve `name` (seeds, BINS): mean over seeds and 95 % t interval."""
    from jaxrl.report.plots import steps_formatter
    from jaxrl.report.stats import mean_ci

    for setting, cell in cells.items():
        steps = (np.arange(BINS) + 0.5) / BINS * cell["settings"]["steps"]
        mean, low, high = mean_ci(np.asarray(cell["curves"][name], dtype=float))
        seen = np.isfinite(mean)
        axes.plot(steps[seen], mean[seen], label=setting, linewidth=1.6)
        axes.fill_between(steps[seen], low[seen], high[seen], alpha=0.15, linewidth=0)
    axes.set(xlabel="environment steps", ylabel=label)
    axes.xaxis.set_major_formatter(steps_formatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
