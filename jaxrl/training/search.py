"""The settings of a sweep: grids, random searches, and agents overridden by settings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl.agent import Agent, is_single
from jaxrl.words import did_you_mean


class Lin(NamedTuple):
    """`num` values evenly spaced from low to high; in a random search, uniform between them."""

    low: float
    high: float
    num: int = 1

    def grid(self) -> list[float]:
        return [float(x) for x in np.linspace(self.low, self.high, self.num)]

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))

    def perturbed(self, value: float, up: bool) -> float:
        """A fifth of the range up or down, no further than its ends."""
        step = (self.high - self.low) / 5
        return min(max(value + (step if up else -step), self.low), self.high)


class Log(NamedTuple):
    """`num` values evenly spaced in their logarithm; in a random search, log-uniform."""

    low: float
    high: float
    num: int = 1

    def grid(self) -> list[float]:
        return [float(x) for x in np.geomspace(self.low, self.high, self.num)]

    def sample(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))

    def perturbed(self, value: float, up: bool) -> float:
        """Times 1.2 or 0.8, as in Jaderberg et al. (2017), no further than the range's ends."""
        return min(max(value * (1.2 if up else 0.8), self.low), self.high)


MOST = 100_000  # settings of a sweep, and members


Space = Mapping[str, Lin | Log | Sequence[Any]]


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of the values, the first name varying slowest.

    Raises: ValueError where there are more than MOST.
    """
    sizes = [v.num if isinstance(v, Lin | Log) else len(v) for v in space.values()]
    require_few(math.prod(sizes), "settings")
    axes = [v.grid() if isinstance(v, Lin | Log) else list(map(plain, v)) for v in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def require_few(number: int, what: str) -> None:
    """Raise ValueError where a sweep would have more settings or members than can be."""
    if number > MOST:
        raise ValueError(f"{number:,} {what} are too many for a sweep: at most {MOST:,}")


def random_search(space: Space, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """`num` settings: ranges sampled between their ends, lists by uniform choice.

    Raises: ValueError where they are more than MOST.
    """
    require_few(num, "settings")
    rng = np.random.default_rng(seed)

    def draw(axis: Any) -> Any:
        if isinstance(axis, Lin | Log):
            return axis.sample(rng)
        return plain(axis[int(rng.integers(len(axis)))])

    return [{name: draw(axis) for name, axis in space.items()} for _ in range(num)]


def plain(value: Any) -> Any:
    """A NumPy number as Python's, which JSON can hold and static fields compare."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, tuple | list) else value


def settings_of(
    space: Space | Sequence[Mapping[str, Any]] | None, random: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """The settings that a sweep is asked for: of a space, listed, or a single empty one.

    Raises: ValueError where there are none, or an axis is empty.
    """
    if space is None:
        return [{}]
    if not isinstance(space, Mapping):
        if not space:
            raise ValueError("the list of settings is empty")
        return [{k: plain(v) for k, v in setting.items()} for setting in space]
    for name, values in space.items():
        if isinstance(values, Lin | Log):
            is_empty = values.num < 1
        elif isinstance(values, str) or not np.iterable(values):
            raise ValueError(f"{name}={values!r}: give a list of values, jaxrl.Lin or jaxrl.Log")
        else:
            is_empty = len(values) == 0
        if is_empty:
            raise ValueError(f"{name}: the grid is empty")
    return grid(space) if random is None else random_search(space, random, seed)


def whole_numbers(agent: Agent, names: Iterable[str]) -> set[str]:
    """Those of the fields and `env.NAME` parameters that are whole numbers."""
    declared = {h.name for h in agent.hyperparameters() if h.type is int}

    def is_whole(name: str) -> bool:
        if not name.startswith("env."):
            return name in declared
        return np.asarray(getattr(agent.env_params, name[4:], 0.0)).dtype.kind in "iu"

    return {name for name in names if is_whole(name)}


def override(agent: Agent, changes: Mapping[str, Any]) -> Agent:
    """A copy of the agent with fields, or `env.NAME` parameters, changed and checked.

    Raises:
        ValueError: there is no such field or parameter, or it does not take that value.
    """
    fields = {k: v for k, v in changes.items() if not k.startswith("env.")}
    known = [h.name for h in agent.hyperparameters()]
    for name in fields:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{agent.name} has no hyper-parameter {name!r}; {hint}")
    params = agent.env_params
    for name, value in changes.items():
        if name.startswith("env."):
            params = override_env_params(params, name[4:], value, agent.env)
    return agent.replace(**fields, env_params=params)


def override_env_params(params: Any, name: str, value: Any, env: Any) -> Any:
    """Environment parameters with one field changed, in that field's own dtype."""
    known = [f.name for f in dataclasses.fields(params)] if dataclasses.is_dataclass(params) else []
    if name not in known:
        raise ValueError(f"{env.name} has no parameter {name!r}; {did_you_mean(name, known)}")
    old = jnp.asarray(getattr(params, name))
    try:
        if isinstance(value, float) and not is_single(value):
            raise OverflowError
        fits = np.shape(value) == old.shape and np.allclose(jnp.asarray(value, old.dtype), value)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"env.{name}={value!r} must be {old.dtype} of shape {old.shape}")
    if name == "max_steps_in_episode" and value < 1:
        raise ValueError(f"env.{name}={value!r} must be at least 1")
    return dataclasses.replace(params, **{name: jnp.asarray(value, old.dtype)})
