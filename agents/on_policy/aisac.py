"""AISAC: Actor-Critic with Active Importance Sampling (Molaei, Paczolay, Papini, Metelli & Restelli
2026), on behavioural policy optimisation (Papini, Manganini, Metelli & Restelli 2024,
arXiv:2405.05630).

Of the 2026 paper only the abstract could be read: networks and constants are ours. Ratios are those
of single actions. They correct for which actions were taken, not for which states these led to: the
gradient is that of the states visited, which `max_kl` and `defensive` keep near the policy's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.networks import Network
from jaxrl.parts.optimize import clipped_adam, descend, linear_schedule
from jaxrl.parts.returns import vtrace
from jaxrl.parts.rollout import Transition

HALVINGS = 8  # of the span in which `limited` looks for the share of a residual
NARROWEST = 0.05  # deviation, in the policy's, that `weighted_moments` can give


class AISAC(OnPolicy):
    """Actor-critic that samples the actions from which its gradient varies least.

    The active policy is the policy moved by a residual, of its logits or of its mean and
    log-deviation, which is fitted by cross-entropy. Actions are of a mixture of both.
    """

    num_envs: int = static(16, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(16, "[1, inf)", "steps per environment and iteration")
    learning_rate: float = traced(1e-3, "(0, inf)", "Adam's step size of the policy at the start")
    critic_learning_rate: float = traced(1e-3, "(0, inf)", "of the critic")
    active_learning_rate: float = traced(1e-3, "(0, inf)", "of the active policy")
    learning_rate_end: float = traced(0.0, "[0, inf)", "fraction of each left at the end (linear)")
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
    network: str = static("mlp", ("mlp", "cnn"), "cnn: a 3x3 convolution on (H, W, C) first")
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths of every network")
    activation: str = static("tanh", ("tanh", "relu", "swish"), "of the hidden layers")

    # Networks ---------------------------------------------------------------------------------

    def unused(self) -> dict[str, str]:
        of_network = ("active_learning_rate", "active_updates")
        fitted_by = {} if self.fit == "network" else dict.fromkeys(of_network, "with fit=moments")
        return super().unused() | fitted_by

    def check(self) -> None:
        super().check()
        if self.fit == "moments":
            spaces.require(self.action_space, "continuous", "aisac: fit='moments'", self.env)
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)

    @property
    def residual_size(self) -> int:
        size = spaces.action_size(self.action_space)
        return size if self.discrete else 2 * size

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

    def make_residual(self) -> Network:
        """Its last layer is zero: the active policy begins as the policy."""
        return self.make_network(self.residual_size, output_scale=0.0)

    def distribution(self, params: Any, obs: jax.Array) -> Categorical | Normal:
        policy = params["policy"]
        output = self.make_actor().apply(policy["actor"], obs)
        return Categorical(output) if self.discrete else Normal(output, policy["log_std"])

    def value(self, params: Any, obs: jax.Array) -> jax.Array:
        return self.make_critic().apply(params["critic"], obs)[..., 0]

    def residual(self, active: Any, obs: jax.Array) -> jax.Array:
        """What the active policy adds to the policy, (..., residual_size) or the same for all."""
        return self.make_residual().apply(active, obs) if self.fit == "network" else active

    def optimizers(self, progress: jax.Array | float) -> dict[str, optax.GradientTransformation]:
        rates = {"critic": self.critic_learning_rate, "policy": self.learning_rate}
        if self.fit == "network":
            rates["active"] = self.active_learning_rate
        left = linear_schedule(1.0, self.learning_rate_end, progress)
        return {k: clipped_adam(rate * left, self.max_grad_norm, 1e-5) for k, rate in rates.items()}

    # Init -------------------------------------------------------------------------------------

    def init_params(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        actor_key, critic_key, active_key = jax.random.split(key, 3)
        policy = {"actor": self.make_actor().init(actor_key, obs)}
        if not self.discrete:
            size = spaces.action_size(self.action_space)
            policy["log_std"] = jnp.zeros((size,), jnp.float32)
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
        obs: jax.Array,
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
        active = limited(policy, self.residual(params["active"], batch.obs), self.max_kl)
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

    def behaviour(self, params: Any, obs: jax.Array) -> DefensiveMixture:
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


# Active importance sampling -------------------------------------------------------------------


class DefensiveMixture(NamedTuple):
    """q = b pi + (1 - b) beta: ratios pi / q are at most 1 / b.

    >>> policy, active = Normal(jnp.zeros(1), jnp.zeros(1)), Normal(jnp.full(1, 9.0), jnp.zeros(1))
    >>> action = jnp.zeros(1)
    >>> float(policy.log_prob(action) - DefensiveMixture(policy, active, 0.1).log_prob(action))
    2.303
    """

    policy: Categorical | Normal
    active: Categorical | Normal
    share: float | jax.Array  # of the policy, b

    def sample_by(self, noise: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The sample that a uniform number (...) and one policy's noise make."""
        choice, noise = noise
        own, other = self.policy.sample_by(noise), self.active.sample_by(noise)
        return jnp.where(
            (choice < self.share).reshape(*choice.shape, *[1] * (own.ndim - choice.ndim)),
            own,
            other,
        )

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.logaddexp(
            jnp.log(self.share) + self.policy.log_prob(action),
            jnp.log1p(-self.share) + self.active.log_prob(action),
        )


