"""RL without a verifier: how agreement and certainty collapse, and what KL-Cov does to that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REWARDS: dict[str, dict[str, float]] = {
    "certainty": {"agreement_weight": 0.0},
    "agreement": {"certainty_weight": 0.0},
    "both": {},
}
RULES: dict[str, dict[str, float]] = {
    "": {"cov_coef": 0.0},  # the same program, without its effect
    " + KL-Cov": {"cov_coef": 0.1},  # the strongest that RLIF uses
    " + KL-Cov 1": {"cov_coef": 1.0},  # the released coefficient
}
COMMON: dict[str, Any] = {
    "rewards": "intrinsic",
    "cov_rule": "kl",
    "cov_share": 0.02,
    "num_prompts": 32,
    "group_size": 8,
    "num_minibatches": 4,
    "learning_rate": 3e-4,  # with ten times that the base is lost within five iterations
    "pretraining_steps": 1000,
    "pretraining_accuracy": 0.55,
}
ANSWERS = 10  # there are
PANELS = {
    "accuracy": "accuracy",
    "entropy": "entropy per token",
    "commonest_share": "commonest answer, share",
}


class Collapse(study.Study):
    name = "collapse"
    title = "RL without a verifier, and its collapses"
    paper = (
        "Multi-reward RL from internal feedback: GDPO (Liu et al. 2026) with KL-Cov (Cui et al. "
        "2025)."
    )
    question = (
        "A policy that answers every other sum rightly is rewarded for what a group agrees on, for "
        "its own certainty, or for both. Does either reward collapse, the one into a policy "
        "without entropy, the other into one answer to everything? And does KL-Cov stop that?"
    )
    budget = "9 cells of 400 iterations of 256 answers, 8 seeds: 5 minutes on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_prompts": 4, "width": 8, "pretraining_steps": 2}
            changes = COMMON | RULES[" + KL-Cov"] | small
            return {"both + KL-Cov": {"steps": 320, "seeds": 2, "changes": changes}}
        return {
            f"{reward}{rule}": {
                "steps": 400 * COMMON["num_prompts"] * COMMON["group_size"],
                "seeds": 8,
                "changes": COMMON | weights | of_rule,
            }
            for rule, of_rule in RULES.items()
            for reward, weights in REWARDS.items()
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import agents
        import envs_jax

        env, env_params = envs_jax.make("sequences/sum")
        agent = agents.get("gdpo")(
            env, env_params, total_steps=settings["steps"], **settings["changes"]
        )
        metrics = jaxrl.sweep(agent, seeds=settings["seeds"]).whole().history.metrics
        number = max(metrics["accuracy"].shape[1] // 20, 1)

        def ends(name: str) -> tuple[np.ndarray, np.ndarray]:
            """Of the base, in the first iteration; means over the last twentieth of all."""
            return metrics[name][:, 0], metrics[name][:, -number:].mean(axis=1)

        start, end = ends("accuracy")
        measures = {
            "base_accuracy": start,
            "accuracy_at_last": end,
            "gain": end - start,
            "base_entropy": ends("entropy")[0],
            "entropy_at_last": ends("entropy")[1],
            "agreement": ends("agreement")[1],
            "commonest_share": ends("commonest_share")[1],
            "iterations_to_half_the_entropy": halved(metrics["entropy"]),
        }
        curves = {name: metrics[name].mean(0).round(4).tolist() for name in PANELS}
        return {
            "measures": {
                name: np.round(x.astype(float), 4).tolist() for name, x in measures.items()
            },
            "curves": curves,
        }

    def claims(self) -> list[Claim]:
        def of(cell: str, measure: str) -> Any:
            return lambda cells: [Interval.of(cells[cell][measure])]

        return [
            Claim(
                "Certainty alone: the entropy vanishes",
                of("certainty", "entropy_at_last"),
                high=0.05,
            ),
            Claim(
                "while accuracy stays at the base's, within 0.1",
                of("certainty", "gain"),
                low=-0.1,
                high=0.1,
            ),
            Claim(
                "Agreement alone: all of a group agree",
                of("agreement", "agreement"),
                low=0.95,
            ),
            Claim(
                "on one answer to every prompt",
                of("agreement", "commonest_share"),
                low=0.9,
            ),
            Claim(
                "so that accuracy is that of a constant, within 0.05",
                of("agreement", "accuracy_at_last"),
                high=1 / ANSWERS + 0.05,
            ),
            Claim(
                "Both with KL-Cov (0.1, 1): accuracy is never below the base's in the end",
                lambda cells: [
                    Interval.of(cells[f"both{rule}"]["gain"]) for rule in list(RULES)[1:]
                ],
                low=0.0,
            ),
            Claim(
                "KL-Cov (0.1, 1) slows the collapse of both: more iterations to half the entropy",
                lambda cells: [
                    slower(cells, rule, "iterations_to_half_the_entropy")
                    for rule in list(RULES)[1:]
                ],
                low=0.0,
            ),
            Claim(
                "and keeps accuracy that is lost without it",
                lambda cells: [slower(cells, rule, "gain") for rule in list(RULES)[1:]],
                low=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"curves": draw(cells)}


STUDY = Collapse()


def halved(entropy: np.ndarray) -> np.ndarray:
    """The iterations (seeds,) until (seeds, T) is below half its start; T + 1 where it never is."""
    below = entropy < 0.5 * entropy[:, :1]
    return np.where(below.any(axis=1), below.argmax(axis=1) + 1, entropy.shape[1] + 1).astype(float)


def slower(cells: Mapping[str, Measures], rule: str, measure: str) -> Interval:
    """How much more of a measure both rewards have with KL-Cov than without."""
    return Interval.difference(cells[f"both{rule}"][measure], cells["both"][measure])


def draw(cells: Mapping[str, Any]) -> Figure:
    """A row for each quantity, a column for each reward, a line for each rule: means over seeds."""
    from matplotlib.figure import Figure

    rewards = [r for r in REWARDS if any(cell.split(" ")[0] == r for cell in cells)]
    size = (1 + 3.2 * len(rewards), 1 + 2.1 * len(PANELS))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(len(PANELS), len(rewards), sharex=True, sharey="row", squeeze=False)
    for row, (name, label) in zip(grid, PANELS.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, reward in zip(row, rewards, strict=True):
            for i, rule in enumerate(RULES):
                cell = cells.get(f"{reward}{rule}")
                if cell is not None:
                    text = f"KL-Cov {RULES[rule]['cov_coef']:g}" if rule else "without KL-Cov"
                    axes.plot(cell["curves"][name], color=f"C{i}", label=text, linewidth=1.4)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
        row[0].set_ylim(bottom=0)  # of all, when all is drawn
    for axes, reward in zip(grid[0], rewards, strict=True):
        axes.set_title(reward, fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("iterations")
    grid[0, 0].legend(frameon=False, fontsize="small")
    return figure
