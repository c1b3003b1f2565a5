"""QED beside SAC: how far apart the policies of independent runs end, and at what return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import curves, study
from experiments.studies.claims import Claim, Interval, Measures, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxrl.training.population import Population

ENVS: dict[str, dict[str, Any]] = {  # steps, and the settings of all agents
    "Pendulum-v1": {
        "steps": 20_000,
        "changes": {
            "num_envs": 8,
            "num_updates": 8,
            "batch_size": 128,
            "buffer_size": 50_000,
            "learning_rate": 1e-3,
            "hidden_sizes": [64, 64],
        },
    },
    "brax/reacher": {
        "steps": 100_000,
        "changes": {
            "num_envs": 64,
            "num_updates": 16,
            "batch_size": 128,
            "buffer_size": 100_000,
            "learning_starts": 4_096,
            "learning_rate": 1e-3,
            "hidden_sizes": [64, 64],
            "normalize_observations": True,
            "gamma": 0.95,
        },
    },
}
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SAC": ("sac", {"temperature_learning_rate": 1e-3}),
    "QED": ("qed", {}),
    "QED, own targets": ("qed", {"target": "own"}),
}
STATES = {"num_envs": 16, "num_steps": 64}  # of each run, and of random actions
NEARER = 10.0  # times that QED's runs are to be, the weaker form of the paper's hundred
LESS = 0.1  # share of SAC's return that QED may lack


class Disagreement(study.Study):
    name = "disagreement"
    title = "Runs that end alike"
    paper = "Hussing et al. 2026 (QED); Haarnoja et al. 2018 (SAC)."
    question = (
        "A temperature in proportion to the critics' disagreement bounds how far two runs' "
        "policies can be apart. By how much are they nearer than SAC's, whose temperature follows "
        "an entropy, and what does it cost in return?"
    )
    budget = "6 cells of 20,000 or 100,000 steps, 8 seeds: 20 minutes on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_envs": 4, "num_updates": 1, "batch_size": 16, "learning_starts": 64}
            changes = small | {"hidden_sizes": [8]}
            return {"Pendulum-v1/QED": {"steps": 1200, "seeds": 2, "changes": changes}}
        return {
            f"{env}/{agent}": {
                "steps": of_env["steps"],
                "seeds": 8,
                "changes": of_env["changes"] | own,
            }
            for env, of_env in ENVS.items()
            for agent, (_, own) in AGENTS.items()
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        env, _, agent = cell.rpartition("/")
        population = learn(AGENTS[agent][0], env, settings)
        history, steps = population.history, settings["steps"]
        returns = curves.binned(history.env_steps, history.metrics["episode_return"], steps)
        heat = curves.binned(history.env_steps, history.metrics["temperature"], steps)
        measures: dict[str, np.ndarray] = {
            "final_return": np.asarray(population.evaluate().returns).mean(axis=1),
            "last_temperature": heat[:, -1],
            "last_entropy": history.metrics["entropy"][:, -1],
        }
        for states, values in cross_run(population).items():
            measures[f"log10_kl_at_{states}_states"] = values
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "curves": {
                "episode_return": np.round(returns, 3).tolist(),
                "temperature": np.round(heat, 5).tolist(),
            },
        }

    def claims(self) -> list[Claim]:
        def nearer(agent: str) -> Any:
            return lambda cells: [
                interval
                for env in ENVS
                for states in ("visited", "random")
                for interval in gain(
                    f"{env}/SAC", [f"{env}/{agent}"], f"log10_kl_at_{states}_states"
                )(cells)
            ]

        return [
            *(
                Claim(
                    f"{agent}: two runs are at least {NEARER:g} times nearer than two of SAC, at "
                    "states that they visit and at random ones (Pendulum, reacher); log10",
                    nearer(agent),
                    low=float(np.log10(NEARER)),
                )
                for agent in ("QED", "QED, own targets")
            ),
            Claim(
                f"QED returns no less than SAC by more than {LESS:.0%} of it (Pendulum, reacher); "
                "shares",
                lambda cells: [relative(cells, env, "QED", "SAC") for env in ENVS],
                low=-LESS,
            ),
            Claim(
                "Its final returns lie closer together: mean distance from their median, less "
                "SAC's (Pendulum, reacher)",
                lambda cells: [spread(cells, env, "QED", "SAC") for env in ENVS],
                high=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"runs": draw(cells)}


STUDY = Disagreement()


def learn(name: str, env_name: str, settings: Mapping[str, Any]) -> Population:
    """An agent's population of seeds."""
    import jaxrl

    jaxrl.use_all_cores()
    jaxrl.use_compilation_cache()
    import agents
    import envs_jax

    env, env_params = envs_jax.make(env_name)
    changes = dict(settings["changes"])
    changes["hidden_sizes"] = tuple(changes["hidden_sizes"])
    cls: Any = agents.get(name)
    agent = cls(env, env_params, total_steps=settings["steps"], **changes)
    return jaxrl.sweep(agent, seeds=settings["seeds"]).whole()


