"""DQN: Human-level control through deep reinforcement learning (Mnih et al. 2015).

With Double DQN (van Hasselt et al. 2016, arXiv:1509.06461) as an option.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.offline import OfflineState, polyak
from jaxrl.loops.offpolicy import OffPolicy
from jaxrl.parts.distributions import epsilon_greedy
from jaxrl.parts.networks import Network, q_network
from jaxrl.parts.optimize import linear_schedule
from jaxrl.parts.replay import Batch, valid_mean


class DQNLearner(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any


class DQN(OffPolicy):
    """Q-learning from replay against a target network; epsilon-greedy behaviour."""

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(1.0, "[0, inf)", "its fraction left at the end (linear)")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    double: bool = static(False, None, "Double DQN: the online network chooses the next action")
    huber: bool = static(
        False,
        None,
        "Huber loss of threshold 1, for rewards clipped to that; with larger Q diverges",
    )
    tau: float = traced(1.0, "(0, 1]", "how far the target network moves when it does")
    target_period: int = static(250, "[1, inf)", "gradient steps between its moves")
    epsilon_start: float = traced(1.0, "[0, 1]", "share of random actions at the start")
    epsilon_end: float = traced(0.05, "[0, 1]", "share of random actions once it has decayed")
    epsilon_fraction: float = traced(0.3, "(0, 1]", "part of training over which it decays")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    max_grad_norm: float = traced(10.0, "(0, inf]", "global norm that gradients are clipped to")
    network: str = static("mlp", ("mlp", "cnn"), "cnn: a 3x3 convolution on (H, W, C) first")
    hidden_sizes: tuple[int, ...] = static((128, 128), "[1, inf)", "widths of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm before each activation")

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "discrete", self.name, self.env)
        self.make_network()

    def make_network(self) -> Network:
        return q_network(
            self.network,
            self.env,
            self.env_params,
            self.name,
            self.hidden_sizes,
            self.layer_norm,
        )

    def optimizer(self, progress: jax.Array | float = 0.0) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate))

    def q_values(self, params: Any, obs: jax.Array) -> jax.Array:
        return self.make_network().apply(params, obs)

    def init_learner(self, key: jax.Array, obs: jax.Array) -> DQNLearner:
        params = self.make_network().init(key, obs)
        # A copy: the carry is donated, and one buffer cannot be donated twice.
        target_params = jax.tree.map(jnp.copy, params)
        return DQNLearner(params, target_params, self.optimizer().init(params))

    def explore(
        self, learner: DQNLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        epsilon = linear_schedule(
            self.epsilon_start, self.epsilon_end, progress, self.epsilon_fraction
        )
        return epsilon_greedy(key, self.q_values(learner.params, obs), epsilon)

    def update(
        self, learner: DQNLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[DQNLearner, dict[str, jax.Array]]:
        next_q = self.q_values(learner.target_params, batch.next_obs)
        chooser = self.q_values(learner.params, batch.next_obs) if self.double else next_q
        targets = q_targets(
            self.reward_scale * batch.reward, batch.terminated, next_q, chooser, self.gamma
        )

        def loss_fn(params):
            q = self.q_values(params, batch.obs)
            chosen = jnp.take_along_axis(q, batch.action[:, None], axis=-1)[:, 0]
            error = optax.huber_loss if self.huber else optax.l2_loss
            extra, metrics = self.regulariser(q, batch)
            loss = valid_mean(error(chosen, targets), batch.valid) + extra
            return loss, {"loss": loss, "q_mean": chosen.mean(), **metrics}

        grads, metrics = jax.grad(loss_fn, has_aux=True)(learner.params)
        progress = n / (self.num_iterations * self.num_updates)
        updates, opt_state = self.optimizer(progress).update(grads, learner.opt_state)
        params = optax.apply_updates(learner.params, updates)
        target_params = lax.cond(
            (n + 1) % self.target_period == 0,
            lambda: polyak(learner.target_params, params, self.tau),
            lambda: learner.target_params,
        )
        return DQNLearner(params, target_params, opt_state), metrics

    def regulariser(
        self, q: jax.Array, batch: Batch
    ) -> tuple[jax.Array | float, dict[str, jax.Array]]:
        """What a subclass adds to the loss, given the online values (B, A); and its metrics."""
        return 0.0, {}

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """Greedy, or with `epsilon_end` random actions if not deterministic."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            q = self.q_values(state.learner.params, obs)
            return q.argmax(-1) if deterministic else epsilon_greedy(key, q, self.epsilon_end)

        return act


def q_targets(
    reward: jax.Array,
    terminated: jax.Array,
    next_q: jax.Array,
    chooser: jax.Array,
    gamma: float | jax.Array,
) -> jax.Array:
    """r + gamma (1 - terminated) Q'(s', argmax_a Q_c(s', a)), shape (B,).

    Args:
        next_q: the target network's values (B, A).
        chooser: the values whose greedy action is taken: the same, or with Double DQN the online
            network's.
    """
    action = chooser.argmax(-1, keepdims=True)
    value = jnp.take_along_axis(next_q, action, axis=-1)[:, 0]
    return reward + gamma * (1 - terminated) * value
