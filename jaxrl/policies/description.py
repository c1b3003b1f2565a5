"""policy.json of an exported policy: what acts, in what, how well, and made by what.

Standard JSON: infinities are the words "inf" and "-inf", and there is no NaN.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxrl import imports, spaces
from jaxrl.agent import Agent
from jaxrl.parts.replay import Dataset
from jaxrl.policies.standin import Box, Discrete, StandIn

FORMAT = 1
DESCRIPTION, ARRAYS, CARD = "policy.json", "policy.safetensors", "README.md"
PACKAGES = ("jaxrl", "jax", "jaxlib", "flax", "numpy")
_ARE_OTHERS = ("env", "env_params", "record")  # fields of an agent that are no part of its policy

Bound = float | Literal["inf", "-inf"]


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Space(_Entries):
    """n of a discrete space; shape and bounds of a box, one for all numbers or one for each."""

    n: Annotated[int, Field(ge=1)] | None = None
    shape: list[Annotated[int, Field(ge=0)]] = []
    low: Bound | list[Any] | None = None
    high: Bound | list[Any] | None = None
    dtype: str

    @model_validator(mode="after")
    def _is_whole(self) -> _Space:
        if self.n is None and (self.low is None or self.high is None):
            raise ValueError("a space has n, or low and high")
        return self


class _Environment(_Entries):
    name: str
    parts: dict[str, list[Annotated[int, Field(ge=0)]]] | None = None


class _File(_Entries):
    format: Literal[1]
    agent: str
    hyperparameters: dict[str, Any]
    data: bool
    environment: _Environment
    observation: _Space
    action: _Space
    checksum: int


def name_of(thing: Any, what: str) -> str:
    """`module:NAME` of a class or function. ValueError where it cannot be found by that."""
    name = getattr(thing, "__qualname__", f"(a {type(thing).__name__})")
    if not name.isidentifier():
        raise ValueError(
            f"{what} {name} is no class or function at the top of a module, from which it could be "
            "imported again"
        )
    return f"{thing.__module__}:{name}"


def of_agent(agent: Agent) -> dict[str, Any]:
    """What is written down of an agent and its environment.

    Raises: ValueError where an agent has what cannot be written down.
    """
    _require_plain(agent)
    obs, _ = jax.eval_shape(agent.env.reset, jax.random.key(0), agent.env_params)
    parts = getattr(agent.env, "parts", None)
    return {
        "agent": name_of(type(agent), "agent"),
        "hyperparameters": {
            h.name: _written(getattr(agent, h.name), f"{agent.name}: {h.name}")
            for h in agent.hyperparameters()
        },
        "data": getattr(agent, "data", None) is not None,
        "environment": {"name": agent.env.name}
        | ({"parts": plain(parts)} if isinstance(parts, dict) else {}),
        "observation": _of_space(agent.obs_space, obs.dtype),
        "action": _of_space(agent.action_space),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a policy is computed by."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def read(path: Path) -> dict[str, Any]:
    """The content of a policy.json.

    Raises: ValueError, one line, where it cannot be read, is damaged, or of a newer format.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path.parent} is no exported policy: {path.name}: {error.strerror}"
        ) from None
    try:
        content: dict[str, Any] = json.loads(text)
        number = content.get("format")
        if type(number) is int and number > FORMAT:
            raise ValueError(
                f"{path} was written by a newer version of jaxrl (format {number}, this version "
                f"reads up to {FORMAT})"
            ) from None
        _File.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {key}: {first['msg']}: it is damaged, or another file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError):
        raise ValueError(f"{path} is damaged: it should hold a JSON object") from None
    return content


