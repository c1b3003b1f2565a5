"""What a memory is worth: PPO with a recurrent core, a stack of frames, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import curves, study
from experiments.studies.claims import Claim, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = (5, 20, 50)
STACK = 8
HIDDEN = {  # entries of the observation that are left: no velocities
    "CartPole-v1": (0, 2),
    "Pendulum-v1": (0, 1),
}
STEPS = {"MemoryChain": 300_000, "CartPole-v1": 300_000, "Pendulum-v1": 600_000}
AGENTS = ("GRU", f"{STACK} frames", "no memory")
SETTINGS: dict[str, dict[str, Any]] = {
    "MemoryChain": {},
    "CartPole-v1": {},
    "Pendulum-v1": {
        "gamma": 0.95,
        "num_epochs": 10,
        "entropy_coef": 0.0,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
}


class Memory(study.Study):
    name = "memory"
    title = "What a memory is worth"
    paper = (
        "Osband et al. 2020 (bsuite's memory chain); Ni, Eysenbach & Salakhutdinov 2022 (recurrent "
        "agents are a strong baseline)."
    )
    question = (
        "The chain shows a bit at its first step and asks for it after some steps more: 1 is the "
        "most there is, 0 what guessing gives. CartPole and Pendulum are shown without their "
        f"velocities. PPO with a GRU, with {STACK} frames at once, and with the last one alone."
    )
    budget = "15 cells of 300,000 to 600,000 steps, 8 seeds: a quarter of an hour on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            return {"MemoryChain/5/GRU": {"steps": 2048, "seeds": 2}}
        tasks = [f"MemoryChain/{length}" for length in LENGTHS] + list(HIDDEN)
        return {
            f"{task}/{agent}": {"steps": STEPS[task.split("/")[0]], "seeds": 8}
            for task in tasks
            for agent in AGENTS
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        from jaxrl.training.meter import Meter

        task, name = cell.rsplit("/", 1)
        steps, seeds = settings["steps"], settings["seeds"]
        agent = make(task, name, steps)
        with Meter(steps * seeds) as meter:
            population = jaxrl.sweep(agent, seeds=seeds, callbacks=[meter]).whole()
        history = population.history
        returns = curves.binned(history.env_steps, history.metrics["episode_return"], steps)
        return {
            "measures": {"final_return": population.evaluate().returns.mean(axis=1).tolist()},
            "curves": {"episode_return": np.round(returns, 3).tolist()},
        }

    def claims(self) -> list[Claim]:
        def returns(tasks: list[str], agent: str) -> Any:
            return lambda cells: [
                Interval.of(cells[f"{task}/{agent}"]["final_return"]) for task in tasks
            ]

        def gains(agent: str, other: str) -> Any:
            return lambda cells: [
                Interval.difference(
                    cells[f"{task}/{agent}"]["final_return"],
                    cells[f"{task}/{other}"]["final_return"],
                )
                for task in HIDDEN
            ]

        chains = [f"MemoryChain/{length}" for length in LENGTHS]
        lengths = ", ".join(map(str, LENGTHS))
        return [
            Claim(
                f"A GRU remembers over {lengths} steps: 0.95 or more", returns(chains, "GRU"), 0.95
            ),
            Claim(
                f"{STACK} frames remember over {LENGTHS[0]} steps",
                returns(chains[:1], AGENTS[1]),
                0.95,
            ),
            Claim(
                f"{STACK} frames remember nothing over {LENGTHS[1]} and {LENGTHS[2]}: at most 0.2",
                returns(chains[1:], AGENTS[1]),
                high=0.2,
            ),
            Claim(
                "Without velocities a GRU returns more than no memory (CartPole, Pendulum)",
                gains("GRU", AGENTS[2]),
                0.0,
            ),
            Claim(
                f"And as much as {STACK} frames or more",
                gains("GRU", AGENTS[1]),
                0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"returns": draw(cells)} if cells else {}


STUDY = Memory()


def make(task: str, name: str, steps: int) -> Any:
    """The agent of a cell."""
    import agents
    import envs_jax
    from envs_jax import preprocessing

    kind, _, length = task.partition("/")
    env, params = envs_jax.make("MemoryChain-bsuite" if length else kind)
    if length:
        params = params.replace(memory_length=int(length))
    else:
        env = preprocessing.Partial(env, HIDDEN[kind])
    if name == AGENTS[1]:
        env = preprocessing.FrameStack(env, STACK)
    cls: Any = agents.get("recurrentppo" if name == "GRU" else "ppo")
    options = {
        "num_envs": 16,
        "num_steps": 128,
        "num_minibatches": 8,
        "learning_rate": 1e-3,
        "gamma": 0.99,
        "max_grad_norm": 0.5,
        **SETTINGS[kind],
    }
    return cls(env, params, total_steps=steps, **options)


def draw(cells: Mapping[str, Any]) -> Figure:
    """A panel per task, a line per agent; those that there are."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(cell.rsplit("/", 1)[0] for cell in cells))
    figure = Figure(figsize=(3.1 * len(tasks), 3.2), dpi=130, layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        of_task = {a: cells[f"{task}/{a}"] for a in AGENTS if f"{task}/{a}" in cells}
        label = "return of training episodes" if task == tasks[0] else ""
        curves.draw(axes, of_task, "episode_return", label)
        kind, _, length = task.partition("/")
        axes.set_title(f"chain of {length}" if length else f"{kind}, no velocities", fontsize=10)
    axes.legend(frameon=False, fontsize="small")
    return figure
