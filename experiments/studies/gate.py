"""Self-play under a gate that leaks: how far reward and truth part, and when the solver fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAKS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
REWARDS = {  # of the solver and of the proposer
    "solver grounded, proposer grounded": ("grounded", "grounded"),
    "solver grounded, proposer intrinsic": ("grounded", "intrinsic"),
    "solver intrinsic, proposer grounded": ("intrinsic", "grounded"),
    "solver intrinsic, proposer intrinsic": ("intrinsic", "intrinsic"),
}
GROUNDED, PARADOX, INTRINSIC = (list(REWARDS)[i] for i in (0, 2, 3))
COMMON: dict[str, Any] = {
    "num_prompts": 32,
    "group_size": 8,
    "learning_rate": 1e-3,
    "pool_size": 128,
    "validation_tasks": 128,
    # As in the paper the solver knows its trade: it is right on half of the held-out tasks.
    "pretraining_steps": 3000,
    "pretraining_learning_rate": 1e-2,
    "pretraining_accuracy": 0.5,
}
ITERATIONS = 200
OPERATORS = 2  # at most, in the environment's expressions
CHANCE = 1 / 17


class Gate(study.Study):
    name = "gate"
    title = "Self-play under a gate that leaks"
    paper = (
        "Pu et al. 2026, Survive or Collapse: The Asymmetric Roles of Data Gating and Reward "
        "Grounding in Self-Play RL."
    )
    question = (
        "A proposer writes tasks, a solver learns from them, and an executor refuses what is no "
        "task; a leaking gate lets such tasks through with a random value. Is a tight gate enough, "
        "whatever the rewards? And does the gap between the solver's own reward and the truth "
        "open at a leak at which validation still holds?"
    )
    budget = (
        f"4 cells of 7 leaks, {ITERATIONS} iterations of 256 answers, 8 seeds: 12 minutes on two "
        "cores"
    )

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_prompts": 4, "width": 8, "pool_size": 32, "pretraining_steps": 2}
            cell = {"steps": 320, "seeds": 2, "leaks": [0.0, 1.0], "changes": COMMON | small}
            return {INTRINSIC: cell}
        return {
            name: {
                "steps": ITERATIONS * COMMON["num_prompts"] * COMMON["group_size"],
                "seeds": 8,
                "leaks": list(LEAKS),
                "changes": COMMON,
            }
            for name in REWARDS
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import jax.numpy as jnp

        import agents
        import envs_jax

        env, env_params = envs_jax.make("sequences/dsl")
        solver, proposer = REWARDS[cell]
        agent = agents.get("selfplay")(
            env,
            env_params.replace(most_operators=jnp.int32(OPERATORS)),
            total_steps=settings["steps"],
            solver_reward=solver,
            proposer_reward=proposer,
            **settings["changes"],
        )
        leaks, seeds = settings["leaks"], settings["seeds"]
        population = jaxrl.sweep(agent, {"gate_leak": leaks}, seeds=seeds).whole()
        metrics = population.history.metrics
        curves = {
            name: metrics[name].reshape(len(leaks), seeds, -1)
            for name in ("reward_gap", "validation_accuracy", "valid_proposals", "valid_tasks")
        }
        measures: dict[str, np.ndarray] = {}
        means: dict[str, dict[str, list[float]]] = {}
        for leak, gap, validation, proposals, tasks in zip(leaks, *curves.values(), strict=True):
            measures |= {
                named("gap", leak): last(gap),
                named("validation", leak): last(validation),
                named("gain", leak): last(validation) - validation[:, 0],
                named("onset", leak): onset(gap),
                named("valid_proposals", leak): last(proposals),
                named("valid_tasks", leak): last(tasks),
            }
            means[str(leak)] = {
                "gap": smooth(gap).mean(0).round(4).tolist(),
                "validation": smooth(validation).mean(0).round(4).tolist(),
            }
        return {
            "measures": {
                name: np.round(x.astype(float), 4).tolist() for name, x in measures.items()
            },
            "curves": means,
        }

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        columns = ("gap", "validation", "gain", "onset", "valid_proposals", "valid_tasks")
        headings = [
            "leak",
            "agreement minus accuracy, at the end",
            "validation accuracy, at the end",
            "its gain since the start",
            "iterations until the gap is 0.5",
            "proposals that are tasks",
            "pool's tasks that are some",
        ]
        return [
            study.Table(
                name,
                headings,
                [
                    [f"{leak:g}", *(self.text(cell["measures"][named(c, leak)]) for c in columns)]
                    for leak in cell["settings"]["leaks"]
                ],
            )
            for name, cell in cells.items()
        ]

    def claims(self) -> list[Claim]:
        return [
            Claim(
                "Behind a tight gate validation never falls, whatever the rewards (in the order of "
                "the tables): gain since the start, down to -0.02 for noise",
                lambda cells: [Interval.of(cells[cell][named("gain", 0.0)]) for cell in REWARDS],
                low=-0.02,
            ),
            Claim(
                "Without a gate, both rewards intrinsic: the gap is above 0.8 in the end",
                lambda cells: [Interval.of(cells[INTRINSIC][named("gap", 1.0)])],
                low=0.8,
            ),
            Claim(
                "and validation is at chance, within 0.05",
                lambda cells: [Interval.of(cells[INTRINSIC][named("validation", 1.0)])],
                high=CHANCE + 0.05,
            ),
            Claim(
                "No reward saves it without a gate: validation lost against the tight gate",
                lambda cells: [changed(cells, cell, "validation", 1.0, 0.0) for cell in REWARDS],
                high=0.0,
            ),
            Claim(
                "First stage: with intrinsic rewards the gap opens at a leak of 0.05 already",
                lambda cells: [changed(cells, INTRINSIC, "gap", 0.05, 0.0)],
                low=0.0,
            ),
            Claim(
                "where validation still holds, down to -0.05",
                lambda cells: [changed(cells, INTRINSIC, "validation", 0.05, 0.0)],
                low=-0.05,
            ),
            Claim(
                "Second stage: at 0.4 validation has fallen by 0.05 or more",
                lambda cells: [changed(cells, INTRINSIC, "validation", 0.4, 0.0)],
                high=-0.05,
            ),
            Claim(
                "Exploratory: without a gate a grounded proposer beside an intrinsic solver "
                "collapses earlier than an intrinsic one; iterations until the gap is 0.5",
                lambda cells: [
                    Interval.difference(
                        cells[PARADOX][named("onset", 1.0)], cells[INTRINSIC][named("onset", 1.0)]
                    )
                ],
                high=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"leaks": draw(cells)}


STUDY = Gate()


def named(measure: str, leak: float) -> str:
    return f"{measure} {leak:g}"


def last(values: np.ndarray) -> np.ndarray:
    """Means (seeds,) over the last tenth of the iterations (seeds, T)."""
    return values[:, -max(values.shape[1] // 10, 1) :].mean(axis=1)


def smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Means over the newest `width` iterations, (seeds, T) as it was."""
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, values.shape[1] + 1)
    starts = np.maximum(ends - width, 0)
    means: np.ndarray = (sums[:, ends] - sums[:, starts]) / (ends - starts)
    return means


