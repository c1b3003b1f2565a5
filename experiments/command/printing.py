"""What the `jaxrl` command prints on standard output: tables, and the results of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments.runs.formatting import interval_text, number, steps_name, value_text, words_of

if TYPE_CHECKING:
    from experiments.runs.collect import Written


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned to the right.

    Cells are shown as they are: rich would take `[obs]` for markup. Only text is broken into lines,
    between words: names and numbers are whole, also in a terminal that is too narrow for them.
    """
    console = Console(highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [[str(cell) for cell in row] for row in rows]
    for i, column in enumerate(columns):
        justify: Any = "right" if column in right else "left"
        cells = [column, *(row[i] for row in rows)]
        is_text = any(len(cell.split()) > 3 for cell in cells)  # an interval is two words
        least = None if is_text else max(map(len, cells))
        grid.add_column(Text(column), justify=justify, no_wrap=not is_text, min_width=least)
    for row in rows:
        grid.add_row(*map(Text, row))
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = max(console.width, 200)
    whole = Measurement.get(console, console.options.update(width=10_000), grid)
    console.width = max(console.width, whole.minimum)
    console.print(grid, soft_wrap=True)


def results(summary: dict[str, Any]) -> None:
    """Print a summary's settings with mean and interval, then its times and its speed."""
    seeds = len(summary["settings"][0]["members"])
    print(
        f"final return over {seeds} {'seed' if seeds == 1 else 'seeds'}, "
        f"{summary['episodes_per_member']} fresh episodes each"
    )
    _settings(summary["settings"])
    if len(summary["settings"]) > 1:
        print(f"best: {words_of(summary['best']['hyperparameters'])}")
    diverged = sum(not math.isfinite(member["final_return"]) for member in summary["members"])
    if diverged:
        print(f"without {diverged} of {len(summary['members'])} members, which became non-finite")
    if summary["unfinished_episodes"]:
        print(f"{summary['unfinished_episodes']} evaluation episodes were cut off unfinished")
    print(speed(summary))


def _settings(settings: list[dict[str, Any]]) -> None:
    """A row per setting: what sets it apart, then each of its measures with its interval."""
    names = list(settings[0]["hyperparameters"])
    columns = list(names)
    for name in settings[0]["measures"]:
        title = name.replace("_", " ")
        columns += [f"mean {title}" if name in ("return", "score") else title, "95%"]
    columns[len(names) + 1] = "95% confidence interval"
    for name in settings[0]["recorded"]:
        columns += [f"mean {name}", "95%"]
    rows = []
    for setting in settings:
        row = [value_text(setting["hyperparameters"][name]) for name in names]
        for measure in (*setting["measures"].values(), *setting["recorded"].values()):
            row += [number(measure["mean"]), interval_text(measure["ci95"])]
        rows.append(row)
    table(columns, rows, right=columns)


def speed(summary: dict[str, Any]) -> str:
    """A line: the times of a run, its steps and how many of them it took per second."""
    unit = summary["unit"]
    name = steps_name(unit)
    return (
        f"compile {summary['compile_seconds']:.1f} s, run {summary['run_seconds']:.1f} s, "
        f"{summary[name]:,} {unit}, "
        f"{summary[f'{name}_per_second']:,.0f} {unit} per second in total"
    )


def recordings(files: Iterable[Written]) -> None:
    """Print what `jaxrl collect` wrote, a row per file."""
    rows = [
        [
            file.kind,
            f"{file.steps:,}",
            f"{len(file.returns):,}",
            number(float(file.returns.mean())),
            number(file.score),
            str(file.path),
        ]
        for file in files
    ]
    columns = ["kind", "steps", "whole episodes", "mean return", "score", "file"]
    table(columns, rows, right=columns[1:5])
