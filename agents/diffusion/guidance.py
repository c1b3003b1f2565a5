"""Hierarchical variational policies for reward-guided diffusion.

A trained sampler is left as it is, and each of its few steps is controlled instead: a policy says
what the clean point that the step heads for is drawn from, given where the path is, which step it
is and what is asked for (the goal). One network does so for all goals. The samples wanted have the
density p(x_0) exp(r(x_0) / temperature) / Z; the policy maximises the variational bound

    E[r(x_0)] - temperature sum_k KL(controlled step || the sampler's own) <= temperature log Z

by its gradient along the path, as SoftGAC does with its bridge. The steps are normal, so each KL
divergence is known; it is that of the step, with the clean point integrated out, which is less than
that of the two together. What the bound lacks is the divergence of paths from the paths wanted, and
that of samples is less still.

The details are ours: of the method's own, only the idea is known to us.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Agent, Policy, Tag, derive, memoryless, static, traced
from jaxrl.parts.diffusion import Step, grid_kl, next_density, square_grid
from jaxrl.parts.distributions import Normal
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import clipped_adam, descend, learn_if

SAMPLER = ("num_steps", "dimensions", "start", "goal", "propose", "controls", "reward", "observe")


class Sampler(Protocol):
    """What this agent asks of an environment, beside the interface that all agents need.

    One episode is one path; an action steers one step of it, and 0, in the middle of the box,
    leaves it as it is. `tilted` and `axis` are needed for `tilted_kl` alone, and `dimensions` is 2
    there.
    """

    num_steps: int  # K
    dimensions: int  # D

    def start(self, key: jax.Array, params: Any) -> jax.Array:
        """Noise (D,)."""

    def goal(self, key: jax.Array, params: Any) -> jax.Array:
        """What is asked of a sample (G,)."""

    def propose(self, x: jax.Array, time: jax.Array, params: Any) -> Step:
        """The sampler's own step from x (..., D), after `time` steps."""

    def controls(self, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The shift and the scale (..., D) of `Step` that actions (..., A) stand for."""

    def reward(self, x: jax.Array, goal: jax.Array, params: Any) -> jax.Array:
        """Of samples (..., D); it is differentiated."""

    def observe(self, x: jax.Array, time: jax.Array, goal: jax.Array, params: Any) -> jax.Array:
        """Observations (..., O) of x (..., D) and goals (..., G)."""

    def tilted(self, goal: jax.Array, temperature: Any, params: Any) -> tuple[Any, jax.Array]:
        """The density wanted for a goal (G,), which has a `log_prob`, and log Z."""

    def axis(self, params: Any) -> jax.Array:
        """Places (A,) of either dimension to integrate over."""


class GuidanceState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any


class Guidance(Agent):
    """Steers each step of a frozen diffusion sampler towards a reward, at a price in KL divergence.

    Written for environments that are samplers: `diffusion/ring`. All noise is the sampler's: the
    policy acts alike with `deterministic` and without.
    """

    num_paths: int = static(512, "[1, inf)", "paths per iteration, each to a goal of its own")
    learning_rate: float = traced(3e-3, "(0, inf)", "Adam's step size")
    max_grad_norm: float = traced(1.0, "(0, inf]", "global norm that gradients are clipped to")
    temperature: float = traced(0.5, "(0, inf)", "reward that a nat of divergence has to bring")
    measure_every: int = static(
        0, "[0, inf)", "iterations between two measurements of tilted_kl; 0: none"
    )
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, before the hidden layers")
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths")
    activation: str = static("swish", ("tanh", "relu", "swish"), "of the hidden layers")
    precision: str = static(
        "float32", ("float32", "bfloat16"), "operands of the network's products; sums are float32"
    )

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        # What an exported policy has in its environment's place has spaces only: it just acts.
        is_standin = getattr(self.env, "acts_only", False)
        wanted = (*SAMPLER, *(("tilted", "axis") if self.measure_every else ()))
        missing = [name for name in wanted if not hasattr(self.env, name)]
        if missing and not is_standin:
            raise ValueError(
                f"guidance: {spaces.name_of(self.env)} has no {missing[0]}: it steers diffusion "
                "samplers, as the environments diffusion/... are"
            )
        if self.measure_every and not is_standin and self.env.dimensions != 2:
            raise ValueError(
                f"guidance: measure_every={self.measure_every} must be 0 where samples have "
                f"{self.env.dimensions} dimensions: tilted_kl is an integral over two"
            )
        require_body(self.network, self.obs_shape, self.name)

    def make_network(self) -> Network:
        """Of actions, which are almost 0 at first: they leave the sampler as it is."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            output_scale=0.01,
            precision=self.precision,
        )

    def act(self, params: Any, obs: jax.Array) -> jax.Array:
        """Actions (..., *shape) in the environment's units, at observations (..., O)."""
        return self.env_action(jnp.tanh(self.make_network().apply(params, obs)))

    def control(
        self, params: Any, x: jax.Array, time: jax.Array, goal: jax.Array
    ) -> tuple[Normal, jax.Array]:
        """The law (..., D) of the controlled step from x (..., D), and its cost (...)."""
        step = self.env.propose(x, time, self.env_params)
        obs = self.env.observe(x, time, goal, self.env_params)
        shift, scale = self.env.controls(self.act(params, obs))
        return step.controlled(shift, scale), step.cost(shift, scale)

    def optimizer(self) -> optax.GradientTransformation:
        return clipped_adam(self.learning_rate, self.max_grad_norm)

    # Init -------------------------------------------------------------------------------------

    @property
    def unit(self) -> str:
        return "samples"

    @property
    def steps_per_iteration(self) -> int:
        return self.num_paths

    def init(self, key: jax.Array) -> GuidanceState:
        obs = jnp.zeros(self.obs_shape, jnp.float32)
        params = self.make_network().init(derive(key, Tag.INIT), obs)
        return GuidanceState(key, params, self.optimizer().init(params))

    # Update -----------------------------------------------------------------------------------

    def step(
        self, state: GuidanceState, t: jax.Array
    ) -> tuple[GuidanceState, dict[str, jax.Array]]:
        goal_key, path_key = jax.random.split(derive(state.key, Tag.ROLLOUT, t))
        keys = jax.random.split(goal_key, self.num_paths)
        goals = jax.vmap(self.env.goal, (0, None))(keys, self.env_params)

        def loss_fn(params):
            x, cost = self.paths(params, goals, path_key)
            reward = self.env.reward(x, goals, self.env_params)
            return (self.temperature * cost - reward).mean(), (reward.mean(), cost.mean())

        params, opt_state, loss, (reward, cost) = descend(
            self.optimizer(), loss_fn, state.params, state.opt_state
        )
        metrics = {
            "episode_return": reward,
            "episode_length": jnp.float32(self.env.num_steps),
            "episodes": jnp.float32(self.num_paths),
            "loss": loss,
            "penalty": cost,
        }
        if self.measure_every:

            def measure(params):
                goal = self.env.goal(derive(state.key, Tag.MEASURE, t), self.env_params)
                return params, {"tilted_kl": self.tilted_kl(params, goal)}

            metrics |= learn_if(t % self.measure_every == 0, measure, state.params)[1]
        return GuidanceState(state.key, params, opt_state), metrics

    def paths(self, params: Any, goals: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The ends (N, D) of paths to goals (N, G), and what each cost (N,)."""
        start_key, step_key = jax.random.split(key)
        starts = jax.random.split(start_key, len(goals))
        x = jax.vmap(self.env.start, (0, None))(starts, self.env_params)
        noise = Normal.noise(step_key, (self.env.num_steps, *x.shape))

        def move(carry, row):
            x, cost = carry
            time, eps = row
            law, paid = self.control(params, x, time, goals)
            return (law.sample_by(eps), cost + paid), None

        times = jnp.arange(self.env.num_steps, dtype=jnp.int32)
        return lax.scan(move, (x, jnp.zeros(len(x), x.dtype)), (times, noise))[0]

    # Measuring --------------------------------------------------------------------------------

    def density(self, params: Any, goal: jax.Array) -> jax.Array:
        """Of the samples for one goal (G,), on the grid (A, A) of the environment's `axis`.

        An integral over the grid at each step, which is as good as exact; see `next_density`. Paths
        begin at standard normal noise.
        """
        axis = self.env.axis(self.env_params)
        grid = square_grid(axis)
        goals = jnp.broadcast_to(goal, (*grid.shape[:-1], *goal.shape))

        def move(density, time):
            law = self.control(params, grid, time, goals)[0]
            return next_density(density, law, axis), None

        zeros = jnp.zeros_like(grid)
        times = jnp.arange(self.env.num_steps, dtype=jnp.int32)
        return lax.scan(move, jnp.exp(Normal(zeros, zeros).log_prob(grid)), times)[0]

    def tilted_kl(self, params: Any, goal: jax.Array) -> jax.Array:
        """KL divergence () of the samples for one goal (G,) from the density wanted.

        NaN where more than 1 % of them lie outside the grid.
        """
        axis = self.env.axis(self.env_params)
        target, _ = self.env.tilted(goal, self.temperature, self.env_params)
        density = self.density(params, goal)
        inside = density.sum() * (axis[1] - axis[0]) ** 2
        log_density = target.log_prob(square_grid(axis))
        return jnp.where(inside > 0.99, grid_kl(density, log_density, axis), jnp.nan)

    # Acting -----------------------------------------------------------------------------------

    def policy(self, state: GuidanceState, deterministic: bool = True) -> Policy:
        """The control of the next step; the noise is the sampler's."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            return self.act(state.params, obs)

        return policy
