"""Grid, random search, successive halving and population-based training at equal steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxrl import Agent, Population

TASKS = {"ppo": "CartPole-v1", "sac": "Pendulum-v1"}
METHODS = ("grid", "random", "halving", "pbt")
LABELS = {"grid": "grid", "random": "random", "halving": "halving", "pbt": "PBT"}
LOWEST, HIGHEST = 1e-5, 1e-1  # learning rates
DISCOUNTS = 0.9, 0.999
ETA = 3
EPISODES = 64  # to measure a choice by

# Of a whole run. Halving 54 settings over three rungs takes as many as 14 of them: 54 for a ninth,
# 18 for two ninths more, 6 for the rest.
STEPS = {"ppo": 55_296, "sac": 7_200}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"num_envs": 4, "num_minibatches": 4},
    "sac": {
        "num_envs": 1,
        "num_updates": 1,
        "batch_size": 128,
        "buffer_size": 7_200,
        "learning_starts": 200,
        "hidden_sizes": (64, 64),
        "temperature_learning_rate": 1e-3,
    },
}


class Search(study.Study):
    name = "search"
    title = "Four ways to search at equal environment steps"
    paper = (
        "Bergstra & Bengio 2012 (random search); Jamieson & Talwalkar 2016, Li et al. 2018 "
        "(successive halving, Hyperband); Jaderberg et al. 2017 (population-based training)."
    )
    question = (
        "Learning rate (1e-5 to 1e-1) and discount (0.9 to 0.999) are unknown, and there are steps "
        "for 14 whole runs. What does the member return that a search would choose, the one with "
        "the best training returns over the last quarter of the run?"
    )
    budget = "8 cells, 8 repetitions each: about 15 minutes on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"halved": 18, "whole": 10, "rungs": 2, "repetitions": 2}
            return {f"ppo/{method}": {"steps": 4_608, **small} for method in METHODS}
        full = {"halved": 54, "whole": 14, "rungs": 3, "repetitions": 8}
        return {
            f"{task}/{method}": {"steps": STEPS[task], **full}
            for task in TASKS
            for method in METHODS
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        task, method = cell.split("/")
        agent = agent_of(task, settings["steps"])
        returns, steps, chosen = [], [], []
        for repetition in range(settings["repetitions"]):
            population = search(agent, method, settings, repetition)
            member, value = choice(population, repetition)
            returns.append(round(value, 2))
            steps.append(int(np.nansum(np.nanmax(population.history.env_steps, axis=1))))
            chosen.append({k: v for k, v in population.table[member].items() if k != "seed"})
        return {"measures": {"return": returns, "env_steps": steps}, "chosen": chosen}

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        """A row for each cell: its return, its steps, and the learning rates that it chose."""
        rows = []
        for name, cell in cells.items():
            rates = sorted(setting["learning_rate"] for setting in cell["chosen"])
            steps = np.mean(cell["measures"]["env_steps"])
            range_of = f"{rates[0]:.1e} to {rates[-1]:.1e}"
            rows.append([name, self.text(cell["measures"]["return"]), f"{steps:,.0f}", range_of])
        columns = ["", "return of the choice", "environment steps", "its learning rates"]
        return [study.Table("", columns, rows)]

    def claims(self) -> list[Claim]:
        def share(cells: Mapping[str, Any]) -> list[Interval]:
            return [
                Interval.of(
                    np.asarray(cells[f"{task}/{method}"]["env_steps"])
                    / np.asarray(cells[f"{task}/grid"]["env_steps"])
                )
                for task in TASKS
                for method in METHODS[1:]
            ]

        better = [
            (
                "random",
                "grid",
                "Random search chooses no worse than a grid (Bergstra & Bengio 2012)",
            ),
            ("halving", "random", "Halving chooses no worse than random search (Li et al. 2018)"),
            ("pbt", "random", "PBT ends no worse than random search (Jaderberg et al. 2017)"),
        ]
        return [
            Claim("All take as many steps as the grid, up to 1 %", share, low=0.99, high=1.01),
            *(
                Claim(
                    f"{task} on {env}: {text}", gain(f"{task}/{a}", [f"{task}/{b}"], "return"), 0.0
                )
                for a, b, text in better
                for task, env in TASKS.items()
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"returns": draw(cells)}


STUDY = Search()


def agent_of(task: str, steps: int) -> Agent:
    """The agent whose hyper-parameters are searched."""
    import jaxrl

    jaxrl.use_all_cores()  # before gymnax is imported, which starts JAX
    import agents
    import envs_jax

    env, env_params = envs_jax.make(TASKS[task])
    cls: Any = agents.get(task)
    agent: Agent = cls(env, env_params, total_steps=steps, **SETTINGS[task])
    return agent


def search(agent: Agent, method: str, settings: dict[str, Any], repetition: int) -> Population:
    """One repetition of one method, independent of all others."""
    import jaxrl

    seed = METHODS.index(method) * 1_000 + repetition
    whole, steps = settings["whole"], settings["steps"]
    space = {
        "learning_rate": jaxrl.Log(LOWEST, HIGHEST, whole // 2),
        "gamma": jaxrl.Lin(*DISCOUNTS, 2),
    }
    if method == "grid":
        population = jaxrl.sweep(agent, space, seeds=[seed])
    elif method == "random":
        population = jaxrl.sweep(agent, space, random=whole, search_seed=seed, seeds=[seed])
    elif method == "halving":
        first = steps // ETA ** (settings["rungs"] - 1)
        population = jaxrl.halving(
            agent,
            space,
            eta=ETA,
            fewest_steps=first,
            random=settings["halved"],
            search_seed=seed,
            seeds=[seed],
        )
    else:
        population = jaxrl.pbt(agent, space, random=whole, every=steps // 18, seed=seed)
    return population.whole()


def choice(population: Population, seed: int) -> tuple[int, float]:
    """The member that has learnt best by its training returns, and what it returns in fresh ones.

    Of a halving, of those in the last rung.
    """
    import jax

    import jaxrl

    members, run = population.batches[-1]
    stop = run.history.stop
    scores = run.history.returns_since(stop - math.ceil(stop / 4))
    best = int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))
    member = run[best]
    key = jaxrl.derive(jax.random.key(seed), jaxrl.Tag.TEST)
    evaluation = jaxrl.evaluate(member.agent, member.state, key, EPISODES)
    return members[best], float(np.mean(evaluation.returns))


def draw(cells: Mapping[str, Any]) -> Figure:
    """A dot per repetition, and each method's mean with its interval; a panel per task."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(cell.startswith(f"{task}/") for cell in cells)]
    figure = Figure(figsize=(3.6 * len(tasks), 3.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        there = [method for method in METHODS if f"{task}/{method}" in cells]
        for place, method in enumerate(there):
            returns = cells[f"{task}/{method}"]["measures"]["return"]
            spread = place + np.linspace(-0.16, 0.16, len(returns))
            style: dict[str, Any] = {"alpha": 0.45, "markersize": 4, "markeredgewidth": 0}
            axes.plot(spread, returns, "o", color="tab:blue", **style)
            mean, low, high = Interval.of(returns)
            axes.hlines(mean, place - 0.28, place + 0.28, color="tab:blue", linewidth=1.8)
            axes.vlines(place, low, high, color="tab:blue", linewidth=1.2)
        # Intervals of a few repetitions can be far wider than all that was seen: they are cut off.
        seen = np.concatenate([cells[f"{task}/{m}"]["measures"]["return"] for m in there])
        if seen.min() < seen.max():
            margin = 0.06 * (seen.max() - seen.min())
            axes.set_ylim(seen.min() - margin, seen.max() + margin)
        axes.set_xticks(range(len(there)), [LABELS[method] for method in there])
        axes.set_xlim(-0.5, len(there) - 0.5)
        axes.set_title(f"{task.upper()} on {TASKS[task]}", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel("return of the chosen member")
    return figure
