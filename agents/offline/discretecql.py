"""Discrete CQL: conservative Q-learning on DQN (Kumar et al. 2020, arXiv:2006.04779, section 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import epsilon_greedy, epsilon_greedy_log_prob
from jaxrl.parts.losses import action_value, q_targets
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import clipped_adam, copy_of, descend, linear_schedule, polyak
from jaxrl.parts.replay import Batch, valid_mean


class DiscreteCQLLearner(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any


class DiscreteCQL(Learner):
    """Conservative Q-learning: DQN held down off the data; discrete actions, meant for records.

    Its loss adds log-sum-exp of Q minus Q of the recorded action to DQN's.
    """

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(1.0, "[0, inf)", "its fraction left at the end (linear)")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    cql_alpha: float = traced(1.0, "[0, inf)", "weight of the conservative term")
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

    def q_values(self, params: Any, obs: jax.Array) -> jax.Array:
        """The values (B, A) of all actions at (normalised) observations."""
        return self.make_network().apply(params, obs)

    def optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        return clipped_adam(learning_rate, self.max_grad_norm)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> DiscreteCQLLearner:
        params = self.make_network().init(key, obs)
        return DiscreteCQLLearner(params, copy_of(params), self.optimizer(0.0).init(params))

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: DiscreteCQLLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[DiscreteCQLLearner, dict[str, jax.Array]]:
        # Towards r + gamma max_a Q'(s', a), or with Double DQN Q' of the online network's choice.
        next_q = self.q_values(learner.target_params, batch.next_obs)
        chooser = self.q_values(learner.params, batch.next_obs) if self.double else next_q
        reward = self.reward_scale * batch.reward
        target = q_targets(reward, batch.terminated, next_q, chooser, self.gamma)

        # DQN's loss, and what pushes all of Q down and Q of the recorded action up.
        def loss_fn(params):
            all_q = self.q_values(params, batch.obs)
            q = action_value(all_q, batch.action)
            errors = optax.huber_loss(q, target) if self.huber else optax.l2_loss(q, target)
            gap = valid_mean(conservatism(all_q, batch.action), batch.valid)
            return valid_mean(errors, batch.valid) + self.cql_alpha * gap, (q.mean(), gap)

        progress = n / (self.num_iterations * self.num_updates)
        params, opt_state, loss, (q_mean, gap) = descend(
            self.optimizer(progress), loss_fn, learner.params, learner.opt_state
        )
        target_params = lax.cond(
            (n + 1) % self.target_period == 0,
            lambda: polyak(learner.target_params, params, self.tau),
            lambda: learner.target_params,
        )
        metrics = {"loss": loss, "q_mean": q_mean, "gap": gap}
        return DiscreteCQLLearner(params, target_params, opt_state), metrics

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: DiscreteCQLLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        epsilon = linear_schedule(
            self.epsilon_start, self.epsilon_end, progress, self.epsilon_fraction
        )
        return epsilon_greedy(key, self.q_values(learner.params, obs), epsilon)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        q = self.q_values(state.learner.params, self.normalize(state.obs_moments, obs))
        return epsilon_greedy_log_prob(q, action, self.epsilon_end)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """Greedy, or with `epsilon_end` random actions if not deterministic."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            q = self.q_values(state.learner.params, obs)
            return q.argmax(-1) if deterministic else epsilon_greedy(key, q, self.epsilon_end)

        return policy


def conservatism(q: jax.Array, action: jax.Array) -> jax.Array:
    """log sum_a exp Q(s, a) - Q(s, a_data), shape (B,), of values (B, A) (eq. 4 with CQL(H)).

    Its gradient with respect to Q is softmax(Q) minus the one-hot of the recorded action.
    """
    return jax.nn.logsumexp(q, axis=-1) - action_value(q, action)
