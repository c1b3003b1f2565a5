"""What an option's text stands for, or why it is refused: the `type=` of the command's options."""

from __future__ import annotations

import argparse
import math

from experiments.command import parse as values


def natural(text: str) -> int:
    """A whole number from 0 up, also written 1e5."""
    try:
        value = values.whole(text)
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 up")
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is too large, it must be at most {2**32 - 1:,}")
    return value


def positive(text: str) -> int:
    """A whole number from 1 up, also written 1e5."""
    if natural(text) == 0:
        raise argparse.ArgumentTypeError("0 is too small, it must be at least 1")
    return natural(text)


def few(text: str) -> int:
    """A whole number from 1 up to a million: of what is all kept in memory."""
    value = positive(text)
    if value > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is too large, it must be at most 1,000,000")
    return value


def nbytes(text: str) -> int:
    """Bytes, as in 8G."""
    try:
        value = values.size(text)
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bytes, such as 500M or 8G")
    return value


def checkpoint(text: str) -> str | int:
    """Which checkpoint: "newest", "best" or the iteration after which it was saved."""
    if text in ("newest", "best"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not newest, best or an iteration's number")
    return natural(text)


def discount(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def share(text: str) -> float:
    """A number above 0, at most 1/2."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 up to 0.5")
    return value


def two_numbers(text: str) -> tuple[float, float]:
    """Two different numbers joined by a comma."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if low == high or not math.isfinite(low) or not math.isfinite(high):
        raise argparse.ArgumentTypeError(
            f"{text} is not two different numbers, such as -20.3,3234.3"
        )
    return low, high


def env_reference(text: str) -> tuple[str, tuple[float, float]]:
    """An environment and two different numbers."""
    env, equals, ends = text.rpartition("=")
    if not equals or not env:
        raise argparse.ArgumentTypeError(f"{text} is not ENV=LOW,HIGH, such as CartPole-v1=20,500")
    return env, two_numbers(ends)


def names(text: str) -> tuple[str, ...]:
    """Names joined by commas."""
    words = tuple(text.split(","))
    if not all(words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text} is not a list of names, such as success,cost")
    return words
