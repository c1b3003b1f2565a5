"""config.json of a run folder: all that is needed to repeat a run, or to resume it.

Its "format" is a number that grows whenever older code could not read a folder any more. Folders
without one are older than the number; they are read as far as their checkpoints allow.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import agents
import envs_jax
from envs_jax import datasets
from experiments.runs import schema
from experiments.runs.experiment import Experiment, build, hyperparameters
from experiments.runs.search import from_json, to_json
from jaxrl.agent import Agent

FORMAT = 1
PACKAGES = [
    "jaxrl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "chex",
    "gymnax",
    "brax",
    "mujoco-mjx",
    "orbax-checkpoint",
    "numpy",
    "scipy",
]

Config = dict[str, Any]


def of_experiment(experiment: Experiment, command: str) -> Config:
    """What config.json says of an experiment that `command` started."""
    agent = experiment.agent
    return {
        "format": FORMAT,
        **origin(command),
        "resumed": [],
        "agent": experiment.agent_name,
        "env": experiment.env_id,
        "env_options": experiment.env_options,
        "env_params": scalars(agent.env_params),
        "hyperparameters": hyperparameters(agent),
        "settings": experiment.settings,
        "seeds": experiment.seeds,
        "search": to_json(experiment.search),
        "unit": experiment.unit,
        "data": list(experiment.data),
        "data_steps": experiment.data_steps,
        "reference": experiment.reference,
        "evaluations": experiment.evaluations,
        "episodes": experiment.episodes,
        "record": list(agent.record),
        "recipe": experiment.recipe.name if experiment.recipe else None,
    }


def origin(command: str) -> dict[str, Any]:
    """What started a run, or went on with it: when, by which code, on which devices."""
    return {
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "git_commit": _git_commit(),
    }


def resumes(config: Config) -> int:
    """How often a run was resumed; older folders do not count."""
    return sum(isinstance(entry, dict) for entry in config["resumed"])


def moved(config: Config) -> str:
    """From which devices to which a resumed run has come, in a line; "" where it has not."""
    origins = [config, *(entry for entry in config["resumed"] if isinstance(entry, dict))]
    *before, now = (entry.get("device") for entry in origins)
    last = before[-1] if before else None
    if last in (None, now):
        return ""
    return (
        f"it ran on {last} and goes on on {now}: what follows is right, but not "
        "what it would have been there"
    )


def read(path: Path) -> Config:
    """The configuration in a file, with what older formats lack filled in.

    Raises: ValueError where it is of a newer format than this code knows, or is no configuration.
    """
    number = schema.read(path, schema.Header).get("format", 0)
    if number > FORMAT:
        raise ValueError(
            f"{path.parent} was written by a newer version of jaxrl (format {number}, "
            f"this version reads up to {FORMAT})"
        )
    return filled(schema.read(path, schema.ConfigFile))


def filled(config: Config) -> Config:
    """A configuration with what older formats lack."""
    unit = "gradient steps" if config["data"] else "environment steps"
    data = config["data"] or []
    several = {"data": [data] if isinstance(data, str) else data}  # older folders have a word
    absent: Config = {"record": [], "unit": unit, "data_steps": None, "resumed": [], "search": None}
    return absent | config | several


def with_steps(config: Config, steps: int, folder: Path) -> Config:
    """The configuration with a larger number of steps per member.

    Raises: ValueError where it is not larger, or where settings differ in it.
    """
    if config["search"] is not None and config["search"]["method"] == "halving":
        raise ValueError(f"--steps {steps}: the rungs of {folder} follow from the steps it has")
    if any("total_steps" in setting for setting in config["settings"]):
        raise ValueError(f"--steps {steps}: {folder} sweeps total_steps")
    before = config["hyperparameters"]["total_steps"]
    if steps <= before:
        raise ValueError(f"--steps {steps}: {folder} already has {before}")
    return config | {"hyperparameters": config["hyperparameters"] | {"total_steps": steps}}


def experiment_of(config: Config) -> Experiment:
    """The experiment that a configuration describes, with its data read again.

    Raises: ValueError where agent, environment or data are not as they were.
    """
    cls: Any = agents.get(config["agent"])
    env, env_params = envs_jax.make(config["env"], **config["env_options"])
    values, recording = dict(config["hyperparameters"]), None
    if config["data"]:
        reference = config.get("reference")  # older folders have none
        recording = datasets.read_all(
            config["data"], env, env_params, reference, config["data_steps"]
        )
        values["data"] = recording.dataset(env, env_params)
    return Experiment(
        agent_name=config["agent"],
        env_id=config["env"],
        env_options=config["env_options"],
        agent=_agent(cls, env, env_params, config, values),
        settings=[typed_values(cls, setting) for setting in config["settings"]],
        seeds=config["seeds"],
        evaluations=config["evaluations"],
        episodes=config["episodes"],
        data=config["data"],
        data_steps=config["data_steps"],
        reference=config.get("reference"),
        recording=recording,
        search=from_json(config["search"]),
    )


def trained_agent(config: Config, values: Mapping[str, Any]) -> Agent:
    """An agent of the run with its hyper-parameters `values`, to act, not to learn.

    Of recorded data it holds the shapes only: the file need not be there any more.
    """
    cls: Any = agents.get(config["agent"])
    env, env_params = envs_jax.make(config["env"], **config["env_options"])
    if config.get("data"):
        values = {**values, "data": datasets.blank(env, env_params).dataset(env, env_params)}
    return _agent(cls, env, env_params, config, values)


def _agent(cls: Any, env: Any, env_params: Any, config: Config, values: Mapping[str, Any]) -> Agent:
    env_values = {f"env.{k}": _value(None, v) for k, v in config["env_params"].items()}
    record = {"record": tuple(config["record"])}
    return build(cls, env, env_params, env_values | typed_values(cls, values) | record)


def typed_values(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values from JSON in their own types; what is of none of them is for the agent to refuse."""
    types = {h.name: h.type for h in cls.hyperparameters()}
    return {name: _value(types.get(name), value) for name, value in values.items()}


def _value(kind: type | None, value: Any) -> Any:
    """Lists as tuples, whole numbers and "inf" as the floats that they are.

    `kind` is None for the environment's parameters, which are numbers all.
    """
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    return float(value) if kind in (float, None) and value in ("inf", "-inf") else value


def scalars(env_params: Any) -> dict[str, Any]:
    """The single numbers among environment parameters; 9.8 for the float32 nearest to 9.8."""
    values = {f.name: getattr(env_params, f.name) for f in dataclasses.fields(env_params)}
    arrays = {k: np.asarray(v) for k, v in values.items() if np.ndim(v) == 0}
    return {
        k: float(str(v)) if v.dtype.kind == "f" else v.item()
        for k, v in arrays.items()
        if v.dtype.kind in "fiub"
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _git_commit() -> str | None:
    """The commit of the work tree this runs from, `-dirty` where files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(describe, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
