"""WPO: Wasserstein Policy Optimization (Pfau et al. 2025, arXiv:2505.00663).

The policy's density flows along the critic's gradient in action space, d pi/dt = -div(pi grad_a Q).
For parameters that is theta' = F^-1 E_pi[(grad_theta grad_a log pi) grad_a Q], an expectation of
samples that nothing has to be differentiated through: it needs a density, no reparameterisation.

For one normal the update is, sample by sample, the reparameterised gradient: WPO is then the
pathwise policy gradient with a KL trust region where SAC has its entropy. What is new begins where
there is no reparameterisation, with mixtures, and with the squashed gradient. Mass flows and does
not jump: between components that are apart, no weight moves.

As in the released code: F is a diagonal, duals hold the KL divergence from the target policy in two
parts, target networks are copied. Otherwise as SAC here: two critics, one-step targets, actions
squashed by tanh, whose flow is that of what is squashed. Of a mixture, F is that of actions and
components jointly, and components are sampled in equal numbers and weighed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.distributions import TanhMixture
from jaxrl.parts.losses import td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, scale_gradient
from jaxrl.parts.replay import Batch, valid_mean

LOG_STD_RANGE = (-5.0, 2.0)  # that the components' log-deviations are clipped to
LEAST_WEIGHT = 1e-3  # of a component, as the Fisher matrix counts it

Q = Callable[[jax.Array], jax.Array]  # actions (S, B, D) in [-1, 1] -> (S, B)


class WPOLearner(NamedTuple):
    actor: Any
    critics: Any  # two
    target_actor: Any
    target_critics: Any
    log_duals: jax.Array  # (2,), of the divergence by weights and means, and by deviations
    actor_opt: Any
    critic_opt: Any
    dual_opt: Any


class WPO(Learner):
    """Wasserstein Policy Optimization, of a normal or a mixture of them; continuous actions."""

    learning_rate: float = traced(1e-4, "(0, inf)", "Adam's step size, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    target_period: int = static(100, "[1, inf)", "gradient steps between copies of the targets")
    num_samples: int = static(20, "[1, inf)", "actions per state and component of the policy")
    temperature: float = traced(0.0, "[0, inf)", "weight of the entropy")
    squash_gradient: bool = static(False, None, "take the cube root of the critics' gradient")
    max_mean_kl: float = traced(2.5e-3, "(0, inf)", "KL divergence by means, and by weights")
    max_std_kl: float = traced(1e-6, "(0, inf)", "KL divergence by deviations")
    mean_dual: float = traced(10.0, "(0, inf)", "weight of the former at the start")
    std_dual: float = traced(1000.0, "(0, inf)", "weight of the latter: much, so that it is slow")
    dual_learning_rate: float = traced(1e-2, "[0, inf)", "Adam's step size, of both weights' logs")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    num_components: int = static(1, "[1, inf)", "normals in the policy")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of the actor and each critic")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths, actor and critics each")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in the critics")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)

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
        mean, log_std = mean.reshape(shape), jnp.clip(log_std.reshape(shape), *LOG_STD_RANGE)
        if self.num_components > 1:  # apart at first, in no two dimensions in the same order
            places = jnp.linspace(-1.0, 1.0, self.num_components, dtype=mean.dtype)
            mean += jnp.stack([jnp.roll(places, d) for d in range(size)], axis=-1)
        return TanhMixture(logits, mean, log_std)

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

    def dual_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.dual_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> WPOLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.make_actor().init(actor_key, obs)
        inputs = obs, jnp.zeros((spaces.action_size(self.action_space),))
        critics = tuple(self.make_critic().init(k, *inputs) for k in jax.random.split(critic_key))
        log_duals = jnp.log(jnp.stack([self.mean_dual, self.std_dual])).astype(jnp.float32)
        return WPOLearner(
            actor=actor,
            critics=critics,
            target_actor=copy_of(actor),
            target_critics=copy_of(critics),
            log_duals=log_duals,
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
            dual_opt=self.dual_optimizer().init(log_duals),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: WPOLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[WPOLearner, dict[str, jax.Array]]:
        next_key, actor_key = jax.random.split(key)

        # Critics, towards r + gamma (1 - terminated) E[min Q'(s', a') - temperature log pi'(a')].
        next_dist = self.distribution(learner.target_actor, batch.next_obs)
        u, weight = samples_of(next_dist, next_key, self.num_samples)
        next_q = self.min_q(learner.target_critics, batch.next_obs)
        next_value = (weight * soft_value(next_dist, next_q, self.temperature, u)).sum(axis=0)
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_value, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Actor: along the flow, held near the target policy.
        target_dist = self.distribution(learner.target_actor, batch.obs)

        def actor_loss(actor):
            dist = self.distribution(actor, batch.obs)
            u, weight = samples_of(lax.stop_gradient(dist), actor_key, self.num_samples)
            flow = velocity(dist, self.min_q(critics, batch.obs), self.temperature, u)
            if self.squash_gradient:
                flow = jnp.cbrt(flow)
            divergences = jnp.stack([kl.mean() for kl in target_dist.joint_kl(dist)])
            penalty = (jnp.exp(learner.log_duals) * divergences).sum()
            entropy = -(weight * jax.vmap(dist.pre_tanh_log_prob)(u)).sum(axis=0).mean()
            loss = flow_loss(natural(dist), u, flow, weight) + penalty
            return loss, (divergences, entropy)

        actor, actor_opt, actor_loss_value, (divergences, entropy) = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )

        # Duals, up while the policy is further from its target than it may be.
        limits = jnp.stack([self.max_mean_kl, self.max_std_kl])
        move, dual_opt = self.dual_optimizer().update(1 - divergences / limits, learner.dual_opt)

        target_actor, target_critics = lax.cond(
            (n + 1) % self.target_period == 0,
            lambda: (actor, critics),
            lambda: (learner.target_actor, learner.target_critics),
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "entropy": entropy,
            "mean_kl": divergences[0],
            "std_kl": divergences[1],
        }
        return WPOLearner(
            actor=actor,
            critics=critics,
            target_actor=target_actor,
            target_critics=target_critics,
            log_duals=learner.log_duals + move,
            actor_opt=actor_opt,
            critic_opt=critic_opt,
            dual_opt=dual_opt,
        ), metrics

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: WPOLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner.actor, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner.actor, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mean of the heaviest component, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            dist = self.distribution(state.learner.actor, obs)
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


# The flow ---------------------------------------------------------------------------------------
#
# All of it is before tanh, at u (S, B, D), S samples at each of B states; "weight" (S, B) is what
# a sample counts in its state's expectation.


def samples_of(dist: TanhMixture, key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """`number` samples of each of K components, (number K, B, D), and their weights."""
    u = jax.vmap(dist.sample_components)(jax.random.split(key, number))
    u = jnp.moveaxis(u, -2, 1).reshape(-1, *dist.mean.shape[:-2], dist.mean.shape[-1])
    weight = jnp.moveaxis(jax.nn.softmax(dist.logits), -1, 0) / number
    return u, jnp.tile(weight, (number, *[1] * (weight.ndim - 1)))


def soft_value(dist: TanhMixture, q: Q, temperature: float | jax.Array, u: jax.Array) -> jax.Array:
    """Q - temperature log pi (S, B) of the actions tanh(u)."""
    return q(jnp.tanh(u)) - temperature * jax.vmap(dist.pre_tanh_log_prob)(u)


def velocity(dist: TanhMixture, q: Q, temperature: float | jax.Array, u: jax.Array) -> jax.Array:
    """The gradient (S, B, D) of the soft value at u: along it the policy's density flows."""
    dist = lax.stop_gradient(dist)
    return jax.grad(lambda u: soft_value(dist, q, temperature, u).sum())(u)


