"""Run folders, which the engine does not know: the command of this package reads them."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path

from jaxrl.training.population import Population


def open_run(path: str | Path) -> Population:
    """The population that a run folder of `jaxrl train` or `jaxrl sweep` holds.

    As `jaxrl.sweep` gave it: table, history, final returns; `population[i]` and `best()` act,
    evaluate and train on. States are read when they are first asked for. Of a run that is under way
    or was killed it is what its newest checkpoints hold, and `interrupted`. Agents that learn from
    recorded data have the shapes of it only: `agent.replace(data=...)` before they train on.

    Raises: ValueError where there is no run, a damaged one, or nothing of it was saved.
    """
    (command,) = entry_points(group="jaxrl.command")
    population: Population = importlib.import_module(command.module).open_run(path)
    return population
