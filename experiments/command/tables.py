"""Tables on standard output. Imports nothing that is heavy: listings answer at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned to the right.

    Cells are shown as they are: rich would take `[obs]` for markup.
    """
    console = Console(highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Any = "right" if column in right else "left"
        grid.add_column(Text(column), justify=justify, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = max(console.width, 200)
    console.print(grid)
