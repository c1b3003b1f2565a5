"""Our SAC beside Brax's own, with the same environments, budget and hyper-parameters.

Steps, environments, updates, batches, warm-up, replay, network widths, learning rate, discount,
reward scale and normalisation are the recipe's for both. What Brax fixes stays Brax's: its target
entropy (-1/2 per action dimension), its temperature's learning rate (3e-4), its initialisation,
one reset state per environment, and its time limits, whose steps have no part in the critic's loss.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENVS = {"hopper": 100_000, "inverted_pendulum": 200_000}  # steps
EPISODES = 64
SHARE = 0.1  # of Brax's mean: a difference below it counts as none


class BraxSAC(study.Study):
    name = "brax_sac"
    title = "SAC beside Brax's own"
    paper = "Haarnoja et al. 2018 (SAC), as released with Brax 0.14 (Freeman et al. 2021)."
    question = (
        "Does our SAC return what Brax's does, with the same environments, budget and "
        "hyper-parameters?"
    )
    budget = "4 cells of 100,000 or 200,000 steps, 8 seeds: over an hour on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        envs = {"inverted_pendulum": 2_400} if scale == "quick" else ENVS
        seeds = 1 if scale == "quick" else 8
        return {
            f"{env}/{code}": {"steps": steps, "seeds": seeds}
            for env, steps in envs.items()
            for code in ("jaxrl", "brax")
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        from experiments.command.assemble import Request, assemble

        env, code = cell.split("/")
        seeds = list(range(settings["seeds"]))
        agent = assemble(Request("sac", f"brax/{env}", steps=settings["steps"])).agent
        arguments = brax_arguments(agent)
        if code == "jaxrl":  # one population over all cores
            returns = jaxrl.sweep(agent, seeds=seeds).whole().evaluate(EPISODES).returns
            finals = [float(x) for x in returns.mean(axis=1)]
        else:  # a process for each core
            context_of = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(os.cpu_count(), context_of) as processes:
                train = functools.partial(train_brax, env, arguments)
                finals = list(processes.map(train, seeds))
        return {
            "measures": {"final_return": [round(x, 2) for x in finals]},
            "arguments": arguments,
        }

    def claims(self) -> list[Claim]:
        def relative(env: str) -> Any:
            def intervals(cells: Mapping[str, Any]) -> list[Interval]:
                ours, theirs = (
                    np.asarray(cells[f"{env}/{code}"]["final_return"]) for code in ("jaxrl", "brax")
                )
                scale = abs(theirs.mean())
                return [Interval.difference(ours / scale, theirs / scale)]

            return intervals

        return [
            Claim(
                f"{env}: our mean return differs from Brax's by less than {SHARE:.0%} of it",
                relative(env),
                low=-SHARE,
                high=SHARE,
            )
            for env in ENVS
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"final_returns": draw(cells)}


STUDY = BraxSAC()


def brax_arguments(agent: Any) -> dict[str, Any]:
    """Brax's arguments for the same work."""
    if agent.num_steps != 1:
        raise ValueError(f"num_steps={agent.num_steps}: Brax takes one step per iteration")
    return {
        "num_timesteps": agent.total_steps,
        "num_envs": agent.num_envs,
        "grad_updates_per_step": agent.num_updates,
        "batch_size": agent.batch_size,
        "max_replay_size": agent.buffer_size,
        "min_replay_size": agent.learning_starts,
        "learning_rate": float(agent.learning_rate),
        "discounting": float(agent.gamma),
        "tau": float(agent.tau),
        "reward_scaling": float(agent.reward_scale),
        "normalize_observations": agent.normalize_observations,
        "hidden_layer_sizes": list(agent.hidden_sizes),
        "episode_length": int(agent.env_params.max_steps_in_episode),
    }


def give_back_replicated() -> None:
    """Put back what is gone since jax 0.10 and Brax's trainers still call."""
    import jax
    import jax.numpy as jnp

    def device_put_replicated(tree: Any, devices: Sequence[Any]) -> Any:
        return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

    module: Any = jax
    if not hasattr(jax, "device_put_replicated"):
        module.device_put_replicated = device_put_replicated


def train_brax(env: str, arguments: dict[str, Any], seed: int) -> float:
    """Mean final return of one seed, by Brax."""
    from brax import envs
    from brax.training.agents.sac import networks
    from brax.training.agents.sac.train import train

    give_back_replicated()
    arguments = dict(arguments)
    widths = tuple(arguments.pop("hidden_layer_sizes"))
    _, _, metrics = train(
        environment=envs.get_environment(env, backend="spring"),
        seed=seed,
        num_evals=2,  # one before, one at the end
        num_eval_envs=EPISODES,
        deterministic_eval=True,
        network_factory=functools.partial(networks.make_sac_networks, hidden_layer_sizes=widths),
        **arguments,
    )
    return float(metrics["eval/episode_reward"])


def draw(cells: Mapping[str, Any]) -> Figure:
    """A panel for each environment: the final return of every seed, mean and interval beside."""
    from matplotlib.figure import Figure

    envs = list(dict.fromkeys(cell.split("/")[0] for cell in cells))
    figure = Figure(figsize=(3.4 * len(envs), 3.2), dpi=130, layout="constrained")
    for axes, env in zip(figure.subplots(1, len(envs), squeeze=False)[0], envs, strict=True):
        codes = [code for code in ("jaxrl", "brax") if f"{env}/{code}" in cells]
        for place, code in enumerate(codes):
            returns = cells[f"{env}/{code}"]["measures"]["final_return"]
            mean, low, high = Interval.of(returns)
            axes.plot([place] * len(returns), returns, "o", color="C0", alpha=0.5, markersize=4)
            error = [[mean - low], [high - mean]]
            axes.errorbar(place + 0.15, mean, error, fmt="_", color="black", capsize=4)
        axes.set_xticks(range(len(codes)), codes)
        axes.set(title=env, xlim=(-0.5, len(codes) - 0.4), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25, linewidth=0.6)
    figure.axes[0].set_ylabel("final return, a point per seed")
    return figure
