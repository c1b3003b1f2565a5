"""`jaxrl recipe`: the best setting of a run as a recipe, which `--recipe FILE` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import envs_jax
from experiments.runs.config import scalars
from experiments.runs.experiment import hyperparameters
from experiments.runs.folder import RunFolder
from experiments.runs.recipes import Recipe
from jaxrl.report.formatting import number


def recipe_of(folder: RunFolder) -> Recipe:
    """What the best setting's members have that differs from the defaults.

    Raises: ValueError where the run has not ended, or this code has no such agent or value.
    """
    config, best = folder.config, folder.summary["best"]
    agent = folder.agent(folder.summary["members"][best["members"][0]]["hyperparameters"])
    env, env_params = envs_jax.make(config["env"], **config["env_options"])
    data: dict[str, Any] = {"data": getattr(agent, "data", None)} if config["data"] else {}
    default = type(agent)(env, env_params, **data)
    before = hyperparameters(default) | _params(env_params)
    now = hyperparameters(agent) | _params(agent.env_params)
    del now["total_steps"]
    settings, seeds = len(folder.summary["settings"]), len(best["members"])
    mean = number(best["measures"]["return"]["mean"])
    of = f"the best of {settings} settings of" if settings > 1 else "as in"
    if "exchanges" in folder.summary:
        of = f"the last values of the best of {settings} members that copied each other, of"
    return Recipe(
        agent=config["agent"],
        env=config["env"],
        steps=agent.total_steps,
        published=None,
        source=f"{of} {folder.path}: mean final return {mean}, {seeds} seed{'s'[: seeds > 1]}",
        env_options=config["env_options"],
        hyperparameters={k: v for k, v in now.items() if v != before[k]},
    )


def text_of(recipe: Recipe) -> str:
    """A recipe as TOML.

    >>> print(text_of(Recipe("ppo", "CartPole-v1", 500, None, "here", {}, {"gamma": 0.9})))
    [recipe]
    agent = "ppo"
    env = "CartPole-v1"
    steps = 500
    source = "here"
    <BLANKLINE>
    [hyperparameters]
    gamma = 0.9
    """
    head = {name: getattr(recipe, name) for name in ("agent", "env", "steps", "source")}
    tables = {"recipe": head, "env": recipe.env_options, "hyperparameters": recipe.hyperparameters}
    blocks = [
        "\n".join([f"[{title}]", *(f"{_key(k)} = {_value(v)}" for k, v in table.items())])
        for title, table in tables.items()
        if table
    ]
    return "\n\n".join(blocks)


def show(path: Path) -> None:
    """Print a run's recipe."""
    print(text_of(recipe_of(RunFolder.open(path))))


def _params(env_params: Any) -> dict[str, Any]:
    """The environment's parameters that are single numbers, by their names on the command line."""
    return {f"env.{name}": value for name, value in scalars(env_params).items()}


def _key(name: str) -> str:
    return json.dumps(name) if "." in name else name


def _value(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)  # "inf" as TOML writes it
    return json.dumps(value, ensure_ascii=False)
