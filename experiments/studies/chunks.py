"""ACSAC beside fixed chunk lengths, from a noisy expert's steps in a sparse maze."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from envs_jax.datasets import Recording

NOISES = ("0", "0.05", "0.1")  # deviation of the noise in each move, of which one is 0.15
LENGTHS = (1, 2, 5)
AGENTS: dict[str, dict[str, Any]] = {
    "ACSAC": {"chunk_lengths": LENGTHS},
    "ACSAC by advantage": {"chunk_lengths": LENGTHS, "length_by": "advantage"},
    **{f"fixed {length}": {"chunk_lengths": (length,)} for length in LENGTHS},
}
COMMON: dict[str, Any] = {
    "num_updates": 100,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "gamma": 0.97,
    "tau": 0.01,
    "num_samples": 4,
    "flow_steps": 5,
    "hidden_sizes": [64, 64],
    "width": 32,
    "layers": 1,
    "heads": 2,
}
DATA = {"num_envs": 32, "num_steps": 600}  # of the expert
DETOUR = 5  # steps that it goes astray, when it does
MORE = 1.1  # times the best fixed length's steps that ACSAC may take


class Chunks(study.Study):
    name = "chunks"
    title = "Actions in chunks"
    paper = "Chen et al. 2026 (ACSAC); Li et al. 2025 (Q-chunking)."
    question = (
        "A point has to walk around a wall to the only reward. From the steps of an expert that "
        f"goes astray, how long does it take with prefixes of {', '.join(map(str, LENGTHS))} "
        "actions to choose from, and with each of these lengths fixed? And is the chosen prefix "
        "shorter where moves are noisy?"
    )
    budget = "15 cells of 2,000 gradient steps, 8 seeds"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            small = {"num_updates": 5, "batch_size": 8, "width": 4, "hidden_sizes": [4]}
            changes = COMMON | {"chunk_lengths": list(LENGTHS)} | small
            return {"0/ACSAC": {"steps": 20, "seeds": 2, "episodes": 4, "changes": changes}}
        return {
            f"{noise}/{agent}": {
                "steps": 2_000,
                "seeds": 8,
                "episodes": 64,
                "changes": COMMON | own | {"chunk_lengths": list(own["chunk_lengths"])},
            }
            for noise in NOISES
            for agent, own in AGENTS.items()
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import jax.numpy as jnp

        import agents
        from envs_jax.mazes import Params, PointMaze

        env = PointMaze()
        limit = env.default_params.max_steps_in_episode
        env_params = Params(jnp.float32(float(cell.split("/")[0])), limit)
        data = record(env, env_params)
        changes = dict(settings["changes"])
        for name in ("chunk_lengths", "hidden_sizes"):
            changes[name] = tuple(changes[name])
        cls: Any = agents.get("acsac")
        agent = cls(
            env,
            env_params,
            data=data.dataset(env, env_params),
            total_steps=settings["steps"],
            **changes,
        )
        population = jaxrl.sweep(agent, seeds=settings["seeds"]).whole()
        evaluation = population.evaluate(settings["episodes"])
        length = population.history.metrics["chunk_length"]
        measures = {
            "steps_to_goal": np.asarray(evaluation.lengths).mean(axis=1),  # 100 where it fails
            "reached": np.asarray(evaluation.returns).mean(axis=1),
            "chunk_length": length[:, -max(length.shape[1] // 5, 1) :].mean(axis=1),
            "q_mean": population.history.metrics["q_mean"][:, -1],
        }
        whole = data.episode_lengths[data.terminated[data.last]]
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "expert_steps": round(float(whole.mean()), 2),
        }

    def claims(self) -> list[Claim]:
        fixed = [f"fixed {length}" for length in LENGTHS]

        def against(agent: str) -> Any:
            return lambda cells: [
                Interval.difference(
                    cells[f"{noise}/{agent}"]["steps_to_goal"],
                    MORE * np.asarray(cells[f"{noise}/{other}"]["steps_to_goal"]),
                )
                for noise in NOISES
                for other in fixed
            ]

        def longer(agent: str, noises: tuple[str, ...]) -> Any:
            return lambda cells: [
                interval
                for noise in noises
                for interval in gain(f"0/{agent}", [f"{noise}/{agent}"], "chunk_length")(cells)
            ]

        share = f"{MORE - 1:.0%}"
        return [
            *(
                Claim(
                    f"{agent} takes at most {share} more steps to the goal than any fixed length "
                    f"(noise {', '.join(NOISES)}; lengths {', '.join(map(str, LENGTHS))})",
                    against(agent),
                    high=0.0,
                )
                for agent in list(AGENTS)[:2]
            ),
            *(
                Claim(
                    f"{agent} chooses longer prefixes without noise than with it "
                    f"({', '.join(NOISES[1:])})",
                    longer(agent, NOISES[1:]),
                    low=0.0,
                )
                for agent in list(AGENTS)[:2]
            ),
            Claim(
                f"At noise {NOISES[-1]} a fixed length of {LENGTHS[-1]} takes more steps than one "
                f"of {LENGTHS[0]}",
                gain(f"{NOISES[-1]}/{fixed[-1]}", [f"{NOISES[-1]}/{fixed[0]}"], "steps_to_goal"),
                low=0.0,
            ),
            Claim(
                f"Without noise a fixed length of {LENGTHS[-1]} takes fewer steps than one of "
                f"{LENGTHS[0]}: rewards reach further back at every update",
                gain(f"0/{fixed[-1]}", [f"0/{fixed[0]}"], "steps_to_goal"),
                high=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"lengths": draw(cells)}


STUDY = Chunks()


def expert(obs: jax.Array) -> jax.Array:
    """Unit headings (N, 2) at places (N, 2): around the end of the wall, then to the goal."""
    import jax.numpy as jnp

    from envs_jax.mazes import GOAL, WALL

    x, y = obs[:, :1], obs[:, 1:]
    beside, beyond = jnp.array([WALL + 0.3, -0.3]), jnp.array([WALL + 0.3, 0.3])
    target = jnp.where(y >= 0, jnp.asarray(GOAL), jnp.where(x > WALL + 0.1, beyond, beside))
    heading = target - obs
    return heading / jnp.maximum(jnp.linalg.norm(heading, axis=1, keepdims=True), 1e-6)


def record(env: Any, env_params: Any) -> Recording:
    """Steps of the expert with noise of deviation 0.4 that goes astray, one step in ten, for five.

    Its detours are headings that it keeps: what it does next does not follow from where it is.
    """
    import jax
    import jax.numpy as jnp

    from envs_jax.datasets import Recording
    from jaxrl.parts.rollout import reset, rollout

    num_envs = DATA["num_envs"]
    none = jnp.zeros(2), jnp.zeros((), jnp.int32)  # a heading, and for how many steps more

    def act(memory: Any, obs: jax.Array, key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        detour, left = memory
        angle = jax.random.uniform(keys[0], (num_envs,), maxval=2 * jnp.pi)
        starts = (left == 0) & jax.random.bernoulli(keys[1], 0.1, (num_envs,))
        new = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        detour, left = jnp.where(starts[:, None], new, detour), jnp.where(starts, DETOUR, left)
        heading = jnp.where(left[:, None] > 0, detour, expert(obs))
        action = jnp.clip(heading + 0.4 * jax.random.normal(keys[2], heading.shape), -1, 1)
        return (detour, jnp.maximum(left - 1, 0)), action, action, ()

    @jax.jit
    def run(env_params: Any, key: jax.Array) -> Any:
        actors = reset(key, env, env_params, num_envs, memory=none)
        count = DATA["num_steps"]
        return rollout(key, env, env_params, actors, act, count, initial_memory=none)[1]

    steps = run(env_params, jax.random.key(0))
    end = np.zeros(steps.reward.shape, bool)
    end[-1] = True
    terminated, truncated = np.asarray(steps.terminated), np.asarray(steps.truncated)

    def in_rows(x: Any) -> np.ndarray:  # one environment after the other
        return np.asarray(x).swapaxes(0, 1).reshape(-1, *x.shape[2:])

    return Recording(
        obs=in_rows(steps.obs),
        action=in_rows(steps.action),
        reward=in_rows(steps.reward),
        terminated=in_rows(terminated),
        truncated=in_rows((truncated | end) & ~terminated),
        next_obs=in_rows(steps.final_obs),
        stopped=in_rows(end & ~terminated & ~truncated),
    )


def draw(cells: Mapping[str, Any]) -> Figure:
    """Steps to the goal and chosen lengths over the noise, a line for each agent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2)
    for place, agent in enumerate(AGENTS):
        noises = [noise for noise in NOISES if f"{noise}/{agent}" in cells]
        if not noises:
            continue
        x = np.asarray(noises, dtype=float) + 0.0008 * (place - 2)
        for axes, measure in zip(panels, ("steps_to_goal", "chunk_length"), strict=True):
            values = [cells[f"{noise}/{agent}"]["measures"][measure] for noise in noises]
            mean, low, high = np.asarray([Interval.of(v) for v in values]).T
            error = np.nan_to_num([mean - low, high - mean])
            axes.errorbar(x, mean, yerr=error, marker="o", ms=4, capsize=2, label=agent)
    for axes, label in zip(
        panels, ("steps to the goal", "actions before the next look"), strict=True
    ):
        axes.set(xlabel="deviation of the noise in a move of 0.15", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    panels[0].legend(frameon=False, fontsize="small")
    return figure