def cross_run(population: Population) -> dict[str, np.ndarray]:
    """log10 of the divergence of each disjoint pair of runs, at two kinds of shared states.

    "visited": those that all runs together visit as they explore; "random": those of random
    actions, the same for every agent on an environment. Nothing of it is paid for in training.
    """
    import jax
    import jax.numpy as jnp

    from jaxrl import spaces
    from jaxrl.parts.rollout import reset, rollout
    from jaxrl.report.divergence import normal_divergences, of_disjoint_pairs

    num_envs, num_steps = STATES["num_envs"], STATES["num_steps"]

    @jax.jit  # agent and state are pytrees: one program for all runs
    def states(agent: Any, state: Any, key: jax.Array, is_random: jax.Array) -> jax.Array:
        def act(obs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, tuple[()]]:
            seen = agent.normalize(state.obs_moments, obs)
            drawn = spaces.random_action(agent.action_space, key, num_envs, None)
            chosen = agent.explore(state.learner, seen, key, jnp.float32(1))
            action = jnp.where(is_random, drawn, chosen)
            return action, agent.env_action(action), ()

        actors = reset(key, agent.env, agent.env_params, num_envs)
        steps = rollout(key, agent.env, agent.env_params, actors, act, num_steps)[1]
        return steps.obs.reshape(num_envs * num_steps, -1)

    @jax.jit
    def policies(agent: Any, state: Any, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        dist = agent.distribution(state.learner.actor, agent.normalize(state.obs_moments, obs))
        return dist.mean, dist.log_std

    runs = [population[i] for i in range(len(population))]
    keys = jax.random.split(jax.random.key(0), len(runs))
    shared = {
        "visited": [
            states(r.agent, r.state, k, jnp.bool_(False)) for r, k in zip(runs, keys, strict=True)
        ],
        "random": [states(runs[0].agent, runs[0].state, keys[0], jnp.bool_(True))],
    }
    result = {}
    for kind, obs in shared.items():
        of_runs = [policies(run.agent, run.state, jnp.concatenate(obs)) for run in runs]
        mean, log_std = (np.stack(x) for x in zip(*of_runs, strict=True))
        result[kind] = np.log10(of_disjoint_pairs(normal_divergences(mean, log_std)))
    return result


def relative(cells: Mapping[str, Measures], env: str, agent: str, other: str) -> Interval:
    """How much more an agent returns in the end, as a share of the other's mean."""
    mine, theirs = (np.asarray(cells[f"{env}/{a}"]["final_return"]) for a in (agent, other))
    scale = abs(theirs.mean())
    return Interval.difference(mine / scale, theirs / scale)


def spread(cells: Mapping[str, Measures], env: str, agent: str, other: str) -> Interval:
    """Difference of the mean distances of final returns from their median (Brown-Forsythe)."""
    mine, theirs = (np.asarray(cells[f"{env}/{a}"]["final_return"]) for a in (agent, other))
    return Interval.difference(abs(mine - np.median(mine)), abs(theirs - np.median(theirs)))


def draw(cells: Mapping[str, Any]) -> Figure:
    """A row per environment: training returns, temperatures, and how far apart runs end."""
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(cell.rpartition("/")[0] for cell in cells))
    figure = Figure(figsize=(12.5, 0.6 + 3.2 * len(envs)), dpi=130, layout="constrained")
    for row, env in zip(figure.subplots(len(envs), 3, squeeze=False), envs, strict=True):
        of_env = {a: cells[f"{env}/{a}"] for a in AGENTS if f"{env}/{a}" in cells}
        curves.draw(row[0], of_env, "episode_return", f"{env}\nreturn of training episodes")
        curves.draw(row[1], of_env, "temperature", "mean temperature")
        row[1].set_yscale("log")
        row[1].legend(frameon=False, fontsize="small")
        for place, cell in enumerate(of_env.values()):
            for states, marker, shift in (("visited", "o", -0.12), ("random", "s", 0.12)):
                pairs = cell["measures"][f"log10_kl_at_{states}_states"]
                label = f"{states} states" if place == 0 else None
                places = np.full(len(pairs), place + shift)
                row[2].scatter(places, pairs, s=16, marker=marker, color=f"C{place}", label=label)
        row[2].set_xticks(range(len(of_env)), of_env)
        row[2].set(ylabel="log10 KL of two runs", xlim=(-0.5, len(of_env) - 0.5))
        row[2].spines[["top", "right"]].set_visible(False)
        row[2].grid(axis="y", alpha=0.25, linewidth=0.6)
        row[2].legend(frameon=False, fontsize="small")
    return figure
