"""Numbers, hyper-parameters and settings as people read them. Imports nothing that is heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None) -> str:
    """Two digits after the point, four significant ones where it is large; "-" for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.2f}" if abs(value) < 100_000 else f"{value:.4g}"


def interval_text(interval: Sequence[float | None]) -> str:
    """`[low, high]`; "-" where there is none."""
    low, high = map(number, interval)
    return "-" if low == "-" else f"[{low}, {high}]"


def value_text(value: Any) -> str:
    """A hyper-parameter's value as it is written on the command line, rounded for reading."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return str(value)


def setting_text(setting: Mapping[str, Any]) -> str:
    """`{"a": 1, "b": 0.00012345}` as `a=1, b=0.0001234`."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in setting.items())


def words_of(setting: Mapping[str, Any]) -> str:
    """A setting as the command line takes it, unrounded: `a=1 b=0.00012345678 c=64x64`."""
    return " ".join(
        f"{name}={value!r}" if type(value) is float else f"{name}={value_text(value)}"
        for name, value in setting.items()
    )


def steps_name(unit: str) -> str:
    """What counts of a unit are called in files: env_steps, gradient_steps."""
    return "env_steps" if unit == "environment steps" else unit.replace(" ", "_")
