"""Recipes: one TOML file per agent and environment, recipes/AGENT/ENV.toml.

[recipe]
agent = "ppo"
env = "CartPole-v1"
steps = 500_000
source = "..."                # what its aim is, where nothing was published

[env]                         # options of envs_jax.make
[hyperparameters]             # fields of the agent that differ from its defaults

[[published]]                 # what others reached, as often as there is; the first is the aim
value = 490.04                # the final return
spread = 6.12                 # +-, as the source has it ...
over = "3 seeds"              # ... and over what
steps = 500_000               # after which it was measured
protocol = "training episodes, sampled actions"
source = "CleanRL documentation, PPO"
read = "table"                # how the numbers were read
points = [[100_000, 300.0]]   # of its learning curve, [steps, value] each
"""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent.parent / "recipes"


class Published(NamedTuple):
    """What others reached with an agent in an environment.

    Attributes:
        value: the final return.
        steps: environment steps after which it was measured.
        protocol: which episodes it is the mean of, and how actions were chosen.
        source: where it stands.
        read: how the numbers were read: off a table, a figure, a log.
        spread: +- of `value`, as the source has it; None where it has none.
        over: what `spread` is over, such as "3 seeds".
        points: (steps, value) of the learning curve; empty where there is none.
    """

    value: float
    steps: int
    protocol: str
    source: str
    read: str
    spread: float | None = None
    over: str = ""
    points: tuple[tuple[float, float], ...] = ()

    def text(self) -> str:
        """The value with its spread.

        >>> Published(490.04, 500_000, "training episodes", "here", "table", 6.12).text()
        '490.04 +- 6.12'
        """
        return f"{self.value:g}" if self.spread is None else f"{self.value:g} +- {self.spread:g}"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a recipe file says; the first of `published`, where there is one, is its aim."""

    agent: str
    env: str
    steps: int
    source: str
    env_options: dict[str, Any]
    hyperparameters: dict[str, Any]
    published: tuple[Published, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.agent}/{self.env}"

    @property
    def aim(self) -> Published | None:
        """The published number that it is held against, where there is one."""
        return self.published[0] if self.published else None


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
            "source; [env], [hyperparameters] and [[published]] may follow"
        ) from None
    if recipe.name != f"{agent}/{env}":
        raise ValueError(f"--recipe {path} is for {recipe.agent} on {recipe.env}")
    return recipe


def load(path: Path) -> Recipe:
    """Read one recipe file. Lists in it become the tuples that agents take."""
    content = tomllib.loads(path.read_text())
    head = content["recipe"]
    published = tuple(
        Published(**entry | {"points": tuple((x, float(y)) for x, y in entry.get("points", []))})
        for entry in content.get("published", [])
    )
    return Recipe(
        agent=head["agent"],
        env=head["env"],
        steps=head["steps"],
        source=head["source"] if not published else head.get("source", published[0].source),
        env_options=content.get("env", {}),
        hyperparameters={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.get("hyperparameters", {}).items()
        },
        published=published,
    )
