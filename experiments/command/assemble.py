"""From the words of the command line to a checked experiment, before anything compiles.

Agent, environment, recipe, fixed values and the grid come together here; whatever does not fit
raises ValueError with one line.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import agents
import envs_jax
from envs_jax import datasets
from envs_jax.datasets import Recording
from experiments.command import parse
from experiments.command.recipe import the_setting_of
from experiments.runs import recipes
from experiments.runs.experiment import Experiment, build
from experiments.runs.folder import RunFolder
from experiments.runs.search import PBT, Halving, Search
from jaxrl import files
from jaxrl.agent import Agent
from jaxrl.training.pbt import iterations_between
from jaxrl.training.search import Lin, Log, grid, random_search, require_few
from jaxrl.words import did_you_mean, near

EVALUATIONS = 20  # of a run on recorded data, which has no episodes of its own to show
EPISODES = 64


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for, in words.

    Attributes:
        agent, env: their names, as `jaxrl list` shows them.
        words: `key=value` each; several values or a range only where `sweep`.
        seeds: of each setting.
        recipe: one, or a file with one; None: that of agent and environment, where there is one.
        steps: in total per member; None: the recipe's, else the agent's default.
        random: draw this many settings from the ranges instead of taking the grid.
        search_seed: of what is drawn; None: 0.
        halving, halving_from: eta of successive halving, and the fewest steps of its first rung.
        pbt, pbt_every: the share replaced in population-based training, and steps in between.
        data: recorded steps to learn from, as `envs_jax.datasets.read_all` takes them.
        data_steps: about how many of them, in episodes drawn at random; None: all.
        reference: returns between which their scores are normalised, likewise.
        evaluations: during training; None: none, but EVALUATIONS of a run on recorded data.
        episodes: of the final evaluation, per member.
        record: names in the environment's `info` to sum per episode.
    """

    agent: str
    env: str
    words: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    recipe: Path | recipes.Recipe | None = None
    steps: int | None = None
    sweep: bool = False
    random: int | None = None
    search_seed: int | None = None
    halving: int | None = None
    halving_from: int | None = None
    pbt: float | None = None
    pbt_every: int | None = None
    data: Sequence[str] = ()
    data_steps: int | None = None
    reference: tuple[float, float] | None = None
    evaluations: int | None = None
    episodes: int | None = None
    record: tuple[str, ...] = ()


def request_of(args: argparse.Namespace) -> Request:
    """The request of `jaxrl train`, `jaxrl sweep` or `jaxrl collect`.

    Raises: ValueError where it is taken `--from` a run that has no such setting.
    """
    given = vars(args)
    recipe = given.get("recipe")
    if given.get("source") is not None:
        folder = RunFolder.open(args.source)
        recipe = the_setting_of(folder, folder.chosen(args.member, args.best))
        given = as_in(folder.config, given)
    count = given.get("seeds")
    return Request(
        agent=recipe.agent if isinstance(recipe, recipes.Recipe) else args.agent,
        env=recipe.env if isinstance(recipe, recipes.Recipe) else args.env,
        words=args.settings,
        seeds=[given.get("seed") or 0] if count is None else range(count),
        recipe=recipe,
        steps=args.steps,
        sweep=args.command == "sweep",
        random=given.get("random"),
        search_seed=given.get("search_seed"),
        halving=given.get("halving"),
        halving_from=given.get("halving_from"),
        pbt=given.get("pbt"),
        pbt_every=given.get("pbt_every"),
        data=given.get("data") or (),
        data_steps=given.get("data_steps"),
        reference=given.get("reference"),
        evaluations=given.get("evaluations"),
        episodes=given.get("episodes"),
        record=given.get("record") or (),
    )


