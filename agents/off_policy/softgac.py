"""SoftGAC: a stochastic bridge as the policy of a soft actor-critic (He, He, Tang, Wang, Fan 2026).

An action is the end of a path z_0, ..., z_K of normal steps. Its log-probability is intractable;
instead of it the policy pays the KL divergence of its path from that of a reference process whose
actions are uniform, which bounds the divergence of the actions themselves from above.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.loops.sources import Collected
from jaxrl.parts.bridge import BridgeStep, Noise, antithetic, bridge
from jaxrl.parts.distributions import project_to_atoms
from jaxrl.parts.losses import td_target
from jaxrl.parts.networks import (
    BatchRenorm,
    Network,
    body_of,
    dense_product,
    features,
    require_body,
)
from jaxrl.parts.optimize import MISSING, copy_of, descend, learn_if, polyak
from jaxrl.parts.replay import Batch, valid_mean


class CrossQCritic(nn.Module):
    """Logits (B, atoms) of the return from [obs, action], with BatchRenorm around every layer."""

    num_atoms: int
    hidden_sizes: tuple[int, ...]
    obs_ndim: int
    body: Callable[[jax.Array], jax.Array] | None = None
    precision: str = "float32"

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array, train: bool) -> jax.Array:
        x = jnp.concatenate([features(self.body, obs, self.obs_ndim), action], axis=-1)
        layer = partial(nn.Dense, dot_general=partial(dense_product, operands=self.precision))
        x = BatchRenorm()(x, train)
        for width in self.hidden_sizes:
            x = BatchRenorm()(nn.relu(layer(width)(x)), train)
        return layer(self.num_atoms)(x)


class SoftGACLearner(NamedTuple):
    actor: Any  # of each step of the bridge, stacked (K, ...)
    critics: Any  # two; those of crossq hold "params" and their running moments "batch_stats"
    target_critics: Any  # of the twin critics; () with crossq
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any


class SoftGAC(Learner):
    """Soft actor-critic with a stochastic bridge as its policy; continuous actions.

    The critics are CrossQ's, distributional and without targets, as published; with `critic="twin"`
    they are SAC's. The temperature rises while the path's cost is above `cost_target` per bridge
    step and action dimension.
    """

    num_updates: int = static(16, "[1, inf)", "gradient steps per iteration")
    newest_steps: int = static(4096, "[1, inf)", "newest environment steps, for newest_share")
    newest_share: float = static(0.2, "[0, 1]", "of each batch, drawn from the newest steps")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of actor and critics")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    temperature: float = traced(0.1, "(0, inf)", "weight of the path cost, at the start")
    temperature_learning_rate: float = traced(1e-3, "[0, inf)", "Adam's step size; 0: fixed")
    cost_target: float = traced(0.2, "(0, inf)", "of the path, per step and action dimension")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in the targets")
    bridge_steps: int = static(6, "[1, inf)", "steps K of the path")
    bridge_width: int = static(512, "[1, inf)", "hidden units of each step's network")
    input_norm: bool = static(
        True, None, "LayerNorm of [obs, z], as published; hides what few observations say"
    )
    num_particles: int = static(1, "[1, inf)", "paths per state in the actor's loss; antithetic")
    policy_delay: int = static(2, "[1, inf)", "gradient steps of the critic to one of the actor")
    network: Any = static(
        "mlp", ("mlp", OWN), "or a body of yours, of each critic and each step of the path"
    )
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of each critic")
    critic: str = static("crossq", ("crossq", "twin"), "crossq: C51, BatchRenorm and no target")
    num_atoms: int = static(101, "[2, inf)", "of the crossq critic's distribution")
    value_bound: float = traced(200.0, "(0, inf)", "the crossq critic's returns are within +-this")
    negentropy_coef: float = traced(
        0.005, "[0, inf)", "weight of sum p log p in the crossq critic's loss"
    )
    critic_momentum: float = traced(0.5, "[0, 1)", "Adam's b1 of the crossq critic")
    tau: float = traced(0.005, "(0, 1]", "how far twin critics' targets move at each gradient step")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of twin critics' hidden layers")
    layer_norm: bool = static(False, None, "LayerNorm in twin critics")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)
        if self.num_particles > 1 and self.num_particles % 2:
            raise ValueError(
                f"softgac: num_particles={self.num_particles} must be 1 or even: "
                "antithetic paths come in pairs"
            )

    def unused(self) -> dict[str, str]:
        of_crossq = ("num_atoms", "value_bound", "negentropy_coef", "critic_momentum")
        of_twin = ("tau", "activation", "layer_norm")
        other = of_twin if self.critic == "crossq" else of_crossq
        why = super().unused() | dict.fromkeys(other, f"with critic={self.critic}")
        if not self.newest_share:
            why["newest_steps"] = "with newest_share=0"
        if not self.collects:
            why |= dict.fromkeys(("newest_steps", "newest_share"), "with recorded data alone")
        return why

    def collected(self) -> Collected:
        rows = max(self.newest_steps // self.num_envs, 2)
        return super().collected()._replace(newest=rows, newest_share=self.newest_share)

    @property
    def action_size(self) -> int:
        return spaces.action_size(self.action_space)

    def make_actor(self) -> BridgeStep:
        """Of one step of the bridge."""
        return BridgeStep(
            self.bridge_width,
            self.action_size,
            self.input_norm,
            obs_ndim=len(self.obs_shape),
            body=body_of(self.network),
            precision=self.precision,
        )

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> Noise:
        """Noise for paths of actions of this shape (..., D)."""
        base_key, step_key = jax.random.split(key)
        base = jax.random.uniform(base_key, shape, jnp.float32, minval=-1.0, maxval=1.0)
        steps = jax.random.normal(step_key, (self.bridge_steps, *shape), jnp.float32)
        return Noise(base, steps)

    def path(self, actor: Any, obs: jax.Array, noise: Noise) -> tuple[jax.Array, jax.Array]:
        """Actions (..., D) and path costs (...) of the bridge at observations (..., *obs)."""

        def drift_and_scale(params, z):
            return self.make_actor().apply(params, obs, z)

        return bridge(drift_and_scale, actor, noise)

    def make_crossq_critic(self) -> CrossQCritic:
        return CrossQCritic(
            self.num_atoms,
            self.hidden_sizes,
            obs_ndim=len(self.obs_shape),
            body=body_of(self.network),
            precision=self.precision,
        )

    @property
    def atoms(self) -> jax.Array:
        """The support of the crossq critic's distribution (A,)."""
        return jnp.linspace(-1.0, 1.0, self.num_atoms, dtype=jnp.float32) * self.value_bound

    def make_twin_critic(self) -> Network:
        return Network(
            outputs=1,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
        )

    def q_values(self, critics: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Both critics' values (2, B)."""
        if self.critic == "twin":
            twin = self.make_twin_critic()
            return jnp.stack([twin.apply(critic, obs, action)[:, 0] for critic in critics])
        crossq = self.make_crossq_critic()
        logits = jnp.stack([crossq.apply(critic, obs, action, False) for critic in critics])
        return jax.nn.softmax(logits) @ self.atoms

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def crossq_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b1=self.critic_momentum)

    def temperature_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.temperature_learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> SoftGACLearner:
        actor_key, critic_key = jax.random.split(key)
        actor = self.init_actor(actor_key, obs)
        critics, target_critics, critic_opt = self.init_critics(critic_key, obs)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        return SoftGACLearner(
            actor=actor,
            critics=critics,
            target_critics=target_critics,
            log_temperature=log_temperature,
            actor_opt=self.optimizer().init(actor),
            critic_opt=critic_opt,
            temperature_opt=self.temperature_optimizer().init(log_temperature),
        )

    def init_actor(self, key: jax.Array, obs: jax.Array) -> Any:
        """Parameters of each step's own network, stacked (K, ...)."""
        module, z = self.make_actor(), jnp.zeros((self.action_size,))
        keys = jax.random.split(key, self.bridge_steps)
        steps = [module.init(k, obs, z) for k in keys]
        return jax.tree.map(lambda *xs: jnp.stack(xs), *steps)

    def init_critics(self, key: jax.Array, obs: jax.Array) -> tuple[Any, Any, Any]:
        """Both critics, their targets and the optimiser's state."""
        keys, action = jax.random.split(key), jnp.zeros((self.action_size,))
        if self.critic == "twin":
            twin = self.make_twin_critic()
            critics = tuple(twin.init(k, obs, action) for k in keys)
            return critics, copy_of(critics), self.optimizer().init(critics)
        crossq = self.make_crossq_critic()
        critics = tuple(crossq.init(k, obs[None], action[None], True) for k in keys)
        params = tuple(critic["params"] for critic in critics)
        return critics, (), self.crossq_optimizer().init(params)

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: SoftGACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[SoftGACLearner, dict[str, jax.Array]]:
        critic_key, actor_key = jax.random.split(key)

        # Critics, towards r + gamma (1 - terminated) [Q(s', a') - temperature C(s', a')].
        critic_step = self.twin_step if self.critic == "twin" else self.crossq_step
        learner, critic_metrics = critic_step(learner, batch, critic_key)

        # Actor and temperature, at every policy_delay-th gradient step.
        def move(learner):
            return self.actor_step(learner, batch, actor_key)

        due = n % self.policy_delay == 0
        learner, actor_metrics = learn_if(due, move, learner, missing=MISSING)
        return learner, critic_metrics | actor_metrics

    def twin_step(
        self, learner: SoftGACLearner, batch: Batch, key: jax.Array
    ) -> tuple[SoftGACLearner, dict[str, jax.Array]]:
        """SAC's critics: squared errors, from the smaller value of two target critics."""
        temperature = jnp.exp(learner.log_temperature)
        noise = self.noise(key, batch.action.shape)
        next_action, next_cost = self.path(learner.actor, batch.next_obs, noise)
        next_q = self.q_values(learner.target_critics, batch.next_obs, next_action).min(axis=0)
        next_value = next_q - temperature * next_cost
        reward = self.reward_scale * batch.reward
        target = td_target(reward, batch.terminated, next_value, self.gamma)

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action)
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, batch.valid), q.mean()

        critics, critic_opt, loss, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )
        learner = learner._replace(
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            critic_opt=critic_opt,
        )
        return learner, {"critic_loss": loss, "q_mean": q_mean}

    def crossq_step(
        self, learner: SoftGACLearner, batch: Batch, key: jax.Array
    ) -> tuple[SoftGACLearner, dict[str, jax.Array]]:
        """Cross-entropy to the projected mean of both critics' distributions at the next step."""
        size, temperature = len(batch.action), jnp.exp(learner.log_temperature)
        noise = self.noise(key, batch.action.shape)
        next_action, next_cost = self.path(learner.actor, batch.next_obs, noise)
        reward = self.reward_scale * batch.reward[:, None]
        next_atoms = self.atoms - temperature * next_cost[:, None]
        places = td_target(reward, batch.terminated[:, None], next_atoms, self.gamma)
        # Both steps pass the critic as one batch, so that its statistics are those of both.
        obs = jnp.concatenate([batch.obs, batch.next_obs])
        action = jnp.concatenate([batch.action, next_action])
        module = self.make_crossq_critic()
        moments = [critic["batch_stats"] for critic in learner.critics]

        def critic_loss(params):
            outputs = [
                module.apply(
                    {"params": p, "batch_stats": m}, obs, action, True, mutable=["batch_stats"]
                )
                for p, m in zip(params, moments, strict=True)
            ]
            logits = jnp.stack([logits for logits, _ in outputs])  # (2, 2B, A)
            next_probs = lax.stop_gradient(jax.nn.softmax(logits[:, size:]).mean(axis=0))
            target = project_to_atoms(next_probs, places, self.atoms)
            log_probs = jax.nn.log_softmax(logits[:, :size])
            probs = jnp.exp(log_probs)
            cross_entropy = -(target * log_probs).sum(axis=-1)
            negentropy = (probs * log_probs).sum(axis=-1)
            losses = (cross_entropy + self.negentropy_coef * negentropy).sum(axis=0)
            new_moments = [updated for _, updated in outputs]
            return valid_mean(losses, batch.valid), (new_moments, (probs @ self.atoms).mean())

        params = tuple(critic["params"] for critic in learner.critics)
        params, critic_opt, loss, (moments, q_mean) = descend(
            self.crossq_optimizer(), critic_loss, params, learner.critic_opt
        )
        critics = tuple({"params": p, **m} for p, m in zip(params, moments, strict=True))
        learner = learner._replace(critics=critics, critic_opt=critic_opt)
        return learner, {"critic_loss": loss, "q_mean": q_mean}

    def actor_step(
        self, learner: SoftGACLearner, batch: Batch, key: jax.Array
    ) -> tuple[SoftGACLearner, dict[str, jax.Array]]:
        """E[temperature C(s, a) - min Q(s, a)], and the temperature towards the cost's target."""
        temperature = jnp.exp(learner.log_temperature)
        pairs = max(self.num_particles // 2, 1)
        noise = self.noise(key, (pairs, *batch.action.shape))
        if self.num_particles > 1:
            noise = antithetic(noise)
        obs = jnp.broadcast_to(batch.obs, (self.num_particles, *batch.obs.shape))
        flat_obs = obs.reshape(-1, *batch.obs.shape[1:])

        def actor_loss(actor):
            action, cost = self.path(actor, obs, noise)
            q = self.q_values(learner.critics, flat_obs, action.reshape(-1, self.action_size))
            return (temperature * cost).mean() - q.min(axis=0).mean(), cost.mean()

        actor, actor_opt, loss, cost = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )
        move, temperature_opt = self.temperature_optimizer().update(
            self.path_cost_target - cost, learner.temperature_opt
        )
        learner = learner._replace(
            actor=actor,
            log_temperature=learner.log_temperature + move,
            actor_opt=actor_opt,
            temperature_opt=temperature_opt,
        )
        return learner, {"actor_loss": loss, "temperature": temperature, "penalty": cost}

    @property
    def path_cost_target(self) -> float | jax.Array:
        """Where the temperature holds the mean cost of a path."""
        return self.cost_target * self.bridge_steps * self.action_size

    # Acting -----------------------------------------------------------------------------------

    def act(self, actor: Any, obs: jax.Array, key: jax.Array, deterministic: bool) -> jax.Array:
        """Actions (..., D) at observations (..., *obs): of a path without noise from 0, or with."""
        batch = obs.shape[: obs.ndim - len(self.obs_shape)]
        noise = self.noise(key, (*batch, self.action_size))
        if deterministic:
            noise = jax.tree.map(jnp.zeros_like, noise)
        return self.path(actor, obs, noise)[0]

    def explore(
        self, learner: SoftGACLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.act(learner.actor, obs, key, deterministic=False)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The end of a path, with its noise or without."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            return self.env_action(self.act(state.learner.actor, obs, key, deterministic))

        return policy
