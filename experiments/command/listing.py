"""`jaxrl list`: agents, environments, recipes; what one agent or one environment takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import agents
from experiments.command.tables import table


def all_agents() -> None:
    names = [*agents.AGENTS, *agents.installed()]
    table(["agent", "what it is"], [(name, agents.describe(name)) for name in names])


def all_envs() -> None:
    import envs_jax

    rows = [envs_jax.describe(name) for name in envs_jax.list_envs()]
    columns = ["id", "observation", "action", "time_limit"]
    titles = ["environment", "observation", "action", "time limit"]
    table(titles, [[row[c] for c in columns] for row in rows], right=["time limit"])


def all_recipes() -> None:
    from experiments.runs import recipes

    rows = [
        [
            recipe.agent,
            recipe.env,
            f"{recipe.steps:,}",
            recipe.aim.text() if recipe.aim else "-",
            recipe.source,
        ]
        for recipe in recipes.everything()
    ]
    columns = ["agent", "environment", "steps", "published", "source"]
    table(columns, rows, right=["steps", "published"])


def agent(name: str) -> None:
    """One agent's hyper-parameters. Raises ValueError for an unknown agent."""
    from jaxrl.report.formatting import value_text

    cls: Any = agents.get(name)
    rows = [
        [
            h.name,
            h.kind,
            value_text(h.default),
            ", ".join(h.valid) if isinstance(h.valid, tuple) else h.valid or "",
            h.doc,
        ]
        for h in cls.hyperparameters()
    ]
    print(f"{name}: {agents.describe(name)}")
    table(["hyper-parameter", "kind", "default", "accepted", "meaning"], rows)


def is_environment(name: str) -> bool:
    """Whether a name is an environment's. Raises ValueError for a module:NAME that is not there."""
    import envs_jax
    from envs_jax.catalogue import GYMNASIUM

    if ":" not in name or name.startswith(GYMNASIUM):
        return name in envs_jax.list_envs() or name.startswith(GYMNASIUM)
    from jaxrl import Agent, imports

    found = imports.load(name, "agent or environment")
    return not (isinstance(found, type) and issubclass(found, Agent))


def environment(id: str) -> None:
    """One environment's spaces, parameters and options. Raises ValueError for an unknown one."""
    import numpy as np

    import envs_jax
    from envs_jax.catalogue import is_own
    from jaxrl.report.formatting import value_text

    options = envs_jax.options(id)
    env, params = envs_jax.make(id)
    if is_own(id) or envs_jax.describe(id)["observation"] == "-":
        row = {"observation": env.observation_space(params).shape, "time_limit": "its own"}
        space = env.action_space(params)
        row["action"] = f"{type(space).__name__}({getattr(space, 'n', space.shape)})"
    else:
        row = envs_jax.describe(id)
    print(
        f"{id}: observation {row['observation']}, action {row['action']}, "
        f"time limit {row['time_limit']}"
    )
    rows = [
        [field.name, "traced", value_text(np.asarray(getattr(params, field.name)).tolist())]
        for field in dataclasses.fields(params)
    ]
    rows += [[name, "static", value_text(value)] for name, value in options.items()]
    table(["env.NAME", "kind", "default"], rows)


LISTS = {"agents": all_agents, "envs": all_envs, "recipes": all_recipes}
