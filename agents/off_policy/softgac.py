"""SoftGAC: a stochastic bridge as the policy of a soft actor-critic (He, He, Tang, Wang, Fan 2026).

An action is the end of a path z_0, ..., z_K of normal steps. Its log-probability is intractable;
instead of it the policy pays the KL divergence of its path from that of a reference process whose
actions are uniform, which bounds the divergence of the actions themselves from above.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from agents.off_policy.soft import QFunction, SACLearner, SoftActorCritic
from jaxrl.agent import static, traced
from jaxrl.parts import replay
from jaxrl.parts.networks import BatchRenorm
from jaxrl.parts.replay import Batch, Replay, valid_mean

NEWEST = 4096  # environment steps from which a share of each batch is drawn
NEWEST_SHARE = 0.2
ATOMS = 101  # of the critic's distribution
NEGENTROPY_COEF = 0.005  # weight of sum p log p in the critic's loss
UNIT_SCALE_BIAS = math.log(math.e - 1)  # softplus of it is 1


class Noise(NamedTuple):
    """What a path is made from: `base` (..., D) in (-1, 1) and `steps` (K, ..., D), normal."""

    base: jax.Array
    steps: jax.Array


class BridgeStep(nn.Module):
    """Drift and scale of one step of the bridge, from [obs, z]; scale 1 and a small drift first."""

    width: int
    action_size: int
    input_norm: bool

    @nn.compact
    def __call__(self, obs: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.concatenate([obs, z], axis=-1)
        if self.input_norm:
            x = nn.LayerNorm()(x)
        x = nn.LayerNorm()(nn.elu(nn.Dense(self.width)(x)))
        drift = nn.Dense(self.action_size, kernel_init=nn.initializers.xavier_uniform())(x)
        scale = nn.Dense(
            self.action_size,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(UNIT_SCALE_BIAS),
        )(x)
        return drift, nn.softplus(scale)


class CrossQCritic(nn.Module):
    """Logits (B, ATOMS) of the return from [obs, action], with BatchRenorm around every layer."""

    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = BatchRenorm()(x, train)
        for width in self.hidden_sizes:
            x = BatchRenorm()(nn.relu(nn.Dense(width)(x)), train)
        return nn.Dense(ATOMS)(x)


class SoftGAC(SoftActorCritic):
    """SAC whose policy is a bridge, whose penalty is the path cost, and whose critic is CrossQ.

    With `critic="twin"` the critics are SAC's. The temperature rises while the cost is above
    `cost_target` per bridge step and action dimension.
    """

    bridge_steps: int = static(6, "[1, inf)", "steps K of the path")
    bridge_width: int = static(512, "[1, inf)", "hidden units of each step's network")
    input_norm: bool = static(
        True, None, "LayerNorm of [obs, z], as published; hides what few observations say"
    )
    cost_target: float = traced(0.2, "(0, inf)", "of the path, per step and action dimension")
    temperature: float = traced(0.1, "(0, inf)", "weight of the path cost, at the start")
    temperature_learning_rate: float = traced(1e-3, "[0, inf)", "Adam's step size; 0: fixed")
    num_particles: int = static(1, "[1, inf)", "paths per state in the actor's loss; antithetic")
    policy_delay: int = static(2, "[1, inf)", "gradient steps of the critic to one of the actor")
    num_updates: int = static(16, "[1, inf)", "gradient steps per iteration")
    critic: str = static("crossq", ("crossq", "twin"), "crossq: C51, BatchRenorm and no target")
    value_bound: float = traced(200.0, "(0, inf)", "the crossq critic's returns are within +-this")
    critic_momentum: float = traced(0.5, "[0, 1)", "Adam's b1 of the crossq critic")

    def check(self) -> None:
        super().check()
        if self.num_particles > 1 and self.num_particles % 2:
            raise ValueError(
                f"softgac: num_particles={self.num_particles} must be 1 or even: "
                "antithetic paths come in pairs"
            )

    # Policy -----------------------------------------------------------------------------------

    def make_actor(self) -> Any:
        return BridgeStep(self.bridge_width, self.action_size, self.input_norm)

    def init_actor(self, key: jax.Array, obs: jax.Array) -> Any:
        """Parameters of each step's own network, stacked (K, ...)."""
        module, z = self.make_actor(), jnp.zeros((self.action_size,))
        steps = [
            module.init(k, obs.reshape(-1), z) for k in jax.random.split(key, self.bridge_steps)
        ]
        return jax.tree.map(lambda *xs: jnp.stack(xs), *steps)

    def path(self, actor: Any, obs: jax.Array, noise: Noise) -> tuple[jax.Array, jax.Array]:
        """Actions (..., D) and path costs (...) of the bridge at observations (..., *obs)."""

        flat = obs.reshape(*self.batch_shape(obs), -1)

        def drift_and_scale(params, z):
            return self.make_actor().apply(params, flat, z)

        return bridge(drift_and_scale, actor, noise)

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> Noise:
        """Noise for paths of actions of this shape (..., D)."""
        base_key, step_key = jax.random.split(key)
        base = jax.random.uniform(base_key, shape, minval=-1.0, maxval=1.0)
        return Noise(base, jax.random.normal(step_key, (self.bridge_steps, *shape)))

    def act(self, actor: Any, obs: jax.Array, key: jax.Array, deterministic: bool) -> jax.Array:
        shape = (*self.batch_shape(obs), self.action_size)
        noise = self.noise(key, shape)
        if deterministic:  # the path without noise, from z_0 = 0
            noise = jax.tree.map(jnp.zeros_like, noise)
        return self.path(actor, obs, noise)[0]

    def batch_shape(self, obs: jax.Array) -> tuple[int, ...]:
        return obs.shape[: obs.ndim - len(self.env.observation_space(self.env_params).shape)]

    @property
    def penalty_target(self) -> float | jax.Array:
        return self.cost_target * self.bridge_steps * self.action_size

    def actor_loss(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        pairs = max(self.num_particles // 2, 1)
        noise = self.noise(key, (pairs, len(obs), self.action_size))
        if self.num_particles > 1:
            noise = antithetic(noise)
        obs = jnp.broadcast_to(obs, (self.num_particles, *obs.shape))
        action, cost = self.path(actor, obs, noise)
        value = q(obs.reshape(-1, *obs.shape[2:]), action.reshape(-1, self.action_size))
        return (temperature * cost).mean() - value.mean(), {"penalty": cost.mean()}

    def soft_value(
        self, actor: Any, q: QFunction, obs: jax.Array, temperature: jax.Array, key: jax.Array
    ) -> jax.Array:
        action, cost = self.path(actor, obs, self.noise(key, (len(obs), self.action_size)))
        return q(obs, action) - temperature * cost

    # Critic -----------------------------------------------------------------------------------

    @property
    def atoms(self) -> jax.Array:
        """The support of the crossq critic's distribution (ATOMS,)."""
        return jnp.linspace(-1.0, 1.0, ATOMS) * self.value_bound

    def critic_optimizer(self) -> optax.GradientTransformation:
        if self.critic == "twin":
            return super().critic_optimizer()
        return optax.adam(self.learning_rate, b1=self.critic_momentum)

    def init_critics(self, key: jax.Array, obs: jax.Array) -> Any:
        if self.critic == "twin":
            return super().init_critics(key, obs)
        inputs = jnp.zeros((2, obs.size + self.action_size))
        module = CrossQCritic(self.hidden_sizes)
        return tuple(module.init(k, inputs, True) for k in jax.random.split(key))

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        if self.critic == "twin":
            return super().q_values(critics, obs, action)
        inputs = jnp.concatenate([obs.reshape(len(action), -1), action], axis=-1)
        module = CrossQCritic(self.hidden_sizes)
        logits = jnp.stack([module.apply(critic, inputs, False) for critic in critics])
        return jax.nn.softmax(logits) @ self.atoms

    def update_critics(
        self, learner: SACLearner, batch: Batch, key: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        if self.critic == "twin":
            return super().update_critics(learner, batch, key)
        size, temperature = len(batch.action), jnp.exp(learner.log_temperature)
        noise = self.noise(key, batch.action.shape)
        next_action, cost = self.path(learner.actor, batch.next_obs, noise)

        # Both steps pass the critic as one batch, so that its statistics are those of both.
        def inputs(obs, action):
            return jnp.concatenate([obs.reshape(size, -1), action], axis=-1)

        joint = jnp.concatenate(
            [inputs(batch.obs, batch.action), inputs(batch.next_obs, next_action)]
        )
        alive = self.gamma * (1 - batch.terminated)[:, None]
        shifted = self.reward_scale * batch.reward[:, None] + alive * (
            self.atoms - temperature * cost[:, None]
        )
        module = CrossQCritic(self.hidden_sizes)
        moments = [critic["batch_stats"] for critic in learner.critics]

        def loss_fn(params):
            passed = [
                module.apply({"params": p, "batch_stats": m}, joint, True, mutable=["batch_stats"])
                for p, m in zip(params, moments, strict=True)
            ]
            logits = jnp.stack([logits for logits, _ in passed])  # (2, 2B, ATOMS)
            next_probs = lax.stop_gradient(jax.nn.softmax(logits[:, size:]).mean(axis=0))
            target = project(next_probs, shifted, self.atoms)
            log_probs = jax.nn.log_softmax(logits[:, :size])
            probs = jnp.exp(log_probs)
            cross_entropy = -(target * log_probs).sum(axis=-1)
            negentropy = (probs * log_probs).sum(axis=-1)
            losses = (cross_entropy + NEGENTROPY_COEF * negentropy).sum(axis=0)
            q_mean = (probs @ self.atoms).mean()
            return valid_mean(losses, batch.valid), ([new for _, new in passed], q_mean)

        params = tuple(critic["params"] for critic in learner.critics)
        (loss, (new, q_mean)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, critic_opt = self.critic_optimizer().update(grads, learner.critic_opt)
        critics = tuple(
            {"params": p, **m}
            for p, m in zip(optax.apply_updates(params, updates), new, strict=True)
        )
        learner = learner._replace(critics=critics, critic_opt=critic_opt)
        return learner, {"critic_loss": loss, "q_mean": q_mean}

    # Training ---------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> SACLearner:
        learner = super().init_learner(key, obs)
        if self.critic == "twin":
            return learner
        params = tuple(critic["params"] for critic in learner.critics)
        critic_opt = self.critic_optimizer().init(params)
        return learner._replace(target_critics=(), critic_opt=critic_opt)

    def update(
        self, learner: SACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SACLearner, dict[str, jax.Array]]:
        critic_key, actor_key = jax.random.split(key)
        learner, metrics = self.update_critics(learner, batch, critic_key)

        def move(learner):
            return self.update_actor(learner, batch, actor_key, n)

        def rest(learner):
            shapes = jax.eval_shape(move, learner)[1]
            return learner, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

        learner, actor_metrics = lax.cond(n % self.policy_delay == 0, move, rest, learner)
        return learner, metrics | actor_metrics

    def sample(self, key: jax.Array, memory: Replay, written: jax.Array) -> Batch:
        """A share of the batch from the newest steps, the rest from all."""
        newest = round(NEWEST_SHARE * self.batch_size)
        keys, rows = jax.random.split(key), max(NEWEST // self.num_envs, 2)
        parts = (
            replay.sample(keys[0], memory, written, self.batch_size - newest),
            replay.sample(keys[1], memory, written, newest, newest=rows),
        )
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


def bridge(drift_and_scale: Any, params: Any, noise: Noise) -> tuple[jax.Array, jax.Array]:
    """Actions tanh(z_K) (..., D) and path costs (...) of paths made from `noise`.

    With h = 1/K and z_0 = artanh(base), whose density is that of the reference process at rest,

        z_{k+1} = z_k + h b_k(z_k) + sqrt(2 h) sigma_k(z_k) eps_k,
        C = 1/2 sum_{k,d} [sigma^2 - 1 - log sigma^2 + h (b + 2 tanh z)^2 / 2]:

    the KL divergence of its steps from those of the reference, b = -2 tanh z and sigma = 1, summed
    along the path. The reference is the Langevin process of the density sech^2, whose tanh is
    uniform.

    Args:
        drift_and_scale: (params of step k, z) -> (b, sigma).
        params: stacked (K, ...).
    """
    h = 1.0 / len(noise.steps)

    def step(carry, row):
        z, cost = carry
        params_k, eps = row
        drift, scale = drift_and_scale(params_k, z)
        excess = scale**2 - 1 - 2 * jnp.log(scale) + 0.5 * h * (drift + 2 * jnp.tanh(z)) ** 2
        z = z + h * drift + math.sqrt(2 * h) * scale * eps
        return (z, cost + 0.5 * excess.sum(axis=-1)), None

    edge = 1 - jnp.finfo(noise.base.dtype).eps
    start = jnp.arctanh(jnp.clip(noise.base, -edge, edge))
    carry = start, jnp.zeros_like(start[..., 0])
    (z, cost), _ = lax.scan(step, carry, (params, noise.steps))
    return jnp.tanh(z), cost


def antithetic(noise: Noise) -> Noise:
    """Each path (leading axis of `base`) and its mirror image."""
    return Noise(
        jnp.concatenate([noise.base, -noise.base]),
        jnp.concatenate([noise.steps, -noise.steps], axis=1),
    )


def project(probs: jax.Array, places: jax.Array, atoms: jax.Array) -> jax.Array:
    """Mass `probs` (B, A) at `places` (B, A) moved to the evenly spaced atoms (A,) around it.

    Bellemare, Dabney & Munos 2017, algorithm 1; what lies outside goes to the outermost atoms.
    """
    gap = atoms[1] - atoms[0]
    places = jnp.clip(places, atoms[0], atoms[-1])
    share = 1 - jnp.abs(places[:, None, :] - atoms[None, :, None]) / gap  # (B, to, from)
    return (jnp.clip(share, 0, 1) * probs[:, None, :]).sum(axis=-1)
