"""XQC beside SAC, CrossQ and SoftGAC: returns, and how their critics' losses are conditioned."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CORE = {"Pendulum-v1": 20_000, "brax/inverted_pendulum": 20_000}  # steps
PLAYGROUND = {"playground/CheetahRun": 20_000}  # where the extra is installed
CODES = ("SAC", "XQC", "CrossQ", "CrossQ + WN", "SoftGAC")
# Of all: what differs is the algorithm. Two gradient steps to an environment step, as XQC has it.
COMMON: dict[str, Any] = {
    "num_envs": 8,
    "num_updates": 16,
    "batch_size": 128,
    "buffer_size": 20_000,
    "learning_starts": 1_000,
}
BATCHES = 4  # on which each critic's Hessian is looked at, and averaged


class XQCStudy(study.Study):
    name = "xqc"
    title = "Well-conditioned critics: XQC, CrossQ and SAC"
    paper = "Palenicek et al. 2026 (XQC); Bhatt et al. 2024 (CrossQ); He et al. 2026 (SoftGAC)."
    question = (
        "Batch norm, unit weights and a categorical loss are to lower the condition number of the "
        "critic's Hessian by orders of magnitude. Do they, and does XQC return more for it than "
        "SAC, CrossQ and SoftGAC at equal steps, sizes of networks and gradient steps?"
    )
    budget = (
        "10 cells of 20,000 steps, 5 seeds, two layers of 128 units: about an hour on two cores; "
        "five cells more where playground is installed"
    )

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            few = {"num_envs": 2, "num_updates": 2, "batch_size": 8, "buffer_size": 64}
            common = few | {"learning_starts": 16}
            settings = {"steps": 416, "seeds": 2, "widths": [8], "lanczos": 4, "common": common}
            return {f"Pendulum-v1/{code}": settings for code in ("SAC", "XQC")}
        envs = CORE | (PLAYGROUND if has_playground() else {})
        shared = {"seeds": 5, "widths": [128, 128], "lanczos": 20, "common": COMMON}
        return {
            f"{env}/{code}": {"steps": steps, **shared}
            for env, steps in envs.items()
            for code in CODES
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        from jaxrl.report.plots import bin_episodes

        if not context.cells and not has_playground():
            context.say("playground is not installed: its tasks are left out")
        agent = make(cell, settings)
        population = jaxrl.sweep(agent, seeds=settings["seeds"]).whole()
        metrics = population.history.metrics
        steps, returns = bin_episodes(
            population.history.env_steps, metrics["episode_return"], metrics["episodes"], bins=25
        )
        curvature = [curvature_of(population[i], settings) for i in range(settings["seeds"])]
        norm, condition = np.transpose(curvature)
        measures = {
            "final_return": population.evaluate().returns.mean(axis=1),
            "training_return": np.nanmean(returns, axis=1),
            "log10_condition": condition,
            "log10_hessian_norm": norm,
        }
        return {
            "measures": {name: np.round(x, 4).tolist() for name, x in measures.items()},
            "curve": {"steps": steps.tolist(), "returns": np.round(returns, 3).tolist()},
        }

    def claims(self) -> list[Claim]:
        def over_all(measure: str, higher: str, lower: str) -> Any:
            return lambda cells: [
                interval
                for env in CORE
                for interval in gain(f"{env}/{higher}", [f"{env}/{lower}"], measure)(cells)
            ]

        tasks = " and ".join(env.split("/")[-1] for env in CORE)
        return [
            Claim(
                "The condition number of XQC's critic is at least ten times below SAC's "
                f"({tasks}); log10 of the ratio",
                over_all("log10_condition", "SAC", "XQC"),
                low=1.0,
            ),
            *(
                Claim(
                    f"It is below that of {code}'s",
                    over_all("log10_condition", code, "XQC"),
                    low=0.0,
                )
                for code in ("CrossQ", "CrossQ + WN", "SoftGAC")
            ),
            *(
                Claim(
                    f"XQC returns more than {code} in the end; differences",
                    over_all("final_return", "XQC", code),
                    low=0.0,
                )
                for code in ("SAC", "CrossQ", "SoftGAC")
            ),
            Claim(
                "It learns faster than SAC: mean return of all training episodes",
                over_all("training_return", "XQC", "SAC"),
                low=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"curves": draw(cells)}


STUDY = XQCStudy()


def has_playground() -> bool:
    return importlib.util.find_spec("mujoco_playground") is not None


def make(cell: str, settings: Mapping[str, Any]) -> Any:
    """The agent of a cell, with networks of equal widths."""
    import envs_jax
    from agents.off_policy.sac import SAC
    from agents.off_policy.softgac import SoftGAC
    from agents.off_policy.xqc import CROSSQ, CROSSQ_WN, XQC

    env_name, code = cell.rsplit("/", 1)
    env, env_params = envs_jax.make(env_name)
    widths = tuple(settings["widths"])
    sizes: dict[str, Any] = {"hidden_sizes": widths}
    cls: Any = {"SAC": SAC, "SoftGAC": SoftGAC}.get(code, XQC)
    if cls is XQC:
        sizes["actor_hidden_sizes"] = widths
    if cls is SoftGAC:
        sizes["bridge_width"] = widths[-1]
    changes = {"CrossQ": CROSSQ, "CrossQ + WN": CROSSQ_WN}.get(code, {})
    options = changes | sizes | settings["common"]
    return cls(env, env_params, total_steps=settings["steps"], **options)


def curvature_of(run: Any, settings: Mapping[str, Any]) -> tuple[float, float]:
    """log10 of the Hessian's largest eigenvalue and of its condition number, of the first critic.

    Means over `BATCHES` batches of the replay, after training.
    """
    import jax
    import jax.numpy as jnp

    from jaxrl.parts.curvature import hessian_condition

    agent, state = run.agent, run.state

    def measured(key: jax.Array) -> Any:
        draw_key, loss_key, lanczos_key = jax.random.split(key, 3)
        t = jnp.int32(agent.num_iterations - 1)
        batch = agent.source().draw(state.source, draw_key, t, agent.batch_size)
        loss, first = critic_loss(agent, state.learner, batch, loss_key)
        return jnp.log10(
            jnp.stack(hessian_condition(loss, first, lanczos_key, settings["lanczos"]))
        )

    found = jax.lax.map(measured, jax.random.split(jax.random.key(0), BATCHES))
    norm, condition = np.asarray(found, np.float64).mean(axis=0)
    return float(norm), float(condition)


def critic_loss(agent: Any, learner: Any, batch: Any, key: Any) -> tuple[Any, Any]:
    """What the agent's gradient step descends, as a function of its first critic's parameters."""
    from jaxrl.parts.normalized_networks import params_of

    if agent.name == "xqc":
        if agent.normalize_rewards:
            batch = batch._replace(reward=learner.reward_scale.scale(batch.reward))
        loss, (first, *others) = agent.critic_loss(learner, batch, key), params_of(learner.critics)
        return lambda params: loss((params, *others))[0], first
    return (sac_loss if agent.name == "sac" else softgac_loss)(agent, learner, batch, key)


def sac_loss(agent: Any, learner: Any, batch: Any, key: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    from jaxrl.parts.losses import td_target

    next_dist = agent.distribution(learner.actor, batch.next_obs)
    next_action, log_prob = next_dist.sample_and_log_prob(key)
    next_q = agent.q_values(learner.target_critics, batch.next_obs, next_action).min(axis=0)
    next_value = next_q - jnp.exp(learner.log_temperature) * log_prob
    target = td_target(batch.reward, batch.terminated, next_value, agent.gamma)
    first, *others = learner.critics

    def loss(params: Any) -> Any:
        q = agent.q_values((params, *others), batch.obs, batch.action)
        return 0.5 * ((q - target) ** 2).sum(axis=0).mean()

    return loss, first


def softgac_loss(agent: Any, learner: Any, batch: Any, key: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    from jaxrl.parts.distributions import project_to_atoms
    from jaxrl.parts.losses import td_target

    size = len(batch.action)
    noise = agent.noise(key, batch.action.shape)
    next_action, cost = agent.path(learner.actor, batch.next_obs, noise)
    next_atoms = agent.atoms - jnp.exp(learner.log_temperature) * cost[:, None]
    reward, terminated = batch.reward[:, None], batch.terminated[:, None]
    places = td_target(reward, terminated, next_atoms, agent.gamma)
    obs = jnp.concatenate([batch.obs, batch.next_obs])
    action = jnp.concatenate([batch.action, next_action])
    network = agent.make_crossq_critic()

    def logits_of(critic: Any) -> Any:
        return network.apply(critic, obs, action, True, mutable=["batch_stats"])[0]

    next_logits = jnp.stack([logits_of(critic)[size:] for critic in learner.critics])
    next_probs = jax.nn.softmax(next_logits).mean(axis=0)
    target = project_to_atoms(next_probs, places, agent.atoms)
    first = learner.critics[0]

    def loss(params: Any) -> Any:
        logits = logits_of({"params": params, "batch_stats": first["batch_stats"]})[:size]
        log_probs = jax.nn.log_softmax(logits)
        negentropy = (jnp.exp(log_probs) * log_probs).sum(axis=-1)
        errors = agent.negentropy_coef * negentropy - (target * log_probs).sum(axis=-1)
        return errors.mean()

    return loss, first["params"]


def draw(cells: Mapping[str, Any]) -> Figure:
    """Above, training returns of each task; below, condition numbers at the end, every seed."""
    from matplotlib.figure import Figure

    from jaxrl.report.stats import mean_ci

    envs = list(dict.fromkeys(cell.rsplit("/", 1)[0] for cell in cells))
    figure = Figure(figsize=(1 + 4.4 * len(envs), 6.4), dpi=130, layout="constrained")
    panels = figure.subplots(2, len(envs), squeeze=False, height_ratios=[3, 2])
    for (curves, conditions), env in zip(panels.T, envs, strict=True):
        there = [code for code in CODES if f"{env}/{code}" in cells]
        for place, code in enumerate(there):
            cell, color = cells[f"{env}/{code}"], f"C{CODES.index(code)}"
            steps = np.asarray(cell["curve"]["steps"])
            mean, low, high = mean_ci(np.asarray(cell["curve"]["returns"], dtype=float))
            curves.plot(steps / 1000, mean, color=color, label=code, linewidth=1.6)
            curves.fill_between(steps / 1000, low, high, color=color, alpha=0.15, linewidth=0)
            values = np.asarray(cell["measures"]["log10_condition"])
            conditions.plot(np.full(len(values), place), 10**values, "o", color=color, alpha=0.5)
            middle = 10 ** Interval.of(values).mean
            conditions.plot([place - 0.25, place + 0.25], [middle] * 2, color=color, linewidth=2)
        curves.set_title(env, fontsize="medium")
        curves.set_xlabel("environment steps (thousands)")
        curves.set_ylabel("return of training episodes")
        curves.legend(frameon=False, fontsize="small")
        conditions.set_yscale("log")
        conditions.set_xticks(range(len(there)), there, fontsize="small")
        conditions.set_ylabel("condition number of the\ncritic's Hessian, at the end")
        for axes in (curves, conditions):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
    return figure
