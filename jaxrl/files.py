"""Writing files: whole or not at all, and never through a link that somebody else has laid."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast


def is_utf8(path: Path | str) -> bool:
    """Whether the name of a file can be written down: systems take any bytes for one."""
    return "\ufffd" not in os.fsencode(path).decode(errors="replace")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file, to write and to read, that takes the place of `path` once it is whole and on disk.

    What stands at `path` stays until then; a link is replaced, not followed.

    Raises: OSError.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may write the same
    part.unlink(missing_ok=True)
    try:
        with part.open("x+b") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace what stands at `path` by a text. Raises: OSError."""
    with replacing(path) as file:
        file.write(text.encode())


def appending(path: Path) -> TextIO:
    """A text file, opened to append to. Raises: OSError, also where it is a link."""
    return cast(TextIO, open(path, "a", opener=_opened))


def locking(path: Path) -> TextIO:
    """A text file, opened to be locked: made where it is missing, else left as it is.

    Raises: OSError, also where it is a link.
    """
    return cast(TextIO, open(path, "r+", opener=lambda p, flags: _opened(p, flags | os.O_CREAT)))


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def existing(path: Path) -> Path:
    """A folder that is there: the path, or the nearest one that it will be in."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
