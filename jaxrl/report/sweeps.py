"""What a sweep found: final returns over the hyper-parameters that it varied.

Matplotlib is imported by the functions that draw, so that importing this module is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.report.stats import mean_ci

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Setting = Mapping[str, Any]  # a sweep's values of the hyper-parameters that it varies
Returns = Sequence[np.ndarray]  # of each setting, the final returns of its members

MAX_CELLS = 12  # a heat map of more rows or columns has no room for numbers


def varied(settings: Sequence[Setting]) -> dict[str, list[Any]]:
    """The hyper-parameters of more than one value, and their values: numbers in order.

    >>> varied([{"a": 2, "b": "x"}, {"a": 1, "b": "x"}])
    {'a': [1, 2]}
    """
    found = {}
    for name in settings[0]:
        values = list(dict.fromkeys(_hashable(setting[name]) for setting in settings))
        if len(values) > 1:
            found[name] = sorted(values) if _are_numbers(values) else values
    return found


def sweep_figure(
    settings: Sequence[Setting], returns: Returns, *, title: str = "", label: str = "final return"
) -> Figure:
    """Final returns over what was varied: one hyper-parameter, a grid of two, or one after another.

    One: a dot per member, and the mean of each value with its 95 % t interval. A full grid of two:
    a heat map of means. Else a panel for each hyper-parameter, in which a dot is the mean of one
    setting, so that what the others do to it is seen as spread.

    Args:
        settings, returns: of the same length; NaN for a member that has diverged.

    Raises: ValueError where the settings do not differ.
    """
    from matplotlib.figure import Figure

    found = varied(settings)
    if not found:
        raise ValueError("the settings of this sweep do not differ: there is nothing to compare")
    means = np.asarray([mean_ci(members)[0] for members in returns])
    is_grid = len(found) == 2 and len(settings) == np.prod([len(v) for v in found.values()])
    columns = 1 if is_grid else min(len(found), 3)
    rows = 1 if is_grid else -(-len(found) // columns)
    figure = Figure(figsize=(3.2 + 2.6 * columns, 0.6 + 3.2 * rows), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    if is_grid:
        _heat_map(figure.add_subplot(), found, settings, means, label)
        return figure
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    results = returns if len(found) == 1 else list(means[:, None])
    for axes, name in zip(panels.flat, found, strict=False):
        _over_one(axes, name, found[name], [setting[name] for setting in settings], results, means)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(label)
    _legend(panels[0, 0], "one seed" if len(found) == 1 else "mean of one setting")
    # The interval of two members can be far wider than all that was seen: it is cut off instead.
    seen = np.concatenate([np.ravel(x) for x in results])
    seen = seen[np.isfinite(seen)]
    if seen.size and seen.min() < seen.max():
        margin = 0.06 * (seen.max() - seen.min())
        panels[0, 0].set_ylim(seen.min() - margin, seen.max() + margin)
    return figure


def _over_one(
    axes: Axes, name: str, values: list[Any], own: list[Any], results: Returns, means: np.ndarray
) -> None:
    """Dots over the values of one hyper-parameter, and the means of values that have several.

    `own` is each setting's value, `results` its dots, `means` its mean.
    """
    numbers = _are_numbers(values)
    place = {v: v if numbers else i for i, v in enumerate(values)}
    x = np.asarray([place[_hashable(value)] for value in own], dtype=float)
    dots = np.concatenate([np.full(len(y), at) for at, y in zip(x, results, strict=True)])
    heights = np.concatenate([np.asarray(y, dtype=float) for y in results])
    axes.plot(dots, heights, "o", color="tab:blue", alpha=0.45, markersize=4, markeredgewidth=0)
    at = np.asarray(list(place.values()), dtype=float)
    if len(dots) > len(at):
        mean, low, high = np.asarray([mean_ci(heights[dots == p]) for p in at]).T
        line = "-" if numbers else "_"
        axes.plot(at, mean, line, color="tab:blue", linewidth=1.6, markersize=14)
        if len(own) == len(at):  # the dots are independent runs, of which there are intervals
            if numbers:
                axes.fill_between(at, low, high, color="tab:blue", alpha=0.15, linewidth=0)
            else:
                axes.vlines(at, low, high, color="tab:blue", linewidth=1.2)
    if np.isfinite(means).any():
        best = int(np.nanargmax(means))
        axes.plot(x[best], means[best], "o", markersize=9, fillstyle="none", color="tab:red")
    axes.set_xlabel(name.replace("_", " "))
    if numbers and min(values) > 0 and max(values) / min(values) >= 10:
        axes.set_xscale("log")
    if len(values) <= 4 or not numbers:  # more numbers run into each other
        axes.set_xticks(at, [_text(value) for value in values])
        axes.minorticks_off()
    if not numbers:
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def _legend(axes: Axes, dot: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="tab:blue", alpha=0.45, marker="o", markersize=4, linestyle=""),
        Line2D([], [], color="tab:red", marker="o", fillstyle="none", markersize=9, linestyle=""),
    ]
    axes.legend(handles, [dot, "best setting"], fontsize="small", framealpha=0.85, edgecolor="none")


def _heat_map(
    axes: Axes,
    found: dict[str, list[Any]],
    settings: Sequence[Setting],
    means: np.ndarray,
    label: str,
) -> None:
    """The longer hyper-parameter along x; each cell has the mean of its setting."""
    from matplotlib.patches import Rectangle

    down, along = sorted(found, key=lambda name: len(found[name]))
    table = np.full((len(found[down]), len(found[along])), np.nan)
    for setting, mean in zip(settings, means, strict=True):
        i, j = (found[name].index(_hashable(setting[name])) for name in (down, along))
        table[i, j] = mean
    image = axes.imshow(table, origin="lower", cmap="viridis", aspect="auto")
    axes.figure.colorbar(image, ax=axes, label=label, pad=0.02)
    axes.set_xticks(range(len(found[along])), [_text(v) for v in found[along]])
    axes.set_yticks(range(len(found[down])), [_text(v) for v in found[down]])
    if len(found[along]) > 6:
        axes.tick_params(axis="x", labelrotation=45)
    axes.set(xlabel=along.replace("_", " "), ylabel=down.replace("_", " "))
    if np.isfinite(table).any():
        best = np.unravel_index(np.nanargmax(table), table.shape)
        frame = Rectangle(
            (best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor="tab:red", linewidth=2
        )
        axes.add_patch(frame)
        middle = (np.nanmin(table) + np.nanmax(table)) / 2
        if max(table.shape) <= MAX_CELLS:
            large = np.nanmax(np.abs(table)) >= 100
            for (row, column), mean in np.ndenumerate(table):
                colour = "black" if mean > middle else "white"
                text = f"{mean:,.0f}" if large else f"{mean:.3g}"
                style: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "fontsize": "small",
                    "color": colour,
                }
                axes.text(column, row, text, **style)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
