"""Second-order actor-critic by decomposing the policy's Hessian (Manivannan & Shuban V 2026).

With d(s) the discounted occupancy and W = d pi, the Hessian of the return is A1 + A2 + H12 + H12^T:

    A1 = E_W[Q dlog pi dlog pi^T],   A2 = E_W[Q Hess log pi],   H12 = E_W[dlog pi (dQ)^T].

A critic that learns faster than the actor makes dQ a matter of the slow time scale, and H12 is
dropped. A1 + A2 is then the Hessian of the surrogate E[pi / pi_old Q], whose products with vectors
cost two gradients; Q may be the advantage there, which changes nothing: A1 + A2 of a constant is 0.
ACGN1 takes A1 + A2, which is indefinite: conjugate gradients stop at negative curvature. ACGN2
takes A2 alone, which needs Q >= 0 to be negative semi-definite (where log pi is concave; of a
softmax it is minus the Fisher matrix weighted by Q): the least Q of the rollout counts as 0.

No code was published with the paper. Damping, the trust region and the number of critic steps are
choices of this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl.agent import static, traced
from jaxrl.loops.on_policy import Batch, OnPolicy
from jaxrl.parts.curvature import gauss_newton, hessian_product, truncated_cg
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.optimize import descend_epochs, require_minibatches


class SecondOrder(OnPolicy):
    """Second-order actor-critic: Newton steps on the policy's Hessian (ACGN1, ACGN2)."""

    takes_masks = True
    forward_mode = True

    curvature: str = static(
        "surrogate", ("surrogate", "log_prob"), "Hessian of: the surrogate (ACGN1), Q log pi (2)"
    )
    actor_learning_rate: float = traced(1.0, "(0, inf)", "share of the Newton step at the start")
    actor_learning_rate_end: float = traced(1.0, "[0, inf)", "its fraction at the end (linear)")
    damping: float = traced(0.1, "[0, inf)", "times the identity, added to minus the Hessian")
    cg_iterations: int = static(10, "[1, inf)", "Hessian-vector products per update, at most")
    max_kl: float = traced(0.01, "(0, inf]", "a step's quadratic KL divergence is at most this")
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
        policy, metrics = self.improve_policy(params["policy"], batch, progress)
        # The faster time scale: many steps of the critic for one of the actor.
        epochs = self.num_epochs, self.num_minibatches
        critic, opt_state, value_loss, _ = descend_epochs(
            self.optimizer(), self.value_loss, params["critic"], opt_state, key, batch, *epochs
        )
        metrics["value_loss"] = value_loss
        return {"policy": policy, "critic": critic}, opt_state, metrics

    def improve_policy(
        self, policy: Any, batch: Batch, progress: jax.Array | float
    ) -> tuple[Any, dict[str, jax.Array]]:
        """One damped, truncated Newton step within the trust region."""
        deviation = batch.advantage.std() + 1e-8  # one scale for gradient and Hessian
        advantage = (batch.advantage - batch.advantage.mean()) / deviation
        q = (batch.target - batch.target.min()) / deviation

        def distribution(policy: Any) -> Categorical | Normal:
            return self.distribution({"policy": policy}, batch.obs)

        old: Any = distribution(policy)
        gradient = jax.grad(lambda p: surrogate(distribution(p), batch, advantage))(policy)
        hessian = self.hessian_product(policy, distribution, batch, advantage, q)

        def damped(v: Any) -> Any:
            return jax.tree.map(lambda h, x: self.damping * x - h, hessian(v), v)

        step, negative = truncated_cg(damped, gradient, self.cg_iterations)
        share = self.actor_learning_rate * (
            1 - (1 - self.actor_learning_rate_end) * jnp.clip(progress, 0, 1)
        )
        step = optax.tree.scale(share, step)

        fisher = gauss_newton(distribution, lambda new: old.kl(new).mean(), policy)
        divergence = 0.5 * optax.tree.vdot(step, fisher(step))
        within = jnp.minimum(1.0, jnp.sqrt(self.max_kl / jnp.maximum(divergence, 1e-30)))
        new = optax.tree.add_scale(policy, within, step)
        return new, {
            "entropy": old.entropy().mean(),
            "kl": old.kl(distribution(new)).mean(),
            "negative_curvature": negative.astype(jnp.float32),
            "step_share": within,
        }

    def hessian_product(
        self,
        policy: Any,
        distribution: Callable[[Any], Any],
        batch: Batch,
        advantage: jax.Array,
        q: jax.Array,
    ) -> Callable[[Any], Any]:
        """v -> (A1 + A2) v, or A2 v, of the rollout.

        A2's is Gauss-Newton's: the Hessian of log pi in its logits, or mean and deviation, which is
        concave, with the network as linear as it is at its parameters.
        """
        if self.curvature == "surrogate":
            return hessian_product(lambda p: surrogate(distribution(p), batch, advantage), policy)
        return gauss_newton(distribution, lambda d: (d.log_prob(batch.action) * q).mean(), policy)

    def value_loss(self, critic: Any, batch: Batch) -> tuple[jax.Array, None]:
        """Half the mean squared error of the critic."""
        errors = self.value({"critic": critic}, batch.obs) - batch.target
        return 0.5 * (errors**2).mean(), None


def surrogate(dist: Any, batch: Batch, advantage: jax.Array) -> jax.Array:
    """E[pi / pi_old A]: its Hessian at pi_old is A1 + A2."""
    return (jnp.exp(dist.log_prob(batch.action) - batch.log_prob) * advantage).mean()