def agent_of(content: Mapping[str, Any]) -> Agent:
    """The agent that a policy.json describes, in an environment that has only spaces.

    Raises: ValueError where this Python finds no such agent, or one with other hyper-parameters.
    """
    cls = imports.load(content["agent"], "agent")
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"agent {content['agent']} is no subclass of jaxrl.Agent")
    kinds = {h.name: h.type for h in cls.hyperparameters()}
    values = content["hyperparameters"]
    if unknown := [name for name in values if name not in kinds]:
        raise ValueError(f"{cls.name} has no hyper-parameter {unknown[0]!r} in this version")
    given = {name: _read(kinds[name], x) for name, x in values.items()}
    observation, action = _space(content["observation"]), _space(content["action"])
    parts = content["environment"].get("parts")
    shapes = None if parts is None else {name: tuple(shape) for name, shape in parts.items()}
    env = StandIn(content["environment"]["name"], observation, action, shapes)
    if content["data"]:
        given["data"] = _blank(env)
    return cls(env, env.default_params, **given)


def plain(value: Any) -> Any:
    """A value as standard JSON has it. Raises: TypeError where JSON has none."""
    if isinstance(value, Mapping):
        return {str(k): plain(x) for k, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value)
        if value.ndim:
            return [plain(x) for x in value]
        # 0.1 for the float32 nearest to 0.1: it is read back as the same one.
        value = float(str(value)) if value.dtype.kind == "f" else value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError(f"JSON has no {type(value).__name__}")
    return value


def _require_plain(agent: Agent) -> None:
    """Raise ValueError where a field is neither a hyper-parameter nor left at its default."""
    known = {h.name for h in agent.hyperparameters()} | set(_ARE_OTHERS)
    for field in dataclasses.fields(agent):
        value = getattr(agent, field.name)
        is_data = field.name == "data" and isinstance(value, Dataset)
        is_default = value is field.default or (value and value == field.default)
        if field.name not in known and not is_data and not is_default:
            raise ValueError(
                f"{agent.name} cannot be exported: its field {field.name} is no hyper-parameter"
            )


def _written(value: Any, what: str) -> Any:
    """A hyper-parameter as it is written down: JSON, or by where a class or function is."""
    if callable(value) and not isinstance(value, np.generic | jax.Array):
        return {"import": name_of(value, what)}
    try:
        return plain(value)
    except TypeError as error:
        raise ValueError(f"{what} cannot be written down: {error}") from None


def _read(kind: type, value: Any) -> Any:
    """The inverse of `_written`; what is of no kind at all is for the agent to refuse."""
    if isinstance(value, dict) and set(value) == {"import"}:
        return imports.load(str(value["import"]), "network")
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and (type(value) is int or value in ("inf", "-inf")):
        return float(value)
    return value


def _of_space(space: Any, dtype: Any = None) -> dict[str, Any]:
    dtype = str(jnp.dtype(getattr(space, "dtype", jnp.float32) if dtype is None else dtype))
    if spaces.is_discrete(space):
        return {"n": int(space.n), "dtype": dtype}
    low, high = (_bound(x, space.shape) for x in (space.low, space.high))
    return {"shape": list(space.shape), "low": low, "high": high, "dtype": dtype}


def _bound(values: Any, shape: tuple[int, ...]) -> Any:
    """One number where all are the same."""
    array = np.broadcast_to(np.asarray(values, np.float32), shape)
    return plain(array.flat[0] if array.size and (array == array.flat[0]).all() else array)


def _space(content: Mapping[str, Any]) -> Discrete | Box:
    try:
        dtype = jax.dtypes.canonicalize_dtype(content["dtype"])
        if content.get("n") is not None:
            return Discrete(content["n"], dtype)
        shape = tuple(content["shape"])
        low, high = (_array(content[name], shape) for name in ("low", "high"))
        return Box(low, high, shape, dtype)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"its spaces are damaged: {' '.join(str(error).split())}") from None


def _array(bound: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.array(bound, dtype=object).astype(np.float32), shape)


def _blank(env: StandIn) -> Dataset:
    """Two recorded steps of the right shapes, which an agent asks for that learnt from such."""
    action = np.zeros(
        (2, *env.action.shape), np.int32 if isinstance(env.action, Discrete) else np.float32
    )
    obs, flag = np.zeros((2, *env.observation.shape), env.observation.dtype), np.ones(2, bool)
    numbers = np.arange(2, dtype=np.float32)
    steps = (obs, action, numbers, flag, ~flag, obs, np.arange(2), numbers)
    return Dataset(*map(jnp.asarray, steps))
