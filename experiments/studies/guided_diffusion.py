"""A sampler steered towards a reward: how far its samples are from the density wanted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval, Measures

if TYPE_CHECKING:
    import jax
    from matplotlib.figure import Figure

    from agents.diffusion.guidance import Guidance

STEPS = (4, 8)  # of the sampler
TEMPERATURES = (1.0, 0.5, 0.25)
SHOWN = 0.5  # the temperature of the densities that are drawn
METHODS = {
    "none": "left as it is",
    "gradient": "the reward's gradient",
    "learnt": "learnt control",
}
OWN = "the sampler's own"  # divergence from the data's density
GOALS = 8  # at which each seed is measured
SAMPLES = 4096  # that reward and path cost are means of
ANGLE = 0.3  # and the direction of the goal
BLOCK = 2  # points of the density's grid in one of the picture


class GuidedDiffusion(study.Study):
    name = "guided_diffusion"
    title = "Steering a diffusion sampler"
    paper = (
        "Hierarchical variational policies for reward-guided diffusion (the details are ours); "
        "Dhariwal & Nichol 2021 (guidance by a gradient)."
    )
    question = (
        "A frozen sampler of few steps is steered towards a linear reward. The density wanted is "
        "known exactly: how far from it are the samples of a learnt control, of guidance by the "
        "reward's gradient, and of the sampler as it is?"
    )
    budget = f"{len(STEPS)} cells of {len(TEMPERATURES)} temperatures, 8 seeds: minutes"
    digits = 3

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        quick = scale == "quick"
        return {
            f"{steps} steps": {
                "sampler_steps": steps,
                "samples": 64 if quick else 1_024_000,
                "paths": 32 if quick else 512,
                "goals": 2 if quick else GOALS,
                "seeds": 2 if quick else 8,
                "temperatures": list(TEMPERATURES[1:2] if quick else TEMPERATURES),
            }
            for steps in (STEPS[:1] if quick else STEPS)
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        import jaxrl

        jaxrl.use_all_cores()
        jaxrl.use_compilation_cache()
        import jax
        import jax.numpy as jnp

        import agents
        import envs_jax

        env, env_params = envs_jax.make("diffusion/ring", steps=settings["sampler_steps"])
        agent = agents.get("guidance")(
            env, env_params, total_steps=settings["samples"], num_paths=settings["paths"]
        )
        temperatures, seeds = settings["temperatures"], settings["seeds"]
        axis = {"temperature": temperatures}
        population = jaxrl.sweep(agent, axis, seeds=seeds).whole()
        keys = jax.random.split(jax.random.key(seeds), seeds)
        steered = {
            "none": lambda run: (run.agent, jax.tree.map(jnp.zeros_like, run.state.params)),
            "gradient": lambda run: (by_gradient(env, env_params, run.agent.temperature), ()),
            "learnt": lambda run: (run.agent, run.state.params),
        }
        measure = jax.jit(partial(measures_of, number=settings["goals"]))
        measures: dict[str, list[float]] = {OWN: [round(own_error(agent), 4)] * seeds}
        for place, temperature in enumerate(temperatures):
            runs = [population[place * seeds + seed] for seed in range(seeds)]
            for method, control in steered.items():
                of_seeds = [
                    measure(*control(run), key) for run, key in zip(runs, keys, strict=True)
                ]
                for name in of_seeds[0]:
                    values = np.array([float(of_seed[name]) for of_seed in of_seeds])
                    measures[named(method, temperature, name)] = values.round(4).tolist()
        run = population[temperatures.index(SHOWN) * seeds]
        goal = jnp.array([np.cos(ANGLE), np.sin(ANGLE)], jnp.float32)
        densities = {"wanted": wanted(run.agent, goal)[0]} | {
            method: agent.density(params, goal)
            for method, (agent, params) in ((m, control(run)) for m, control in steered.items())
        }
        return {
            "measures": measures,
            "extent": float(env.axis(env_params)[-1]),
            "densities": {name: coarse(np.asarray(x)).tolist() for name, x in densities.items()},
        }

    def tables(self, cells: Mapping[str, Any]) -> list[study.Table]:
        columns = ("kl", "excess", "reward")
        headings = [
            "sampler, temperature",
            "control",
            "KL divergence from the density wanted",
            "path cost above that of the density wanted",
            "reward below it",
        ]
        rows = [
            [
                f"{name}, {temperature:g}",
                METHODS[method],
                *(self.text(cell["measures"][named(method, temperature, c)]) for c in columns),
            ]
            for name, cell in cells.items()
            for temperature in cell["settings"]["temperatures"]
            for method in METHODS
        ]
        own = [[name, self.text(cell["measures"][OWN][:1])] for name, cell in cells.items()]
        return [
            study.Table("Steered", headings, rows),
            study.Table(
                "Left as it is", ["sampler", "KL divergence from the density of its data"], own
            ),
        ]

    def claims(self) -> list[Claim]:
        names = [f"{steps} steps" for steps in STEPS]

        def learnt(measure: str, *names: str) -> Any:
            return lambda cells: [
                Interval.of(cells[name][named("learnt", t, measure)])
                for name in names
                for t in TEMPERATURES
            ]

        return [
            Claim(
                f"With {names[-1]} the learnt control's samples are within 0.1 nats of the density "
                "wanted, at every temperature",
                learnt("kl", names[-1]),
                high=0.1,
            ),
            Claim(f"and with {names[0]}, too", learnt("kl", names[0]), high=0.1),
            Claim(
                f"With {names[-1]} the paths cost at most 0.2 nats more than the density wanted "
                "is from the data's",
                learnt("excess", names[-1]),
                high=0.2,
            ),
            Claim(
                "The learnt control's samples are nearer than those of the reward's gradient, "
                "wherever the latter are on the grid: divergence of the former minus that of the "
                "latter, in the order of the table",
                lambda cells: [
                    difference
                    for name in names
                    for t in TEMPERATURES
                    if not np.isnan((difference := nearer(cells, name, t)).mean)
                ],
                high=0.0,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        return {"samples": draw(cells)}


STUDY = GuidedDiffusion()


def named(method: str, temperature: float, measure: str) -> str:
    return f"{method} {temperature:g} {measure}"


def nearer(cells: Mapping[str, Measures], cell: str, temperature: float) -> Interval:
    """How much further a seed's learnt control is from the density wanted than the gradient."""
    learnt, gradient = (
        np.array(cells[cell][named(method, temperature, "kl")]) for method in ("learnt", "gradient")
    )
    return Interval.of(learnt - gradient)


