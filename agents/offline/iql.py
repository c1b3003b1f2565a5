"""IQL: Offline RL with Implicit Q-Learning (Kostrikov et al. 2021, arXiv:2110.06169).

As in the released code the actor's step size decays to 0 over the run by half a cosine. That code
also prepares rewards: returns of MuJoCo sets are scaled to span 1,000 (`span_returns=True`), and
AntMaze's rewards are lowered by 1 (`reward_shift=-1`). On Adroit and kitchen sets its actor has a
dropout of 0.1 (`actor_dropout`).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.losses import action_value, expectile_loss, td_target, weighted_cloning_loss
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch

LOG_STD_RANGE = (-5.0, 2.0)  # that the policy's log-deviation is kept in


class IQLLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    value: Any
    actor_opt: Any
    critic_opt: Any
    value_opt: Any


class IQL(Learner):
    """Implicit Q-learning from recorded data; discrete and continuous actions.

    V is an expectile of Q over recorded actions, Q backs up V, and the policy clones recorded
    actions by their advantage. No action but a recorded one is ever evaluated.
    """

    offline_only: ClassVar[bool] = True

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of all networks")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far target networks move when they do")
    expectile: float = traced(0.7, "(0, 1)", "of Q that V is fitted to (0.9 for mazes)")
    beta: float = traced(3.0, "[0, inf)", "inverse temperature of the weights (10 for mazes)")
    max_weight: float = traced(100.0, "(0, 1e6]", "that weights are clipped to")
    cosine_decay: bool = static(True, None, "of the actor's step size, to 0 at the end of the run")
    actor_dropout: float = static(0.0, "[0, 1)", "in the actor's loss (0.1 for Adroit, kitchen)")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of every network")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of every network")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        require_body(self.network, self.obs_shape, self.name)

    def make_network(self, outputs: int) -> Network:
        return Network(
            outputs=outputs,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            body=body_of(self.network),
        )

    def make_actor(self) -> Network:
        """From an observation to logits, or to a mean before the tanh that bounds it."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            body=body_of(self.network),
            output_scale=0.01,
            dropout=self.actor_dropout,
        )

    def make_critic(self) -> Network:
        """Q of every action where they are discrete, else of an observation and an action."""
        return self.make_network(spaces.action_size(self.action_space) if self.discrete else 1)

    def make_value(self) -> Network:
        return self.make_network(1)

    def distribution(
        self, actor: Any, obs: jax.Array, dropout_key: jax.Array | None = None
    ) -> Normal | Categorical:
        """The policy at (normalised) observations, with dropout where it has a key for that."""
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        output = self.make_actor().apply(
            actor["net"], obs, training=dropout_key is not None, rngs=rngs
        )
        if self.discrete:
            return Categorical(output)
        return Normal(jnp.tanh(output), jnp.broadcast_to(actor["log_std"], output.shape))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B) of actions as they are recorded."""
        critic = self.make_critic()
        if self.discrete:
            return jnp.stack([action_value(critic.apply(c, obs), action) for c in critics])
        return jnp.stack([critic.apply(c, obs, action)[:, 0] for c in critics])

    def state_values(self, value: Any, obs: jax.Array) -> jax.Array:
        return self.make_value().apply(value, obs)[:, 0]

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def actor_optimizer(self, n: jax.Array | int) -> optax.GradientTransformation:
        """Of gradient step n."""
        if not self.cosine_decay:
            return self.optimizer()
        gradient_steps = self.num_iterations * self.num_updates
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, gradient_steps)(n))

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> IQLLearner:
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        size = spaces.action_size(self.action_space)
        actor = {"net": self.make_actor().init(actor_key, obs)}
        if not self.discrete:  # a log-deviation that is the same everywhere
            actor["log_std"] = jnp.zeros(size, jnp.float32)
        inputs = (obs,) if self.discrete else (obs, jnp.zeros((size,)))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        value = self.make_value().init(value_key, obs)
        return IQLLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            value=value,
            actor_opt=self.actor_optimizer(0).init(actor),
            critic_opt=self.optimizer().init(critics),
            value_opt=self.optimizer().init(value),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: IQLLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[IQLLearner, dict[str, jax.Array]]:
        optimizer = self.optimizer()
        q = self.q_values(learner.target_critics, batch.obs, batch.action).min(axis=0)

        # V, an expectile of min Q' (eq. 5).
        def value_loss(value):
            v = self.state_values(value, batch.obs)
            return expectile_loss(q - v, self.expectile).mean(), v

        value, value_opt, value_loss_value, v = descend(
            optimizer, value_loss, learner.value, learner.value_opt
        )

        # Critics, towards r + gamma V(s') (eq. 6).
        next_v = lax.stop_gradient(self.state_values(value, batch.next_obs))
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_v, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            return 0.5 * ((q - target) ** 2).sum(axis=0).mean(), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            optimizer, critic_loss, learner.critics, learner.critic_opt
        )

        # Actor, cloning with weights exp(beta (Q' - V)) (eq. 7).
        def actor_loss(actor):
            dist = self.distribution(actor, batch.obs, key)
            log_prob = dist.log_prob(batch.action)
            return weighted_cloning_loss(log_prob, self.beta * (q - v), self.max_weight)

        actor, actor_opt, actor_loss_value, weight = descend(
            self.actor_optimizer(n), actor_loss, learner.actor, learner.actor_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "weight": weight,
            "value_loss": value_loss_value,
        }
        return IQLLearner(
            actor=bounded(actor),
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            value=value,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            value_opt=value_opt,
        ), metrics

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array | None:
        if not self.discrete:
            return None  # samples are clipped to the box
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample, within the box."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.learner.actor, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


def bounded(actor: dict[str, Any]) -> dict[str, Any]:
    """The actor with its log-deviation, if it has one, within its range.

    Kept there after each step: a clip in the loss has no gradient, and no way back.
    """
    if "log_std" not in actor:
        return actor
    return actor | {"log_std": jnp.clip(actor["log_std"], *LOG_STD_RANGE)}
