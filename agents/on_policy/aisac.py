"""AISAC: Actor-Critic with Active Importance Sampling (Molaei, Paczolay, Papini, Metelli & Restelli
2026), on behavioural policy optimisation (Papini, Manganini, Metelli & Restelli 2024,
arXiv:2405.05630).

Of the 2026 paper only the abstract was at hand: networks and constants are ours. Ratios are those
of single actions. They correct for which actions were taken, not for which states these led to: the
gradient is that of the states visited, which `max_kl` and `defensive` keep near the policy's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import masks, spaces
from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.active_sampling import DefensiveMixture, limited, moved, score, weighted_moments
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.networks import Network
from jaxrl.parts.optimize import clipped_adam, clipped_rmsprop, descend, linear_schedule
from jaxrl.parts.returns import vtrace
from jaxrl.parts.rollout import Transition


class AISAC(OnPolicy):
    """Actor-critic that samples the actions from which its gradient varies least.

    The active policy is the policy moved by a residual, of its logits or of its mean and
    log-deviation, which is fitted by cross-entropy. Actions are of a mixture of both.
    """

    takes_masks = True

    num_envs: int = static(16, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(16, "[1, inf)", "steps per environment and iteration")
    learning_rate: float = traced(1e-3, "(0, inf)", "step size of the policy at the start")
    critic_learning_rate: float = traced(1e-3, "(0, inf)", "of the critic")
    active_learning_rate: float = traced(1e-3, "(0, inf)", "of the active policy")
    learning_rate_end: float = traced(0.0, "[0, inf)", "fraction of each left at the end (linear)")
    optimizer: str = static("adam", ("adam", "rmsprop"), "what takes the gradient steps")
    critic_updates: int = static(4, "[1, inf)", "gradient steps of the critic per rollout")
    active_updates: int = static(1, "[1, inf)", "gradient steps of the active policy per rollout")
    fit: str = static(
        "network",
        ("network", "moments"),
        "of the residual: a network of the state, or in closed form one for all states",
    )
    defensive: float = traced(0.1, "[0, 1]", "share of the policy itself; ratios stay below 1 / it")
    max_kl: float = traced(0.5, "[0, inf]", "KL(active policy, policy) in every state, at most")
    max_ratio: float = traced(math.inf, "(0, inf]", "ratios in the critic's errors are cut at this")
    max_trace: float = traced(1.0, "[0, inf]", "ratios along the critic's traces are cut at this")
    entropy_coef: float = traced(0.0, "[0, inf)", "weight of the entropy bonus")
    max_grad_norm: float = traced(0.5, "(0, inf]", "norm that the gradient of each is clipped to")

    # Networks ---------------------------------------------------------------------------------

    def unused(self) -> dict[str, str]:
        of_network = ("active_learning_rate", "active_updates")
        fitted_by = {} if self.fit == "network" else dict.fromkeys(of_network, "with fit=moments")
        return super().unused() | fitted_by

    def check(self) -> None:
        super().check()
        if self.fit == "moments":
            spaces.require(self.action_space, "continuous", "aisac: fit='moments'", self.env)

    @property
    def residual_size(self) -> int:
        size = spaces.action_size(self.action_space)
        return size if self.discrete else 2 * size

    def make_residual(self) -> Network:
        """Its last layer is zero: the active policy begins as the policy."""
        return self.make_actor().clone(outputs=self.residual_size, output_scale=0.0)

    def distribution(self, params: Any, obs: Any) -> Any:
        return super().distribution(params["policy"], obs)

    def residual(self, active: Any, obs: Any) -> jax.Array:
        """What the active policy adds to the policy, (..., residual_size) or the same for all.

        It leaves masked actions masked: beside their logits it is nothing.
        """
        if self.fit != "network":
            return active
        return self.make_residual().apply(active, masks.split(obs)[0])

    def optimizers(self, progress: jax.Array | float) -> dict[str, optax.GradientTransformation]:
        rates: dict[str, Any] = {"critic": self.critic_learning_rate, "policy": self.learning_rate}
        if self.fit == "network":
            rates["active"] = self.active_learning_rate
        left = linear_schedule(1.0, self.learning_rate_end, progress)
        rates = {name: rate * left for name, rate in rates.items()}
        if self.optimizer == "adam":
            return {k: clipped_adam(rate, self.max_grad_norm, 1e-5) for k, rate in rates.items()}
        return {k: clipped_rmsprop(rate, self.max_grad_norm) for k, rate in rates.items()}

    # Init -------------------------------------------------------------------------------------

    def init_params(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        actor_key, critic_key, active_key = jax.random.split(key, 3)
        policy = self.init_policy(actor_key, obs)
        active = jnp.zeros((self.residual_size,), jnp.float32)
        if self.fit == "network":
            active = self.make_residual().init(active_key, obs)
        critic = self.make_critic().init(critic_key, obs)
        return {"policy": policy, "critic": critic, "active": active}

    def init_optimizer(self, params: Any) -> Any:
        return {k: optimizer.init(params[k]) for k, optimizer in self.optimizers(0.0).items()}

    # Update -----------------------------------------------------------------------------------

    def estimate(
        self,
        params: Any,
        obs: Any,
        steps: Transition,
        rewards: jax.Array,
        values: jax.Array,
        next_values: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """V-trace's: those of the policy, from steps of the mixture."""
        log_prob = self.distribution(params, obs).log_prob(steps.action)
        advantages, errors = vtrace(
            rewards,
            values,
            next_values,
            jnp.exp(log_prob - steps.extras["log_prob"]),
            steps.terminated,
            steps.truncated,
            self.gamma,
            self.gae_lambda,
            self.max_ratio,
            self.max_trace,
        )
        return advantages, values + errors

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Gradient steps on the whole rollout, of each part by itself."""
        policy = self.distribution(params, batch.obs)  # as it was when it collected
        ratio = jnp.exp(policy.log_prob(batch.action) - batch.log_prob)
        norm = jnp.linalg.norm(score(policy, batch.action), axis=-1)
        size = jnp.abs(batch.advantage) * norm  # pi times it is the best density, but for a factor
        active: Any = limited(policy, self.residual(params["active"], batch.obs), self.max_kl)
        losses = {
            "critic": lambda critic: self.value_loss(critic, batch),
            "policy": lambda policy: self.policy_loss(policy, batch),
            "active": lambda active: self.cross_entropy(active, policy, batch, ratio * size),
        }
        updates = {"critic": self.critic_updates, "policy": 1, "active": self.active_updates}
        learnt, states, before = dict(params), {}, {}
        for name, optimizer in self.optimizers(progress).items():
            learnt[name], states[name], before[name] = repeat(
                updates[name], optimizer, losses[name], params[name], opt_state[name]
            )
        if isinstance(policy, Normal) and self.fit == "moments":
            learnt["active"] = weighted_moments(policy, batch.action, ratio * size)
        return (
            learnt,
            states,
            {
                "value_loss": before["critic"],
                "policy_loss": before["policy"],
                "entropy": policy.entropy().mean(),
                "active_kl": active.kl(policy).mean(),
                "effective_samples": ratio.mean() ** 2 / (ratio**2).mean(),
                "variance_ratio": (ratio**2 * size**2).mean() / (ratio * size**2).mean(),
            },
        )

    def value_loss(self, critic: Any, batch: Batch) -> jax.Array:
        """Half the mean squared error of V-trace's targets."""
        values = self.value({"critic": critic}, batch.obs)
        return 0.5 * ((values - batch.target) ** 2).mean()

    def policy_loss(self, policy: Any, batch: Batch) -> jax.Array:
        """Its gradient is -E_q[(pi / q) A grad log pi], without bias - entropy bonus."""
        dist = self.distribution({"policy": policy}, batch.obs)
        ratio = jnp.exp(dist.log_prob(batch.action) - batch.log_prob)
        loss = -(ratio * batch.advantage).mean()
        return loss - self.entropy_coef * dist.entropy().mean()

    def cross_entropy(
        self, active: Any, policy: Categorical | Normal, batch: Batch, weight: jax.Array
    ) -> jax.Array:
        """-E_q[w log beta(a|s)] with w = (pi / q) |A| ||grad log pi|| (B,), normalised.

        It is least where beta is nearest, in KL, to the density with the least variance,
        pi |A| ||grad log pi||. `max_kl` has no part in it: it limits what is done with the fit.
        """
        dist = moved(policy, self.residual(active, batch.obs))
        return -(weight * dist.log_prob(batch.action)).mean() / (weight.mean() + 1e-8)

    # Acting -----------------------------------------------------------------------------------

    def behaviour(self, params: Any, obs: Any) -> DefensiveMixture:
        policy = self.distribution(params, obs)
        active = limited(policy, self.residual(params["active"], obs), self.max_kl)
        return DefensiveMixture(policy, active, self.defensive)

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        choice_key, action_key = jax.random.split(key)
        choice = jax.random.uniform(choice_key, shape[:-1], jnp.float32)
        return choice, super().noise(action_key, shape)


def repeat(
    times: int,
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any], jax.Array],
    params: Any,
    opt_state: Any,
) -> tuple[Any, Any, jax.Array]:
    """Gradient steps down a loss: parameters, the optimiser's state, the mean loss before each."""

    def update(carry, _):
        params, opt_state, value, _ = descend(optimizer, lambda x: (loss(x), ()), *carry)
        return (params, opt_state), value

    (params, opt_state), values = lax.scan(update, (params, opt_state), length=times)
    return params, opt_state, values.mean()
