"""Numbers, hyper-parameters and settings as people read them, and as the command takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


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


def single_text(value: Any) -> str:
    """A value for tables, with the digits of single precision, in which agents compute.

    What is copied from a table is thus, to a program, the value that it was.

    >>> single_text(0.00021544346900318845), single_text((64, 64)), single_text(1e-4)
    ('0.00021544346', '64x64', '0.0001')
    """
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            short = float(str(np.float32(value)))
        return repr(short if math.isclose(short, value, rel_tol=1e-6) else float(value))
    return value_text(value)


def exact_text(value: Any) -> str:
    """A hyper-parameter's value as the command line takes it, unrounded."""
    return repr(float(value)) if isinstance(value, float) else value_text(value)


def words_of(setting: Mapping[str, Any]) -> str:
    """A setting as the command line takes it, unrounded: `a=1 b=0.00012345678 c=64x64`."""
    return " ".join(f"{name}={exact_text(value)}" for name, value in setting.items())


def steps_name(unit: str) -> str:
    """What counts of a unit are called in files: env_steps, gradient_steps."""
    return "env_steps" if unit == "environment steps" else unit.replace(" ", "_")
