"""Our SAC beside Brax's own, with the same environments, budget and hyper-parameters.

`python -m experiments.studies.brax_sac [ENV ...] [--seeds N]` trains the SAC recipes of brax environments
(all there are), each first by this project and then by `brax.training.agents.sac`, and writes
final returns and times into experiments/results/brax-sac/ENV.json.

Steps, environments, updates, batches, warm-up, replay, network widths, learning rate, discount,
reward scale and normalisation are the recipe's for both. What Brax fixes stays Brax's: its target
entropy (-1/2 per action dimension), its temperature's learning rate (3e-4), its initialisation,
one reset state per environment, and its time limits, whose steps have no part in the critic's loss.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "results" / "brax-sac"
EPISODES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("envs", nargs="*", metavar="ENV", help="such as brax/hopper")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipe's")
    args = parser.parse_args()

    from experiments.command import launch
    from experiments.runs import recipes

    known = [r.env for r in recipes.everything() if r.agent == "sac" and r.env.startswith("brax/")]
    for env in args.envs or known:
        if env not in known:
            parser.error(f"no sac recipe for {env!r}; there are {', '.join(known)}")
    for env in args.envs or known:
        seeds = list(range(args.seeds))
        agent = launch.assemble("sac", env, [], steps=args.steps, seeds=seeds, sweep=False).agent
        settings = brax_settings(agent)
        results = {"env": env, "settings": settings}
        # Each has the machine for itself: ours as one population over all cores, Brax's as a
        # process for each core. Both times include compilation and the final evaluation.
        for label, run in (("jaxrl", run_ours), ("brax", run_brax)):
            started = time.perf_counter()
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                returns = alone.submit(run, env, args.steps, settings, seeds).result()
            results[label] = summary(returns, time.perf_counter() - started)
            print(env, label, results[label], flush=True)
        path = FOLDER / f"{env.removeprefix('brax/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2) + "\n")


def summary(returns: list[float], seconds: float) -> dict[str, Any]:
    """Final returns of all seeds, their mean and interval, and the time that they took together."""
    from jaxrl.report.stats import mean_ci

    mean, low, high = mean_ci(returns)
    return {
        "final_returns": [round(x, 2) for x in returns],
        "final_return_mean": round(float(mean), 2),
        "final_return_ci95": [round(float(low), 2), round(float(high), 2)],
        "seconds": round(seconds, 1),
    }


def brax_settings(agent: Any) -> dict[str, Any]:
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


def run_ours(
    env: str, steps: int | None, settings: dict[str, Any], seeds: list[int]
) -> list[float]:
    """Mean final return of every seed, by this project."""
    import jaxrl

    jaxrl.use_all_cores()
    from experiments.command import launch

    agent = launch.assemble("sac", env, [], steps=steps, seeds=seeds, sweep=False).agent
    returns = jaxrl.sweep(agent, seeds=seeds).whole().evaluate(EPISODES).returns
    return [float(x) for x in returns.mean(axis=1)]


def run_brax(
    env: str, steps: int | None, settings: dict[str, Any], seeds: list[int]
) -> list[float]:
    """Mean final return of every seed, by Brax, as many at a time as there are cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as processes:
        returns = []
        for seed, value in zip(
            seeds, processes.map(functools.partial(train_brax, env, settings), seeds), strict=True
        ):
            print(f"{env} brax, seed {seed}: {value:.2f}", flush=True)
            returns.append(value)
        return returns


def train_brax(env: str, settings: dict[str, Any], seed: int) -> float:
    """Mean final return of one seed, by Brax."""
    import jax
    import jax.numpy as jnp
    from brax import envs
    from brax.training.agents.sac import networks
    from brax.training.agents.sac.train import train

    if not hasattr(jax, "device_put_replicated"):  # gone since jax 0.10; Brax still calls it

        def device_put_replicated(tree: Any, devices: Sequence[Any]) -> Any:
            return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

        module: Any = jax
        module.device_put_replicated = device_put_replicated

    settings = dict(settings)
    widths = tuple(settings.pop("hidden_layer_sizes"))
    _, _, metrics = train(
        environment=envs.get_environment(env.removeprefix("brax/"), backend="spring"),
        seed=seed,
        num_evals=2,  # one before, one at the end
        num_eval_envs=EPISODES,
        deterministic_eval=True,
        network_factory=functools.partial(networks.make_sac_networks, hidden_layer_sizes=widths),
        **settings,
    )
    return float(metrics["eval/episode_reward"])


if __name__ == "__main__":
    main()