def flow_loss(dist: TanhMixture, u: jax.Array, flow: jax.Array, weight: jax.Array) -> jax.Array:
    """-E[<grad_u log pi(u), flow>], whose gradient is minus E[(grad_theta grad_u log pi) flow].

    The inner product is the derivative of log pi along the flow, so no second derivative is held.
    """
    u, flow, weight = lax.stop_gradient((u, flow, weight))
    _, along = jax.jvp(jax.vmap(dist.unsquashed_log_prob), (u,), (flow,))
    return -(weight * along).sum(axis=0).mean()


def natural(dist: TanhMixture) -> TanhMixture:
    """The same policy, whose gradients are multiplied by the inverse of its Fisher matrix.

    That of means and deviations, a diagonal: s^2 / w for a mean, s^2 / (2 w) for a deviation, and
    1 / w for the logits, less their mean, with w the weight of the component.
    """
    weight = jnp.maximum(jax.nn.softmax(dist.logits), LEAST_WEIGHT)
    variance = jnp.exp(2 * dist.log_std) / weight[..., None]
    logits = dist.logits - dist.logits.mean(axis=-1, keepdims=True)
    return TanhMixture(
        scale_gradient(logits, 1 / weight),
        scale_gradient(dist.mean, variance),
        scale_gradient(dist.log_std, variance / 2),
    )
