"""SAC: Soft Actor-Critic Algorithms and Applications (Haarnoja et al. 2018, arXiv:1812.05905).

With what came after it as choices: an ensemble of critics, of which a target takes the least of a
few, REDQ (Chen et al. 2021, arXiv:2101.05982); critics with dropout and LayerNorm, DroQ (Hiraoka et
al. 2022, arXiv:2110.02034); n-step targets, in which only the last state's entropy counts.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import TanhNormal
from jaxrl.parts.losses import n_step_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import clipped_adamw, copy_of, descend, learn_every, polyak
from jaxrl.parts.replay import Batch, valid_mean


class SACLearner(NamedTuple):
    actor: Any
    critics: Any  # a tuple of num_critics
    target_critics: Any
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any


class SAC(Learner):
    """Soft Actor-Critic with twin critics and a learnt temperature; continuous actions.

    REDQ: num_critics=10, actor_value=mean, 20 gradient steps per environment step, policy_delay=20.
    DroQ: the same with two critics, layer_norm=true and dropout=0.01.
    """

    takes_windows: ClassVar[bool] = True

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of actor and critics")
    actor_learning_rate: float = traced(0.0, "[0, inf)", "of the actor alone; 0: learning_rate")
    max_grad_norm: float = static(
        math.inf, "(0, inf]", "that gradients are clipped to, the actor's and that of all critics"
    )
    weight_decay: float = static(0.0, "[0, inf)", "AdamW's, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    temperature: float = traced(1.0, "(0, inf)", "weight of the entropy, at the start if learnt")
    temperature_learning_rate: float = traced(3e-4, "[0, inf)", "Adam's step size; 0: fixed")
    target_entropy: float = traced(-1.0, "(-inf, inf)", "of the policy, per action dimension")
    log_std_min: float = traced(
        -5.0, "(-inf, inf)", "that the policy's log-deviation is clipped to"
    )
    log_std_max: float = traced(2.0, "(-inf, inf)", "that the policy's log-deviation is clipped to")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    num_critics: int = static(2, "[1, inf)", "critics, each with a target of its own")
    target_subset: int = static(
        2,
        "[1, inf)",
        "target critics of which a target takes the least, drawn at each gradient step",
    )
    actor_value: str = static(
        "min", ("min", "mean"), "of all critics, which the actor climbs; mean: REDQ and DroQ"
    )
    policy_delay: int = static(1, "[1, inf)", "gradient steps of the critics to one of the actor")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of the actor and each critic")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")
    dropout: float = static(0.0, "[0, 1)", "in the critics, of targets and losses (DroQ: 0.01)")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)
        if self.target_subset > self.num_critics:
            raise ValueError(
                f"{self.name}: target_subset={self.target_subset} is more than "
                f"num_critics={self.num_critics}"
            )
        low, high = self.log_std_min, self.log_std_max
        if isinstance(low, float) and isinstance(high, float) and low >= high:
            raise ValueError(f"{self.name}: log_std_min={low} must be below log_std_max={high}")

    def unused(self) -> dict[str, str]:
        alone = {"actor_value": "with num_critics=1"} if self.num_critics == 1 else {}
        return super().unused() | alone

    def make_actor(self) -> Network:
        return Network(
            outputs=2 * spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            output_scale=0.01,
        )

    def make_critic(self) -> Network:
        return Network(
            outputs=1,
            obs_ndim=1 if self.network == "mlp" else len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
            dropout=self.dropout,
        )

    def distribution(self, actor: Any, obs: jax.Array) -> TanhNormal:
        """The policy at (normalised) observations."""
        mean, log_std = jnp.split(self.make_actor().apply(actor, obs), 2, axis=-1)
        return TanhNormal(mean, jnp.clip(log_std, self.log_std_min, self.log_std_max))

    def q_values(
        self, critics: Any, obs: jax.Array, action: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """All critics' values (N, B); given a key, each with a dropout of its own."""
        module, inputs = self.make_critic(), self.critic_inputs(obs, action)
        if dropout_key is None:
            return jnp.stack([module.apply(critic, *inputs)[:, 0] for critic in critics])
        values = [
            module.apply(critic, *inputs, training=True, rngs={"dropout": key})[:, 0]
            for critic, key in zip(
                critics, jax.random.split(dropout_key, len(critics)), strict=True
            )
        ]
        return jnp.stack(values)

    def critic_inputs(self, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, ...]:
        """Observations with their actions; apart for a body of one's own, which sees the former."""
        if self.network != "mlp":
            return obs, action
        return (jnp.concatenate([obs.reshape(len(action), -1), action], axis=-1),)

    def optimizer(self) -> optax.GradientTransformation:
        """The critics'."""
        return clipped_adamw(self.learning_rate, self.max_grad_norm, self.weight_decay)

    def actor_optimizer(self) -> optax.GradientTransformation:
        own = self.actor_learning_rate
        learning_rate = jnp.where(own > 0, own, self.learning_rate)
        return clipped_adamw(learning_rate, self.max_grad_norm, self.weight_decay)

    def temperature_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.temperature_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> SACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        size, is_own = spaces.action_size(self.action_space), self.network != "mlp"
        inputs = (obs, jnp.zeros((size,))) if is_own else (jnp.zeros((obs.size + size,)),)
        critic_keys = jax.random.split(critic_key, self.num_critics)
        critics = tuple(self.make_critic().init(k, *inputs) for k in critic_keys)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return SACLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            log_temperature=log_temperature,
            actor_opt=self.actor_optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            temperature_opt=self.temperature_optimizer().init(log_temperature),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: SACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        # The first two of these keys are what a split into two gives.
        next_key, actor_key, subset_key, *dropout_keys = jax.random.split(key, 6)
        temperature = jnp.exp(learner.log_temperature)

        # Critics, towards r + gamma (1 - terminated) [min Q'(s', a') - temperature log pi(a'|s')],
        # the minimum over a random subset of their targets (REDQ, eq. 2).
        next_dist = self.distribution(learner.actor, batch.next_obs)
        next_action, next_log_prob = next_dist.sample_and_log_prob(next_key)
        chosen = subset(subset_key, learner.target_critics, self.target_subset)
        next_q = self.q_values(chosen, batch.next_obs, next_action, dropout_keys[0]).min(axis=0)
        next_value = next_q - temperature * next_log_prob
        target = n_step_target(
            self.reward_scale * batch.reward,
            batch.num_steps,
            batch.terminated,
            next_value,
            self.gamma,
        )

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action, dropout_keys[1])
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        learner = learner._replace(
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            critic_opt=critic_opt,
        )

        # Actor and temperature, at every policy_delay-th gradient step.
        def improve(learner):
            return self.actor_step(learner, batch, actor_key, dropout_keys[2])

        learner, actor_metrics = learn_every(self.policy_delay, n, improve, learner)
        metrics = {"critic_loss": critic_loss_value, "q_mean": q_mean, "temperature": temperature}
        return learner, metrics | actor_metrics

    def actor_step(
        self, learner: SACLearner, batch: Batch, key: jax.Array, dropout_key: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        temperature = jnp.exp(learner.log_temperature)

        # Actor: E[temperature log pi(a|s) - min Q(s, a)] by reparameterisation (eq. 9).
        def actor_loss(actor):
            action, log_prob = self.distribution(actor, batch.obs).sample_and_log_prob(key)
            values = self.q_values(learner.critics, batch.obs, action, dropout_key)
            q = values.min(axis=0) if self.actor_value == "min" else values.mean(axis=0)
            return (temperature * log_prob - q).mean(), -log_prob.mean()

        actor, actor_opt, loss, entropy = descend(
            self.actor_optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Temperature, up while the entropy is below its target: the gradient of
        # log_temperature * (entropy - target), whose sign is all that Adam takes from its scale.
        target_entropy = self.target_entropy * spaces.action_size(self.action_space)
        move, temperature_opt = self.temperature_optimizer().update(
            entropy - target_entropy, learner.temperature_opt
        )
        learner = learner._replace(
            actor=actor,
            log_temperature=learner.log_temperature + move,
            actor_opt=actor_opt,
            temperature_opt=temperature_opt,
        )
        return learner, {"actor_loss": loss, "entropy": entropy}

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: SACLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner.actor, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            dist = self.distribution(state.learner.actor, obs)
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


def subset(key: jax.Array, critics: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """`size` different ones of the critics, every choice as likely; all where there are no more."""
    if size == len(critics):
        return critics
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *critics)
    chosen = jax.random.choice(key, len(critics), (size,), replace=False)
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in chosen)
