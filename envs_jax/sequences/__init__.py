"""Our own suite of tasks with verifiable answers, for sequence policies and for any other agent."""

from __future__ import annotations

from typing import Any

from envs_jax.sequences.arithmetic import Parity, Sum, TwoTasks
from envs_jax.sequences.base import SequenceEnv
from envs_jax.sequences.dsl import Dsl
from envs_jax.sequences.pareto import Pareto
from envs_jax.sequences.router import Router
from envs_jax.wrappers import constructor_options

TASKS: dict[str, type[SequenceEnv]] = {
    "sum": Sum,
    "parity": Parity,
    "two_tasks": TwoTasks,
    "pareto": Pareto,
    "dsl": Dsl,
    "router": Router,
}


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: how it resets, and those of the task's own constructor."""
    return {"resets": "fresh", "pool_size": 16} | constructor_options(TASKS[name])


def build(suite: str, name: str, **settings: Any) -> SequenceEnv:
    """The task `name`. ValueError (one line) where an option is out of range."""
    return TASKS[name](**settings)
