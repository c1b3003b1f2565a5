"""Agents, environments and networks of the user's own, by name: `module:NAME`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from jaxrl.words import did_you_mean


def load(name: str, kind: str) -> Any:
    """What `name`, written module:NAME, means; modules of the current folder are found too.

    What the module itself raises while it is imported goes through, as its author needs to see it.

    Args:
        name: such as "my_package.agents:MyAgent".
        kind: "agent", "environment" or "network", for error lines.

    Raises: ValueError where there is no such module, or nothing of that name in it.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(f"{kind} {name!r} is not written module:NAME")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look there by itself
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(
            f"{kind} {name}: there is no module {error.name}, neither installed nor in this folder"
        ) from None
    if not hasattr(module, attribute):
        public = [word for word in vars(module) if not word.startswith("_")]
        hint = did_you_mean(attribute, public)
        raise ValueError(f"{kind} {name}: {module_name} has no {attribute}; {hint}")
    return getattr(module, attribute)


def name_of(value: Any) -> Any:
    """Something of the user's own in a word: a class or a function as module:NAME.

    An instance as its representation, in a line and without the addresses of functions in it; a
    word and a number as they are.
    """
    if isinstance(value, str | int | float | tuple | None):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))
    return text.replace("# attributes ", "")  # which flax puts before those of a module
