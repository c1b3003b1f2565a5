"""What offline agents reach from D4RL-style sets of one environment, as a table and a figure.

`python -m experiments.studies.offline_table ENV --data DIR [--seeds N] [--steps N]` reads the sets that
`jaxrl collect AGENT ENV --out DIR` made, trains every agent on each of them, and writes
experiments/results/offline/ENV.json, .md and .png. Scores are normalised between the random and
the expert policy of that collection: they are not D4RL scores. Cells are written as they come; the
same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "results" / "offline"
KINDS = ("random", "medium", "medium-replay", "medium-expert")
CONTINUOUS: dict[str, tuple[str, dict[str, Any]]] = {
    "BC": ("bc", {}),
    "10% BC": ("bc", {"best": 0.1}),
    "TD3+BC": ("td3bc", {}),
    "IQL": ("iql", {}),
    "AWAC": ("awac", {}),
    "CQL": ("cql", {}),
    "naive SAC": ("sac", {"num_updates": 100}),
}
DISCRETE: dict[str, tuple[str, dict[str, Any]]] = {
    "BC": ("bc", {}),
    "10% BC": ("bc", {"best": 0.1}),
    "IQL": ("iql", {}),
    "AWAC": ("awac", {}),
    "CQL": ("discretecql", {}),
    "naive DQN": ("dqn", {"num_updates": 100}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("env", metavar="ENV")
    parser.add_argument("--data", type=Path, required=True, help="folder of `jaxrl collect`")
    parser.add_argument("--steps", type=int, default=20_000, help="gradient steps of each agent")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden-sizes", default="64x64", help="of every network")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--reward-scale",
        type=float,
        default=1.0,
        help="of IQL and AWAC, whose weights are exp of advantages in rewards' units",
    )
    parser.add_argument("--evaluations", type=int, default=10, help="during training")
    parser.add_argument("--episodes", type=int, default=64, help="of each evaluation")
    args = parser.parse_args()

    import jaxrl

    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    import agents
    import envs_jax
    from envs_jax import datasets
    from experiments.command.report import Meter, number
    from experiments.runs.collect import path_of
    from jaxrl import spaces
    from jaxrl.report.stats import mean_ci
    from jaxrl.training import engine

    env, env_params = envs_jax.make(args.env)
    rows = DISCRETE if spaces.is_discrete(env.action_space(env_params)) else CONTINUOUS
    recordings = {
        kind: datasets.read(path_of(args.data, args.env, kind), env, env_params) for kind in KINDS
    }
    info = recordings["random"].info
    settings: dict[str, Any] = {
        "env": args.env,
        "steps": args.steps,
        "seeds": args.seeds,
        "hidden_sizes": args.hidden_sizes,
        "batch_size": args.batch_size,
        "reward_scale": args.reward_scale,
        "evaluations": args.evaluations,
        "episodes": args.episodes,
        "collected_by": str(info["agent"]),
        "random_return": float(info["random_return"]),
        "expert_return": float(info["expert_return"]),
        "data": {
            kind: {
                "steps": len(recording),
                "episodes": len(recording.episode_returns),
                "score": float(np.asarray(recording.score(recording.episode_returns)).mean()),
            }
            for kind, recording in recordings.items()
        },
    }
    path = FOLDER / f"{args.env.replace('/', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    there = _scores_there(path, settings)
    scores = {name: there.get(name, {}) for name in rows}
    missing = [(kind, name) for kind in KINDS for name in rows if kind not in scores[name]]
    data = {kind: recordings[kind].dataset(env, env_params) for kind, _ in missing}
    with Meter(len(missing) * args.seeds * args.steps) as meter:
        for kind, name in missing:
            agent_name, changes = rows[name]
            if agent_name in ("iql", "awac"):
                changes = changes | {"reward_scale": args.reward_scale}
            cls: Any = agents.get(agent_name)
            agent = cls(
                env=env,
                env_params=env_params,
                data=data[kind],
                total_steps=args.steps,
                batch_size=args.batch_size,
                hidden_sizes=tuple(map(int, args.hidden_sizes.split("x"))),
                **changes,
            )
            population = jaxrl.sweep(
                agent,
                seeds=args.seeds,
                evaluations=args.evaluations,
                episodes=args.episodes,
                callbacks=[meter],
            ).whole()
            last = population.evaluate(args.episodes).returns.mean(axis=1)
            best = population.history.evaluations["returns"].mean(axis=2).max(axis=1)
            cell: dict[str, Any] = {}
            for label, returns in (("last", last), ("best", best)):
                normalised = np.asarray(recordings[kind].score(returns))
                mean, low, high = mean_ci(normalised)
                cell[label] = {
                    "mean": float(mean),
                    "ci95": [float(low), float(high)],
                    "scores": normalised.tolist(),
                }
            cell["q_mean"] = _final(population.history.metrics.get("q_mean"))
            scores[name][kind] = cell
            path.write_text(json.dumps({**settings, "scores": scores}, indent=1) + "\n")
            # Programs map memory, of which there is a limited number: a table's are too many.
            engine.forget_programs()
            meter.say(f"{kind:14s} {name:10s} {number(cell['last']['mean'])}")
    results = {**settings, "scores": scores}
    path.with_suffix(".md").write_text(table(results))
    draw(results, path.with_suffix(".png"))


def _scores_there(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The cells that an earlier run of the same settings on the same data has written."""
    if not path.exists():
        return {}
    results = json.loads(path.read_text())
    scores: dict[str, Any] = results.pop("scores")
    return scores if results == settings else {}


