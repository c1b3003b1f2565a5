"""PPO's clip range cut hard, kept at random beyond (NSR), by as much in the mean, or widened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, Measures, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENVS: dict[str, dict[str, Any]] = {  # steps, and what differs from PPO's defaults
    "CartPole-v1": {
        "steps": 50_000,
        "changes": {"num_envs": 4, "num_minibatches": 4, "learning_rate": 1e-3},
    },
    "Breakout-MinAtar": {
        "steps": 300_000,
        "changes": {"num_envs": 16, "learning_rate": 2.5e-3, "activation": "relu"},
    },
    "sums": {
        "steps": 51_200,  # answers
        "changes": {
            "num_prompts": 32,
            "num_minibatches": 4,
            "learning_rate": 1e-3,
            "pretraining_steps": 300,
        },
    },
}
SEQUENCES = {"sums": "sequences/sum"}  # of those that GRPO learns, and PPO all others
RULES: dict[str, dict[str, Any]] = {
    "hard": {},
    "noise": {"clip_rule": "noise", "clip_noise": 0.2},
    "decay": {"clip_rule": "decay", "clip_noise": 0.2},
    "wider": {"clip_range": 0.3},  # where noise of 0.2 still keeps every third step
}
EPOCHS = (4, 8)
PANELS = {
    "final_return": "final return",
    "clip_fraction": "share of steps (tokens) outside the range",
}


class NoisyClip(study.Study):
    name = "noisy_clip"
    title = "Beyond the clip range: cut, noisy or decaying"
    paper = (
        "NSR (noisy clipping of the probability ratio), here in PPO (Schulman et al. 2017) and in "
        "GRPO (Shao et al. 2024)."
    )
    question = (
        "Passes over a rollout drive steps out of the clip range, where the hard rule cuts their "
        "gradient. Does PPO, or GRPO on sums of two digits, gain where noise keeps some of it at "
        "random, and is that more than its mean, a gradient that decays, or than a wider range?"
    )
    budget = "24 cells of 50,000 or 300,000 steps, 8 seeds: 15 minutes on two cores"
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_envs": 4, "num_steps": 16, **RULES["noise"]}
            cell = {"steps": 512, "seeds": 2, "changes": small | {"num_epochs": 4}}
            return {"CartPole-v1/noise 4": cell}
        return {
            f"{env}/{rule} {epochs}": {
                "steps": of_env["steps"],
                "seeds": 8,
                "changes": of_env["changes"] | changes(env, rule) | {"num_epochs": epochs},
            }
            for env, of_env in ENVS.items()
            for epochs in EPOCHS
            for rule in RULES
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

        name = cell.split("/")[0]
        env, env_params = envs_jax.make(SEQUENCES.get(name, name))
        agent = agents.get("grpo" if name in SEQUENCES else "ppo")(
            env, env_params, total_steps=settings["steps"], **settings["changes"]
        )
        population = jaxrl.sweep(agent, seeds=settings["seeds"]).whole()
        steps, metrics = population.history.env_steps, population.history.metrics
        returns = bin_episodes(steps, metrics["episode_return"], metrics["episodes"])[1]
        measures = {
            "final_return": population.evaluate().returns.mean(axis=1),
            "training_return": np.nanmean(returns, axis=1),
            "clip_fraction": np.nanmean(metrics["clip_fraction"], axis=1),
        }
        if "kept_fraction" in metrics:
            measures["kept_fraction"] = np.nanmean(metrics["kept_fraction"], axis=1)
        return {"measures": {name: np.round(x, 4).tolist() for name, x in measures.items()}}

    def claims(self) -> list[Claim]:
        pairs = [(f"{env}/", f" {epochs}") for env in ENVS for epochs in EPOCHS]
        where = ", ".join(f"{env}{epochs}" for env, epochs in pairs).replace("/", "")
        of_breakout = [pair for pair in pairs if "Breakout" in pair[0]]

        def differences(
            measure: str, rule: str, other: str, pairs: list[tuple[str, str]] = pairs
        ) -> Any:
            return lambda cells: [
                interval
                for env, epochs in pairs
                for interval in gain(f"{env}{rule}{epochs}", [f"{env}{other}{epochs}"], measure)(
                    cells
                )
            ]

        return [
            Claim(
                f"Noise is never worse than the hard rule by more than 5 % ({where}); share of it",
                lambda cells: [relative(cells, *pair, "noise", "hard") for pair in pairs],
                low=-0.05,
            ),
            Claim(
                "Noise returns more than the hard rule on Breakout with 4 and 8 epochs",
                differences("final_return", "noise", "hard", of_breakout),
                low=0.0,
            ),
            Claim(
                "Its seeds lie closer together there: mean distance from their median",
                lambda cells: [spread(cells, *pair, "noise", "hard") for pair in of_breakout],
                high=0.0,
            ),
            Claim(
                "Fewer steps end outside the clip range than with the hard rule, everywhere",
                differences("clip_fraction", "noise", "hard"),
                high=0.0,
            ),
            Claim(
                "Fewer steps are outside and not kept than are outside with the hard rule",
                lambda cells: [lost(cells, *pair, "noise", "hard") for pair in pairs],
                high=0.0,
            ),
            Claim(
                "The draw does what its mean does: noise returns within 5 % of decay",
                lambda cells: [relative(cells, *pair, "noise", "decay") for pair in pairs],
                low=-0.05,
                high=0.05,
            ),
            Claim(
                "Noise returns more than a range of 0.3 on Breakout with 4 and 8 epochs",
                differences("final_return", "noise", "wider", of_breakout),
                low=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"rules": draw(cells)}


STUDY = NoisyClip()


def changes(env: str, rule: str) -> dict[str, Any]:
    """A rule's settings by the names of the agent that learns there."""
    if env in SEQUENCES and rule == "wider":
        return {"clip_low": 0.3, "clip_high": 0.3}
    return RULES[rule]


