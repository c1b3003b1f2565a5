"""DQN: Human-level control through deep reinforcement learning (Mnih et al. 2015).

With Double DQN (van Hasselt et al. 2016, arXiv:1509.06461) as an option.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax import lax

from jaxrl import masks, spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import epsilon_greedy, epsilon_greedy_log_prob
from jaxrl.parts.losses import action_value, q_targets
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import clipped_adam, copy_of, descend, linear_schedule, polyak
from jaxrl.parts.replay import Batch, valid_mean


class DQNLearner(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any


class DQN(Learner):
    """Deep Q-learning from a replay against a target network; discrete actions."""

    takes_masks = True

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(1.0, "[0, inf)", "its fraction left at the end (linear)")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    double: bool = static(False, None, "Double DQN: the online network chooses the next action")
    huber: bool = static(
        False,
        None,
        "Huber loss of threshold 1, for rewards clipped to that; diverges when Q is larger",
    )
    tau: float = traced(1.0, "(0, 1]", "how far the target network moves when it does")
    target_period: int = static(250, "[1, inf)", "gradient steps between its moves")
    epsilon_start: float = traced(1.0, "[0, 1]", "share of random actions at the start")
    epsilon_end: float = traced(0.05, "[0, 1]", "share of random actions once it has decayed")
    epsilon_fraction: float = traced(0.3, "(0, 1]", "part of training over which it decays")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    max_grad_norm: float = traced(10.0, "(0, inf]", "global norm that gradients are clipped to")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((128, 128), "[1, inf)", "widths of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm before each activation")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "discrete", self.name, self.env)
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)
        require_body(self.network, self.obs_shape, self.name)

    def unused(self) -> dict[str, str]:
        if self.collects:
            return super().unused()
        decay = dict.fromkeys(("epsilon_start", "epsilon_fraction"), "with recorded data alone")
        return super().unused() | decay

    def make_network(self) -> Network:
        """Q of every action."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
        )

    def q_values(self, params: Any, obs: Any) -> jax.Array:
        """The values (B, A) of all actions at (normalised) observations.

        Of `Masked` ones, those of actions that may not be taken are the lowest number.
        """
        obs, mask = masks.split(obs)
        return masks.masked(self.make_network().apply(params, obs), mask)

    def optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        return clipped_adam(learning_rate, self.max_grad_norm)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> DQNLearner:
        params = self.make_network().init(key, obs)
        return DQNLearner(params, copy_of(params), self.optimizer(0.0).init(params))

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: DQNLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[DQNLearner, dict[str, jax.Array]]:
        # Towards r + gamma max_a Q'(s', a), or with Double DQN Q' of the online network's choice.
        next_q = self.q_values(learner.target_params, batch.next_obs)
        chooser = self.q_values(learner.params, batch.next_obs) if self.double else next_q
        reward = self.reward_scale * batch.reward
        target = q_targets(reward, batch.terminated, next_q, chooser, self.gamma)

        def loss_fn(params):
            q = action_value(self.q_values(params, batch.obs), batch.action)
            errors = optax.huber_loss(q, target) if self.huber else optax.l2_loss(q, target)
            return valid_mean(errors, batch.valid), q.mean()

        progress = n / (self.num_iterations * self.num_updates)
        params, opt_state, loss, q_mean = descend(
            self.optimizer(progress), loss_fn, learner.params, learner.opt_state
        )
        target_params = lax.cond(
            (n + 1) % self.target_period == 0,
            lambda: polyak(learner.target_params, params, self.tau),
            lambda: learner.target_params,
        )
        metrics = {"loss": loss, "q_mean": q_mean}
        return DQNLearner(params, target_params, opt_state), metrics

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: DQNLearner, obs: Any, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        epsilon = linear_schedule(
            self.epsilon_start, self.epsilon_end, progress, self.epsilon_fraction
        )
        q, (_, mask) = self.q_values(learner.params, obs), masks.split(obs)
        return epsilon_greedy(key, q, epsilon, mask)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        q = self.q_values(state.learner.params, self.normalize(state.obs_moments, obs))
        return epsilon_greedy_log_prob(q, action, self.epsilon_end, masks.split(obs)[1])

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """Greedy, or with `epsilon_end` random actions if not deterministic."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            q = self.q_values(state.learner.params, obs)
            if deterministic:
                return q.argmax(-1)
            return epsilon_greedy(key, q, self.epsilon_end, masks.split(obs)[1])

        return policy
