"""`jaxrl list`: agents, environments, recipes and one agent's hyper-parameters."""

from __future__ import annotations

from typing import Any

import agents
from experiments.command.printing import table
from experiments.runs.formatting import value_text


def all_agents() -> None:
    table(["agent", "what it is"], [(name, agents.describe(name)) for name in agents.AGENTS])


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
            "-" if recipe.published is None else f"{recipe.published:g}",
            recipe.source,
        ]
        for recipe in recipes.everything()
    ]
    columns = ["agent", "environment", "steps", "published", "source"]
    table(columns, rows, right=["steps", "published"])


def agent(name: str) -> None:
    """One agent's hyper-parameters. Raises ValueError for an unknown agent."""
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


LISTS = {"agents": all_agents, "envs": all_envs, "recipes": all_recipes}
