"""A bandit with two peaks, and what SAC, mixture SAC and SoftGAC make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

import jaxrl
from agents.off_policy.mixturesac import MixtureSAC
from agents.off_policy.sac import SAC
from agents.off_policy.softgac import SoftGAC
from jaxrl import Population

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
PEAKS = (-0.6, 0.6)
WIDTH = 0.2
LABELS = {"sac": "Gaussian", "mixturesac": "mixture of 5", "softgac": "bridge of 6 steps"}
SETTINGS: dict[type[SAC] | type[MixtureSAC] | type[SoftGAC], dict[str, Any]] = {
    SAC: {},
    MixtureSAC: {},
    SoftGAC: {"critic": "twin", "bridge_width": 64, "policy_delay": 1, "input_norm": False},
}
SAMPLES = 20_000
BINS = 50


def reward_of(action: jax.Array) -> jax.Array:
    """Two peaks of height 1 on [-1, 1]."""
    return sum((jnp.exp(-(((action - peak) / WIDTH) ** 2)) for peak in PEAKS), jnp.zeros(()))


@struct.dataclass
class State:
    time: jax.Array


@struct.dataclass
class Params:
    max_steps_in_episode: jax.Array


class TwoPeaks(Environment):
    """Episodes of one step; the action's reward is `reward_of` it, the observation always 1."""

    @property
    def default_params(self) -> Params:
        return Params(jnp.int32(1))

    def reset_env(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        return jnp.ones(1), State(jnp.int32(0))

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Params
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        done = jnp.bool_(True)
        return jnp.ones(1), State(state.time + 1), reward_of(action[0]), done, {}

    @property
    def num_actions(self) -> int:
        return 1

    def action_space(self, params: Params | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params: Params) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))


def learn(
    steps: int = 16_000, seeds: int = 4, temperatures: tuple[float, ...] = TEMPERATURES
) -> dict[str, Population]:
    """A population for each agent: a member for each temperature and seed, seeds fastest."""
    env = TwoPeaks()
    populations = {}
    for cls, settings in SETTINGS.items():
        agent = cls(
            env,
            env.default_params,
            total_steps=steps,
            learning_rate=1e-3,
            temperature_learning_rate=0.0,  # fixed
            batch_size=128,
            buffer_size=20_000,
            hidden_sizes=(64, 64),
            num_updates=4,
            **settings,
        )
        populations[agent.name] = jaxrl.sweep(
            agent, {"temperature": list(temperatures)}, seeds=seeds
        ).whole()
    return populations


def actions_of(population: Population, samples: int = SAMPLES) -> np.ndarray:
    """Sampled actions (members, samples) of every final policy."""
    obs = jnp.ones((samples, 1))

    @jax.jit  # agent and state are pytrees: one program for all members
    def sample(agent: Any, state: Any, key: jax.Array) -> jax.Array:
        return agent.policy(state, deterministic=False)(obs, key)[:, 0]

    runs = [population[i] for i in range(len(population))]
    members = [(run.agent, run.state) for run in runs]
    return np.stack(
        [
            np.asarray(sample(agent, state, jax.random.key(i)))
            for i, (agent, state) in enumerate(members)
        ]
    )


def boltzmann(temperature: float, actions: np.ndarray) -> np.ndarray:
    """The density exp(reward / temperature) / Z at `actions`, evenly spaced over [-1, 1]."""
    weight = np.exp((np.asarray(reward_of(jnp.asarray(actions))) - 1) / temperature)
    return weight / np.trapezoid(weight, actions)


def measure(actions: np.ndarray, temperature: float) -> dict[str, float]:
    """How a policy's actions (samples,) lie."""
    edges = np.linspace(-1, 1, BINS + 1)
    share = np.histogram(actions, edges)[0] / len(actions)
    fine = np.linspace(-1, 1, 20 * BINS + 1)
    cumulative = np.concatenate(
        [[0], np.cumsum(np.diff(fine) * _middles(boltzmann(temperature, fine)))]
    )
    wanted = np.diff(cumulative[::20])
    left = float((actions < 0).mean())
    return {
        "mean_reward": float(reward_of(jnp.asarray(actions)).mean()),
        "lesser_peak_share": min(left, 1 - left),
        "total_variation_to_boltzmann": 0.5 * float(np.abs(share - wanted).sum()),
    }


def draw(
    actions: Mapping[str, np.ndarray], temperatures: tuple[float, ...] = TEMPERATURES
) -> Figure:
    """Histograms of each agent's `actions` (temperatures, samples) beside the Boltzmann density."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(3 * len(temperatures), 2.2 * len(actions)), dpi=130, layout="constrained"
    )
    axes = figure.subplots(len(actions), len(temperatures), sharex=True, squeeze=False)
    places = np.linspace(-1, 1, 401)
    for row, (name, of_agent) in zip(axes, actions.items(), strict=True):
        row[0].set_ylabel(LABELS[name])
        for ax, temperature, samples in zip(row, temperatures, of_agent, strict=True):
            ax.hist(samples, np.linspace(-1, 1, BINS + 1), density=True, color="C0", alpha=0.55)
            ax.plot(places, boltzmann(temperature, places), color="black", linewidth=1.0)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_yticks([])
    for ax, temperature in zip(axes[0], temperatures, strict=True):
        ax.set_title(f"temperature {temperature:g}", fontsize="medium")
    for ax in axes[-1]:
        ax.set_xlabel("action")
    return figure


def _middles(values: np.ndarray) -> np.ndarray:
    return (values[1:] + values[:-1]) / 2
