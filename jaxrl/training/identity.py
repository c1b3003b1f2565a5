"""What a checkpoint belongs to: all that the members' runs follow from, but their length."""

from __future__ import annotations

import inspect
import zlib
from typing import Any

import jax
import numpy as np

from jaxrl import spaces
from jaxrl.imports import name_of
from jaxrl.training.hosts import to_numpy
from jaxrl.training.members import shared_arrays

ENVIRONMENT = "environment's options or wrappers"


def identity(agents: Any, seeds: list[int]) -> dict[str, Any]:
    """What a checkpoint belongs to: all that the members' runs follow from, but their length."""
    fields: dict[str, Any] = {}
    for h in agents.hyperparameters():
        value = getattr(agents, h.name)
        fields[h.name] = np.asarray(value).tolist() if h.kind == "traced" else name_of(value)
    del fields["total_steps"]
    recorded = shared_arrays(agents)
    return fields | {
        "agent": agents.name,
        "environment": spaces.name_of(agents.env),
        ENVIRONMENT: describe(agents.env),
        "environment parameters": checksum(agents.env_params),
        "recorded data": checksum(recorded) if recorded else None,
        "seeds": seeds,
    }


def defaults(agents: Any) -> dict[str, Any]:
    """Hyper-parameters at their defaults, as `identity` has them.

    A checkpoint from before there was one is of an agent that did what its default does.
    """

    def of(h: Any) -> Any:
        if h.kind == "static":
            return name_of(h.default)
        given = np.asarray(getattr(agents, h.name))
        return np.full(given.shape, h.default, given.dtype).tolist()

    return {h.name: of(h) for h in agents.hyperparameters()}


def describe(env: Any) -> dict[str, Any]:
    """What tells an environment from others of its name: its options, and what it wraps.

    The class; what its constructors took, where the instance keeps it under the same name; options
    of every environment; arrays; and the same of the environments within. Whatever else an instance
    holds, such as a counter, may change with use.
    """
    taken = {"resets", "pool_size", "end_broken"}
    for cls in type(env).__mro__[:-1]:
        constructor = vars(cls).get("__init__")
        if constructor is not None:
            taken |= set(inspect.signature(constructor).parameters)
    plain: dict[str, Any] = {"class": f"{type(env).__module__}.{type(env).__qualname__}"}
    for name, value in sorted(vars(env).items()):
        if callable(getattr(value, "step", None)) and callable(getattr(value, "reset", None)):
            plain[name] = describe(value)
        elif isinstance(value, np.ndarray | jax.Array):
            plain[name] = checksum(value)
        elif name.lstrip("_") in taken and isinstance(value, bool | int | float | str | tuple):
            plain[name] = repr(value)
    return plain


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, in order, random keys as their words."""
    value = 0
    for array in jax.tree.leaves(to_numpy(tree)):
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, value)
    return value
