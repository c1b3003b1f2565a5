"""The progress of a run: a bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from jaxrl.report.formatting import number
from jaxrl.training import hosts
from jaxrl.training.callbacks import Callback, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PLAIN_LINES = 10  # how often a run reports where there is nothing to draw a bar on


class Meter(Callback):
    """Shows the progress of one run on standard error; a callback, and a context.

    The batches of a run count their steps and seconds each for itself; the meter adds them up.

    Args:
        total_steps: of all batches together.
    """

    def __init__(self, total_steps: int) -> None:
        from rich.console import Console

        self.total_steps = total_steps
        self.newest: dict[int, Progress] = {}  # by batch
        self.taken: dict[int, int] = {}  # steps of each member, which may go on in another batch
        self.lines = 0
        self.console = Console(stderr=True)
        self.bar: Bar | None = None
        self.display: Any = None  # where a notebook shows it
        if self.console.is_terminal or self.console.is_jupyter:
            self.bar = _bar(self.console)
            self.task = self.bar.add_task("starting", total=total_steps, status="")

    def __enter__(self) -> Self:
        if self.bar and self.console.is_jupyter:
            from IPython.display import display

            # Not `self.bar.start()`, which in notebooks needs ipywidgets.
            self.display = display(self.bar, display_id=True)
        elif self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.bar and not self.display:
            self.bar.stop()

    def say(self, line: str) -> None:
        """A line of its own, above the bar where there is one.

        A closed terminal, or a pipe that nobody reads any more, must not end a run.
        """
        if self.bar and not self.display:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    def announce(self, line: str) -> None:
        """A line of the engine's about a program, which it is about to compile."""
        self.say(line)
        if self.bar:
            self.bar.update(self.task, description="compiling")
            if self.display:
                self.display.update(self.bar)

    def __call__(self, progress: Progress, states: Any | None = None) -> None:
        self.newest[progress.batch] = progress
        taken = progress.history.steps_taken.tolist()
        self.taken.update(zip(progress.members, taken, strict=True))
        steps = sum(self.taken.values())
        seconds = sum(newest.seconds for newest in self.newest.values())
        rate = steps / max(seconds, 1e-9)
        status = f"{rate:,.0f} steps/s"
        mean = progress.metrics.get("episode_return", math.nan)
        if not math.isnan(mean):
            status += f", return {number(mean)}"
        if self.bar:
            self.bar.update(self.task, description="training", completed=steps, status=status)
            if self.display:
                self.display.update(self.bar)
        elif steps * PLAIN_LINES >= self.total_steps * (self.lines + 1):
            self.lines = steps * PLAIN_LINES // self.total_steps
            share = min(1.0, steps / self.total_steps)  # adaptive batches overshoot a little
            iterations = f"iteration {progress.iteration:,}/{progress.iterations:,}"
            self.say(f"{share:4.0%}  {iterations}, {status}")


@contextlib.contextmanager
def metered(wanted: bool, total_steps: int) -> Iterator[Meter | None]:
    """A meter that is shown meanwhile; None where none is wanted, or another process shows it."""
    if not wanted or not hosts.is_writer():
        yield None
        return
    with Meter(total_steps) as meter:
        yield meter


def _bar(console: Any) -> Bar:
    from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Times(ProgressColumn):
        """How long a run has taken, and how much longer it will at the speed of late."""

        def render(self, task: Task) -> Text:
            left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
            return Text(f"{_clock(task.elapsed or 0)}{left}", style="progress.elapsed")

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TaskProgressColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        Times(),
        console=console,
    )


def _clock(seconds: float) -> str:
    """As 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
