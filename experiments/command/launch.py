"""From the words of `jaxrl train` and `jaxrl sweep` to a checked experiment, before any compiling.

Agent, environment, recipe, fixed values and the grid come together here; whatever does not fit
raises ValueError with one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

import agents
import envs_jax
from envs_jax import datasets
from experiments.command import parse
from experiments.runs import recipes
from jaxrl.agent import Agent
from jaxrl.loops.offline import Offline
from jaxrl.training.search import Lin, Log, grid, override, random_search


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run to be: every setting with every seed."""

    agent_name: str
    env_id: str
    env_options: dict[str, Any]
    agent: Agent  # with the first setting
    settings: list[dict[str, Any]]  # what the members differ in, `env.NAME` for parameters
    seeds: list[int]
    recipe: recipes.Recipe | None
    data: str | None = None  # file or name that the agent learns from
    recording: datasets.Recording | None = None  # what it holds

    @property
    def total_steps(self) -> int:
        """Environment steps of all members together."""
        members = [override(self.agent, setting) for setting in self.settings]
        return len(self.seeds) * sum(
            member.num_iterations * member.steps_per_iteration for member in members
        )


def assemble(
    agent_name: str,
    env_id: str,
    words: Sequence[str],
    *,
    steps: int | None,
    seeds: Sequence[int],
    sweep: bool,
    random: int | None = None,
    data: str | None = None,
) -> Experiment:
    """The experiment that a command line asks for.

    Args:
        words: `key=value` each; several values or a range only where `sweep`.
        steps: total environment steps of a member; None: the recipe's, else the agent's default.
        random: draw this many settings from the ranges instead of taking the grid.
        data: recorded steps to learn from, as `envs_jax.datasets.read` takes them.
    """
    cls: Any = agents.get(agent_name)
    texts = parse.split(words)
    if steps is not None:
        if "total_steps" in texts:
            raise ValueError("--steps and total_steps= are the same: give one of them")
        texts["total_steps"] = str(steps)
    if sweep and not words:
        raise ValueError(
            "the grid is empty: give key=v1,v2 or key=log:low:high:n "
            "(`jaxrl train --seeds N` runs seeds of one setting)"
        )
    if random is not None and random < 1:
        raise ValueError(f"--random {random}: the grid is empty")
    if not seeds:
        raise ValueError("--seeds 0: at least one seed is needed")

    recipe = recipes.find(agent_name, env_id)
    declared = {h.name: h for h in cls.hyperparameters()}
    for name in texts:
        if not name.startswith("env.") and name not in declared:
            hint = parse.nearest(name, declared) or f"`jaxrl list {agent_name}` shows all"
            raise ValueError(f"{agent_name} has no hyper-parameter {name!r}; {hint}")
    env_texts = {k[4:]: v for k, v in texts.items() if k.startswith("env.")}
    recipe_options = recipe.env_options if recipe else {}
    env, env_params, env_options = make_env(env_id, recipe_options, env_texts)

    fixed: dict[str, Any] = {}
    space: dict[str, Any] = {}
    kinds: dict[str, type] = {}
    for name, text in texts.items():
        if name.startswith("env.") and name[4:] in env_options:
            continue
        h = declared.get(name)
        kinds[name] = h.type if h else field_kind(env_params, name[4:])
        check = partial(h.check, owner=agent_name) if h else None
        axis = parse.axis(name, text, kinds[name], check, random is not None)
        if isinstance(axis, Lin | Log) or len(axis) > 1:
            space[name] = axis
        else:
            fixed[name] = axis[0]
    if space and not sweep:
        name = next(iter(space))
        raise ValueError(f"{name}={texts[name]}: `jaxrl train` takes one value; use `jaxrl sweep`")

    settings = grid(space) if random is None else random_search(space, random)
    settings = _distinct(
        {k: parse.rounded(v, kinds[k]) for k, v in setting.items()} for setting in settings
    )
    start: dict[str, Any] = {}
    if recipe:
        start = {"total_steps": recipe.steps, **recipe.hyperparameters}
    recording = None
    if data is not None:
        if not issubclass(cls, Offline):
            raise ValueError(f"--data {data}: {agent_name} does not learn from recorded data")
        recording = datasets.read(data, env, env_params)
        start["data"] = recording.dataset(env, env_params)
    agent = build(cls, env, env_params, {**start, **fixed, **settings[0]})
    for setting in settings:
        override(agent, setting)
    return Experiment(
        agent_name, env_id, env_options, agent, settings, list(seeds), recipe, data, recording
    )


def make_env(
    env_id: str, given: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[Any, Any, dict[str, Any]]:
    """The environment, its parameters, and the options it was made with.

    Of `texts` (NAME -> text of `env.NAME=`), those that are no field of the environment's
    parameters are options of `envs_jax.make`; they take precedence over the `given` ones.
    """
    env, env_params = envs_jax.make(env_id, **given)
    fields = _fields(env_params)
    chosen = {k: parse.option(v) for k, v in texts.items() if k not in fields}
    options = {**given, **chosen}
    if chosen:
        try:
            env, env_params = envs_jax.make(env_id, **options)
        except ValueError as error:
            unknown = [name for name in chosen if f"unknown option {name!r}" in str(error)]
            hint = parse.nearest(unknown[0], fields) if unknown else ""
            raise ValueError(f"{error}; among its parameters, {hint}" if hint else error) from None
    return env, env_params, options


def field_kind(env_params: Any, name: str) -> type:
    """The Python type of a scalar field of environment parameters."""
    value = np.asarray(getattr(env_params, name))
    kinds = {"f": float, "i": int, "u": int, "b": bool}
    if value.ndim or value.dtype.kind not in kinds:
        raise ValueError(f"env.{name} is no single number: it can be set from Python only")
    return kinds[value.dtype.kind]


def build(cls: type[Agent], env: Any, env_params: Any, changes: Mapping[str, Any]) -> Agent:
    """An agent with hyper-parameters and `env.NAME` parameters as `changes` says."""
    fields = {k: v for k, v in changes.items() if not k.startswith("env.")}
    env_fields = {k: v for k, v in changes.items() if k.startswith("env.")}
    return override(cls(env=env, env_params=env_params, **fields), env_fields)


def _fields(env_params: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(env_params)]


def _distinct(settings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without repetitions, which rounding and a random search over few values bring."""
    return list({tuple(setting.items()): setting for setting in settings}.values())
