"""What offline agents make of D4RL-style sets of one environment.

The sets are those of `jaxrl collect`, made where they are missing. Scores are normalised between
the random and the expert policy of that collection: they are not D4RL scores.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from envs_jax.datasets import Recording

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
# Environment -> agent that collects its sets, table of agents, settings of all of them.
# `reward_scale` is IQL's and AWAC's, whose weights are exp of advantages in rewards' units.
ENVS: dict[str, tuple[str, dict[str, tuple[str, dict[str, Any]]], dict[str, Any]]] = {
    "CartPole-v1": ("dqn", DISCRETE, {"steps": 8000, "seeds": 6, "evaluations": 4, "episodes": 32}),
    "Pendulum-v1": (
        "sac",
        CONTINUOUS,
        {"steps": 8000, "seeds": 6, "evaluations": 4, "episodes": 32, "reward_scale": 0.03},
    ),
    "brax/hopper": (
        "ppo",
        CONTINUOUS,
        {"steps": 8000, "seeds": 6, "evaluations": 2, "episodes": 16, "reward_scale": 0.1},
    ),
    "brax/halfcheetah": (
        "sac",
        CONTINUOUS,
        {"steps": 5000, "seeds": 5, "evaluations": 2, "episodes": 8, "reward_scale": 0.1},
    ),
}


class Offline(study.Study):
    name = "offline"
    title = "Offline agents on sets of different quality"
    paper = (
        "Fu et al. 2020 (D4RL), Fujimoto & Gu 2021 (TD3+BC), Kostrikov et al. 2021 (IQL), Nair et "
        "al. 2020 (AWAC), Kumar et al. 2020 (CQL)."
    )
    question = (
        "Which agents gain on cloning what a random, a medium, a learning and a half-expert policy "
        "did, and what do agents without conservatism make of it?"
    )
    budget = "4 collections and 108 cells of 5,000 or 8,000 gradient steps, 5 or 6 seeds: hours"
    digits = 1

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            few = {"steps": 100, "seeds": 2, "evaluations": 1, "episodes": 2}
            settings = {"hidden_sizes": [8], "batch_size": 16, "reward_scale": 1.0, **few}
            return {
                "CartPole-v1/data": {"agent": "ppo", "seed": 0, "size": 400, "steps": 2048},
                "CartPole-v1/medium/BC": settings,
                "CartPole-v1/medium/naive DQN": settings,
            }
        cells: dict[str, dict[str, Any]] = {}
        for env, (collector, rows, changes) in ENVS.items():
            cells[f"{env}/data"] = {"agent": collector, "seed": 0, "size": 100_000, "steps": None}
            settings = {"hidden_sizes": [64, 64], "batch_size": 128, "reward_scale": 1.0, **changes}
            cells |= {f"{env}/{kind}/{row}": settings for kind in KINDS for row in rows}
        return cells

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        if cell.endswith("/data"):
            env_id = cell.removesuffix("/data")
            return describe(collect(env_id, settings, context.work))
        env_id, kind, row = cell.rsplit("/", 2)
        known = context.cells.get(f"{env_id}/data")
        if known is None:
            raise ValueError(f"{cell} needs {env_id}/data: run that cell first")
        recordings = collect(env_id, known["settings"], context.work)
        if describe(recordings)["measures"] != known["measures"]:
            raise ValueError(
                f"{context.work / 'data' / env_id} does not hold the sets that the kept cells of "
                f"{env_id} were trained on: run the study anew into another folder (--out)"
            )
        return train(env_id, row, settings, recordings[kind])

    def claims(self) -> list[Claim]:
        return [claim for env in ENVS for claim in claims_of(env)]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        return [self.table(env, cells) for env in ENVS if f"{env}/data" in cells]

    def table(self, env: str, cells: Mapping[str, Any]) -> study.Table:
        """Last score with its interval, in brackets behind it the best during training."""

        def text(kind: str, row: str) -> str:
            measures = cells.get(f"{env}/{kind}/{row}", {}).get("measures")
            if measures is None:
                return "-"
            best = np.mean(measures["best_score"])
            return f"{self.text(measures['score'])} ({best:.1f})"

        data = cells[f"{env}/data"]["measures"]
        rows = [["the data itself", *(self.text(data[kind]) for kind in KINDS)]]
        rows += [[row, *(text(kind, row) for kind in KINDS)] for row in ENVS[env][1]]
        low, high = (data[f"{kind}_return"][0] for kind in ("random", "expert"))
        title = f"{env}: score (0: random, {low:,.1f}; 100: expert, {high:,.1f})"
        return study.Table(title, ["agent", *KINDS], rows)

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {env.replace("/", "-"): draw(env, cells) for env in ENVS if f"{env}/data" in cells}


STUDY = Offline()


def claims_of(env: str) -> list[Claim]:
    """What the papers state, as differences of scores on one environment's sets."""
    rows = ENVS[env][1]

    def over_cloning(row: str, *kinds: str) -> Any:
        def intervals(cells: Mapping[str, Any]) -> list[Interval]:
            return [
                x
                for kind in kinds
                for x in gain(f"{env}/{kind}/{row}", [f"{env}/{kind}/BC"], "score")(cells)
            ]

        return intervals

    def over_data(cells: Mapping[str, Any]) -> list[Interval]:
        scores = np.asarray(cells[f"{env}/medium/BC"]["score"])
        return [Interval.of(scores - cells[f"{env}/data"]["medium"][0])]

    naive = next(row for row in rows if row.startswith("naive"))
    claims = [
        Claim(f"{env}: cloning scores as medium data does, give or take 10", over_data, -10, 10),
        Claim(
            f"{env}: {naive} scores less than cloning on medium and medium-expert",
            over_cloning(naive, "medium", "medium-expert"),
            high=0.0,
        ),
    ]
    return claims + [
        Claim(
            f"{env}: {row} scores more than cloning on medium and medium-replay",
            over_cloning(row, "medium", "medium-replay"),
            low=0.0,
        )
        for row in ("TD3+BC", "IQL", "AWAC", "CQL")
        if row in rows
    ]


