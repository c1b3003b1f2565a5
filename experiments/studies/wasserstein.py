"""WPO beside SAC on two tasks, and its mixture beside other estimators on a two-peak bandit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import curves, disagreement, study, two_peaks
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxrl.training.population import Population

ENVS = disagreement.ENVS
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SAC": ("sac", {"temperature_learning_rate": 1e-3}),
    # The released limit of deviations, 1e-6, and 20 samples are of runs a hundred times as long.
    "WPO": ("wpo", {"num_samples": 4, "max_std_kl": 1e-4}),
}
TEMPERATURES = (0.03, 0.3)  # members of one population
COMPONENTS = 5
ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {  # five critic values per state, all three
    "WPO": (
        "wpo",
        {"num_samples": 1, "target_period": 20, "max_mean_kl": 1e-2, "max_std_kl": 1e-3},
    ),
    "MRP": ("mixturesac", {"temperature_learning_rate": 0.0}),
    "likelihood ratio": (
        "mixturesac",
        {"temperature_learning_rate": 0.0, "estimator": "likelihood_ratio"},
    ),
}
BANDIT: dict[str, Any] = {
    "num_envs": 8,
    "num_updates": 4,
    "batch_size": 128,
    "buffer_size": 20_000,
    "learning_rate": 1e-3,
    "hidden_sizes": [64, 64],
    "num_components": COMPONENTS,
}
MEASURES = {  # of the bandit, and what `two_peaks.measure` calls them
    "distance": "total_variation_to_boltzmann",
    "lesser_peak": "lesser_peak_share",
    "reward": "mean_reward",
}
LESS = 0.1  # share of SAC's return that WPO may lack
NEAR = 0.02  # of total variation, that is no difference


class Wasserstein(study.Study):
    name = "wasserstein"
    title = "Policies that flow along the critic"
    paper = (
        "Pfau et al. 2025 (WPO); Haarnoja et al. 2018 (SAC); He, Neumann, Mei, White & White 2026 "
        "(mixture policies)."
    )
    question = (
        "Does a normal that flows along the critic's gradient inside of a trust region return what "
        "SAC does, and does a mixture that flows find both peaks of the bandit as well as those "
        "whose gradient is reparameterised (MRP) or a likelihood ratio?"
    )
    budget = (
        "4 cells of 20,000 or 100,000 steps, 3 of 12,000 on the bandit, 8 seeds: 15 minutes on "
        "two cores"
    )

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small: dict[str, Any] = {"num_envs": 4, "num_updates": 1, "batch_size": 16}
            small |= {"learning_starts": 64, "hidden_sizes": [8]}
            wpo = AGENTS["WPO"][1] | small
            flow = BANDIT | ESTIMATORS["WPO"][1] | small
            return {
                "Pendulum-v1/WPO": {"steps": 1200, "seeds": 2, "changes": wpo},
                "bandit/WPO": {"steps": 400, "seeds": 2, "changes": flow},
            }
        tasks = {
            f"{env}/{agent}": {
                "steps": of_env["steps"],
                "seeds": 8,
                "changes": of_env["changes"] | own,
            }
            for env, of_env in ENVS.items()
            for agent, (_, own) in AGENTS.items()
        }
        return tasks | {
            f"bandit/{estimator}": {"steps": 12_000, "seeds": 8, "changes": BANDIT | own}
            for estimator, (_, own) in ESTIMATORS.items()
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        if cell.startswith("bandit/"):
            return of_bandit(ESTIMATORS[cell.removeprefix("bandit/")][0], settings)
        env, _, agent = cell.rpartition("/")
        population = disagreement.learn(AGENTS[agent][0], env, settings)
        history, steps = population.history, settings["steps"]
        returns = curves.binned(history.env_steps, history.metrics["episode_return"], steps)
        measures = {
            "final_return": population.evaluate().returns.mean(axis=1),
            "training_return": np.nanmean(returns, axis=1),
            "last_entropy": history.metrics["entropy"][:, -1],
        }
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "curves": {"episode_return": np.round(returns, 3).tolist()},
        }

    def claims(self) -> list[Claim]:
        def at_each(measure: str) -> Any:
            return lambda cells: [
                Interval.of(cells["bandit/WPO"][f"{measure}_at_{t:g}"]) for t in TEMPERATURES
            ]

        def further(other: str) -> Any:
            return lambda cells: [
                interval
                for t in TEMPERATURES
                for interval in gain("bandit/WPO", [f"bandit/{other}"], f"distance_at_{t:g}")(cells)
            ]

        def beside_sac(env: str) -> Any:
            return lambda cells: [disagreement.relative(cells, env, "WPO", "SAC")]

        temperatures = ", ".join(f"{t:g}" for t in TEMPERATURES)
        return [
            *(
                Claim(
                    f"WPO returns what SAC does within {LESS:.0%} on {env}; share more",
                    beside_sac(env),
                    low=-LESS,
                    high=LESS,
                )
                for env in ENVS
            ),
            Claim(
                f"A mixture that flows ends within total variation 0.1 of the Boltzmann density "
                f"(temperatures {temperatures})",
                at_each("distance"),
                high=0.1,
            ),
            Claim(
                f"It ends no further from it than by MRP, but {NEAR}, at each temperature",
                further("MRP"),
                high=NEAR,
            ),
            Claim(
                f"It ends no further from it than by likelihood ratios, but {NEAR}",
                further("likelihood ratio"),
                high=NEAR,
            ),
            Claim(
                "It keeps both peaks at every temperature: at least 0.3 of its actions in the "
                "lesser",
                at_each("lesser_peak"),
                low=0.3,
            ),
        ]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        tables = []
        for title, of_bandit in (("Tasks", False), ("Two-peak bandit", True)):
            rows = {k: v for k, v in cells.items() if k.startswith("bandit/") == of_bandit}
            if rows:
                tables.append(super().tables(rows)[0]._replace(title=title))
        return tables

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        tasks = {k: v for k, v in cells.items() if not k.startswith("bandit/")}
        figures = {"tasks": draw_tasks(tasks)} if tasks else {}
        bandit = {k: v for k, v in cells.items() if k.startswith("bandit/")}
        return figures | ({"bandit": draw_bandit(bandit)} if bandit else {})


STUDY = Wasserstein()


def of_bandit(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How a mixture's actions lie on the two-peak bandit at each temperature, a value per seed."""
    population = learn_bandit(name, settings)
    actions = two_peaks.actions_of(population).reshape(len(TEMPERATURES), settings["seeds"], -1)
    measures: dict[str, list[float]] = {}
    for temperature, of_seeds in zip(TEMPERATURES, actions, strict=True):
        rows = [two_peaks.measure(of_seed, temperature) for of_seed in of_seeds]
        for label, key in MEASURES.items():
            measures[f"{label}_at_{temperature:g}"] = [round(row[key], 4) for row in rows]
    shares = [two_peaks.shares(of_seeds[0]) for of_seeds in actions]
    return {"measures": measures, "shares": np.round(shares, 5).tolist()}


