"""RePPO: PPO for an agent that may try again (Nishimori et al. 2026, ReMax, with their code).

An action is worth what it adds to the best of M - 1 others that the policy draws. So the critic
knows Q of all actions, and the advantage is the expected improvement on such draws. M = 1 is PPO
with Q for its critic. Above it, a rare action that is better counts in full, actions that are worse
than the usual one are hardly told apart, and a policy that is nearly sure has little to gain from
being surer. M need not be whole: the released code has 1.2, and lambda = 0.8. Networks and losses
are PPO's here, but for the critic's last layer (see `make_network`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import masks, spaces
from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.losses import action_value, clipped_value_loss
from jaxrl.parts.networks import Network
from jaxrl.parts.normalize import normalized
from jaxrl.parts.optimize import (
    clipped_adam,
    descend_epochs,
    linear_schedule,
    require_minibatches,
)
from jaxrl.parts.retries import expected_improvement


class RePPO(OnPolicy):
    """PPO whose advantages are expected improvements on further attempts; discrete actions."""

    takes_masks = True

    gae_lambda: float = traced(0.8, "[0, 1]", "lambda of the returns that Q is fitted to")
    attempts: float = traced(1.2, "[1, inf)", "M, of which the best counts; 1: advantages Q - V")
    num_epochs: int = static(3, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(8, "[1, inf)", "gradient steps per pass; divides the batch")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    clip_range: float = traced(0.2, "(0, inf)", "the probability ratio stays within 1 +- this")
    value_clip_range: float = traced(0.2, "(0, inf]", "a value moves by at most this; inf: freely")
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")
    value_coef: float = traced(0.5, "[0, inf)", "weight of the value loss")
    max_grad_norm: float = traced(0.5, "(0, inf]", "global norm that gradients are clipped to")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "discrete", self.name, self.env)
        require_minibatches(self.num_minibatches, self.num_envs, self.num_steps, self.name)

    def make_critic(self) -> Network:
        """Q of every action; its last layer is as small as the actor's: fresh, it prefers none.

        Advantages compare one return with the Q of other actions: what tells these apart by chance
        would be learnt.
        """
        return self.make_actor()

    def distribution(self, params: Any, obs: Any) -> Categorical:
        obs, mask = masks.split(obs)
        return Categorical(masks.masked(self.make_actor().apply(params["actor"], obs), mask))

    def q_values(self, params: Any, obs: Any) -> jax.Array:
        """Q of all actions: of masked ones too, to which the policy gives no weight."""
        return self.make_critic().apply(params["critic"], masks.split(obs)[0])

    def value(self, params: Any, obs: Any) -> jax.Array:
        """V = sum_a pi(a|s) Q(s, a)."""
        probs = jax.nn.softmax(self.distribution(params, obs).logits)
        return (probs * self.q_values(params, obs)).sum(axis=-1)

    def optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        return clipped_adam(learning_rate, self.max_grad_norm, eps=1e-5)

    # Init -------------------------------------------------------------------------------------

    def init_optimizer(self, params: Any) -> Any:
        return self.optimizer(0.0).init(params)

    # Update -----------------------------------------------------------------------------------

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        optimizer, batch = self.optimizer(progress), self.with_retries(params, batch)
        epochs = self.num_epochs, self.num_minibatches
        params, opt_state, _, metrics = descend_epochs(
            optimizer, self.loss, params, opt_state, key, batch, *epochs
        )
        return params, opt_state, metrics

    def with_retries(self, params: Any, batch: Batch) -> Batch:
        """The batch with Q(s, a) for V(s), and retry-aware advantages, normalised over it."""
        probs = jax.nn.softmax(self.distribution(params, batch.obs).logits)
        q = self.q_values(params, batch.obs)
        advantage = retry_advantage(q, probs, batch.action, batch.target, self.attempts)
        value = action_value(q, batch.action)
        return batch._replace(value=value, advantage=normalized(advantage))

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """PPO's clipped surrogate - entropy bonus + clipped loss of Q(s, a)."""
        dist = self.distribution(params, batch.obs)
        log_ratio = dist.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped_ratio = jnp.clip(ratio, 1 - self.clip_range, 1 + self.clip_range)
        advantage = batch.advantage
        policy_loss = -jnp.minimum(ratio * advantage, clipped_ratio * advantage).mean()

        value = action_value(self.q_values(params, batch.obs), batch.action)
        limit = self.value_clip_range
        value_loss = clipped_value_loss(value, batch.value, batch.target, limit)

        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),  # Schulman 2020's k3 estimator
            "clip_fraction": (jnp.abs(ratio - 1) > self.clip_range).mean(),
        }


# The advantage ------------------------------------------------------------------------------------


def retry_advantage(
    q: jax.Array,
    probs: jax.Array,
    action: jax.Array,
    returns: jax.Array,
    attempts: float | jax.Array,
) -> jax.Array:
    """EI(R) - sum_a pi(a|s) EI(Q(s, a)), with EI over M - 1 draws of the policy, shape (B,).

    Q of the action taken is replaced by what it returned first.

    Args:
        q, probs: of all actions, (B, A).
        action, returns: what was taken (B,), and its lambda-return R (B,).
        attempts: M; at 1 this is R - sum_a pi(a|s) Q(s, a).

    >>> q, probs = jnp.array([[1.0, 2.0]]), jnp.array([[0.75, 0.25]])
    >>> action, returns = jnp.array([1]), jnp.array([5.0])
    >>> [float(retry_advantage(q, probs, action, returns, m)[0]) for m in (1.0, 2.0)]
    [3.0, 2.25]
    """
    taken = jax.nn.one_hot(action, q.shape[-1], dtype=bool)
    improvement = expected_improvement(jnp.where(taken, returns[:, None], q), probs, attempts - 1)
    return action_value(improvement, action) - (probs * improvement).sum(axis=-1)
