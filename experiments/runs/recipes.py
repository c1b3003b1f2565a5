"""Recipes: one TOML file per agent and environment, recipes/AGENT/ENV.toml.

[recipe]
agent = "ppo"
env = "CartPole-v1"
steps = 500_000
published = 490.04            # the number to compare with, where there is one
source = "where it stands"

[env]                         # options of envs_jax.make
[hyperparameters]             # fields of the agent that differ from its defaults
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "recipes"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe file says."""

    agent: str
    env: str
    steps: int
    published: float | None
    source: str
    env_options: dict[str, Any]
    hyperparameters: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.agent}/{self.env}"


def find(agent: str, env: str) -> Recipe | None:
    """The recipe for an agent on an environment, if there is one."""
    path = FOLDER / agent / f"{env}.toml"
    return load(path) if path in FOLDER.rglob("*.toml") else None  # names are not paths


def everything() -> list[Recipe]:
    """All recipes, by agent and environment."""
    return [load(path) for path in sorted(FOLDER.rglob("*.toml"))]


def read(path: Path, agent: str, env: str) -> Recipe:
    """A user's recipe file, for this agent and environment.

    Raises: ValueError where it cannot be read, is none, or is for others.
    """
    try:
        recipe = load(path)
    except OSError as error:
        raise ValueError(f"--recipe {path}: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no text
        raise ValueError(f"--recipe {path} is no TOML file: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"--recipe {path} is no recipe: it needs a table [recipe] with agent, env, steps and "
            "source; [env] and [hyperparameters] may follow"
        ) from None
    if recipe.name != f"{agent}/{env}":
        raise ValueError(f"--recipe {path} is for {recipe.agent} on {recipe.env}")
    return recipe


def load(path: Path) -> Recipe:
    """Read one recipe file. Lists in it become the tuples that agents take."""
    content = tomllib.loads(path.read_text())
    head = content["recipe"]
    return Recipe(
        agent=head["agent"],
        env=head["env"],
        steps=head["steps"],
        published=head.get("published"),
        source=head["source"],
        env_options=content.get("env", {}),
        hyperparameters={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.get("hyperparameters", {}).items()
        },
    )
