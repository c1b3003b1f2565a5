"""Our own suite of diffusion samplers to be steered: a step of an episode is one of a sampler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from envs_jax.wrappers import constructor_options
from jaxrl.parts.diffusion import Mixture, Step, cosine_levels, ddim_step

FURTHEST = 6.0  # shift of a control, in deviations
STEEPEST = 2.0  # logarithm of its scale
POINTS = 112  # of each axis, where densities are integrated


@struct.dataclass
class Params:
    """Of J modes.

    Attributes:
        weights: (J,), how often the data has each; they need not add up to 1.
        radius: of the ring that the modes stand on.
        std: of each mode.
        eta: noise of the sampler, from 0 (DDIM) to 1 (DDPM); see `parts.diffusion.ddim_step`.
        max_steps_in_episode: steps of the sampler.
    """

    weights: jax.Array
    radius: jax.Array
    std: jax.Array
    eta: jax.Array
    max_steps_in_episode: jax.Array


@struct.dataclass
class State:
    x: jax.Array  # (2,)
    goal: jax.Array  # (2,), a direction
    time: jax.Array  # steps of the sampler so far


class Ring(Environment):
    """Normals on a ring, sampled by a diffusion sampler that knows their score, and a direction.

    An episode begins at normal noise and ends at a sample x_0, whose reward is goal . x_0, for a
    goal that is drawn from all directions. An action steers a step: 6 times its first half is the
    shift, and exp(2 times the other half) the scale of what `Step` has controlled, in each of the
    two dimensions; zeros leave the sampler as it is. What a step costs, the KL divergence from the
    sampler's own, is `info["path_cost"]`; it is no part of the reward.

    Observations are x, the number of the step as a one-hot vector, and the goal.

    Args:
        modes: J.
        steps: K, of the sampler. The fewer, the further its own samples are from the data.
    """

    id = "diffusion/ring"
    resets = "fresh"
    pool_size = 16
    end_broken = False
    reports = ("path_cost",)
    dimensions = 2

    def __init__(self, modes: int = 8, steps: int = 8):
        for what, count in (("modes", modes), ("steps", steps)):
            if count < 1:
                raise ValueError(f"{self.id}: {what}={count} is less than 1")
        self.modes, self.num_steps = modes, steps

    # The sampler and its reward, as an agent that runs it by itself asks for them ---------------

    def start(self, key: jax.Array, params: Params) -> jax.Array:
        """Noise (2,) that a path begins at."""
        return jax.random.normal(key, (2,), jnp.float32)

    def goal(self, key: jax.Array, params: Params) -> jax.Array:
        """A direction (2,), of length 1."""
        angle = jax.random.uniform(key, (), jnp.float32, maxval=2 * jnp.pi)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def propose(self, x: jax.Array, time: jax.Array, params: Params) -> Step:
        """The sampler's own step from x (..., 2), after `time` steps."""
        signal, noise = cosine_levels(self.num_steps)
        k = self.num_steps - time
        mean, variance = self.data(params).denoise(x, signal[k], noise[k])
        levels = jnp.stack([k - 1, k])
        return ddim_step(x, mean, variance, signal[levels], noise[levels], params.eta)

    def controls(self, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The shift and the scale (..., 2) of a step that actions (..., 4) stand for."""
        shift, log_scale = jnp.split(action, 2, axis=-1)
        return FURTHEST * shift, jnp.exp(STEEPEST * log_scale)

    def reward(self, x: jax.Array, goal: jax.Array, params: Params) -> jax.Array:
        """Of samples x (..., 2), for a goal (..., 2)."""
        return (goal * x).sum(axis=-1)

    def tilted(self, goal: jax.Array, temperature: Any, params: Params) -> tuple[Any, jax.Array]:
        """The density p(x) exp(reward / temperature) / Z for a goal (2,), exactly, and log Z.

        With the density p of the data: what a sampler without error would be steered to.
        """
        return self.data(params).tilted(goal / temperature)

    def observe(self, x: jax.Array, time: jax.Array, goal: jax.Array, params: Params) -> jax.Array:
        """What is seen (..., 2 + K + 2) of x and goal (..., 2) after `time` steps."""
        step = jax.nn.one_hot(time, self.num_steps, dtype=jnp.float32)
        step = jnp.broadcast_to(step, (*x.shape[:-1], self.num_steps))
        return jnp.concatenate([x, step, goal], axis=-1)

    def axis(self, params: Params) -> jax.Array:
        """Places (A,) in each dimension, between which all paths and samples lie."""
        extent = jnp.maximum(params.radius + 6 * params.std, 5.5)
        return extent * jnp.linspace(-1, 1, POINTS, dtype=jnp.float32)

    def data(self, params: Params) -> Mixture:
        """What the sampler was made to sample."""
        angle = 2 * jnp.pi * jnp.arange(self.modes, dtype=jnp.float32) / self.modes
        means = params.radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return Mixture(jnp.log(params.weights / params.weights.sum()), means, params.std)

    # gymnax's interface -------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.id

    @property
    def num_actions(self) -> int:
        return 4

    @property
    def default_params(self) -> Params:
        return Params(
            weights=jnp.ones(self.modes, jnp.float32),
            radius=jnp.float32(2),
            std=jnp.float32(0.4),
            eta=jnp.float32(1),
            max_steps_in_episode=jnp.int32(self.num_steps),
        )

    def reset_env(self, key: jax.Array, params: Params) -> tuple[jax.Array, State]:
        start_key, goal_key = jax.random.split(key)
        x, goal = self.start(start_key, params), self.goal(goal_key, params)
        state = State(x, goal, jnp.int32(0))
        return self.observe(x, state.time, goal, params), state

    def step_env(
        self, key: jax.Array, state: State, action: jax.Array, params: Params
    ) -> tuple[jax.Array, State, jax.Array, jax.Array, dict[str, Any]]:
        step = self.propose(state.x, state.time, params)
        shift, scale = self.controls(action)
        x = step.controlled(shift, scale).sample(key).astype(jnp.float32)
        cost = step.cost(shift, scale).astype(jnp.float32)
        state = State(x, state.goal, state.time + 1)
        done = state.time >= self.num_steps
        reward = jnp.where(done, self.reward(x, state.goal, params), 0).astype(jnp.float32)
        obs = self.observe(x, state.time, state.goal, params)
        return obs, state, reward, done, {"path_cost": cost}

    def is_truncated(self, state: State, params: Params) -> jax.Array:
        return state.time >= params.max_steps_in_episode

    def action_space(self, params: Params | None = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (4,))

    def observation_space(self, params: Params) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, (2 + self.num_steps + 2,))


SAMPLERS = {"ring": Ring}


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: how it resets, and those of the sampler's own constructor."""
    return {"resets": "fresh", "pool_size": 16} | constructor_options(SAMPLERS[name])


def build(suite: str, name: str, **settings: Any) -> Ring:
    """The sampler `name`. ValueError (one line) where an option is out of range."""
    return SAMPLERS[name](**settings)
