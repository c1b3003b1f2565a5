"""The progress of a run on standard error."""

from __future__ import annotations

import math
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from experiments.command import messages
from experiments.runs.formatting import number

if TYPE_CHECKING:
    from jaxrl import Progress

PLAIN_LINES = 10  # how often a run reports where there is no terminal to draw a bar on


class Times(ProgressColumn):
    """How long a run has taken, and how much longer it will at the speed of late."""

    def render(self, task: Task) -> Text:
        left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
        return Text(f"{_clock(task.elapsed or 0)}{left}", style="progress.elapsed")


class Meter:
    """A bar on a terminal, plain lines elsewhere; of one run.

    Use it as a context; call it with the engine's `Progress`. The batches of a run count their
    steps and seconds each for itself; the meter adds them up.

    Args:
        total_steps: of all batches together.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self.newest: dict[int, Progress] = {}  # by batch
        self.lines = 0
        console = Console(stderr=True)
        self.bar: Bar | None = None
        if console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                Times(),
                console=console,
            )
            self.task = self.bar.add_task("starting", total=total_steps, status="")

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
            messages.say(line)

    def announce(self, line: str) -> None:
        """A line of the engine's about a program, which it is about to compile."""
        self.say(line)
        if self.bar:
            self.bar.update(self.task, description="compiling")

    def __call__(self, progress: Progress) -> None:
        self.newest[progress.batch] = progress
        steps = sum(newest.env_steps for newest in self.newest.values())
        seconds = sum(newest.seconds for newest in self.newest.values())
        rate = steps / max(seconds, 1e-9)
        status = f"{rate:,.0f} steps/s"
        mean = progress.metrics.get("episode_return", math.nan)
        if not math.isnan(mean):
            status += f", return {number(mean)}"
        if self.bar:
            self.bar.update(self.task, description="training", completed=steps, status=status)
        elif steps * PLAIN_LINES >= self.total_steps * (self.lines + 1):
            self.lines = steps * PLAIN_LINES // self.total_steps
            share = min(1.0, steps / self.total_steps)  # adaptive batches overshoot a little
            iterations = f"iteration {progress.iteration:,}/{progress.iterations:,}"
            messages.say(f"{share:4.0%}  {iterations}, {status}")


def _clock(seconds: float) -> str:
    """As 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