def by_gradient(env: Any, env_params: Any, temperature: Any) -> Guidance:
    """Guidance by the reward's gradient, which learns nothing: its parameters are ().

    The clean point that a step heads for is moved by its variance times the gradient of reward /
    temperature. That is exact where the clean point is normal given where the step begins.
    """
    import agents
    from jaxrl.parts.diffusion import cosine_levels

    base: Any = agents.get("guidance")

    class ByGradient(base):
        def control(self, params: Any, x: jax.Array, time: jax.Array, goal: jax.Array) -> Any:
            import jax
            import jax.numpy as jnp

            signal, noise = (level[env.num_steps - time] for level in cosine_levels(env.num_steps))
            clean, variance = env.data(env_params).denoise(x, signal, noise)
            slope = jax.grad(lambda x: env.reward(x, goal, env_params).sum())(clean)
            shift = jnp.sqrt(variance)[..., None] * slope / self.temperature
            step, scale = env.propose(x, time, env_params), jnp.ones_like(x)
            return step.controlled(shift, scale), step.cost(shift, scale)

    agent: Guidance = ByGradient(env, env_params).replace(temperature=temperature)
    return agent


def own_error(agent: Guidance) -> float:
    """KL divergence of the sampler's own samples from its data: what nothing is asked of."""
    import jax
    import jax.numpy as jnp

    still = jax.tree.map(jnp.zeros_like, agent.init(jax.random.key(0)).params)
    return float(agent.replace(temperature=1e9).tilted_kl(still, jnp.zeros(2)))