def learn_bandit(name: str, settings: Mapping[str, Any]) -> Population:
    """A member for each temperature, which is held, and each seed."""
    import jaxrl

    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    import agents
    from envs_jax import bandits

    env = bandits.TwoPeaks()
    changes = dict(settings["changes"])
    changes["hidden_sizes"] = tuple(changes["hidden_sizes"])
    cls: Any = agents.get(name)
    agent = cls(env, env.default_params, total_steps=settings["steps"], **changes)
    temperatures = {"temperature": list(TEMPERATURES)}
    return jaxrl.sweep(agent, temperatures, seeds=settings["seeds"]).whole()


def draw_tasks(cells: Mapping[str, Any]) -> Figure:
    """A panel per task: returns of training episodes, a line per agent."""
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(cell.rpartition("/")[0] for cell in cells))
    figure = Figure(figsize=(1 + 4.6 * len(envs), 3.8), dpi=130, layout="constrained")
    for axes, env in zip(figure.subplots(1, len(envs), squeeze=False)[0], envs, strict=True):
        of_env = {a: cells[f"{env}/{a}"] for a in AGENTS if f"{env}/{a}" in cells}
        curves.draw(axes, of_env, "episode_return", "return of training episodes")
        axes.set_title(env, fontsize="medium")
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def draw_bandit(cells: Mapping[str, Any]) -> Figure:
    """A row per estimator, a column per temperature: the first seed's actions and the density."""
    from matplotlib.figure import Figure

    estimators = [e for e in ESTIMATORS if f"bandit/{e}" in cells]
    size = (3.4 * len(TEMPERATURES), 0.4 + 1.9 * len(estimators))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(len(estimators), len(TEMPERATURES), sharex=True, squeeze=False)
    places, edges = np.linspace(-1, 1, 401), np.linspace(-1, 1, two_peaks.BINS + 1)
    for row, estimator in zip(grid, estimators, strict=True):
        row[0].set_ylabel(estimator)
        shares = cells[f"bandit/{estimator}"]["shares"]
        for axes, temperature, share in zip(row, TEMPERATURES, shares, strict=True):
            axes.stairs(np.asarray(share) * two_peaks.BINS / 2, edges, fill=True, alpha=0.55)
            axes.plot(places, two_peaks.boltzmann(temperature, places), color="black", lw=1.0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_yticks([])
            axes.set_ylim(bottom=0)
    for axes, temperature in zip(grid[0], TEMPERATURES, strict=True):
        axes.set_title(f"temperature {temperature:g}", fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("action")
    return figure