def onset(gap: np.ndarray, bound: float = 0.5) -> np.ndarray:
    """The iterations (seeds,) until the smoothed gap is above `bound`; T + 1 if it never is."""
    above = smooth(gap) > bound
    return np.where(above.any(axis=1), above.argmax(axis=1) + 1, gap.shape[1] + 1).astype(float)


def changed(
    cells: Mapping[str, Measures], cell: str, measure: str, leak: float, other: float
) -> Interval:
    """How much more a cell has of a measure at one leak than at another."""
    return Interval.difference(
        cells[cell][named(measure, leak)], cells[cell][named(measure, other)]
    )


def draw(cells: Mapping[str, Any]) -> Figure:
    """Gap and validation accuracy over the leak, with intervals; below, over the iterations."""
    from matplotlib.figure import Figure

    lines = {
        "gap": ("C3", "gap: agreement - accuracy"),
        "validation": ("C0", "validation accuracy"),
    }
    size = (1 + 3.2 * len(cells), 5.8)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(2, len(cells), sharey=True, squeeze=False)
    for column, (name, cell) in zip(grid.T, cells.items(), strict=True):
        leaks = cell["settings"]["leaks"]
        above, below = column
        above.set_title(name.replace(", ", "\n"), fontsize="medium")
        for measure, (colour, label) in lines.items():
            means = [Interval.of(cell["measures"][named(measure, leak)]) for leak in leaks]
            mean, low, high = np.array(means).T
            above.plot(leaks, mean, "o-", color=colour, ms=3.5, label=label, linewidth=1.6)
            above.fill_between(leaks, low, high, color=colour, alpha=0.15, linewidth=0)
            for leak in leaks:
                curve = cell["curves"][str(leak)][measure]
                below.plot(curve, color=colour, alpha=0.25 + 0.75 * leak, linewidth=1)
        above.set_xscale("symlog", linthresh=0.05)
        above.set_xticks(leaks, [f"{leak:g}" for leak in leaks], fontsize="x-small")
        above.minorticks_off()
        above.set_xlabel("leak of the gate")
        below.set_xlabel("iterations (darker: more leak)")
        for axes in column:
            axes.axhline(CHANCE, color="0.5", linewidth=0.8, linestyle=":")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
    grid[0, 0].set_ylim(0, 1)
    grid[0, 0].set_ylabel("in the end")
    grid[1, 0].set_ylabel("during training")
    grid[0, 0].legend(frameon=False, fontsize="small", loc="upper left")
    return figure
