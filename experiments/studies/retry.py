"""RePPO beside PPO on MinAtar: what the advantages of further attempts change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENVS = ("Breakout-MinAtar", "SpaceInvaders-MinAtar")
CODES: dict[str, dict[str, Any]] = {
    "PPO": {},
    "RePPO M=1": {"attempts": 1.0},  # the critic alone: advantages are Q - V
    "RePPO M=1.2": {"attempts": 1.2},
    "RePPO M=2": {"attempts": 2.0},
}
# Those of both agents: what differs is the critic and the advantage. Of the released settings
# (1,024 environments) these have the epochs, lambda, discount and clip range.
COMMON: dict[str, Any] = {
    "num_envs": 16,
    "num_steps": 128,
    "num_epochs": 3,
    "num_minibatches": 8,
    "learning_rate": 2.5e-3,
    "gae_lambda": 0.8,
    "activation": "relu",
}


class Retry(study.Study):
    name = "retry"
    title = "PPO that may try again"
    paper = "Nishimori et al. 2026 (ReMax, RePPO); Schulman et al. 2017 (PPO)."
    question = (
        "The advantages of RePPO are expected improvements on M - 1 further attempts. Does it "
        "return more than PPO at equal steps and hyper-parameters, and is that its critic of all "
        "actions (M = 1) or the attempts (M = 1.2, the released value, and M = 2)?"
    )
    budget = "8 cells of 500,000 steps, 8 seeds: 15 minutes on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_envs": 4, "num_steps": 16, "num_minibatches": 2}
            changes = CODES["RePPO M=1.2"] | small
            return {f"{ENVS[0]}/RePPO M=1.2": {"steps": 512, "seeds": 2, "changes": changes}}
        return {
            f"{env}/{code}": {"steps": 500_000, "seeds": 8, "changes": COMMON | changes}
            for env in ENVS
            for code, changes in CODES.items()
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import agents
        import envs_jax
        from jaxrl.report.plots import bin_episodes

        env_name, code = cell.split("/")
        env, env_params = envs_jax.make(env_name)
        cls = agents.get(code.split()[0].lower())
        agent = cls(env, env_params, total_steps=settings["steps"], **settings["changes"])
        population = jaxrl.sweep(agent, seeds=settings["seeds"]).whole()
        metrics = population.history.metrics
        steps, returns = bin_episodes(
            population.history.env_steps, metrics["episode_return"], metrics["episodes"], bins=50
        )
        measures = {
            "final_return": population.evaluate().returns.mean(axis=1),
            "training_return": np.nanmean(returns, axis=1),
            "last_entropy": metrics["entropy"][:, -1],
        }
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "curve": {"steps": steps.tolist(), "returns": np.round(returns, 3).tolist()},
        }

    def claims(self) -> list[Claim]:
        def differences(measure: str, code: str, other: str) -> Any:
            return lambda cells: [
                interval
                for env in ENVS
                for interval in gain(f"{env}/{code}", [f"{env}/{other}"], measure)(cells)
            ]

        games = " and ".join(env.removesuffix("-MinAtar") for env in ENVS)
        return [
            Claim(
                f"RePPO with M = 1.2 returns more than PPO in the end ({games}); differences",
                differences("final_return", "RePPO M=1.2", "PPO"),
                low=0.0,
            ),
            Claim(
                "It learns faster, too: mean return of all training episodes",
                differences("training_return", "RePPO M=1.2", "PPO"),
                low=0.0,
            ),
            Claim(
                "It is the attempts: M = 1.2 returns more in the end than M = 1",
                differences("final_return", "RePPO M=1.2", "RePPO M=1"),
                low=0.0,
            ),
            Claim(
                "More attempts keep a policy exploring: M = 2 ends with more entropy than M = 1",
                differences("last_entropy", "RePPO M=2", "RePPO M=1"),
                low=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"curves": draw(cells)}


STUDY = Retry()


def draw(cells: Mapping[str, Any]) -> Figure:
    """A panel for each game: mean over seeds of training returns and its 95 % interval."""
    from matplotlib.figure import Figure

    from jaxrl.report.stats import mean_ci

    envs = list(dict.fromkeys(cell.split("/")[0] for cell in cells))
    figure = Figure(figsize=(1 + 4.6 * len(envs), 3.8), dpi=130, layout="constrained")
    for axes, env in zip(figure.subplots(1, len(envs), squeeze=False)[0], envs, strict=True):
        for i, code in enumerate(CODES):
            cell = cells.get(f"{env}/{code}")
            if cell is None:
                continue
            steps = np.asarray(cell["curve"]["steps"])
            mean, low, high = mean_ci(np.asarray(cell["curve"]["returns"], dtype=float))
            axes.plot(steps / 1000, mean, color=f"C{i}", label=code, linewidth=1.6)
            axes.fill_between(steps / 1000, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
            final = Interval.of(cell["measures"]["final_return"]).mean
            axes.plot(steps[-1] / 1000 * 1.03, final, "<", color=f"C{i}", ms=5, clip_on=False)
        axes.plot([], [], "<", color="0.4", ms=5, label="final policy, its mode")
        axes.set_title(env, fontsize="medium")
        axes.set_xlabel("environment steps (thousands)")
        axes.set_ylabel("return of training episodes")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    return figure
