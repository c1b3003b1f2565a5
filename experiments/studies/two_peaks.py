"""What SAC, mixture SAC and SoftGAC make of a bandit with two peaks, at several temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.studies import study
from experiments.studies.claims import Claim, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxrl.training.sweep import Population

TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
LABELS = {"sac": "Gaussian", "mixturesac": "mixture of 5", "softgac": "bridge of 6 steps"}
SETTINGS: dict[str, dict[str, Any]] = {
    "sac": {},
    "mixturesac": {},
    "softgac": {"critic": "twin", "bridge_width": 64, "policy_delay": 1, "input_norm": False},
}
SAMPLES = 20_000
BINS = 50


class TwoPeaks(study.Study):
    name = "two_peaks"
    title = "One peak or two"
    paper = (
        "He, Neumann, Mei, White & White 2026 (mixture policies); He, He, Tang, Wang & Fan 2026 "
        "(SoftGAC); Haarnoja et al. 2018 (SAC)."
    )
    question = (
        "The best policy at a temperature is the Boltzmann density of the reward, which has two "
        "peaks on this bandit. How near does each class of policies come?"
    )
    budget = "12 cells of 16,000 steps, 4 seeds: minutes on two cores"

    def cells(self, scale: study.Scale) -> dict[str, dict[str, Any]]:
        if scale == "quick":
            return {"sac/0.3": {"steps": 1_200, "seeds": 2}}
        return {
            f"{name}/{temperature:g}": {"steps": 16_000, "seeds": 4}
            for name in SETTINGS
            for temperature in TEMPERATURES
        }

    def measure(
        self, cell: str, settings: dict[str, Any], context: study.Context
    ) -> dict[str, Any]:
        name, temperature = cell.split("/")
        population = learn(name, [float(temperature)], settings["steps"], settings["seeds"])
        actions = actions_of(population)
        rows = [measure(of_seed, float(temperature)) for of_seed in actions]
        return {
            "measures": {key: [round(row[key], 4) for row in rows] for key in rows[0]},
            "shares": [round(float(x), 5) for x in shares(actions[0])],
        }

    def claims(self) -> list[Claim]:
        def measures(name: str, measure: str, *temperatures: float) -> Any:
            return lambda cells: [
                Interval.of(cells[f"{name}/{t:g}"][measure]) for t in temperatures
            ]

        distance, lesser = "total_variation_to_boltzmann", "lesser_peak_share"
        return [
            Claim(
                "A mixture follows the density at every temperature: total variation at most 0.1",
                measures("mixturesac", distance, *TEMPERATURES),
                high=0.1,
            ),
            Claim(
                "A Gaussian cannot: total variation at least 0.3 at 0.3 and below",
                measures("sac", distance, 0.03, 0.1, 0.3),
                low=0.3,
            ),
            Claim(
                "A mixture keeps both peaks at every temperature: at least 0.3 of its actions in "
                "the lesser",
                measures("mixturesac", lesser, *TEMPERATURES),
                low=0.3,
            ),
            Claim(
                "A bridge keeps both peaks at 0.3: at least 0.3 of its actions in the lesser",
                measures("softgac", lesser, 0.3),
                low=0.3,
            ),
            Claim(
                "A bridge keeps both peaks at 0.03 and 0.1, too",
                measures("softgac", lesser, 0.03, 0.1),
                low=0.3,
            ),
        ]

    def figures(self, cells: Mapping[str, Any]) -> dict[str, Figure]:
        names = list(dict.fromkeys(cell.split("/")[0] for cell in cells))
        temperatures = list(dict.fromkeys(cell.split("/")[1] for cell in cells))
        try:
            of_cells = {n: [cells[f"{n}/{t}"]["shares"] for t in temperatures] for n in names}
        except KeyError:  # a cell is still missing, or was measured before shares were kept
            return {}
        return {"policies": draw(of_cells, [float(t) for t in temperatures])}


STUDY = TwoPeaks()


def learn(name: str, temperatures: Sequence[float], steps: int, seeds: int) -> Population:
    """An agent's population: a member for each temperature, which is held, and each seed."""
    import jaxrl

    jaxrl.use_all_cores()  # before gymnax is imported, which starts JAX
    import agents
    from envs_jax import bandits

    env = bandits.TwoPeaks()
    cls: Any = agents.get(name)
    agent = cls(
        env,
        env.default_params,
        total_steps=steps,
        learning_rate=1e-3,
        temperature_learning_rate=0.0,
        batch_size=128,
        buffer_size=20_000,
        hidden_sizes=(64, 64),
        num_updates=4,
        **SETTINGS[name],
    )
    return jaxrl.sweep(agent, {"temperature": list(temperatures)}, seeds=seeds).whole()


