"""`jaxrl recipe`: the best setting of a run as a recipe, which `--recipe FILE` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import envs_jax
from experiments.runs.config import scalars
from experiments.runs.experiment import hyperparameters
from experiments.runs.folder import RunFolder
from experiments.runs.recipes import Recipe
from jaxrl.report.formatting import number


def the_setting_of(folder: RunFolder, member: int | None) -> Recipe:
    """The recipe of a member's setting; None: of the only one that there is.

    Raises: as `recipe_of` does, and ValueError where there are several, or no such member.
    """
    settings, last = folder.summary["settings"], len(folder.summary["members"]) - 1
    if member is None and len(settings) > 1:
        raise ValueError(f"{folder.path} has {len(settings)} settings: give --best or --member I")
    if member is not None and not 0 <= member <= last:
        raise ValueError(f"member {member} is outside 0..{last} of {folder.path}")
    (own,) = settings if member is None else (s for s in settings if member in s["members"])
    return recipe_of(folder, own)


def recipe_of(folder: RunFolder, setting: Mapping[str, Any] | None = None) -> Recipe:
    """What a setting's members have that differs from the defaults; None: the best one's.

    Raises: ValueError where the run has not ended, or this code has no such agent or value.
    """
    config, best = folder.config, folder.summary["best"]
    setting = setting or best
    agent = folder.agent(folder.summary["members"][setting["members"][0]]["hyperparameters"])
    env, env_params = envs_jax.make(config["env"], **config["env_options"])
    data: dict[str, Any] = {"data": getattr(agent, "data", None)} if config["data"] else {}
    default = type(agent)(env, env_params, **data)
    before = hyperparameters(default) | _params(env_params)
    now = hyperparameters(agent) | _params(agent.env_params)
    del now["total_steps"]
    settings, seeds = len(folder.summary["settings"]), len(setting["members"])
    mean = number(setting["measures"]["return"]["mean"])
    is_best = setting["members"] == best["members"]
    of = f"the best of {settings} settings of" if settings > 1 else "as in"
    if not is_best:
        of = f"as member {setting['members'][0]} of"
    elif "exchanges" in folder.summary:
        of = f"the last values of the best of {settings} members that copied each other, of"
    return Recipe(
        agent=config["agent"],
        env=config["env"],
        steps=agent.total_steps,
        source=f"{of} {folder.path}: mean final return {mean}, {seeds} seed{'s'[: seeds > 1]}",
        env_options=config["env_options"],
        hyperparameters={k: v for k, v in now.items() if v != before[k]},
    )


def text_of(recipe: Recipe) -> str:
    """A recipe as TOML.

    >>> print(text_of(Recipe("ppo", "CartPole-v1", 500, "here", {}, {"gamma": 0.9})))
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
