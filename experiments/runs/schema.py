"""What the files of a run folder hold, key by key: all of them are read through here.

A file may be cut, of another version, or edited by hand. What is not as it should be is a
ValueError of one line: the file, the key, and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Scalar = bool | Integer | float | str | None
Values = dict[str, Scalar | list[Scalar]]  # of hyper-parameters, by name


class Entries(BaseModel):
    """An object of a file: types are not converted, and further keys are let through."""

    model_config = ConfigDict(strict=True, extra="allow")


class Header(Entries):
    """What config.json says of itself; folders of before have no format."""

    format: Count = 0


class Hyperparameters(Entries):
    """Those that all agents have; what the others may be each agent knows."""

    total_steps: Positive
    __pydantic_extra__: Values = Field(init=False)


class Origin(Entries):
    """What went on with a run."""

    command: str
    device: str


class Halving(Entries):
    """A run's successive halving."""

    method: Literal["halving"]
    eta: Annotated[int, Field(ge=2, lt=2**31)]
    fewest_steps: Positive


Axis = list[Scalar] | dict[Literal["lin", "log"], tuple[float, float]]


class PBT(Entries):
    """A run's population-based training."""

    method: Literal["pbt"]
    share: Annotated[float, Field(gt=0, le=0.5)]
    every: Positive
    seed: Count
    space: dict[str, Axis]


class ConfigFile(Entries):
    """config.json, as far as every format has it."""

    agent: str
    env: str
    env_options: dict[str, Any]
    env_params: dict[str, bool | Integer | float | Literal["inf", "-inf"] | None]
    hyperparameters: Hyperparameters
    settings: Annotated[list[Values], Field(min_length=1)]
    seeds: Annotated[list[Count], Field(min_length=1)]
    data: str | list[str] | None
    evaluations: Count
    episodes: Positive
    unit: Annotated[str, Field(pattern="^[a-z]+( [a-z]+)*$")] = "environment steps"
    data_steps: Positive | None = None
    reference: tuple[float, float] | None = None
    record: list[str] = []
    search: Annotated[Halving | PBT, Field(discriminator="method")] | None = None
    device: str = ""
    resumed: list[str | Origin] = []  # a command alone in older folders


class Member(Entries):
    hyperparameters: Values
    seed: Count
    final_return: float | Literal["inf", "-inf"] | None = None
    diverged_at: Count | None = None


class Setting(Entries):
    hyperparameters: Values
    members: list[Count]


class Rung(Entries):
    iteration: Count
    members: list[Count]


class Exchange(Entries):
    iteration: Count
    parents: list[Count]
    values: dict[str, list[Scalar]]


class SummaryFile(Entries):
    """summary.json, as far as it is read again."""

    members: Annotated[list[Member], Field(min_length=1)]
    settings: Annotated[list[Setting], Field(min_length=1)]
    checkpoints: list[list[Count]] = []  # folders that are too old have none
    rungs: list[Rung] = []  # of a successive halving, which has a checkpoint for each
    exchanges: list[Exchange] = []  # of population-based training
    interrupted: bool
    resumes: Count = 0
    compile_seconds: float = 0.0
    run_seconds: float = 0.0

    @model_validator(mode="after")
    def _numbers_fit(self) -> SummaryFile:
        number = list(range(len(self.members)))
        tables = {"settings": [setting.members for setting in self.settings]}
        if "checkpoints" in self.model_fields_set:
            tables["checkpoints"] = self.checkpoints
        for name, rows in tables.items():
            named = [i for row in rows for i in row]
            if sorted(set(named) if name == "checkpoints" and self.rungs else named) != number:
                raise ValueError(f"{name} should name each of {len(number)} members once")
        for entry in self.exchanges:
            lengths = {len(entry.parents), *map(len, entry.values.values())}
            if lengths != {len(number)} or not set(entry.parents) <= set(number):
                raise ValueError(f"exchanges should be of {len(number)} members")
        return self