def actions_of(population: Population, samples: int = SAMPLES) -> np.ndarray:
    """Sampled actions (members, samples) of every final policy."""
    import jax
    import jax.numpy as jnp

    obs = jnp.ones((samples, 1))

    @jax.jit  # agent and state are pytrees: one program for all members
    def sample(agent: Any, state: Any, key: jax.Array) -> jax.Array:
        return agent.policy(state, deterministic=False)(obs, key)[:, 0]

    runs = [population[i] for i in range(len(population))]
    samples_of = [sample(run.agent, run.state, jax.random.key(i)) for i, run in enumerate(runs)]
    return np.stack([np.asarray(actions) for actions in samples_of])


def boltzmann(temperature: float, actions: np.ndarray) -> np.ndarray:
    """The density exp(reward / temperature) / Z at `actions`, evenly spaced over [-1, 1]."""
    from envs_jax import bandits

    weight = np.exp((np.asarray(bandits.two_peaks(actions)) - 1) / temperature)
    return weight / np.trapezoid(weight, actions)


def shares(actions: np.ndarray) -> np.ndarray:
    """The share of `actions` (samples,) in each of BINS equal bins of [-1, 1]."""
    return np.histogram(actions, np.linspace(-1, 1, BINS + 1))[0] / len(actions)


def measure(actions: np.ndarray, temperature: float) -> dict[str, float]:
    """How a policy's actions (samples,) lie."""
    from envs_jax import bandits

    fine = np.linspace(-1, 1, 20 * BINS + 1)
    density = boltzmann(temperature, fine)
    middles = (density[1:] + density[:-1]) / 2
    cumulative = np.concatenate([[0], np.cumsum(np.diff(fine) * middles)])
    wanted = np.diff(cumulative[::20])
    left = float((actions < 0).mean())
    return {
        "mean_reward": float(np.asarray(bandits.two_peaks(actions)).mean()),
        "lesser_peak_share": min(left, 1 - left),
        "total_variation_to_boltzmann": 0.5 * float(np.abs(shares(actions) - wanted).sum()),
    }


def draw(
    of_agents: Mapping[str, Sequence[Any]], temperatures: Sequence[float] = TEMPERATURES
) -> Figure:
    """Each agent's `shares` (temperatures, BINS) beside the Boltzmann density."""
    from matplotlib.figure import Figure

    size = (3 * len(temperatures), 2.2 * len(of_agents))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    axes = figure.subplots(len(of_agents), len(temperatures), sharex=True, squeeze=False)
    places, edges = np.linspace(-1, 1, 401), np.linspace(-1, 1, BINS + 1)
    for row, (name, of_agent) in zip(axes, of_agents.items(), strict=True):
        row[0].set_ylabel(LABELS[name])
        for ax, temperature, share in zip(row, temperatures, of_agent, strict=True):
            density = np.asarray(share) * BINS / 2
            ax.stairs(density, edges, fill=True, color="C0", alpha=0.55)
            ax.plot(places, boltzmann(temperature, places), color="black", linewidth=1.0)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_yticks([])
            ax.set_ylim(bottom=0)
    for ax, temperature in zip(axes[0], temperatures, strict=True):
        ax.set_title(f"temperature {temperature:g}", fontsize="medium")
    for ax in axes[-1]:
        ax.set_xlabel("action")
    return figure
