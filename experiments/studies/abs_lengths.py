"""ABS at work: divergence, rollout length and return over steps, beside fixed lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import curves, study
from experiments.studies.claims import Claim, gain, mean_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENV = "Breakout-MinAtar"
LENGTHS = (16, 32, 64)
PANELS = {
    "divergence": "behavioural divergence",
    "rollout_length": "rollout length",
    "episode_return": "return of training episodes",
}


class ABSLengths(study.Study):
    name = "abs_lengths"
    title = "ABS beside fixed rollout lengths"
    paper = "Park 2026 (ABS: PQN with adaptive batch scaling)."
    question = (
        f"Does an adaptive rollout length end above every fixed one on {ENV}, and how does it move?"
    )
    budget = "4 cells of 2 million steps, 4 seeds: about half an hour on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_envs": 8, "min_steps": 4, "max_steps": 8, "hidden_sizes": 8}
            return {"adaptive": {"steps": 1024, "seeds": 2, "changes": small}}
        lengths = {f"fixed {n}": {"min_steps": n, "max_steps": n} for n in LENGTHS}
        return {
            name: {"steps": 2_000_000, "seeds": 4, "changes": changes}
            for name, changes in {"adaptive": {}, **lengths}.items()
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        from experiments.command.assemble import Request, assemble
        from jaxrl.training.meter import Meter

        steps, seeds = settings["steps"], settings["seeds"]
        words = [f"{name}={value}" for name, value in settings["changes"].items()]
        agent = assemble(Request("abs", ENV, words, steps=steps)).agent
        with Meter(steps * seeds) as meter:
            # Two members at a time, one a device: trip counts differ with the length, and members
            # of one vmapped loop would all wait for the slowest.
            population = jaxrl.sweep(agent, seeds=seeds, batch_size=2, callbacks=[meter]).whole()
        history = population.history
        binned = {
            name: curves.binned(history.env_steps, history.metrics[name], steps) for name in PANELS
        }
        lengths = binned["rollout_length"]
        return {
            "measures": {
                "final_return": population.evaluate().returns.mean(axis=1).tolist(),
                "last_rollout_length": [row[np.isfinite(row)][-1] for row in lengths],
            },
            "curves": {name: np.round(rows, 4).tolist() for name, rows in binned.items()},
        }

    def claims(self) -> list[Claim]:
        lengths = [f"fixed {n}" for n in LENGTHS]
        names = ", ".join(map(str, LENGTHS))
        return [
            Claim(
                f"The adaptive length returns more than each fixed one ({names}); differences",
                gain("adaptive", lengths, "final_return"),
                low=0.0,
            ),
            Claim(
                "The length at least doubles, from 16 to 32 or more",
                mean_of("adaptive", "last_rollout_length"),
                low=32.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        if not all("curves" in cell for cell in cells.values()):  # measured before they were kept
            return {}
        return {ENV: draw(cells)}


STUDY = ABSLengths()


def draw(cells: Mapping[str, Any]) -> Figure:
    """A panel per quantity, a line per cell: mean over seeds and its 95 % t interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), dpi=130, layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        curves.draw(axes, cells, name, label)
    axes.legend(frameon=False, fontsize="small")
    seeds = next(iter(cells.values()))["settings"]["seeds"]
    figure.suptitle(f"ABS on {ENV}, {seeds} seeds")
    return figure
