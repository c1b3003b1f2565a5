"""JSON files of run folders: standard JSON, replaced whole, with one object of a list per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl import files


def write(path: Path, content: Mapping[str, Any], new: bool = False) -> None:
    """Write an object; the file is there whole or not at all.

    Raises: FileExistsError where it is to be `new` and is there, whoever has just made it.
    """
    lines = [f"  {json.dumps(key)}: {_text(_standard(value))}" for key, value in content.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if not new:
        files.write_text(path, text)
        return
    with path.open("x") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:  # such as on a full disk
            path.unlink()
            raise


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object as it is read back once it is written."""
    read_back: dict[str, Any] = json.loads(json.dumps(_standard(content)))
    return read_back


def read(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no such file, or it holds no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # not there, not text or JSON, nested for ever
        return None
    return content if isinstance(content, dict) else None


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
    if isinstance(value, dict):
        return json.dumps(value, indent=2).replace("\n", "\n  ")
    return json.dumps(value)


def _standard(value: Any) -> Any:
    """Standard JSON has no tuples, no infinities and no NaN: lists, "inf" and null.

    It is UTF-8, as the name of a file need not be.
    """
    if isinstance(value, Mapping):
        return {k: _standard(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _standard(value.item())
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value