def as_in(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, and of the others those that a run had: what it learnt from,
    and how it was measured. What was said of its data does not hold for other data.
    """
    names = ["evaluations", "episodes", "record"]
    if not given["data"]:
        names += ["data", "data_steps", "reference"]
    kept = {name: config.get(name) for name in names}  # old runs lack some
    kept = {name: tuple(x) if isinstance(x, list) else x for name, x in kept.items()}
    return {**given, **{name: x for name, x in kept.items() if given.get(name) is None}}


def assemble(request: Request) -> Experiment:
    """The experiment that is asked for. Raises: ValueError where anything does not fit."""
    cls: Any = agents.get(request.agent)
    texts = texts_of(request, cls)
    if request.recipe is None:
        recipe = recipes.find(request.agent, request.env)
    elif isinstance(request.recipe, recipes.Recipe):
        recipe = request.recipe
    else:
        recipe = recipes.read(request.recipe, request.agent, request.env)
    env_texts = {k[4:]: v for k, v in texts.items() if k.startswith("env.")}
    env, env_params, env_options = make_env(
        request.env, recipe.env_options if recipe else {}, env_texts
    )
    types = types_of(cls, env_params, [name for name in texts if name[4:] not in env_options])
    values = {name: values_of(name, texts[name], types[name], cls, request) for name in types}
    fixed = {name: x[0] for name, x in values.items() if isinstance(x, list) and len(x) == 1}
    space = {k: v for k, v in values.items() if k not in fixed}
    settings = settings_of(space, types, request)

    given: dict[str, Any] = {"record": request.record}
    recording = recording_of(request, cls, env, env_params)
    if recording is not None:
        given["data"] = recording.dataset(env, env_params)
    if recipe:
        given |= recipe_values(recipe, cls, env, env_params, {**given, **fixed, **settings[0]})
    default_evaluations = 0 if recording is None else EVALUATIONS
    require_few(len(settings) * len(request.seeds), "members")
    agent = build(cls, env, env_params, {**given, **fixed, **settings[0]})
    experiment = Experiment(
        agent_name=request.agent,
        env_id=request.env,
        env_options=env_options,
        agent=agent,
        settings=settings,
        seeds=list(request.seeds),
        evaluations=request.evaluations or default_evaluations,
        episodes=request.episodes or EPISODES,
        recipe=recipe,
        data=[absolute(source) for source in request.data],
        data_steps=request.data_steps,
        reference=request.reference,
        recording=recording,
        search=search_of(request, agent, space),
    )
    assert experiment.agents  # which checks every setting
    assert experiment.total_steps  # which checks the rungs of a halving
    return experiment


def search_of(request: Request, agent: Agent, space: Mapping[str, Any]) -> Search | None:
    """How the request searches beyond its grid. Raises: ValueError for options without effect."""
    needs = {"halving_from": "halving", "pbt_every": "pbt"}
    for name, method in needs.items():
        value = getattr(request, name)
        if value is not None and getattr(request, method) is None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {value} has no effect without --{method}")
    if request.halving is not None:
        return Halving(request.halving, request.halving_from or 1)
    if request.pbt is None:
        return None
    if len(request.seeds) > 1:
        raise ValueError(
            f"--seeds {len(request.seeds)}: with --pbt each setting is one member, with a seed of "
            "its own; --random N draws more of them"
        )
    every = iterations_between(agent, request.pbt_every) * agent.steps_per_iteration
    return PBT(request.pbt, every, request.search_seed or 0, space)


def recording_of(request: Request, cls: Any, env: Any, env_params: Any) -> Recording | None:
    """What the request's agent learns from, where it names recorded data."""
    if not request.data:
        for name, value in (("data-steps", request.data_steps), ("reference", request.reference)):
            if value is not None:
                raise ValueError(f"--{name} has no effect without --data")
        return None
    if "data" not in {field.name for field in dataclasses.fields(cls)}:
        raise ValueError(f"--data {request.data[0]}: {cls.name} does not learn from recorded data")
    return datasets.read_all(request.data, env, env_params, request.reference, request.data_steps)


def absolute(data: str) -> str:
    """A file by its whole path, so that its run can be resumed from anywhere.

    Raises: ValueError where that cannot be written down.
    """
    path = data if data.startswith("minari:") else str(Path(data).resolve())
    if not files.is_utf8(path):
        raise ValueError(f"--data {data} is no name in UTF-8: it could not be written down")
    return path


def recipe_values(
    recipe: recipes.Recipe, cls: Any, env: Any, env_params: Any, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What a recipe sets, without what has no effect with recorded data: its collecting."""
    unused = build(cls, env, env_params, given).unused() if "data" in given else {}
    values = {name: x for name, x in recipe.hyperparameters.items() if name not in unused}
    return {"total_steps": recipe.steps, **values}


def texts_of(request: Request, cls: Any) -> dict[str, str]:
    """Name -> text of all that the words set. Raises: ValueError for an unknown name, no member."""
    texts = parse.split(request.words)
    if request.steps is not None:
        if "total_steps" in texts:
            raise ValueError("--steps and total_steps= are the same: give one of them")
        texts["total_steps"] = str(request.steps)
    if request.sweep and not request.words:
        raise ValueError(
            "the grid is empty: give key=v1,v2 or key=log:low:high:n "
            "(`jaxrl train --seeds N` runs seeds of one setting)"
        )
    if request.random is not None and request.random < 1:
        raise ValueError(f"--random {request.random}: the grid is empty")
    if request.search_seed is not None and request.random is None and request.pbt is None:
        raise ValueError(f"--search-seed {request.search_seed}: only --random N draws settings")
    require_few(len(request.seeds), "members")
    if not request.seeds:
        raise ValueError("--seeds 0: at least one seed is needed")
    known = [h.name for h in cls.hyperparameters()]
    for name in texts:
        if not name.startswith("env.") and name not in known:
            hint = did_you_mean(name, known, f"`jaxrl list {request.agent}` shows all")
            raise ValueError(f"{request.agent} has no hyper-parameter {name!r}; {hint}")
    return texts


def make_env(
    env_id: str, given: Mapping[str, Any], texts: Mapping[str, str]
) -> tuple[Any, Any, dict[str, Any]]:
    """The environment, its parameters, and the options it was made with.

    Of `texts` (NAME -> text of `env.NAME=`), those that are not fields of the environment's
    parameters are options of `envs_jax.make`; they take precedence over the `given` ones.
    """
    env, env_params = envs_jax.make(env_id, **given)
    fields = [f.name for f in dataclasses.fields(env_params)]
    chosen = {k: parse.option(v) for k, v in texts.items() if k not in fields}
    options = {**given, **chosen}
    if chosen:
        try:
            env, env_params = envs_jax.make(env_id, **options)
        except ValueError as error:
            unknown = [name for name in chosen if f"unknown option {name!r}" in str(error)]
            close = [field for name in unknown for field in near(name, fields)]
            hint = f"; among its parameters, {' or '.join(close)}" if close else ""
            raise ValueError(f"{error}{hint}") from None
    return env, env_params, options


def types_of(cls: Any, env_params: Any, names: Iterable[str]) -> dict[str, type]:
    """The Python types of hyper-parameters and of `env.NAME` parameters."""
    declared = {h.name: h.type for h in cls.hyperparameters()}
    return {name: declared.get(name) or field_type(env_params, name[4:]) for name in names}


def field_type(env_params: Any, name: str) -> type:
    """The Python type of a scalar field of environment parameters."""
    value = np.asarray(getattr(env_params, name))
    types = {"f": float, "i": int, "u": int, "b": bool}
    if value.ndim or value.dtype.kind not in types:
        raise ValueError(f"env.{name} is not a single number: it can be set from Python only")
    return types[value.dtype.kind]


def values_of(
    name: str, text: str, kind: type, cls: Any, request: Request
) -> list[Any] | Log | Lin:
    """The values of one name, checked; several only in a sweep."""
    check = next(
        (partial(h.check, owner=cls.name) for h in cls.hyperparameters() if h.name == name), None
    )
    random, keeps_range = request.random is not None, request.pbt is not None
    values = parse.axis(name, text, kind, check, random, keeps_range)
    if not request.sweep and (isinstance(values, Lin | Log) or len(values) > 1):
        raise ValueError(f"{name}={text}: `jaxrl train` takes one value; use `jaxrl sweep`")
    return values


def settings_of(
    space: Mapping[str, Any], types: Mapping[str, type], request: Request
) -> list[dict[str, Any]]:
    """Every setting of the space, or some drawn from it.

    Without repetitions, which rounding and a random search over few values bring, but in
    population-based training, whose members do not stay what they are.
    """
    if request.random is None:
        drawn = grid(space)
    else:
        drawn = random_search(space, request.random, request.search_seed or 0)
    settings = [{k: parse.rounded(v, types[k]) for k, v in s.items()} for s in drawn]
    if request.pbt is not None:
        return settings
    return list({tuple(setting.items()): setting for setting in settings}.values())
