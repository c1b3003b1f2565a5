"""How the command ends: exit statuses, and the lines that it writes to standard error."""

from __future__ import annotations

import contextlib
import sys

DIVERGED = 1  # where --on-nan stop ended the run
BAD_INPUT = 2
ALONE = 3  # where another process of the run is gone
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def error(message: str) -> None:
    """One line that says why the command ends."""
    _write(f"jaxrl: error: {_line(message)}")


def warn(message: Warning | str, *_: object) -> None:
    """One line; in place of `warnings.showwarning`, whose further arguments it leaves out."""
    _write(f"jaxrl: warning: {_line(str(message))}")


def _write(line: str) -> None:
    """To standard error, where it can still be written to: a closed terminal must not end a run."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _line(message: str) -> str:
    return " ".join(message.split())