class LogLine(Entries):
    """A line of log.jsonl; its batch is called "program" in old folders."""

    batch: Count = Field(validation_alias=AliasChoices("batch", "program"))
    members: Positive
    iteration: Count
    env_steps: Count
    seconds: Annotated[float, Field(ge=0)]
    numbers: list[Count] = []  # of the members, where a search changes their hyper-parameters
    hyperparameters: dict[str, list[Any]] = {}
    __pydantic_extra__: dict[str, float | None] = Field(init=False)


def read(path: Path, model: type[Entries]) -> dict[str, Any]:
    """The object in a file. Raises: ValueError where it cannot be read, or is not as it should."""
    return _parsed(_content(path), model, str(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl. Those that are cut are left out: a run is, or was, writing them.

    Raises: ValueError where one is something else, or none can be read.
    """
    texts = _content(path).splitlines() if path.exists() else []
    lines, broken = [], ""
    for number, text in enumerate(texts, 1):
        where = f"{path}: line {number}"
        try:
            lines.append(_parsed(text, LogLine, where))
        except _NotJson as error:
            broken = broken or str(error)
    if broken and not lines and not (len(texts) == 1 and texts[0].startswith(b"{")):
        raise ValueError(broken)
    return [{"batch": line.get("program")} | line for line in lines]


def read_arrays(path: Path, members: int, steps: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of metrics.npz, one of those named `steps` among them.

    Raises: ValueError where it cannot be read, or is of other than so many members.
    """
    try:
        with path.open("rb") as file, np.load(file) as content:
            arrays = dict(content)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{path} is damaged, it should be an .npz of arrays: {error}") from None
    rows = next((arrays[name].shape[1:] for name in steps if name in arrays), None)
    if rows is None:
        raise ValueError(f"{path}: {steps[0]} is missing: {_WHY}")
    for name, values in arrays.items():
        is_training = not name.startswith(("final_", "evaluation_"))
        fits = values.dtype.kind in "fiub" and values.shape[:1] == (members,)
        if not fits or (is_training and values.shape[1:] != rows):
            raise ValueError(
                f"{path}: {name} is {values.dtype} of shape {values.shape}, it should be numbers "
                f"of {members} members{f' and {rows[0]} iterations' if is_training else ''}"
            )
    return arrays


_WHY = "the file is damaged, or was written by another version of jaxrl"


class _NotJson(ValueError):
    """Not what a JSON file holds, whatever its keys."""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def _parsed(text: bytes, model: type[Entries], where: str) -> dict[str, Any]:
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise _NotJson(f"{where} is damaged: {first['msg']}") from None
        raise ValueError(f"{where}{_line(error, json.loads(text))}") from None
    content: dict[str, Any] = json.loads(text)
    return content


def _line(error: ValidationError, content: Any) -> str:
    """What is wrong with the first key that is not as it should be."""
    errors = error.errors(include_url=False)
    first, key = errors[0], _key(errors[0], content)
    if first["type"] == "value_error":
        return f": {first['ctx']['error']}"
    if first["type"] == "missing":
        return f": {key} is missing: {_WHY}"
    alternatives = [each["msg"] for each in errors if _key(each, content) == key]
    expected = [text.removeprefix("Input should be ") for text in dict.fromkeys(alternatives)]
    found = repr(first["input"])
    found = found if len(found) <= 40 else f"{found[:40]}..."
    return f": {f'{key}=' if key else ''}{found} should be {' or '.join(expected)}"


def _key(error: Any, content: Any) -> str:
    """Where a fault is, such as `members.0.seed`, without pydantic's names of alternatives."""
    parts: list[str] = []
    for part in error["loc"]:
        is_there = isinstance(content, dict) and part in content
        if is_there or (isinstance(content, list) and part in range(len(content))):
            content = content[part]
        elif error["type"] != "missing":
            break
        parts.append(str(part))
    return ".".join(parts)