def collect(env_id: str, settings: Mapping[str, Any], work: Path) -> dict[str, Recording]:
    """The environment's sets by kind, recorded first where they are missing."""
    import envs_jax
    from envs_jax import datasets
    from experiments.command.assemble import Request, assemble
    from experiments.runs import collect
    from jaxrl.training.meter import Meter

    folder = work / "data" / env_id
    if not all(collect.path_of(folder, env_id, kind).exists() for kind in KINDS):
        experiment = assemble(
            Request(settings["agent"], env_id, seeds=[settings["seed"]], steps=settings["steps"])
        )
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        collect.check_folder(unfinished, env_id)
        with Meter(experiment.total_steps) as meter:
            recordings = collect.collect(experiment, settings["size"], meter)
        collect.write(recordings, unfinished, experiment)
        unfinished.rename(folder)
    env, env_params = envs_jax.make(env_id)
    return {
        kind: datasets.read(collect.path_of(folder, env_id, kind), env, env_params)
        for kind in KINDS
    }


def describe(recordings: Mapping[str, Recording]) -> dict[str, Any]:
    """The cell of a collection: the mean score of each set's whole episodes, and what scores are
    normalised by.
    """
    info = recordings["random"].info
    scores = {
        kind: [float(np.asarray(recording.score(recording.whole_returns)).mean())]
        for kind, recording in recordings.items()
    }
    ends = {name: [float(info[name])] for name in ("random_return", "expert_return")}
    sizes = {
        kind: {"steps": len(recording), "episodes": len(recording.episode_returns)}
        for kind, recording in recordings.items()
    }
    return {"measures": scores | ends, "sizes": sizes}


def train(
    env_id: str, row: str, settings: Mapping[str, Any], recording: Recording
) -> dict[str, Any]:
    """Scores of the last and of the best policies of a row's agent on one set, per seed."""
    import agents
    import envs_jax
    import jaxrl
    from jaxrl.training.engine import forget_programs
    from jaxrl.training.meter import Meter

    env, env_params = envs_jax.make(env_id)
    agent_name, changes = ENVS[env_id][1][row]
    if agent_name in ("iql", "awac"):
        changes = changes | {"reward_scale": settings["reward_scale"]}
    cls: Any = agents.get(agent_name)
    agent = cls(
        env=env,
        env_params=env_params,
        data=recording.dataset(env, env_params),
        total_steps=settings["steps"],
        batch_size=settings["batch_size"],
        hidden_sizes=tuple(settings["hidden_sizes"]),
        **changes,
    )
    with Meter(settings["seeds"] * settings["steps"]) as meter:
        population = jaxrl.sweep(
            agent,
            seeds=settings["seeds"],
            evaluations=settings["evaluations"],
            episodes=settings["episodes"],
            callbacks=[meter],
        ).whole()
    last = population.evaluate(settings["episodes"]).returns.mean(axis=1)
    history = population.history
    best = history.evaluations["returns"].mean(axis=2).max(axis=1)
    measures = {
        name: np.asarray(recording.score(returns)).tolist()
        for name, returns in (("score", last), ("best_score", best))
    }
    if "q_mean" in history.metrics:
        measures["q_mean"] = history.metrics["q_mean"][:, -1].tolist()
    # Programs map memory, of which there is a limited number: a table's are too many.
    forget_programs()
    return {"measures": measures}


def draw(env: str, cells: Mapping[str, Any]) -> Figure:
    """A panel for each set, a bar for each agent: last score and its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        names = [row for row in ENVS[env][1] if f"{env}/{kind}/{row}" in cells]
        scores = [cells[f"{env}/{kind}/{row}"]["measures"]["score"] for row in names]
        if names:
            mean, low, high = np.asarray([Interval.of(x) for x in scores]).T
            axes.bar(names, mean, yerr=[mean - low, high - mean], color="C0", alpha=0.7, capsize=3)
            axes.tick_params("x", rotation=60, labelsize="small")
        axes.axhline(
            cells[f"{env}/data"]["measures"][kind][0], color="black", linestyle=":", linewidth=1
        )
        axes.set_title(kind, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score (dotted: the data)")
    panels[0].set_ylim(min(-10, panels[0].get_ylim()[0]), 130)
    figure.suptitle(env)
    return figure
