"""Steps on curvature (TRPO, ACGN1, ACGN2) beside first-order ones: exact, learnt, and their time.

Populations of TRPO and of PPO take turns, so that whatever else the machine does disturbs both;
what counts is processor time, of all threads, after a first turn that compiles.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import curves, study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
EXACT = {
    "gradient": "policy gradient",
    "natural": "natural gradient",
    "acgn1": "ACGN1",
    "acgn2": "ACGN2",
}
ENVS = {"CartPole-v1": 300_000, "Acrobot-v1": 300_000}
THRESHOLD = {"CartPole-v1": 450.0, "Acrobot-v1": -110.0}  # mean returns of training that count
COLLECT = ["num_envs=16", "num_steps=128", "gae_lambda=0.97"]
AGENTS: dict[str, tuple[str, list[str]]] = {
    "ACGN1": ("secondorder", ["curvature=surrogate"]),
    "ACGN2": ("secondorder", ["curvature=log_prob"]),
    "TRPO": ("trpo", []),
    "PPO": ("ppo", ["learning_rate=1e-3", "num_epochs=10"]),
    "A2C": ("a2c", ["learning_rate=3e-3"]),
}
MAX_KL = 0.01
POPULATION = "population/CartPole-v1"
TURNS = ("trpo", "ppo")  # with the same rollouts, networks, epochs and minibatches
SIZES = ["num_envs=4", "num_steps=128", "num_epochs=4", "num_minibatches=4"]


class SecondOrder(study.Study):
    name = "second_order"
    title = "Second-order steps"
    paper = (
        "Manivannan & Shuban V 2026 (second-order actor-critic by decomposing the policy's "
        "Hessian); Schulman et al. 2015 (TRPO)."
    )
    question = (
        "How many updates do Newton steps on the policy's Hessian need where everything is exact, "
        "on random Markov decision processes, and what do they return where everything is learnt, "
        "beside first-order methods on the same steps? What does a step of TRPO take beside one of "
        "PPO, in populations of 64?"
    )
    budget = (
        "4 cells of 20 decision processes, 10 of 300,000 steps, 8 seeds, one of populations: "
        "20 minutes on two cores"
    )

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            return {
                "exact/acgn1": {"processes": 2, "step_sizes": [1.0]},
                "CartPole-v1/ACGN1": {"steps": 2048, "seeds": 2, "hyperparameters": COLLECT},
                POPULATION: {"steps": 512, "members": 2, "rounds": 2, "hyperparameters": SIZES},
            }
        exact = {f"exact/{m}": {"processes": 20, "step_sizes": list(STEP_SIZES)} for m in EXACT}
        turns = {"steps": 4096, "members": 64, "rounds": 5, "hyperparameters": SIZES}
        learnt = {
            f"{env}/{agent}": {"steps": steps, "seeds": 8, "hyperparameters": COLLECT + own}
            for env, steps in ENVS.items()
            for agent, (_, own) in AGENTS.items()
        }
        return exact | learnt | {POPULATION: turns}

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()  # before anything computes
        kind, name = cell.split("/")
        if kind == "exact":
            return {"measures": exact(name, settings["processes"], settings["step_sizes"])}
        if cell == POPULATION:
            return {"measures": population(name, settings)}
        return learnt(name, kind, settings)

    def claims(self) -> list[Claim]:
        def differences(measure: str, method: str, *others: str) -> Any:
            return gain(f"exact/{method}", [f"exact/{other}" for other in others], measure)

        def of_envs(measure: str, agent: str, other: str) -> Any:
            return lambda cells: [
                Interval.difference(
                    cells[f"{env}/{agent}"][measure], cells[f"{env}/{other}"][measure]
                )
                for env in ENVS
            ]

        return [
            Claim(
                "Exact, step size 1: ACGN1 needs fewer updates than the policy gradient, the "
                "natural gradient and ACGN2; differences",
                differences("updates_at_1", "acgn1", "gradient", "natural", "acgn2"),
                high=0.0,
            ),
            Claim(
                "Exact, each with the step size that suits it: ACGN1 needs fewer updates than "
                "the policy gradient and the natural gradient; differences",
                differences("updates_at_best", "acgn1", "gradient", "natural"),
                high=0.0,
            ),
            *(
                Claim(
                    f"Learnt: {agent} reaches the threshold in fewer steps than A2C "
                    "(CartPole, Acrobot); differences in thousand steps",
                    of_envs("thousand_steps", agent, "A2C"),
                    high=0.0,
                )
                for agent in ("ACGN1", "ACGN2")
            ),
            Claim(
                "Learnt: ACGN1 returns as much as TRPO or more in the end (CartPole, Acrobot); "
                "differences",
                of_envs("final_return", "ACGN1", "TRPO"),
                low=0.0,
            ),
            Claim(
                f"No update of TRPO moves the policy by more than {MAX_KL} (largest KL divergence "
                "of each seed's run)",
                lambda cells: [Interval.of(cells[f"{env}/TRPO"]["largest_kl"]) for env in ENVS],
                high=MAX_KL,
            ),
            Claim(
                "64 members of TRPO are one program",
                lambda cells: [Interval.of(cells[POPULATION]["trpo_programs"])],
                low=1.0,
                high=1.0,
            ),
            Claim(
                "A step of theirs takes at most twice the time of one of PPO's; quotients",
                lambda cells: [Interval.of(cells[POPULATION]["trpo_over_ppo"])],
                high=2.0,
            ),
        ]

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        groups = {
            "Exact: updates until 99 % of what there is to gain": ["exact"],
            "Learnt, equal steps": list(ENVS),
            "Populations: processor time, in microseconds per step of an environment": [
                "population"
            ],
        }
        tables = []
        for title, kinds in groups.items():
            rows = {k: v for k, v in cells.items() if k.split("/")[0] in kinds}
            if rows:
                tables.append(super().tables(rows)[0]._replace(title=title))
        return tables

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"learning": draw(cells)} if any("curves" in cell for cell in cells.values()) else {}


STUDY = SecondOrder()


def exact(method: str, processes: int, step_sizes: list[float]) -> dict[str, list[float]]:
    """Updates that each of some random processes takes: a value per process."""
    import jax
    import jax.numpy as jnp

    from experiments.studies import policy_hessian

    with jax.enable_x64(True):
        mdps = jax.vmap(policy_hessian.random_mdp)(jax.random.split(jax.random.key(0), processes))

        @jax.jit
        def updates(size: jax.Array) -> jax.Array:
            return jax.vmap(lambda mdp: policy_hessian.iterations_to_best(method, mdp, size))(mdps)

        rows = {size: np.asarray(updates(jnp.float64(size))) for size in step_sizes}
    best = min(rows, key=lambda size: rows[size].mean())
    return {
        "updates_at_1": rows[1.0].tolist(),
        "updates_at_best": rows[best].tolist(),
        "best_step_size": [best],
    }


def learnt(name: str, env: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One agent's seeds on one environment."""
    import jaxrl
    from experiments.command.assemble import Request, assemble
    from jaxrl.training.meter import Meter

    steps, seeds = settings["steps"], settings["seeds"]
    request = Request(AGENTS[name][0], env, settings["hyperparameters"], steps=steps)
    with Meter(steps * seeds) as meter:
        population = jaxrl.sweep(assemble(request).agent, seeds=seeds, callbacks=[meter]).whole()
    history = population.history
    returns = curves.binned(history.env_steps, history.metrics["episode_return"], steps)
    measures = {
        "final_return": population.evaluate().returns.mean(axis=1).tolist(),
        "thousand_steps": [first(row, THRESHOLD[env], steps) / 1000 for row in returns],
    }
    if "kl" in history.metrics:
        measures["largest_kl"] = np.nanmax(history.metrics["kl"], axis=1).tolist()
    return {
        "measures": measures,
        "curves": {"episode_return": np.round(returns, 3).tolist()},
    }


