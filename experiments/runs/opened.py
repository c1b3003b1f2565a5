"""A run folder as what `jaxrl.sweep` gave back."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

import agents
from experiments.runs.config import typed_values
from experiments.runs.folder import RunFolder
from experiments.runs.saved import saved_history
from jaxrl.agent import Agent
from jaxrl.training.exchange import Exchange
from jaxrl.training.history import History
from jaxrl.training.members import stack_agents
from jaxrl.training.population import Population, Rung
from jaxrl.training.run import Run
from jaxrl.training.search import override

METRICS = ("env_steps", "gradient_steps", "steps")  # of metrics.npz, what are no metrics
OF_EPISODES = ("final_", "evaluation_")


class SavedRun(Run):
    """A batch of a run folder: its agents are made, and its states read, when they are asked for.

    So results of agents that this code has no more, or whose environments take long to make, are
    there at once.
    """

    def __init__(self, folder: RunFolder, number: int, rows: list[int], **fields: Any) -> None:
        for name, value in {"folder": folder, "number": number, "saved": rows, **fields}.items():
            object.__setattr__(self, name, value)

    folder: RunFolder
    number: int
    saved: list[int]  # the members that it is of, of those that its checkpoints hold

    @cached_property
    def agents(self) -> list[Agent]:
        """Raises: ValueError where this code has no such agent or environment."""
        rows = [self.folder.listing["members"][i]["hyperparameters"] for i in self.saved]
        first = self.folder.agent(rows[0])
        return [override(first, typed_values(type(first), row)) for row in rows]

    @cached_property
    def agent(self) -> Any:
        return stack_agents(self.agents)

    @cached_property
    def state(self) -> Any:
        """Raises: ValueError where it cannot be read."""
        there = self.folder.listing["checkpoints"][self.number]
        states = self.folder.states(self.number, self.agents[0], len(there))
        if self.saved == there:
            return states
        places = np.asarray([there.index(i) for i in self.saved])
        return jax.tree.map(lambda x: x[places], states)


def open_run(path: str | Path) -> Population:
    """The population that a run folder holds: see `jaxrl.open_run`."""
    folder = RunFolder.open(Path(path))
    listing, ended = folder.listing, folder.has_ended
    history, cls = _history(folder), agents.get(folder.config["agent"])
    exchanges = [Exchange(**_numbers(entry)) for entry in listing.get("exchanges", [])]
    newest = {i: number for number, rows in enumerate(listing["checkpoints"]) for i in rows}
    batches: list[tuple[list[int], Run]] = []
    for number, there in enumerate(listing["checkpoints"]):
        # Of a rung of a halving only those that went no further.
        rows = [i for i in there if newest[i] == number]
        if not rows:
            continue
        run = SavedRun(
            folder,
            number,
            rows,
            history=history.of_members(rows).trimmed(),
            # Of the batches only the sum is known.
            compile_seconds=listing.get("compile_seconds", np.nan) / len(listing["checkpoints"]),
            run_seconds=listing.get("run_seconds", np.nan) / len(listing["checkpoints"]),
            interrupted=listing.get("interrupted", True),
            exchanges=exchanges,
        )
        batches.append((rows, run))
    settings = {i: s["hyperparameters"] for s in listing["settings"] for i in s["members"]}
    table = [
        {**typed_values(cls, settings[i]), "seed": member["seed"]}
        for i, member in enumerate(listing["members"])
    ]
    rungs = [
        Rung(rung["iteration"], rung["members"], _numbers(rung)["scores"])
        for rung in listing.get("rungs", [])
    ]
    return Population(table, batches, rungs, _evaluated(folder) if ended else None)


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with its scores as numbers: JSON has null for those that are none."""
    return entry | {"scores": [np.nan if x is None else x for x in entry["scores"]]}


def _history(folder: RunFolder) -> History:
    """That of all members, in the order of the table."""
    if not folder.has_ended:
        return saved_history(folder.checkpoints, folder.listing)
    arrays = folder.metrics()
    steps = arrays["steps"]
    during = {
        name.removeprefix("evaluation_"): x
        for name, x in arrays.items()
        if name.startswith("evaluation_")
    }
    none = {"steps": np.zeros((len(steps), 0)), "returns": np.zeros((len(steps), 0, 0))}
    during = during or none
    diverged_at = [member.get("diverged_at") for member in folder.summary["members"]]
    return History(
        steps,
        {k: x for k, x in arrays.items() if k not in METRICS and not k.startswith(OF_EPISODES)},
        {"env_steps": during.pop("steps"), **during},
        np.asarray(diverged_at, dtype=float),
    )


def _evaluated(folder: RunFolder) -> dict[str, np.ndarray]:
    """What the final evaluation gave, by the names of `Population.final`."""
    final = {k: x for k, x in folder.metrics().items() if k.startswith("final_")}
    if "final_returns" not in final:
        raise ValueError(f"{folder.path / 'metrics.npz'}: final_returns is missing")
    missing = np.isnan(final["final_returns"])
    named = {"final_returns": "final_return", "final_lengths": "final_length"}
    return {
        named.get(name, name.removeprefix("final_")): np.where(missing, np.nan, x).mean(axis=1)
        for name, x in final.items()
    }
