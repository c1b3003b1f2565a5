"""VPO beside GRPO on answers between two objectives: sets that are good whatever counts.

Each agent writes as many rollouts. With one answer to a rollout, GRPO learns what fixed weights of
both objectives like best; with a set of three that is the paper's Multi-RLVR; VPO has sets of three
and random weights. What they have learnt is compared by as many answers: nine of each.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS: dict[str, tuple[str, int]] = {  # agent, answers to a rollout
    "GRPO": ("grpo", 1),
    "Multi-RLVR": ("grpo", 3),
    "VPO": ("vpo", 3),
}
CHANGES: dict[str, Any] = {"num_prompts": 32, "group_size": 8, "width": 32, "learning_rate": 3e-3}
ITERATIONS = 400
ANSWERS, SET = 9, 3
PANELS = {
    "best_of_9": "best of 9 answers, random weights",
    "coverage": "share of what the whole front is worth",
    "on_the_front": "different answers of the front among 3",
    "one_rollout": "best of a rollout, the fixed weights",
}


class VectorRewards(study.Study):
    name = "vector_rewards"
    title = "Sets of answers to vector rewards"
    paper = "Bahlous-Boldi et al. 2026 (VPO); Shao et al. 2024 (GRPO)."
    question = (
        "Does a policy that is trained by the best of a set under random weights write sets that "
        "cover the front of two objectives, and what does that cost by fixed weights?"
    )
    budget = f"3 cells of {ITERATIONS * 256:,} rollouts, 8 seeds: minutes on two cores"
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        quick = scale == "quick"
        few = {"num_prompts": 2, "width": 8} if quick else {}
        return {
            f"pareto/{name}": {
                "iterations": 4 if quick else ITERATIONS,
                "seeds": 2 if quick else 8,
                "agent": agent,
                "answers": answers,
                "changes": CHANGES | few,
            }
            for name, (agent, answers) in ARMS.items()
            if not quick or name == "VPO"
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import jax

        import agents
        import envs_jax

        size = settings["answers"]
        env, env_params = envs_jax.make("sequences/pareto", answers=size)
        agent = agents.get(settings["agent"])(env, env_params, **settings["changes"])
        agent = agent.replace(total_steps=agent.steps_per_iteration * settings["iterations"])
        population = jaxrl.sweep(agent, seeds=settings["seeds"]).whole()
        ((_, run),) = population.batches  # one program

        def write(params: Any) -> Any:
            prompts = agent.fresh_prompts(jax.random.key(1), 256)
            tokens = agent.sample(params, prompts, jax.random.key(2), ANSWERS // size)[0]
            return tokens.reshape(256, ANSWERS)  # the answers of a rollout in a row

        tokens = np.asarray(jax.jit(jax.vmap(write))(run.state.params))
        measures = worth(tokens, np.asarray(env.vectors(env_params)), size)
        measures["last_entropy"] = population.history.metrics["entropy"][:, -1]
        counts = np.stack([np.bincount(x.ravel(), minlength=env.vocabulary) for x in tokens])
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "tokens": (counts.sum(axis=0) / counts.sum()).round(4).tolist(),
        }

    def claims(self) -> list[Claim]:
        others = ["pareto/GRPO", "pareto/Multi-RLVR"]
        return [
            Claim(
                "By random weights the best of nine answers is worth more with VPO (than GRPO's; "
                "Multi-RLVR's)",
                gain("pareto/VPO", others, "best_of_9"),
                low=0.0,
            ),
            Claim(
                "They are worth at least 98 % of what the whole front is",
                lambda cells: [Interval.of(cells["pareto/VPO"]["coverage"])],
                low=0.98,
            ),
            Claim(
                "Of three answers more than 2.5 are different ones of the front; of GRPO's less "
                "than 2 (difference to 2)",
                lambda cells: [
                    Interval.of(np.asarray(cells["pareto/VPO"]["on_the_front"]) - 2.5),
                    Interval.of(2 - np.asarray(cells["pareto/GRPO"]["on_the_front"])),
                ],
                low=0.0,
            ),
            Claim(
                "By the fixed weights the best of one rollout is within 5 % of GRPO's (quotient)",
                lambda cells: [quotient(cells, "one_rollout")],
                low=0.95,
            ),
            Claim(
                "and so is a single answer (quotient)",
                lambda cells: [quotient(cells, "one_answer")],
                low=0.95,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"fronts": draw(cells)}


STUDY = VectorRewards()


def quotient(cells: Mapping[str, Any], measure: str) -> Interval:
    """VPO's measure over the mean of GRPO's."""
    mine, theirs = (np.asarray(cells[f"pareto/{name}"][measure]) for name in ("VPO", "GRPO"))
    return Interval.of(mine / theirs.mean())


def worth(tokens: np.ndarray, vectors: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """What tokens (seeds, draws, 9) are worth that stand for vectors (V, 2), a value per seed.

    The fixed weights are 1/2 and 1/2. Random ones are uniform, as Dirichlet(1, 1) is.
    """
    middle = (np.arange(256) + 0.5) / 256
    weights = np.stack([middle, 1 - middle])  # (2, K)
    by_weight = vectors @ weights  # (V, K)
    seeds = range(len(tokens))
    # A seed at a time: its draws x answers x weights are many numbers.
    best = np.asarray([by_weight[tokens[seed]].max(axis=1).mean() for seed in seeds])
    fixed = vectors.mean(axis=-1)[tokens]  # (seeds, draws, 9)
    ordered = np.sort(tokens[..., :SET], axis=-1)
    is_new = np.concatenate(
        [np.ones_like(ordered[..., :1], bool), ordered[..., 1:] != ordered[..., :-1]], axis=-1
    )
    is_front = ordered < len(vectors) // 2
    return {
        "best_of_9": best,
        "coverage": best / by_weight.max(axis=0).mean(),
        "on_the_front": (is_new & is_front).sum(axis=-1).mean(axis=-1),
        "one_rollout": fixed[..., :size].max(axis=-1).mean(axis=-1),
        "one_answer": fixed.mean(axis=(1, 2)),
    }


def draw(cells: Mapping[str, Any]) -> Figure:
    """Which answers of the front each agent writes, and what they are worth, a dot per seed."""
    from matplotlib.figure import Figure

    names = [cell.split("/")[1] for cell in cells]
    figure = Figure(figsize=(13, 3.6), dpi=130, layout="constrained")
    shares, *panels = figure.subplots(1, 1 + len(PANELS), width_ratios=[2] + [1] * len(PANELS))
    for place, (name, cell) in enumerate(zip(names, cells.values(), strict=True)):
        front = np.asarray(cell["tokens"])[: len(cell["tokens"]) // 2]
        shares.plot(np.arange(len(front)), front, "o-", ms=3, color=f"C{place}", label=name)
        for axes, measure in zip(panels, PANELS, strict=True):
            values = np.asarray(cell["measures"][measure])
            axes.scatter(
                np.full(len(values), place), values, s=14, color=f"C{place}", alpha=0.5, linewidth=0
            )
    shares.set_xticks(range(0, len(front), 3))
    shares.set_xlabel("bin of the front")
    shares.set_ylabel("share of all answers")
    shares.legend(frameon=False, fontsize="small")
    for axes, label in zip(panels, PANELS.values(), strict=True):
        axes.set_title(textwrap.fill(label, 20), fontsize="small")
        axes.set_xticks(range(len(names)), names, rotation=30, fontsize="small")
        axes.set_xlim(-0.5, len(names) - 0.5)
    for axes in (shares, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure
