"""How a run searches beyond its grid: successive halving, or population-based training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl.training.search import Lin, Log, Space, plain

RANGES: dict[str, type[Lin | Log]] = {"lin": Lin, "log": Log}


class Halving(NamedTuple):
    """The arguments of `jaxrl.halving`."""

    eta: int
    fewest_steps: int = 1


class PBT(NamedTuple):
    """The arguments of `jaxrl.pbt`; `every` in steps."""

    share: float
    every: int
    seed: int
    space: Space


Search = Halving | PBT


def to_json(search: Search | None) -> dict[str, Any] | None:
    """As config.json has it."""
    if search is None:
        return None
    content = search._asdict()
    if isinstance(search, PBT):
        content["space"] = {name: _axis_to_json(axis) for name, axis in search.space.items()}
    return {"method": type(search).__name__.lower(), **content}


def from_json(content: Mapping[str, Any] | None) -> Search | None:
    """`to_json` undone."""
    if content is None:
        return None
    values = {k: v for k, v in content.items() if k != "method"}
    if content["method"] == "halving":
        return Halving(**values)
    return PBT(**values | {"space": {k: _axis(v) for k, v in values["space"].items()}})


def _axis_to_json(axis: Any) -> Any:
    if isinstance(axis, Lin | Log):
        return {type(axis).__name__.lower(): [axis.low, axis.high]}
    return [plain(value) for value in axis]


def _axis(content: Any) -> Any:
    if isinstance(content, list):
        return content
    ((name, (low, high)),) = content.items()
    return RANGES[name](low, high)