def _final(values: Any) -> float | None:
    """The mean over members at the end, where there is such a metric."""
    return None if values is None else float(np.asarray(values)[:, -1].mean())


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: last and best scores with their 95 % intervals."""
    lines = [
        f"# {results['env']}",
        "",
        "{seeds} seeds, {steps:,} gradient steps on batches of {batch_size}, networks "
        "{hidden_sizes}; reward_scale of IQL and AWAC {reward_scale:g}. Scores: 0 is the random "
        "policy's return ({random_return:.1f}), 100 the expert's ({expert_return:.1f}) of this "
        "collection; these are not D4RL scores. Last policy with its 95 % interval over seeds, in "
        "brackets behind it the best of {evaluations} evaluations during training.".format(
            **results
        ),
        "",
        "| agent | " + " | ".join(KINDS) + " |",
        "|---|" + "---|" * len(KINDS),
    ]
    data = [f"{results['data'][kind]['score']:.1f}" for kind in KINDS]
    lines.append("| the data itself | " + " | ".join(data) + " |")
    for name, cells in results["scores"].items():
        texts = []
        for kind in KINDS:
            last, best = cells[kind]["last"], cells[kind]["best"]
            low, high = last["ci95"]
            texts.append(f"{last['mean']:.1f} [{low:.1f}, {high:.1f}] ({best['mean']:.1f})")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """A panel for each set, a bar for each agent: last score and its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), dpi=130, layout="constrained")
    names = list(results["scores"])
    places = np.arange(len(names))
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        cells = [results["scores"][name][kind]["last"] for name in names]
        means = np.asarray([cell["mean"] for cell in cells])
        low, high = np.asarray([cell["ci95"] for cell in cells]).T
        axes.bar(places, means, yerr=[means - low, high - means], color="C0", alpha=0.7, capsize=3)
        axes.axhline(results["data"][kind]["score"], color="black", linestyle=":", linewidth=1)
        axes.set_title(kind, fontsize="medium")
        axes.set_xticks(places, names, rotation=60, ha="right", fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score (dotted: the data)")
    panels[0].set_ylim(min(-10, panels[0].get_ylim()[0]), 130)
    figure.suptitle(f"{results['env']}, {results['seeds']} seeds")
    figure.savefig(path)


if __name__ == "__main__":
    main()
