"""PPO: Proximal Policy Optimization Algorithms (Schulman et al. 2017, arXiv:1707.06347)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl import masks, spaces
from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.distributions import Beta, Categorical, Normal
from jaxrl.parts.losses import clipped_value_loss, kept_beyond_clip
from jaxrl.parts.networks import Network
from jaxrl.parts.normalize import normalized
from jaxrl.parts.optimize import (
    clipped_adam,
    linear_schedule,
    minibatch_epochs,
    require_minibatches,
)

FACTORS = 1 / 32, 32.0  # between which `kl_rule` moves the step size


class PPO(OnPolicy):
    """Proximal Policy Optimization, with a clipped objective; discrete and continuous actions."""

    takes_masks = True

    num_epochs: int = static(4, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(8, "[1, inf)", "gradient steps per pass; divides the batch")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    kl_rule: str = static(
        "none",
        ("none", "stop", "learning_rate"),
        "beyond target_kl: nothing; no more updates of this rollout; a smaller step size",
    )
    target_kl: float = traced(0.01, "(0, inf)", "KL divergence from the policy that collected")
    clip_range: float = traced(0.2, "(0, inf)", "the probability ratio stays within 1 +- this")
    clip_range_high: float = traced(0.0, "[0, inf)", "and below 1 + this, if it is not 0")
    clip_range_end: float = traced(1.0, "(0, inf)", "fraction of both left at the end (linear)")
    clip_rule: str = static(
        "hard",
        ("hard", "noise", "decay"),
        "gradient beyond the clip range: none; all of it, at random (NSR); or that in expectation",
    )
    clip_noise: float = traced(
        0.2, "[0, 1)", "a step is kept if its ratio x U(1 +- this) is within the clip range"
    )
    value_clip_range: float = traced(0.2, "(0, inf]", "a value moves by at most this; inf: freely")
    huber_threshold: float = traced(
        math.inf, "(0, inf]", "larger errors of values count linearly; inf: all are squared"
    )
    normalize_advantages: str = static(
        "minibatch", ("minibatch", "batch", "none"), "to mean 0 and std 1, over what"
    )
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")
    entropy_coef_end: float = traced(1.0, "[0, inf)", "its fraction left at the end (linear)")
    value_coef: float = traced(0.5, "[0, inf)", "weight of the value loss")
    max_grad_norm: float = traced(0.5, "(0, inf]", "global norm that gradients are clipped to")
    actor_observation: str = static("", None, "the part that the policy sees; none named: all")
    critic_observation: str = static("", None, "the part that the critic sees; none named: all")
    action_distribution: str = static(
        "normal", ("normal", "beta"), "of continuous actions; beta: within their box"
    )
    log_std_start: float = traced(0.0, "[-10, 2]", "log-deviation of continuous actions at first")
    log_std_floor: float = traced(-10.0, "[-20, 2]", "log-deviations stay above it")
    state_dependent_std: bool = static(False, None, "the actor gives it, else it is one for all")
    squash_actions: bool = static(False, None, "by tanh into the box, else they are clipped to it")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        require_minibatches(self.num_minibatches, self.num_envs, self.num_steps, self.name)

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.clip_rule == "hard":
            why["clip_noise"] = "with clip_rule=hard"
        if self.kl_rule == "none":
            why["target_kl"] = "with kl_rule=none"
        if not hasattr(self.env, "slices"):
            of_parts = ("actor_observation", "critic_observation")
            why |= dict.fromkeys(of_parts, "where the environment names no parts of observations")
        of_normals = ("log_std_start", "log_std_floor", "state_dependent_std", "squash_actions")
        if self.is_beta:
            why |= dict.fromkeys(of_normals, "with action_distribution=beta")
        if self.discrete:
            of_continuous = ("action_distribution", *of_normals)
            why |= dict.fromkeys(of_continuous, "with discrete actions")
        return why

    def seen_shapes(self) -> list[tuple[int, ...]]:
        return [
            spaces.part_shape(self.env, self.obs_shape, getattr(self, field), f"ppo: {field}")
            for field in ("actor_observation", "critic_observation")
        ]

    def make_actor(self) -> Network:
        actor = super().make_actor()
        has_two = not self.discrete and (self.state_dependent_std or self.is_beta)
        return actor.clone(outputs=2 * actor.outputs) if has_two else actor

    @property
    def is_beta(self) -> bool:
        return not self.discrete and self.action_distribution == "beta"

    @property
    def has_log_std(self) -> bool:
        """Whether one deviation, a parameter of its own, serves all states."""
        return not (self.discrete or self.is_beta or self.state_dependent_std)

    def distribution(self, params: Any, obs: Any) -> Categorical | Normal | Beta:
        obs, mask = masks.split(obs)
        seen = spaces.part(self.env, obs, self.actor_observation)
        output = self.make_actor().apply(params["actor"], seen)
        if self.discrete:
            return Categorical(masks.masked(output, mask))
        if self.is_beta:
            return Beta.of_outputs(output)
        if self.has_log_std:
            return Normal(output, params["log_std"])
        mean, log_std = jnp.split(output, 2, axis=-1)
        return Normal(mean, jnp.clip(self.log_std_start + log_std, self.log_std_floor, 2.0))

    def value(self, params: Any, obs: Any) -> jax.Array:
        seen = spaces.part(self.env, masks.split(obs)[0], self.critic_observation)
        return self.make_critic().apply(params["critic"], seen)[..., 0]

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        return Beta.noise(key, shape) if self.is_beta else super().noise(key, shape)

    def optimizer(
        self, progress: jax.Array | float, factor: jax.Array | float = 1.0
    ) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        return clipped_adam(factor * learning_rate, self.max_grad_norm, eps=1e-5)

    # Init -------------------------------------------------------------------------------------

    def init_params(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        actor_key, critic_key = jax.random.split(key)
        actor_obs = spaces.part(self.env, obs, self.actor_observation)
        critic_obs = spaces.part(self.env, obs, self.critic_observation)
        params = {
            "actor": self.make_actor().init(actor_key, actor_obs),
            "critic": self.make_critic().init(critic_key, critic_obs),
        }
        if self.has_log_std:
            size = spaces.action_size(self.action_space)
            start = jnp.maximum(self.log_std_start, self.log_std_floor)
            params["log_std"] = jnp.full((size,), start, jnp.float32)
        return params

    def init_optimizer(self, params: Any) -> Any:
        adam = self.optimizer(0.0).init(params)
        return (adam, jnp.ones(())) if self.kl_rule == "learning_rate" else adam

    # Update -----------------------------------------------------------------------------------

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        if self.normalize_advantages == "batch":
            batch = batch._replace(advantage=normalized(batch.advantage))
        gradient = jax.grad(partial(self.loss, progress=progress), has_aux=True)

        def update(carry, minibatch, *noise_key):
            params, opt_state, going = carry
            grads, metrics = gradient(params, minibatch, *noise_key)
            kl = metrics["approx_kl"]
            new, of_rule = self.descend(params, opt_state, grads, kl, progress)
            if self.kl_rule == "stop":  # what has gone too far stays there
                going &= kl <= self.target_kl
                new = jax.tree.map(partial(jnp.where, going), new, (params, opt_state))
                of_rule["update_fraction"] = going.astype(jnp.float32)
            return (*new, going), metrics | of_rule

        (params, opt_state, _), metrics = minibatch_epochs(
            key,
            update,
            (params, opt_state, jnp.bool_(True)),
            batch,
            self.num_epochs,
            self.num_minibatches,
            keyed=self.clip_rule == "noise",
        )
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    def descend(
        self, params: Any, opt_state: Any, grads: Any, kl: jax.Array, progress: jax.Array
    ) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
        """A gradient step; its size follows the KL divergence with kl_rule=learning_rate."""
        factor: Any = 1.0
        metrics, is_fixed = {}, self.kl_rule != "learning_rate"
        if not is_fixed:
            opt_state, factor = opt_state  # section 4's rule for the penalty, as in rl_games
            factor = jnp.where(kl > 2 * self.target_kl, factor / 1.5, factor)
            factor = jnp.where(kl < self.target_kl / 2, factor * 1.5, factor)
            factor = jnp.clip(factor, *FACTORS)
            metrics = {"learning_rate_factor": factor}
        updates, opt_state = self.optimizer(progress, factor).update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        if self.has_log_std:  # put back, not cut in the policy, where no gradient would raise it
            log_std = jnp.maximum(params["log_std"], self.log_std_floor)
            params = params | {"log_std": log_std}
        return (params, opt_state if is_fixed else (opt_state, factor)), metrics

    def loss(
        self,
        params: Any,
        batch: Batch,
        noise_key: jax.Array | None = None,
        progress: jax.Array | float = 0.0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate - entropy bonus + clipped value loss (eqs. 7 and 9)."""
        high = jnp.where(self.clip_range_high > 0, self.clip_range_high, self.clip_range)
        low, high, entropy_coef = (
            linear_schedule(start, fraction * start, progress)
            for start, fraction in (
                (self.clip_range, self.clip_range_end),
                (high, self.clip_range_end),
                (self.entropy_coef, self.entropy_coef_end),
            )
        )
        dist = self.distribution(params, batch.obs)
        log_ratio = dist.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped_ratio = jnp.clip(ratio, 1 - low, 1 + high)
        advantage = batch.advantage
        if self.normalize_advantages == "minibatch":
            advantage = normalized(advantage)
        surrogate = jnp.minimum(ratio * advantage, clipped_ratio * advantage)
        of_rule: dict[str, jax.Array] = {}
        if self.clip_rule != "hard":
            limits = low, high, self.clip_noise
            kept = kept_beyond_clip(noise_key, ratio, advantage, *limits)
            surrogate += kept * (ratio - clipped_ratio) * advantage
            of_rule["kept_fraction"] = kept.mean()
        policy_loss = -surrogate.mean()

        value = self.value(params, batch.obs)
        of_values = self.value_clip_range, self.huber_threshold
        value_loss = clipped_value_loss(value, batch.value, batch.target, *of_values)

        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),  # Schulman 2020's k3 estimator
            "clip_fraction": (jnp.abs(ratio - 1) > jnp.where(ratio > 1, high, low)).mean(),
            **of_rule,
        }

    # Acting -----------------------------------------------------------------------------------

    def env_action(self, action: jax.Array) -> jax.Array:
        """In the environment's units. tanh's slope is the same for all policies: ratios lack it."""
        if self.squash_actions and not self.discrete:
            action = jnp.tanh(action)
        return super().env_action(action)
