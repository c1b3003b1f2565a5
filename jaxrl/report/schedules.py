"""How hyper-parameters changed while a population trained.

Matplotlib is imported by the functions that draw, so that importing this module is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrl.report.plots import steps_formatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def schedule_figure(
    steps: Sequence[float],
    values: Mapping[str, np.ndarray],
    parents: np.ndarray,
    best: int,
    *,
    title: str = "",
    xlabel: str = "environment steps",
) -> Figure:
    """Hyper-parameters over the steps of population-based training, a panel for each.

    Grey lines are members, joined to the one that they copied; the red one is the schedule that the
    best member has gone through, whoever's it was at the time.

    Args:
        steps: of each member at the exchanges (k,), the first at 0, and at the end: k + 1 in all.
        values: name -> (k, members), from each exchange on.
        parents: whom each member copied at each exchange (k, members), itself where it stayed.
        best: the member whose past is red.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(values), 3)
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(3.2 + 2.6 * columns, 0.8 + 2.9 * rows), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    members = parents.shape[1]
    past = _ancestors(parents, best)
    for axes, (name, table) in zip(panels.flat, values.items(), strict=False):
        for member in range(members):
            _draw(axes, steps, table, parents, np.full(len(parents), member), "0.75", 0.9)
        _draw(axes, steps, table, parents, past, "tab:red", 2.0)
        axes.set_ylabel(name.replace("_", " "))
        if table.min() > 0 and table.max() / table.min() >= 10:
            axes.set_yscale("log")
        axes.set_xlim(0, steps[-1])
        axes.xaxis.set_major_formatter(steps_formatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    for axes in panels.flat[len(values) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel(xlabel)
    handles = [
        Line2D([], [], color="tab:red", linewidth=2.0),
        Line2D([], [], color="0.75", linewidth=0.9),
    ]
    labels = ["what the best member went through", f"all {members} members"]
    figure.legend(
        handles, labels, fontsize="small", frameon=False, loc="outside lower center", ncols=2
    )
    return figure


def _ancestors(parents: np.ndarray, member: int) -> np.ndarray:
    """Whose values after each exchange (k,) led to what `member` is in the end."""
    past = [member]
    for row in parents[:0:-1]:
        past.append(int(row[past[-1]]))
    return np.asarray(past[::-1])


def _draw(
    axes: Axes,
    steps: Sequence[float],
    table: np.ndarray,
    parents: np.ndarray,
    path: np.ndarray,
    colour: str,
    width: float,
) -> None:
    """A level for each time between two exchanges, joined to that of the member it came from."""
    x: list[float] = []
    y: list[Any] = []
    for k, member in enumerate(path):
        if k:  # from the parent's level
            x.append(steps[k])
            y.append(table[k - 1, parents[k, member]])
            if parents[k, member] != path[k - 1]:  # another's line, which ends here
                x.insert(-1, steps[k])
                y.insert(-1, np.nan)
        x += [steps[k], steps[k + 1]]
        y += [table[k, member]] * 2
    over = {"color": colour, "linewidth": width, "zorder": 3 if width > 1 else 1}
    axes.plot(x, y, **over)  # type: ignore[arg-type]
