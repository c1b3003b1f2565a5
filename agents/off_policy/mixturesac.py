"""SAC with a squashed Gaussian mixture and the marginalised reparameterisation estimator.

He, Neumann, Mei, A. White, M. White 2026, "MRP mixture policies".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from agents.off_policy.soft import LOG_STD_RANGE, SAC, QFunction
from jaxrl.agent import static, traced
from jaxrl.parts.distributions import TanhMixture, take_component

Q = Callable[[jax.Array], jax.Array]  # actions (..., B, D) in [-1, 1] -> (..., B)
ESTIMATORS = ("mrp", "likelihood_ratio", "half_reparameterised", "gumbel_softmax")


class MixtureSAC(SAC):
    """SAC whose policy is tanh of a mixture of normals; entropy and penalty are the mixture's."""

    num_components: int = static(5, "[1, inf)", "normals in the mixture")
    estimator: str = static("mrp", ESTIMATORS, "of the actor's gradient")
    critic_target: str = static(
        "sampled", ("sampled", "marginalised"), "next value: of one component, or of all weighted"
    )
    gumbel_temperature: float = traced(0.5, "(0, inf)", "of the gumbel_softmax estimator")

    @property
    def actor_outputs(self) -> int:
        return self.num_components * (1 + 2 * self.action_size)

    def distribution(self, actor: Any, obs: jax.Array) -> TanhMixture:
        output = self.make_actor().apply(actor, obs)
        shape = (*output.shape[:-1], self.num_components, self.action_size)
        logits = output[..., : self.num_components]
        mean, log_std = jnp.split(output[..., self.num_components :], 2, axis=-1)
        return TanhMixture(
            logits,
            mean.reshape(shape) + spread(self.num_components, self.action_size),
            jnp.clip(log_std.reshape(shape), *LOG_STD_RANGE),
        )

    def actor_loss(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        dist = self.distribution(actor, obs)
        q_of = over_samples(q, obs)
        if self.estimator == "mrp":
            loss, log_prob = mrp_loss(dist, q_of, temperature, key)
        elif self.estimator == "gumbel_softmax":
            scale = self.gumbel_temperature
            loss, log_prob = gumbel_softmax_loss(dist, q_of, temperature, key, scale)
        else:
            # As many samples as MRP takes, so that all pay for equally many critic evaluations.
            estimate = {
                "likelihood_ratio": likelihood_ratio_loss,
                "half_reparameterised": half_reparameterised_loss,
            }[self.estimator]
            loss, log_prob = estimate(dist, q_of, temperature, key, self.num_components)
        penalty = log_prob.mean()
        return loss, {"penalty": penalty, "entropy": -penalty, **collapse(dist)}

    def soft_value(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> jax.Array:
        if self.critic_target == "sampled":
            return super().soft_value(actor, q, obs, temperature, key)
        return marginal_value(self.distribution(actor, obs), over_samples(q, obs), temperature, key)


def spread(num_components: int, action_size: int) -> jax.Array:
    """Where the components' means start, (K, D): evenly over [-1, 1] in every dimension.

    Each dimension is rolled by one against the one before, so that they are not all on a diagonal.
    """
    if num_components == 1:
        return jnp.zeros((1, action_size))
    places = jnp.linspace(-1.0, 1.0, num_components)
    return jnp.stack([jnp.roll(places, d) for d in range(action_size)], axis=-1)


def over_samples(q: QFunction, obs: jax.Array) -> Q:
    """Q as a function of actions (S, B, D), evaluated as one batch of S * B."""

    def evaluate(action: jax.Array) -> jax.Array:
        samples = action.shape[0]
        repeated = jnp.tile(obs, (samples, *[1] * (obs.ndim - 1)))
        return q(repeated, action.reshape(-1, action.shape[-1])).reshape(action.shape[:-1])

    return evaluate


# The estimators ---------------------------------------------------------------------------------
#
# Each is a loss whose gradient estimates that of -J = E[alpha log pi(a) - Q(a)], with log pi of the
# whole mixture, averaged over a batch of B states; each returns it with an estimate of E[log pi]
# (B,). F below is the soft value Q(tanh u) - alpha log pi(tanh u).


def mrp_loss(
    dist: TanhMixture, q: Q, alpha: float | jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Marginalised reparameterisation: J = sum_k w_k E_eps[F(mu_k + sigma_k eps)], one eps each.

    A finite sum of reparameterisable expectations, so differentiating all of it is unbiased.
    """
    value, log_prob = _of_components(dist, q, alpha, key)
    weights = jnp.moveaxis(jax.nn.softmax(dist.logits), -1, 0)
    return -(weights * value).sum(axis=0).mean(), (weights * log_prob).sum(axis=0)


def marginal_value(dist: TanhMixture, q: Q, alpha: float | jax.Array, key: jax.Array) -> jax.Array:
    """sum_k w_k F(u_k) (B,): the soft value with the component integrated out."""
    value, _ = _of_components(dist, q, alpha, key)
    return (jnp.moveaxis(jax.nn.softmax(dist.logits), -1, 0) * value).sum(axis=0)


def likelihood_ratio_loss(
    dist: TanhMixture,
    q: Q,
    alpha: float | jax.Array,
    key: jax.Array,
    num_samples: int = 1,
    baseline: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """grad log pi(a) (F - b) with a from the mixture, averaged over `num_samples`.

    Args:
        baseline: b (B,); by default the mean of the other samples' F (nothing, if there are none).
    """
    u = jax.vmap(dist.pre_tanh_sample)(jax.random.split(key, num_samples))
    u = jax.lax.stop_gradient(u)
    value, log_prob = _soft_value(dist, q, alpha, u)
    advantage = jax.lax.stop_gradient(value - _baseline(value, baseline))
    return -(log_prob * advantage).mean(), log_prob.mean(axis=0)


def half_reparameterised_loss(
    dist: TanhMixture,
    q: Q,
    alpha: float | jax.Array,
    key: jax.Array,
    num_samples: int = 1,
    baseline: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Reparameterised inside of a component, likelihood ratio for which one.

    grad F(u_k) + grad log w_k (F(u_k) - b) with k from the weights, averaged over `num_samples`;
    MRP is its expectation over k.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        component_key, noise_key = jax.random.split(key)
        k = jax.random.categorical(component_key, dist.logits)
        return k, take_component(dist.sample_components(noise_key), k)

    k, u = jax.vmap(draw)(jax.random.split(key, num_samples))
    value, log_prob = _soft_value(dist, q, alpha, u)
    advantage = jax.lax.stop_gradient(value - _baseline(value, baseline))
    log_weights = jnp.broadcast_to(
        jax.nn.log_softmax(dist.logits), (num_samples, *dist.logits.shape)
    )
    log_weight = jnp.take_along_axis(log_weights, k[..., None], axis=-1)[..., 0]
    return -(value + log_weight * advantage).mean(), log_prob.mean(axis=0)


def gumbel_softmax_loss(
    dist: TanhMixture,
    q: Q,
    alpha: float | jax.Array,
    key: jax.Array,
    temperature: float | jax.Array = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Components blended by relaxed one-hot weights: biased, for comparison only."""
    gumbel_key, noise_key = jax.random.split(key)
    gumbel = jax.random.gumbel(gumbel_key, dist.logits.shape, dist.logits.dtype)
    blend = jax.nn.softmax((jax.nn.log_softmax(dist.logits) + gumbel) / temperature)
    u = (blend[..., None] * dist.sample_components(noise_key)).sum(axis=-2)
    value, log_prob = _soft_value(dist, q, alpha, u[None])
    return -value.mean(), log_prob[0]


def _soft_value(
    dist: TanhMixture, q: Q, alpha: float | jax.Array, u: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """F and log pi, both (S, B), at u (S, B, D)."""
    log_prob = jax.vmap(dist.pre_tanh_log_prob)(u)
    return q(jnp.tanh(u)) - alpha * log_prob, log_prob


def _of_components(
    dist: TanhMixture, q: Q, alpha: float | jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """F and log pi, both (K, B), at a sample of every component."""
    return _soft_value(dist, q, alpha, jnp.moveaxis(dist.sample_components(key), -2, 0))


def _baseline(value: jax.Array, given: jax.Array | None) -> jax.Array:
    """The mean of the other samples' values (S, B), unless one is given."""
    if given is not None:
        return given
    return (value.sum(axis=0) - value) / max(len(value) - 1, 1)


def collapse(dist: TanhMixture) -> dict[str, jax.Array]:
    """Metrics of a mixture falling together: weights and how far apart its components are.

    "component_kl" is the mean KL divergence between two different components (0 for K = 1).
    """
    log_weights = jax.nn.log_softmax(dist.logits)
    weights = jnp.exp(log_weights)
    mean, log_std = dist.mean, dist.log_std
    gap = (mean[..., :, None, :] - mean[..., None, :, :]) ** 2
    ratio = 2 * (log_std[..., :, None, :] - log_std[..., None, :, :])
    other = jnp.exp(-2 * log_std)[..., None, :, :]
    kl = 0.5 * (jnp.exp(ratio) + gap * other - 1 - ratio).sum(axis=-1)
    pairs = max(dist.logits.shape[-1] * (dist.logits.shape[-1] - 1), 1)
    return {
        "weight_entropy": -(weights * log_weights).sum(axis=-1).mean(),
        "heaviest_weight": weights.max(axis=-1).mean(),
        "component_kl": (kl.sum(axis=(-2, -1)) / pairs).mean(),
    }