def relative(
    cells: Mapping[str, Measures], env: str, epochs: str, rule: str, other: str
) -> Interval:
    """How much more a rule returns in the end than another, as a share of the other's mean."""
    mine, theirs = (
        np.asarray(cells[f"{env}{name}{epochs}"]["final_return"]) for name in (rule, other)
    )
    return Interval.difference(mine / theirs.mean(), theirs / theirs.mean())


def spread(cells: Mapping[str, Measures], env: str, epochs: str, rule: str, other: str) -> Interval:
    """Difference of the mean distances of final returns from their median (Brown-Forsythe)."""
    mine, theirs = (
        np.asarray(cells[f"{env}{name}{epochs}"]["final_return"]) for name in (rule, other)
    )
    return Interval.difference(abs(mine - np.median(mine)), abs(theirs - np.median(theirs)))


def lost(cells: Mapping[str, Measures], env: str, epochs: str, rule: str, other: str) -> Interval:
    """Difference of the shares of steps that are outside the clip range and that nothing kept."""
    shares = []
    for name in (rule, other):
        measures = cells[f"{env}{name}{epochs}"]
        outside = np.asarray(measures["clip_fraction"])
        shares.append(outside - np.asarray(measures.get("kept_fraction", np.zeros_like(outside))))
    return Interval.difference(*shares)


def draw(cells: Mapping[str, Any]) -> Figure:
    """A column for each environment: every seed a dot, mean and 95 % interval beside them."""
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(cell.split("/")[0] for cell in cells))
    rules = [r for r in RULES if any(f"/{r} " in cell for cell in cells)]
    figure = Figure(figsize=(1 + 4.2 * len(envs), 5.6), dpi=130, layout="constrained")
    grid = figure.subplots(len(PANELS), len(envs), sharex=True, squeeze=False)
    for row, (measure, label) in zip(grid, PANELS.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, env in zip(row, envs, strict=True):
            for i, epochs in enumerate(EPOCHS):
                colour, shift = f"C{i}", 0.36 * i - 0.18
                for place, rule in enumerate(rules):
                    cell = cells.get(f"{env}/{rule} {epochs}")
                    if cell is None:
                        continue
                    values = np.asarray(cell["measures"][measure])
                    mean, low, high = Interval.of(values)
                    dots = np.full(len(values), place + shift + 0.05)
                    axes.scatter(dots, values, s=9, color=colour, alpha=0.5, linewidth=0)
                    bar = [[mean - low], [high - mean]] if len(values) > 1 else None
                    axes.errorbar(place + shift - 0.05, mean, bar, fmt="o", color=colour, ms=4)
            axes.set_xticks(range(len(rules)), rules)
            axes.set_xlim(-0.5, len(rules) - 0.5)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    for axes, env in zip(grid[0], envs, strict=True):
        axes.set_title(env, fontsize="medium")
    for i, epochs in enumerate(EPOCHS):
        grid[0][0].errorbar([], [], fmt="o", color=f"C{i}", ms=4, label=f"{epochs} epochs")
    grid[0][0].legend(frameon=False, fontsize="small", loc="lower right")
    return figure
