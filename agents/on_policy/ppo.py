"""PPO: Proximal Policy Optimization Algorithms (Schulman et al. 2017, arXiv:1707.06347)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.losses import keep_probability, kept_by_noise
from jaxrl.parts.networks import Network
from jaxrl.parts.optimize import clipped_adam, linear_schedule, minibatch_epochs


class PPO(OnPolicy):
    """Proximal Policy Optimization, with a clipped objective; discrete and continuous actions."""

    num_epochs: int = static(4, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(8, "[1, inf)", "gradient steps per pass; divides the batch")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    clip_range: float = traced(0.2, "(0, inf)", "the probability ratio stays within 1 +- this")
    clip_rule: str = static(
        "hard",
        ("hard", "noise", "decay"),
        "gradient beyond the clip range: none; all of it, at random (NSR); or that in expectation",
    )
    clip_noise: float = traced(
        0.2, "[0, 1)", "a step is kept if its ratio x U(1 +- this) is within the clip range"
    )
    value_clip_range: float = traced(0.2, "(0, inf]", "a value moves by at most this; inf: freely")
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")
    value_coef: float = traced(0.5, "[0, inf)", "weight of the value loss")
    max_grad_norm: float = traced(0.5, "(0, inf]", "global norm that gradients are clipped to")
    network: str = static("mlp", ("mlp", "cnn"), "cnn: a 3x3 convolution on (H, W, C) first")
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths, actor and critic each")
    activation: str = static("tanh", ("tanh", "relu", "swish"), "of the hidden layers")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        batch = self.steps_per_iteration
        if batch % self.num_minibatches:
            raise ValueError(
                f"ppo: num_minibatches={self.num_minibatches} does not divide the batch of "
                f"{batch} = num_envs {self.num_envs} x num_steps {self.num_steps}"
            )
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.clip_rule == "hard":
            why["clip_noise"] = "with clip_rule=hard"
        return why

    def make_network(self, outputs: int, output_scale: float) -> Network:
        return Network(
            outputs=outputs,
            obs_ndim=len(self.obs_shape),
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            conv_features=16 if self.network == "cnn" else 0,
            output_scale=output_scale,
        )

    def make_actor(self) -> Network:
        """Its last layer is small, so that it is near uniform at first."""
        return self.make_network(spaces.action_size(self.action_space), output_scale=0.01)

    def make_critic(self) -> Network:
        return self.make_network(1, output_scale=1.0)

    def distribution(self, params: Any, obs: jax.Array) -> Categorical | Normal:
        output = self.make_actor().apply(params["actor"], obs)
        return Categorical(output) if self.discrete else Normal(output, params["log_std"])

    def value(self, params: Any, obs: jax.Array) -> jax.Array:
        return self.make_critic().apply(params["critic"], obs)[..., 0]

    def optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        return clipped_adam(learning_rate, self.max_grad_norm, eps=1e-5)

    # Init -------------------------------------------------------------------------------------

    def init_params(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        actor_key, critic_key = jax.random.split(key)
        params = {
            "actor": self.make_actor().init(actor_key, obs),
            "critic": self.make_critic().init(critic_key, obs),
        }
        if not self.discrete:
            size = spaces.action_size(self.action_space)
            params["log_std"] = jnp.zeros((size,), jnp.float32)
        return params

    def init_optimizer(self, params: Any) -> Any:
        return self.optimizer(0.0).init(params)

    # Update -----------------------------------------------------------------------------------

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        optimizer = self.optimizer(progress)

        def update(carry, minibatch, *noise_key):
            params, opt_state = carry
            grads, metrics = jax.grad(self.loss, has_aux=True)(params, minibatch, *noise_key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        (params, opt_state), metrics = minibatch_epochs(
            key,
            update,
            (params, opt_state),
            batch,
            self.num_epochs,
            self.num_minibatches,
            keyed=self.clip_rule == "noise",
        )
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    def loss(
        self, params: Any, batch: Batch, noise_key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate - entropy bonus + clipped value loss (eqs. 7 and 9)."""
        dist = self.distribution(params, batch.obs)
        log_ratio = dist.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped_ratio = jnp.clip(ratio, 1 - self.clip_range, 1 + self.clip_range)
        advantage = batch.advantage - batch.advantage.mean()
        advantage /= batch.advantage.std() + 1e-8
        surrogate = jnp.minimum(ratio * advantage, clipped_ratio * advantage)
        of_rule: dict[str, jax.Array] = {}
        if self.clip_rule != "hard":
            kept = self.kept(ratio, advantage, noise_key)
            surrogate += kept * (ratio - clipped_ratio) * advantage
            of_rule["kept_fraction"] = kept.mean()
        policy_loss = -surrogate.mean()

        value = self.value(params, batch.obs)
        limit = self.value_clip_range
        clipped_value = batch.value + jnp.clip(value - batch.value, -limit, limit)
        errors = (value - batch.target) ** 2, (clipped_value - batch.target) ** 2
        value_loss = 0.5 * jnp.maximum(*errors).mean()

        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),  # Schulman 2020's k3 estimator
            "clip_fraction": (jnp.abs(ratio - 1) > self.clip_range).mean(),
            **of_rule,
        }

    def kept(
        self, ratio: jax.Array, advantage: jax.Array, noise_key: jax.Array | None
    ) -> jax.Array:
        """The share of a step's gradient that stays although the hard rule would cut it.

        Drawn with a key, else its expectation.
        """
        limits = self.clip_range, self.clip_range, self.clip_noise
        if noise_key is None:
            return keep_probability(ratio, advantage, *limits)
        return kept_by_noise(noise_key, ratio, advantage, *limits)