def measures_of(agent: Guidance, params: Any, key: jax.Array, number: int) -> dict[str, jax.Array]:
    """Means over a number of goals.

    `kl` of the samples from the density wanted; `excess`, what the paths cost above the KL
    divergence of that density from the data's; `reward`, how much less they earn.
    """
    import jax
    import jax.numpy as jnp

    goal_key, path_key = jax.random.split(key)
    keys = jax.random.split(goal_key, number)
    goals = jax.vmap(agent.env.goal, (0, None))(keys, agent.env_params)
    kl = jax.lax.map(lambda goal: agent.tilted_kl(params, goal), goals)
    each = jnp.repeat(goals, SAMPLES // number, axis=0)
    x, cost = agent.paths(params, each, path_key)
    reward = agent.env.reward(x, each, agent.env_params).mean()
    rewards, divergences = jax.vmap(lambda goal: wanted(agent, goal)[1:])(goals)
    return {
        "kl": kl.mean(),
        "excess": cost.mean() - divergences.mean(),
        "reward": rewards.mean() - reward,
    }


def wanted(agent: Guidance, goal: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The density wanted on the grid (A, A), its reward, its KL divergence from the data's.

    The reward is linear, so its mean is the reward of the mean.
    """
    import jax.numpy as jnp

    from jaxrl.parts.diffusion import square_grid

    env, env_params = agent.env, agent.env_params
    target, log_partition = env.tilted(goal, agent.temperature, env_params)
    mean = jnp.exp(target.log_weights) @ target.means
    reward = env.reward(mean, goal, env_params)
    density = jnp.exp(target.log_prob(square_grid(env.axis(env_params))))
    return density, reward, reward / agent.temperature - log_partition


def coarse(density: np.ndarray) -> np.ndarray:
    """A density (A, A) as the means of blocks of it, for a picture."""
    size = len(density) // BLOCK
    return density.reshape(size, BLOCK, size, BLOCK).mean(axis=(1, 3)).round(3)


def draw(cells: Mapping[str, Any]) -> Figure:
    """Divergences over the temperature for each number of steps; below, densities for one goal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 6.2), dpi=130, layout="constrained")
    halves: Any = figure.subfigures(2, 1)
    above, below = halves
    row = above.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, (name, cell) in zip(row, cells.items(), strict=True):
        temperatures = cell["settings"]["temperatures"]
        for method, label in METHODS.items():
            of = [cell["measures"][named(method, t, "kl")] for t in temperatures]
            mean, low, high = np.array([Interval.of(values) for values in of]).T
            axes.plot(temperatures, mean, "o-", ms=3.5, linewidth=1.6, label=label)
            axes.fill_between(temperatures, low, high, alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel="temperature", xscale="log", yscale="log")
        axes.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    row[0].set_ylabel("KL divergence from\nthe density wanted (nats)")
    row[-1].legend(frameon=False, fontsize="small")
    cell = list(cells.values())[-1]
    labels = {"wanted": "wanted"} | METHODS
    edge = cell["extent"]
    panels = below.subplots(1, len(labels), sharex=True, sharey=True)
    most = np.max(cell["densities"]["wanted"])
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        picture = np.asarray(cell["densities"][name]).T
        extent = (-edge, edge, -edge, edge)
        axes.imshow(picture, origin="lower", extent=extent, vmin=0, vmax=most, cmap="Blues")
        tip = 3.6 * np.cos(ANGLE), 3.6 * np.sin(ANGLE)
        axes.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "->", "color": "C3"})
        axes.set(title=label, xlim=(-4, 4), ylim=(-4, 4), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    panels[0].set_ylabel(f"{cell['settings']['sampler_steps']} steps, temperature {SHOWN:g}")
    return figure
