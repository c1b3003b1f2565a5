"""Words of the command line, such as `learning_rate=log:1e-4:1e-2:16`, to values and ranges.

Every function raises ValueError with one line that names the word and what is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl.training.search import Lin, Log

Convert = Callable[[str], Any]


def split(words: Sequence[str]) -> dict[str, str]:
    """`["a=1", "b=2"]` to `{"a": "1", "b": "2"}`."""
    settings: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word!r} is not of the form key=value")
        if name in settings:
            raise ValueError(f"{name} is given twice")
        settings[name] = value
    return settings


def whole(text: str) -> int:
    """An integer, also when it is written as 1e5 or 100_000."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def size(text: str) -> int:
    """Bytes: a whole number, or one with K, M, G or T behind it, powers of 1024."""
    powers = {"K": 1, "M": 2, "G": 3, "T": 4}
    unit = text[-1:].upper()
    return int(float(text[:-1]) * 1024 ** powers[unit]) if unit in powers else whole(text)


def boolean(text: str) -> bool:
    """true or false."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def whole_tuple(text: str) -> tuple[int, ...]:
    """Integers joined by x: 64x64."""
    return tuple(whole(word) for word in text.split("x"))


TYPES: dict[type, tuple[Convert, str]] = {
    int: (whole, "a whole number"),
    float: (float, "a number"),
    bool: (boolean, "true or false"),
    str: (str, "a word"),
    tuple: (whole_tuple, "whole numbers joined by x, as in 64x64"),
}


def convert(name: str, text: str, kind: type) -> Any:
    """`text` as a value of `kind`, a key of `TYPES`."""
    function, description = TYPES[kind]
    try:
        return function(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{name}={text} is not {description}") from None


def option(text: str) -> Any:
    """The value of an environment option, whose type its text tells."""
    for function in (whole, float, boolean):
        try:
            return function(text)
        except (ValueError, OverflowError):
            continue
    return text


def axis(
    name: str,
    text: str,
    kind: type,
    check: Callable[[Any], None] | None,
    random: bool,
    keeps_range: bool = False,
) -> list[Any] | Log | Lin:
    """Values to sweep over: `v1,v2`, `log:low:high:n` or `lin:low:high:n`.

    `check` raises ValueError for a value that is not accepted. A range of whole numbers is
    rounded. In a `random` search a range stays a range and its n may be left out. It stays one as
    well where the search `keeps_range`.
    """
    from jaxrl.training.search import Lin, Log

    form, *ends = text.split(":")
    if not ends or kind is str:  # a word may be module:NAME
        values = [convert(name, word, kind) for word in text.split(",") if word]
        if not values:
            raise ValueError(f"{name}={text}: the grid is empty")
    elif (
        kind in (int, float)
        and form in ("log", "lin")
        and len(ends) in ((2, 3) if random else (3,))
    ):
        low, high = (convert(name, end, float) for end in ends[:2])
        num = convert(name, ends[2], int) if len(ends) == 3 else 1
        check_range(f"{name}={text}", form, low, high, num)
        spread = Log(low, high, num) if form == "log" else Lin(low, high, num)
        values = [rounded(x, kind) for x in ((low, high) if random else spread.grid())]
    else:
        count = "[:n]" if random else ":n"
        raise ValueError(
            f"{name}={text} is not v1,v2,... log:low:high{count} or lin:low:high{count}"
        )
    if check:
        for value in values:
            check(value)
    return spread if ends and (random or keeps_range) else values


def check_range(word: str, form: str, low: float, high: float, num: int) -> None:
    """Raise ValueError where a range holds nothing, or cannot be."""
    from jaxrl.training.search import require_few

    if num < 1:
        raise ValueError(f"{word}: the grid is empty")
    try:
        require_few(num, "settings")
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from None
    if form == "log" and low <= 0:
        raise ValueError(f"{word}: a log range needs ends above 0")
    if not low <= high < float("inf"):
        raise ValueError(f"{word}: the range must run from low to high")


def rounded(value: Any, kind: type) -> Any:
    """A number drawn from a range, made whole where `kind` is."""
    return round(value) if kind is int and isinstance(value, float) else value
