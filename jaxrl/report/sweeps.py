"""What a sweep found: final returns over the hyper-parameters that it varied.

Matplotlib is imported by the functions that draw, so that importing this module is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.report.stats import FEW, mean_ci

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

    One: a dot per member, and the mean of each value with its 95 % t interval. The interval of
    fewer than `FEW` members reaches far beyond all that was seen: there the band is their range,
    as in learning curves, and the legend says which. A full grid of two: a heat map of means. Else
    a panel for each hyper-parameter, in which a dot is the mean of one setting, so that what the
    others do to it is seen as spread; the best setting is named above them.

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
    if len(found) > 1 and not is_grid and np.isfinite(means).any():
        best = settings[int(np.nanargmax(means))]
        values = ", ".join(f"{name}={_text(_hashable(best[name]))}" for name in found)
        title = "\n".join([title, *wrap(f"best: {values}", 36 * columns)]).strip()
    figure.suptitle(title, fontsize="medium")
    if is_grid:
        _heat_map(figure.add_subplot(), found, settings, means, label)
        return figure
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    results = returns if len(found) == 1 else list(means[:, None])
    few = max(len(members) for members in returns) < FEW
    for axes, name in zip(panels.flat, found, strict=False):
        own = [setting[name] for setting in settings]
        _over_one(axes, name, found[name], own, results, means, few)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(label)
    band = "range of the seeds" if few else "95 % t interval of the mean"
    _legend(panels, "one seed" if len(found) == 1 else "mean of one setting", band)
    # An interval may be wider than all that was seen: it is cut off instead.
    seen = np.concatenate([np.ravel(x) for x in results])
    seen = seen[np.isfinite(seen)]
    if seen.size and seen.min() < seen.max():
        margin = 0.06 * (seen.max() - seen.min())
        panels[0, 0].set_ylim(seen.min() - margin, seen.max() + margin)
    return figure


def _over_one(
    axes: Axes,
    name: str,
    values: list[Any],
    own: list[Any],
    results: Returns,
    means: np.ndarray,
    few: bool,
) -> None:
    """Dots over the values of one hyper-parameter, and the means of values that have several.

    `own` is each setting's value, `results` its dots, `means` its mean; of `few` runs the band is
    the range.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    numbers = _are_numbers(values)
    place = {v: v if numbers else i for i, v in enumerate(values)}
    x = np.asarray([place[_hashable(value)] for value in own], dtype=float)
    dots = np.concatenate([np.full(len(y), at) for at, y in zip(x, results, strict=True)])
    heights = np.concatenate([np.asarray(y, dtype=float) for y in results])
    axes.plot(dots, heights, "o", color="tab:blue", alpha=0.45, markersize=4, markeredgewidth=0)
    at = np.asarray(list(place.values()), dtype=float)
    if len(dots) > len(at):
        mean, low, high = np.asarray([mean_ci(heights[dots == p]) for p in at]).T
        if few:
            seen = [heights[(dots == p) & np.isfinite(heights)] for p in at]
            ends = [(y.min(), y.max()) if y.size else (np.nan, np.nan) for y in seen]
            low, high = np.asarray(ends).T
        line = "-" if numbers else "_"
        style: dict[str, Any] = {"color": "tab:blue", "linewidth": 1.6, "markersize": 14}
        axes.plot(at, mean, line, label="mean", **style)
        if len(own) == len(at):  # the dots are independent runs, of which there are intervals
            if numbers:
                axes.fill_between(at, low, high, color="tab:blue", alpha=0.15, linewidth=0)
            else:
                axes.vlines(at, low, high, color="tab:blue", linewidth=1.2)
    if np.isfinite(means).any():
        best = int(np.nanargmax(means))
        axes.plot(x[best], means[best], "o", markersize=9, fillstyle="none", color="tab:red")
    axes.set_xlabel(name.replace("_", " "))
    if numbers and _are_logarithmic(values):
        axes.set_xscale("log")
        if max(values) / min(values) < 100:  # labels at 1 and 3 of each decade; else at decades
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif numbers:  # room for small numbers, which have long labels
        axes.xaxis.set_major_locator(
            MaxNLocator(4, integer=all(isinstance(v, int) for v in values))
        )
    if len(values) <= 4 or not numbers:  # more numbers run into each other
        axes.set_xticks(at, [_text(value) for value in values])
        axes.minorticks_off()
    if not numbers:
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def _legend(panels: np.ndarray, dot: str, band: str) -> None:
    """Says what the dots are, the mean and the band where there are any, and the ring."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    one: dict[str, Any] = {"color": "tab:blue", "alpha": 0.45, "marker": "o", "markersize": 4}
    ring: dict[str, Any] = {"color": "tab:red", "marker": "o", "fillstyle": "none", "markersize": 9}
    handles: list[Any] = [Line2D([], [], linestyle="", label=dot, **one)]
    lines = [line for axes in panels.flat for line in axes.lines]
    handles += [line for line in lines if line.get_label() == "mean"][:1]
    axes = panels[0, 0]
    if axes.collections:
        is_area = isinstance(axes.collections[0], PolyCollection)
        style: dict[str, Any] = {"color": "tab:blue", "label": band}
        shape = Patch(alpha=0.15, linewidth=0, **style) if is_area else Line2D([], [], **style)
        handles.append(shape)
    handles.append(Line2D([], [], linestyle="", label="best setting", **ring))
    axes.legend(handles=handles, fontsize="small", framealpha=0.85, edgecolor="none")


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


def _are_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive numbers over a decade or more stand more evenly on a logarithmic axis.

    The even one has their median nearer to its middle; so a uniform search keeps a linear axis.
    """
    if min(values) <= 0 or max(values) / min(values) < 10:
        return False
    x = np.asarray(values, dtype=float)
    off = [abs(2 * np.median(y) - y.min() - y.max()) / np.ptp(y) for y in (np.log(x), x)]
    return bool(off[0] <= off[1])


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
