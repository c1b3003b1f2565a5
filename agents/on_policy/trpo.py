"""TRPO: Trust Region Policy Optimization (Schulman, Levine, Moritz, Jordan & Abbeel 2015,
arXiv:1502.05477).

As the authors' released code: the step is scaled so that its quadratic model of the KL divergence
is `max_kl`, and shrunk until the real mean KL divergence over the rollout is at most that, and the
surrogate has risen; the critic is fitted by gradient steps of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.curvature import cg, gauss_newton
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.optimize import descend_epochs, permutation, require_minibatches


class TRPO(OnPolicy):
    """Trust region policy optimization: natural gradients, no step beyond a KL divergence."""

    takes_masks = True
    forward_mode = True

    max_kl: float = traced(0.01, "(0, inf)", "mean KL divergence of an update is at most this")
    damping: float = traced(0.1, "[0, inf)", "times the identity, added to the Fisher matrix")
    cg_iterations: int = static(10, "[1, inf)", "Fisher-vector products per update, at most")
    fisher_share: float = static(1.0, "(0, 1]", "share of the rollout in Fisher-vector products")
    max_backtracks: int = static(10, "[1, inf)", "steps that the line search tries")
    backtrack_factor: float = traced(0.8, "(0, 1)", "each is shorter than the last by this")
    learning_rate: float = traced(1e-3, "(0, inf)", "Adam's step size, of the critic")
    num_epochs: int = static(10, "[1, inf)", "the critic's passes over each rollout")
    num_minibatches: int = static(8, "[1, inf)", "its gradient steps per pass; divides the batch")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        require_minibatches(self.num_minibatches, self.num_envs, self.num_steps, self.name)

    def distribution(self, params: Any, obs: Any) -> Any:
        return super().distribution(params["policy"], obs)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_params(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        actor_key, critic_key = jax.random.split(key)
        policy = self.init_policy(actor_key, obs)
        return {"policy": policy, "critic": self.make_critic().init(critic_key, obs)}

    def init_optimizer(self, params: Any) -> Any:
        return self.optimizer().init(params["critic"])

    # Update -----------------------------------------------------------------------------------

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        fisher_key, critic_key = jax.random.split(key)
        policy, metrics = self.improve_policy(params["policy"], batch, fisher_key)
        epochs = self.num_epochs, self.num_minibatches
        critic, opt_state, value_loss, _ = descend_epochs(
            self.optimizer(),
            self.value_loss,
            params["critic"],
            opt_state,
            critic_key,
            batch,
            *epochs,
        )
        metrics["value_loss"] = value_loss
        return {"policy": policy, "critic": critic}, opt_state, metrics

    def improve_policy(
        self, policy: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The longest of some steps along the natural gradient that holds both promises."""
        advantage = batch.advantage - batch.advantage.mean()
        advantage /= batch.advantage.std() + 1e-8

        def distribution(policy: Any, obs: jax.Array) -> Categorical | Normal:
            return self.distribution({"policy": policy}, obs)

        old: Any = distribution(policy, batch.obs)

        def surrogate(policy: Any) -> jax.Array:
            log_prob = distribution(policy, batch.obs).log_prob(batch.action)
            return (jnp.exp(log_prob - batch.log_prob) * advantage).mean()

        # The direction solves F x = g; its length makes x^T F x / 2 = max_kl (appendix C).
        before, gradient = jax.value_and_grad(surrogate)(policy)
        fisher = self.fisher_product(policy, batch.obs, key)
        direction = cg(fisher, gradient, self.cg_iterations)
        curvature = optax.tree.vdot(direction, fisher(direction))
        length = jnp.where(curvature > 0, jnp.sqrt(2 * self.max_kl / curvature), 0.0)

        def promises(step: jax.Array) -> Trial:
            new = optax.tree.add_scale(policy, step, direction)
            kl = old.kl(distribution(new, batch.obs)).mean()
            gain = surrogate(new) - before
            return Trial(new, kl, gain, (gain > 0) & (kl <= self.max_kl))

        nothing = jnp.zeros((), before.dtype)
        stay = Trial(policy, nothing, nothing, jnp.bool_(False))
        trial, backtracks = line_search(
            promises, length, self.backtrack_factor, self.max_backtracks, stay
        )
        return trial.policy, {
            "entropy": old.entropy().mean(),
            "kl": trial.kl,
            "surrogate_gain": trial.gain,
            "backtracks": backtracks,
        }

    def fisher_product(self, policy: Any, obs: Any, key: jax.Array) -> Callable[[Any], Any]:
        """v -> F v + damping v, F the mean Fisher matrix over a share of the observations."""
        if self.fisher_share < 1:
            size = jax.tree.leaves(obs)[0].shape[0]
            rows = permutation(key, size)[: max(1, round(self.fisher_share * size))]
            obs = jax.tree.map(lambda x: x[rows], obs)

        def distribution(policy: Any) -> Categorical | Normal:
            return self.distribution({"policy": policy}, obs)

        old: Any = distribution(policy)
        product = gauss_newton(distribution, lambda new: old.kl(new).mean(), policy)
        return lambda v: optax.tree.add_scale(product(v), self.damping, v)

    def value_loss(self, critic: Any, batch: Batch) -> tuple[jax.Array, None]:
        """Half the mean squared error of the critic."""
        errors = self.value({"critic": critic}, batch.obs) - batch.target
        return 0.5 * (errors**2).mean(), None


class Trial(NamedTuple):
    """A policy that the line search tries."""

    policy: Any
    kl: jax.Array  # mean divergence from it of the policy that collected
    gain: jax.Array  # of the surrogate
    accepted: jax.Array


def line_search(
    trial: Callable[[jax.Array], Trial],
    length: jax.Array,
    factor: jax.Array | float,
    max_trials: int,
    stay: Trial,
) -> tuple[Trial, jax.Array]:
    """The first accepted of `trial(length * factor**j)`, j = 0, 1, ... below `max_trials`.

    Returns it, or `stay` where none is accepted, and how many were tried without success.
    """

    def failing(carry):
        j, best = carry
        return (j < max_trials) & ~best.accepted

    def shorten(carry):
        j, _ = carry
        return j + 1, trial(length * factor**j)

    j, best = lax.while_loop(failing, shorten, (0, stay))
    best = jax.tree.map(lambda new, old: jnp.where(best.accepted, new, old), best, stay)
    return best, (j - best.accepted).astype(jnp.float32)
