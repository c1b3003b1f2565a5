"""A2C: Asynchronous Methods for Deep Reinforcement Learning (Mnih et al. 2016, arXiv:1602.01783).

The synchronous form: all environments step together, and their gradients are one. RMSprop is that
of OpenAI's released code. The paper's n-step advantages are those of `gae_lambda` 1.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
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

    # Optimiser --------------------------------------------------------------------------------

    def make_optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        if self.optimizer == "adam":
            return clipped_adam(learning_rate, self.max_grad_norm, eps=1e-5)
        return clipped_rmsprop(learning_rate, self.max_grad_norm)

    # Init -------------------------------------------------------------------------------------

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
