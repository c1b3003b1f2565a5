"""How the command ends: exit statuses, and the lines that it writes to standard error."""

from __future__ import annotations

import contextlib
import sys

DIVERGED = 1  # where --on-nan stop ended the run
BAD_INPUT = 2
ALONE = 3  # where another process of the run is gone
UNREAD = 141  # what shells report for a program whose output nobody reads any more
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def say(line: str) -> None:
    """A line on standard error, where it can still be written to.

    A closed terminal, or a pipe that nobody reads any more, must not end a run.
    """
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def error(message: str) -> None:
    """One line that says why the command ends."""
    say(f"jaxrl: error: {_line(message)}")


def warn(message: Warning | str, *_: object) -> None:
    """One line; in place of `warnings.showwarning`, whose further arguments it leaves out."""
    say(f"jaxrl: warning: {_line(str(message))}")


def _line(message: str) -> str:
    return " ".join(message.split())
