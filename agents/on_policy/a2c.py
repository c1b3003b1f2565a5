"""A2C: Asynchronous Methods for Deep Reinforcement Learning (Mnih et al. 2016, arXiv:1602.01783).

The synchronous form: all environments step together, and their gradients are one. RMSprop is that
of OpenAI's released code. The paper's n-step advantages are those of `gae_lambda` 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import masks, spaces
from jaxrl.agent import OWN, static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import clipped_adam, clipped_rmsprop, descend, linear_schedule


class A2C(OnPolicy):
    """Advantage actor-critic: one gradient step per rollout; discrete and continuous actions."""

    takes_masks = True

    num_envs: int = static(16, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(5, "[1, inf)", "steps per environment and iteration")
    gae_lambda: float = traced(1.0, "[0, 1]", "lambda of the advantages; 1: n-step returns")
    learning_rate: float = traced(7e-4, "(0, inf)", "the optimiser's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    optimizer: str = static("rmsprop", ("rmsprop", "adam"), "what takes the gradient step")
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")
    value_coef: float = traced(0.5, "[0, inf)", "weight of the value loss")
    max_grad_norm: float = traced(0.5, "(0, inf]", "global norm that gradients are clipped to")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths, actor and critic each")
    activation: str = static("tanh", ("tanh", "relu", "swish"), "of the hidden layers")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)
        require_body(self.network, self.obs_shape, self.name)

    def make_network(self, outputs: int, output_scale: float) -> Network:
        return Network(
            outputs=outputs,
            obs_ndim=len(self.obs_shape),
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
            output_scale=output_scale,
        )

    def make_actor(self) -> Network:
        """Its last layer is small, so that it is near uniform at first."""
        return self.make_network(spaces.action_size(self.action_space), output_scale=0.01)

    def make_critic(self) -> Network:
        return self.make_network(1, output_scale=1.0)

    def distribution(self, params: Any, obs: Any) -> Categorical | Normal:
        obs, mask = masks.split(obs)
        output = self.make_actor().apply(params["actor"], obs)
        if self.discrete:
            return Categorical(masks.masked(output, mask))
        return Normal(output, params["log_std"])

    def value(self, params: Any, obs: Any) -> jax.Array:
        return self.make_critic().apply(params["critic"], masks.split(obs)[0])[..., 0]

    def make_optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        if self.optimizer == "adam":
            return clipped_adam(learning_rate, self.max_grad_norm, eps=1e-5)
        return clipped_rmsprop(learning_rate, self.max_grad_norm)

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
        return self.make_optimizer(0.0).init(params)

    # Update -----------------------------------------------------------------------------------

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        def loss_fn(params):
            return self.loss(params, batch)

        params, opt_state, _, metrics = descend(
            self.make_optimizer(progress), loss_fn, params, opt_state
        )
        return params, opt_state, metrics

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """-log pi(a|s) A - entropy bonus + value loss (section 4.3)."""
        dist = self.distribution(params, batch.obs)
        policy_loss = -(dist.log_prob(batch.action) * batch.advantage).mean()
        value_loss = 0.5 * ((self.value(params, batch.obs) - batch.target) ** 2).mean()
        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return loss, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
