"""Tables on standard output. Imports nothing that is heavy: listings answer at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Print a table. Cells are shown as they are: rich would take `[obs]` for markup.

    Args:
        right: columns that are aligned to the right.
        whole: columns in which lines are not broken before they are in others.
        optional: columns that a narrow terminal does without, the last one first.
    """
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = max(console.width, 200)
    rows, shown = list(rows), list(range(len(columns)))
    dispensable = [i for i, column in enumerate(columns) if column in optional]
    while True:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i in shown:
            justify: Any = "right" if columns[i] in right else "left"
            no_wrap = columns[i] in whole
            grid.add_column(Text(columns[i]), justify=justify, overflow="fold", no_wrap=no_wrap)
        for row in rows:
            grid.add_row(*(Text(row[i]) for i in shown))
        fits = grid.__rich_measure__(console, console.options.update(width=9999)).maximum
        if fits <= console.width or not dispensable:
            break
        shown.remove(dispensable.pop())
    console.print(grid)
