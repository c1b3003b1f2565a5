"""An experiment: an agent in an environment, every setting with every seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from envs_jax.datasets import Recording
from experiments.runs.recipes import Recipe
from experiments.runs.search import Halving, Search
from jaxrl.agent import Agent
from jaxrl.training.halving import plan_rungs
from jaxrl.training.search import override


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run follows from."""

    agent_name: str
    env_id: str
    env_options: dict[str, Any]
    agent: Agent  # with the first setting
    settings: list[dict[str, Any]]  # what the members differ in, `env.NAME` for parameters
    seeds: list[int]
    evaluations: int = 0  # during training
    episodes: int = 64  # per member, of the final evaluation
    recipe: Recipe | None = None
    data: Sequence[str] = ()  # files or names that the agent learns from
    data_steps: int | None = None  # about how many of their steps; None: all
    reference: tuple[float, float] | None = None  # returns that its scores are normalised between
    recording: Recording | None = None  # what it holds
    search: Search | None = None  # beyond the grid

    @cached_property
    def agents(self) -> list[Agent]:
        """The agent of each setting. Raises ValueError where a setting does not fit."""
        return [override(self.agent, setting) for setting in self.settings]

    @property
    def num_members(self) -> int:
        return len(self.settings) * len(self.seeds)

    @property
    def table(self) -> list[dict[str, Any]]:
        """What sets each member apart, and its seed, by number."""
        return [setting | {"seed": seed} for setting in self.settings for seed in self.seeds]

    @property
    def total_steps(self) -> int:
        """Steps of all members together, in the agent's unit."""
        if isinstance(self.search, Halving):
            rungs = plan_rungs(self.agent, len(self.settings), *self.search)
            return rungs.iterations() * self.agent.steps_per_iteration * len(self.seeds)
        steps = [agent.num_iterations * agent.steps_per_iteration for agent in self.agents]
        return len(self.seeds) * sum(steps)

    @property
    def unit(self) -> str:
        """What the agent's steps are: "environment steps", "gradient steps", "answers"."""
        return self.agent.unit

    def recipe_line(self) -> str:
        """The recipe and how many steps are taken, in a line; "" where there is no recipe."""
        recipe = self.recipe
        if recipe is None:
            return ""
        steps = sorted({agent.total_steps for agent in self.agents})
        text = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        if steps != [recipe.steps]:
            text += f" (not {recipe.steps:,})"
        published = f"; published: {recipe.aim.text()}" if recipe.aim else ""
        return f"recipe {recipe.name}: {text} {self.unit}{published} ({recipe.source})"


def build(cls: type[Agent], env: Any, env_params: Any, values: Mapping[str, Any]) -> Agent:
    """An agent with hyper-parameters and `env.NAME` parameters as `values` says.

    Raises: ValueError where the agent has no such hyper-parameter, or does not take its value.
    """
    fields = {k: v for k, v in values.items() if not k.startswith("env.")}
    env_fields = {k: v for k, v in values.items() if k.startswith("env.")}
    known = {field.name for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ValueError(f"{cls.name} has no hyper-parameter {name!r}")
    return override(cls(env=env, env_params=env_params, **fields), env_fields)


def hyperparameters(agent: Agent) -> dict[str, Any]:
    """All hyper-parameters of an agent whose values are concrete."""
    return {h.name: getattr(agent, h.name) for h in agent.hyperparameters()}
