"""Tables on standard output. Imports nothing that is heavy: listings answer at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Print a table. Cells are shown as they are: rich would take `[obs]` for markup.

    Only text is broken into lines, between words: names and numbers are whole, also in a terminal
    that is too narrow for them.

    Args:
        right: columns that are aligned to the right.
        optional: columns that a narrow terminal does without, the last one first.
    """
    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = max(console.width, 200)
    rows, shown = [[str(cell) for cell in row] for row in rows], list(range(len(columns)))
    dispensable = [i for i, column in enumerate(columns) if column in optional]
    while True:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i in shown:
            justify: Any = "right" if columns[i] in right else "left"
            cells = [columns[i], *(row[i] for row in rows)]
            is_text = any(len(cell.split()) > 3 for cell in cells)  # an interval is two words
            least = None if is_text else max(map(len, cells))
            grid.add_column(Text(columns[i]), justify=justify, no_wrap=not is_text, min_width=least)
        for row in rows:
            grid.add_row(*(Text(row[i]) for i in shown))
        needed = Measurement.get(console, console.options.update(width=10_000), grid).minimum
        if needed <= console.width or not dispensable:
            break
        shown.remove(dispensable.pop())
    console.width = max(console.width, needed)
    console.print(grid, soft_wrap=True)
