"""What the `jaxrl` command prints: the progress of a run, its results, tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

if TYPE_CHECKING:
    from jaxrl import Progress

PLAIN_LINES = 10  # how often a run reports where there is no terminal to draw a bar on


class Meter:
    """The progress of a run on standard error: a bar on a terminal, plain lines elsewhere.

    Use it as a context; call it with the engine's `Progress`. A run may be several programs one
    after the other, each of which counts from zero; the meter adds them up to `total_steps`.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.before, self.seconds_before = 0, 0.0  # of the programs that are done
        self.newest: Progress | None = None
        self.lines = 0
        console = Console(stderr=True)
        self.bar: Bar | None = None
        if console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.task = self.bar.add_task("compiling", total=total_steps, status="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, progress: Progress) -> None:
        last = self.newest
        if last and (last.iteration == last.iterations or progress.env_steps < last.env_steps):
            self.before += last.env_steps
            self.seconds_before += last.seconds
        elif last and progress.seconds < last.seconds:  # the same run, gone on with
            self.seconds_before += last.seconds
        self.newest = progress
        steps = self.before + progress.env_steps
        rate = steps / max(self.seconds_before + progress.seconds, 1e-9)
        status = f"iteration {progress.iteration:,}/{progress.iterations:,}, {rate:,.0f} steps/s"
        mean = progress.metrics.get("episode_return", math.nan)
        if not math.isnan(mean):
            status += f", return {number(mean)}"
        if self.bar:
            self.bar.update(self.task, description="training", completed=steps, status=status)
        elif steps * PLAIN_LINES >= self.total_steps * (self.lines + 1):
            self.lines = steps * PLAIN_LINES // self.total_steps
            share = min(1.0, steps / self.total_steps)  # adaptive batches overshoot a little
            print(f"{share:4.0%}  {status}", file=sys.stderr, flush=True)


def number(value: float | None) -> str:
    """A number as people read it; None and NaN as a dash."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.2f}" if abs(value) < 100_000 else f"{value:.4g}"


def setting_text(setting: dict[str, Any]) -> str:
    """`{"a": 1, "b": 0.00012345}` as `a=1, b=0.0001234`."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in setting.items())


def value_text(value: Any) -> str:
    """A hyper-parameter's value as it is written on the command line, rounded for reading."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on standard output; the columns named in `right` are aligned to the right."""
    console = Console(highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    if not console.is_terminal:  # a file or a pipe has no width to fit into
        console.width = max(console.width, 200)
    console.print(grid)


def results(summary: dict[str, Any]) -> None:
    """Print a summary's settings with mean and interval, then its times and its speed."""
    settings = summary["settings"]
    names = list(settings[0]["hyperparameters"])
    seeds = len(settings[0]["members"])
    kinds = {
        "": "mean return",
        "best_": "best return",
        "score_": "mean score",
        "best_score_": "best score",
    }
    kinds = {name: title for name, title in kinds.items() if f"{name}mean" in settings[0]}
    columns = [*names]
    for title in kinds.values():
        columns += [title, "95% confidence interval" if title == "mean return" else "95%"]
    rows = [
        [
            *(value_text(setting["hyperparameters"][name]) for name in names),
            *(
                text
                for kind in kinds
                for text in (
                    number(setting[f"{kind}mean"]),
                    interval_text(setting[f"{kind}ci95"]),
                )
            ),
        ]
        for setting in settings
    ]
    print(
        f"final return over {seeds} {'seed' if seeds == 1 else 'seeds'}, "
        f"{summary['episodes_per_member']} fresh episodes each"
    )
    table(columns, rows, right=columns)
    out = sum(member["diverged_at"] is not None for member in summary["members"])
    if out:
        print(f"without {out} of {len(summary['members'])} members, which became non-finite")
    if summary["unfinished_episodes"]:
        print(f"{summary['unfinished_episodes']} evaluation episodes were cut off unfinished")
    unit = "gradient steps" if summary.get("data") else "environment steps"
    print(
        f"compile {summary['compile_seconds']:.1f} s, run {summary['run_seconds']:.1f} s, "
        f"{summary['env_steps']:,} {unit}, "
        f"{summary['env_steps_per_second']:,.0f} {unit} per second in total"
    )


def interval_text(interval: Sequence[float | None]) -> str:
    low, high = interval
    return "-" if number(low) == "-" else f"[{number(low)}, {number(high)}]"
