"""An agent whose returns are a known function of its hyper-parameter, and of nothing else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import Agent, static, traced
from jaxrl.agent import Tag, derive
from tests.probes import ActionChoice

BEST = 1e-2  # of the rate
ENV = ActionChoice()


class TunedState(NamedTuple):
    key: jax.Array
    skill: jax.Array
    noise: jax.Array
    actors: Any = ()


class Tuned(Agent):
    """Each iteration is an episode, and adds `gain(rate)` to its return.

    A rate above 1 makes the parameters NaN. `traces` counts how many times `step` was traced.
    """

    traces = 0  # not annotated, so no field

    rate: float = traced(BEST, "(0, inf)", "of learning, best at 0.01")
    offset: float = traced(0.0, "(-inf, inf)", "added to returns as they are shown")
    late: float = traced(0.0, "[0, inf)", "no episode ends before this iteration")
    width: int = static(1, "[1, inf)", "that has a program of its own")

    @property
    def steps_per_iteration(self) -> int:
        return 4

    def init(self, key):
        return TunedState(key, jnp.float32(0), jnp.float32(0))

    def step(self, state, t):
        Tuned.traces += 1
        noise = jax.random.normal(derive(state.key, Tag.LEARN, t), dtype=jnp.float32)
        skill = jnp.where(self.rate > 1, jnp.nan, state.skill + gain(self.rate, jnp))
        ended = t >= self.late
        metrics = {
            "episode_return": jnp.where(ended & ~jnp.isnan(skill), skill + self.offset, jnp.nan),
            "episodes": ended.astype(jnp.int32),
            "noise": noise,
        }
        return TunedState(state.key, skill, noise), metrics

    def learned(self, state):
        return state.skill

    def policy(self, state, deterministic=True):
        return lambda obs, key: (state.skill > 0).astype(jnp.int32)


def gain(rate, xp=np):
    """1 at the best rate, less by 1 for each factor of 10 away from it."""
    return 1 - xp.abs(xp.log10(rate / BEST))


def tuned(iterations=40, **changes):
    return Tuned(ENV, ENV.default_params, total_steps=4 * iterations, **changes)