def population(env: str, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Processor time per environment step of populations that take turns, a value per round."""
    import jaxrl
    from experiments.command.assemble import Request, assemble

    steps, members = settings["steps"], settings["members"]
    measures: dict[str, list[float]] = {}
    for turn in range(1 + settings["rounds"]):
        for name in TURNS:
            request = Request(name, env, settings["hyperparameters"], steps=steps)
            agent = assemble(request).agent
            programs: list[str] = []
            begin = time.process_time()
            jaxrl.sweep(agent, seeds=members, announce=programs.append)
            microseconds = 1e6 * (time.process_time() - begin) / (steps * members)
            announced = sum(line.startswith("program") for line in programs)
            measures.setdefault(f"{name}_programs", []).append(float(announced))
            if turn:  # the first compiles
                measures.setdefault(f"{name}_microseconds", []).append(microseconds)
    trpo, ppo = (np.asarray(measures[f"{name}_microseconds"]) for name in TURNS)
    measures["trpo_over_ppo"] = (trpo / ppo).tolist()
    return {k: [float(f"{x:.4g}") for x in values] for k, values in measures.items()}


def first(returns: np.ndarray, threshold: float, steps: int) -> float:
    """Steps until binned returns (BINS,) reach the threshold; all of them if they never do."""
    reached = np.flatnonzero(returns >= threshold)
    return steps * float((reached[0] + 1) / len(returns)) if len(reached) else float(steps)


def draw(cells: Mapping[str, Any]) -> Figure:
    """A panel per environment, a line per agent; those that there are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=130, layout="constrained")
    for axes, env in zip(figure.subplots(1, len(ENVS)), ENVS, strict=True):
        of_env = {a: cells[f"{env}/{a}"] for a in AGENTS if f"{env}/{a}" in cells}
        curves.draw(axes, of_env, "episode_return", "return of training episodes")
        axes.set_title(env)
    axes.legend(frameon=False, fontsize="small")
    return figure
