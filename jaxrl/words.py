"""What error lines suggest instead of a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> list[str]:
    """The known names, at most three, that look like `name` or have it as their initials.

    Case does not matter: where it alone differs, that is the one. `lr` is near `learning_rate`.
    """
    by_lower_case = {word.lower(): word for word in known}
    wanted = name.lower()
    if wanted in by_lower_case:
        return [by_lower_case[wanted]]
    initials = [k for k in by_lower_case if "".join(part[:1] for part in k.split("_")) == wanted]
    close = initials or difflib.get_close_matches(wanted, by_lower_case, n=3, cutoff=0.5)
    return [by_lower_case[word] for word in close]


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error line about an unknown name: what may have been meant.

    Where no known name is near, `otherwise`; where that is empty, all known names.
    """
    known = list(known)
    close = near(name, known)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return otherwise or (f"known: {', '.join(known)}" if known else "there are none")