def score(policy: Categorical | Normal, action: jax.Array) -> jax.Array:
    """grad log pi(a|s) by the policy's outputs (..., K): logits, or mean and log-deviation.

    >>> score(Normal(jnp.zeros(1), jnp.log(jnp.full(1, 2.0))), jnp.array([4.0])).tolist()
    [1.0, 3.0]
    >>> score(Categorical(jnp.zeros(2)), jnp.array(1)).tolist()
    [-0.5, 0.5]
    """
    if isinstance(policy, Categorical):
        chosen = jax.nn.one_hot(action, policy.logits.shape[-1], dtype=policy.logits.dtype)
        return chosen - jax.nn.softmax(policy.logits)
    z = (action - policy.mean) * jnp.exp(-policy.log_std)
    return jnp.concatenate([z * jnp.exp(-policy.log_std), z**2 - 1], axis=-1)


def moved(
    policy: Categorical | Normal, residual: jax.Array, share: float | jax.Array = 1.0
) -> Categorical | Normal:
    """The policy moved by a share (..., 1) of a residual (..., K).

    Of logits a summand, of a normal the shift of the mean in deviations and the logarithm of a
    factor on the deviation.
    """
    if isinstance(policy, Categorical):
        return Categorical(policy.logits + share * residual)
    shift, widening = jnp.split(share * residual, 2, axis=-1)
    mean = policy.mean + jnp.exp(policy.log_std) * shift
    return Normal(mean, policy.log_std + widening)


def limited(
    policy: Categorical | Normal, residual: jax.Array, max_kl: float | jax.Array
) -> Categorical | Normal:
    """The policy moved by as much of a residual as keeps KL(moved, policy) within `max_kl` (...).

    The divergence grows with the share, so that halving finds the share, from below.
    """
    none = jnp.zeros_like(policy.entropy())

    def fits(share: jax.Array) -> jax.Array:
        return moved(policy, residual, share[..., None]).kl(policy) <= max_kl

    low, high = none, none + 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = fits(middle)
        low, high = jnp.where(inside, middle, low), jnp.where(inside, high, middle)
    share = jnp.where(fits(none + 1), 1.0, low)
    return moved(policy, residual, share[..., None])


def weighted_moments(policy: Normal, action: jax.Array, weight: jax.Array) -> jax.Array:
    """The residual (2 D,) of the weighted maximum likelihood of actions (B, D), weights (B,).

    No residual where all weights are 0.
    """
    z = (action - policy.mean) * jnp.exp(-policy.log_std)
    total = weight.sum()
    share = weight[:, None] / jnp.where(total > 0, total, 1)
    mean = (share * z).sum(axis=0)
    std = jnp.sqrt((share * (z - mean) ** 2).sum(axis=0))
    residual = jnp.concatenate([mean, jnp.log(jnp.maximum(std, NARROWEST))])
    return jnp.where(total > 0, residual, 0)
