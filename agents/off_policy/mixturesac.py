"""SAC with a squashed Gaussian mixture and the marginalised reparameterisation estimator.

He, Neumann, Mei, A. White, M. White 2026, "MRP mixture policies".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import TanhMixture, take_component
from jaxrl.parts.losses import td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch, valid_mean

LOG_STD_RANGE = (-5.0, 2.0)  # that the components' log-deviations are clipped to

Q = Callable[[jax.Array], jax.Array]  # actions (S, B, D) in [-1, 1] -> (S, B)
ESTIMATORS = ("mrp", "likelihood_ratio", "half_reparameterised", "gumbel_softmax")


class MixtureSACLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_critics: Any
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any


class MixtureSAC(Learner):
    """Soft Actor-Critic whose policy is a mixture of squashed normals; continuous actions."""

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    temperature: float = traced(1.0, "(0, inf)", "weight of the entropy, at the start if learnt")
    temperature_learning_rate: float = traced(3e-4, "[0, inf)", "Adam's step size; 0: fixed")
    target_entropy: float = traced(-1.0, "(-inf, inf)", "of the policy, per action dimension")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of the actor and each critic")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")
    num_components: int = static(5, "[1, inf)", "normals in the mixture")
    estimator: str = static("mrp", ESTIMATORS, "of the actor's gradient")
    critic_target: str = static(
        "sampled", ("sampled", "marginalised"), "next value: of one component, or of all weighted"
    )
    gumbel_temperature: float = traced(0.5, "(0, inf)", "of the gumbel_softmax estimator")
    deterministic_action: str = static(
        "heaviest", ("heaviest", "densest"), "component's mean: greatest weight, greatest density"
    )

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.estimator != "gumbel_softmax":
            why["gumbel_temperature"] = f"with estimator={self.estimator}"
        if self.num_components == 1:
            why["deterministic_action"] = "with one component"
        return why

    def make_actor(self) -> Network:
        """A logit, a mean and a log-deviation of every component."""
        return Network(
            outputs=self.num_components * (1 + 2 * spaces.action_size(self.action_space)),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            output_scale=0.01,
        )

    def make_critic(self) -> Network:
        return Network(
            outputs=1,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
        )

    def distribution(self, actor: Any, obs: jax.Array) -> TanhMixture:
        """The policy at (normalised) observations."""
        output = self.make_actor().apply(actor, obs)
        size = spaces.action_size(self.action_space)
        shape = (*output.shape[:-1], self.num_components, size)
        logits = output[..., : self.num_components]
        mean, log_std = jnp.split(output[..., self.num_components :], 2, axis=-1)
        return TanhMixture(
            logits,
            mean.reshape(shape) + spread(self.num_components, size),
            jnp.clip(log_std.reshape(shape), *LOG_STD_RANGE),
        )

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        critic = self.make_critic()
        return jnp.stack([critic.apply(params, obs, action)[:, 0] for params in critics])

    def min_q(self, critics: Any, obs: jax.Array) -> Q:
        """The smaller value as a function of S actions at each of B observations."""

        def q(action: jax.Array) -> jax.Array:
            samples, _, size = action.shape
            repeated = jnp.tile(obs, (samples, *[1] * (obs.ndim - 1)))
            values = self.q_values(critics, repeated, action.reshape(-1, size))
            return values.min(axis=0).reshape(action.shape[:-1])

        return q

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def temperature_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.temperature_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> MixtureSACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        inputs = obs, jnp.zeros((spaces.action_size(self.action_space),))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return MixtureSACLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            log_temperature=log_temperature,
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            temperature_opt=self.temperature_optimizer().init(log_temperature),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: MixtureSACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[MixtureSACLearner, dict[str, jax.Array]]:
        next_key, actor_key = jax.random.split(key)
        temperature = jnp.exp(learner.log_temperature)

        # Critics, towards r + gamma (1 - terminated) V(s').
        next_value = self.soft_value(learner, batch.next_obs, temperature, next_key)
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_value, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Actor: E[temperature log pi(a|s) - min Q(s, a)], its gradient by one of the estimators.
        def actor_loss(actor):
            dist = self.distribution(actor, batch.obs)
            q = self.min_q(critics, batch.obs)
            loss, log_prob = self.estimate(dist, q, temperature, actor_key)
            return loss, (-log_prob.mean(), collapse(dist))

        actor, actor_opt, actor_loss_value, (entropy, collapse_metrics) = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Temperature, up while the mixture's entropy is below its target.
        target_entropy = self.target_entropy * spaces.action_size(self.action_space)
        move, temperature_opt = self.temperature_optimizer().update(
            entropy - target_entropy, learner.temperature_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "temperature": temperature,
            "entropy": entropy,
        }
        return MixtureSACLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            log_temperature=learner.log_temperature + move,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            temperature_opt=temperature_opt,
        ), metrics | collapse_metrics

    def soft_value(
        self, learner: MixtureSACLearner, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> jax.Array:
        """E[min Q'(s, a) - temperature log pi(a|s)] (B,): a sample, or summed over components."""
        dist = self.distribution(learner.actor, obs)
        if self.critic_target == "marginalised":
            return marginal_value(dist, self.min_q(learner.target_critics, obs), temperature, key)
        action, log_prob = dist.sample_and_log_prob(key)
        q = self.q_values(learner.target_critics, obs, action).min(axis=0)
        return q - temperature * log_prob

    def estimate(
        self, dist: TanhMixture, q: Q, temperature: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of the chosen estimator, and log pi (B,).

        Those that sample take as many samples as MRP has components, so that all pay for equally
        many critic evaluations.
        """
        samples = self.num_components
        if self.estimator == "mrp":
            return mrp_loss(dist, q, temperature, key)
        if self.estimator == "likelihood_ratio":
            return likelihood_ratio_loss(dist, q, temperature, key, samples)
        if self.estimator == "half_reparameterised":
            return half_reparameterised_loss(dist, q, temperature, key, samples)
        return gumbel_softmax_loss(dist, q, temperature, key, self.gumbel_temperature)

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: MixtureSACLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner.actor, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mean of a component, as `deterministic_action` says, or a sample of the mixture."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            dist = self.distribution(state.learner.actor, obs)
            if not deterministic:
                return self.env_action(dist.sample(key))
            densest = self.deterministic_action == "densest"
            return self.env_action(dist.densest_mean() if densest else dist.mode())

        return policy


def spread(num_components: int, action_size: int) -> jax.Array:
    """Where the components' means start, (K, D): evenly over [-1, 1] in every dimension.

    Each dimension is rolled by one against the one before, so that they are not all on a diagonal.
    """
    if num_components == 1:
        return jnp.zeros((1, action_size), jnp.float32)
    places = jnp.linspace(-1.0, 1.0, num_components, dtype=jnp.float32)
    return jnp.stack([jnp.roll(places, d) for d in range(action_size)], axis=-1)


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


def _baseline(value: jax.Array, baseline: jax.Array | None) -> jax.Array:
    """The mean of the other samples' values (S, B), unless there is a baseline already."""
    if baseline is not None:
        return baseline
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
    number = float(dist.logits.shape[-1])  # whose square need not fit into an integer
    pairs = max(number * (number - 1), 1)
    return {
        "weight_entropy": -(weights * log_weights).sum(axis=-1).mean(),
        "heaviest_weight": weights.max(axis=-1).mean(),
        "component_kl": (kl.sum(axis=(-2, -1)) / pairs).mean(),
    }
