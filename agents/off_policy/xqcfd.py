"""XQCfD: XQC from demonstrations (Palenicek et al. 2026): cloned first, then learnt with a critic,
and held to the clone by a KL divergence whose prior is wide where nothing was demonstrated.

Where the paper leaves it open, this one has: half of each batch demonstrated (RLPD: Ball et al.
2023); a linear bottleneck before the random features, and a length scale, as the diagonal variances
can only rise beyond it; running moments of the policy's batch norms that stay as cloning left them,
so that learning begins at the prior itself; plain gradient descent on the head's variances, which
under Adam would shrink all alike, off the data too; a temperature that holds the divergence at a
budget.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import spaces
from jaxrl.agent import Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts import replay
from jaxrl.parts.categorical import (
    categorical_target,
    cross_entropy,
    evenly_spaced,
    mean_of_atoms,
)
from jaxrl.parts.distributions import Normal, TanhNormal
from jaxrl.parts.losses import faithful_loss
from jaxrl.parts.normalize import RewardScale, RunningMoments
from jaxrl.parts.normalized_networks import (
    NormalizedNetwork,
    init_network,
    train_batch,
    unit_columns,
)
from jaxrl.parts.optimize import MISSING, copy_of, descend, learn_if, linear_schedule, polyak
from jaxrl.parts.random_features import RandomFeatures, stationary_normal
from jaxrl.parts.replay import Batch, valid_mean
from jaxrl.parts.returns import episode_discount
from jaxrl.parts.rollout import Transition

LOG_STD_RANGE = (-10.0, 2.0)  # of the head without random features
EDGE = 0.99  # of the box, to which demonstrated actions are clipped before tanh is inverted


class XQCfDLearner(NamedTuple):
    actor: Any  # its parameters
    prior: Any  # those that cloning left
    moments: Any  # running moments of both
    features: RandomFeatures  # of both; never change
    critic: Any  # "params" and the running moments "batch_stats"
    target_critic: Any  # parameters
    log_temperature: jax.Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    reward_scale: RewardScale  # of what was demonstrated and collected


class XQCfD(Learner):
    """XQC from demonstrations: a cloned policy, then soft updates that are held to it.

    Half of each batch is drawn from recorded data, the demonstrations. It acts by the cloned policy
    from the first step on. Q, losses and temperature are in units of the returns' deviation.
    """

    data_share: float = static(0.5, "(0, 1)", "of each batch, drawn from the demonstrations")
    learning_starts: int = static(0, "[0, inf)", "random environment steps before learning")
    clone_steps: int = static(
        5_000, "[1, inf)", "gradient steps of cloning, before everything else"
    )
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start, of all")
    learning_rate_end: float = traced(0.1, "[0, inf)", "its fraction left at the end (linear)")
    discount: str = static(
        "episode", ("episode", "fixed"), "1 - 5 / episode length within [0.95, 0.995]; or gamma"
    )
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critic moves at each gradient step")
    temperature: float = traced(0.1, "(0, inf)", "weight of the KL divergence, at the start")
    temperature_learning_rate: float = traced(1e-3, "[0, inf)", "as learning_rate; 0: fixed")
    kl_budget: float = traced(
        0.5, "(0, inf)", "KL divergence from the cloned policy, per action dimension"
    )
    policy_delay: int = static(3, "[1, inf)", "gradient steps of the critic to one of the actor")
    num_atoms: int = static(101, "[2, inf)", "of the critic's distribution")
    value_bound: float = traced(5.0, "(0, inf)", "its returns are within +-this")
    stationary_head: bool = static(
        True, None, "random features, whose deviation rises off the data; else a linear layer"
    )
    num_features: int = static(512, "[1, inf)", "random features of the head")
    bottleneck: int = static(8, "[1, inf)", "numbers that the random features are made of")
    length_scale: float = traced(
        4.0, "(0, inf)", "of those numbers; greater than their spread over demonstrations"
    )
    variance_learning_rate: float = traced(
        0.2, "(0, inf)", "of plain gradient descent on the head's log-variances, in cloning"
    )
    max_std: float = traced(3.0, "(0, inf)", "of the head at first, before tanh")
    min_std: float = traced(0.1, "(0, inf)", "least deviation of the policy, before tanh")
    hidden_sizes: tuple[int, ...] = static((512,) * 4, "[1, inf)", "widths of the critic")
    actor_hidden_sizes: tuple[int, ...] = static((256,) * 4, "[1, inf)", "widths of the actor")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        if self.data is None:
            raise ValueError(f"{self.name}: learns from demonstrations: give it --data FILE")
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        if self.discount == "episode" and not hasattr(self.env_params, "max_steps_in_episode"):
            raise ValueError(
                f"{self.name}: {spaces.name_of(self.env)} has no time limit, which "
                "discount='episode' follows: set discount='fixed'"
            )

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.discount == "episode":
            why["gamma"] = "with discount=episode"
        if not self.stationary_head:
            sizes, rest = ("num_features", "bottleneck"), ("length_scale", "max_std")
            of_head = (*sizes, *rest, "variance_learning_rate")
            why |= dict.fromkeys(of_head, "with stationary_head=False")
        return why

    @property
    def action_size(self) -> int:
        return spaces.action_size(self.action_space)

    @property
    def step_discount(self) -> float | jax.Array:
        """The discount of one step of the agent."""
        if self.discount == "fixed":
            return self.gamma
        repeat = getattr(self.env, "action_repeat", 1)
        return episode_discount(self.env_params.max_steps_in_episode / repeat)

    @property
    def atoms(self) -> jax.Array:
        """The support of the critic's distribution (A,)."""
        return evenly_spaced(self.value_bound, self.num_atoms)

    def make_actor(self) -> NormalizedNetwork:
        """To what the random features are made of, or to mean and log-deviation."""
        outputs = self.bottleneck if self.stationary_head else 2 * self.action_size
        return NormalizedNetwork(outputs, self.actor_hidden_sizes, precision=self.precision)

    def make_critic(self) -> NormalizedNetwork:
        return NormalizedNetwork(
            self.num_atoms, self.hidden_sizes, input_norm=True, precision=self.precision
        )

    def head(self, params: Any, features: RandomFeatures, output: jax.Array) -> Normal:
        """The policy before tanh, of the network's outputs (..., N)."""
        if self.stationary_head:
            phi = features(output / self.length_scale)
            return stationary_normal(phi, params["mean"], params["log_variance"], self.min_std)
        mean, log_std = jnp.split(output, 2, axis=-1)
        variance = jnp.exp(2 * jnp.clip(log_std, *LOG_STD_RANGE)) + self.min_std**2
        return Normal(mean, 0.5 * jnp.log(variance))

    def unsquashed(self, learner: XQCfDLearner, params: Any, obs: jax.Array) -> Normal:
        """The policy of these parameters at observations (..., *obs), before tanh."""
        variables = {"params": params["network"], "batch_stats": learner.moments}
        obs = obs.reshape(*obs.shape[: obs.ndim - len(self.obs_shape)], -1)
        output = self.make_actor().apply(variables, obs, False)
        return self.head(params, learner.features, output)

    def distribution(self, learner: XQCfDLearner, obs: jax.Array) -> TanhNormal:
        """The policy at (normalised) observations (..., *obs)."""
        return TanhNormal(*self.unsquashed(learner, learner.actor, obs))

    def q_values(self, critic: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """The critic's values (B,), by running moments."""
        logits = self.make_critic().apply(critic, critic_inputs(obs, action), False)
        return mean_of_atoms(logits, self.atoms)

    def rate(self, start: float | jax.Array, progress: jax.Array) -> jax.Array:
        """A step size when so much of cloning, or of the run, is done."""
        return linear_schedule(start, self.learning_rate_end * start, progress)

    def progress_at(self, n: jax.Array | int) -> jax.Array:
        """The part of the run's gradient steps before the n-th."""
        return jnp.asarray(n, jnp.float32) / (self.num_iterations * self.num_updates)

    def optimizer(self, n: jax.Array | int) -> optax.GradientTransformation:
        return optax.adam(self.rate(self.learning_rate, self.progress_at(n)))

    def temperature_optimizer(self, n: jax.Array | int) -> optax.GradientTransformation:
        return optax.adam(self.rate(self.temperature_learning_rate, self.progress_at(n)))

    def cloning_optimizer(self, n: jax.Array | int) -> optax.GradientTransformation:
        """Adam, and in the second half descent on log-variances, whose gradients are about 1 / K.

        While features still move, all variances would shrink.
        """
        progress = jnp.asarray(n, jnp.float32) / self.clone_steps
        adam = optax.adam(self.rate(self.learning_rate, progress))
        if not self.stationary_head:
            return adam
        rate = jnp.where(progress < 0.5, 0.0, self.rate(self.variance_learning_rate, progress))
        descent = optax.chain(
            optax.scale(float(self.num_features)), optax.clip(1.0), optax.sgd(rate)
        )
        labels = {"network": "adam", "mean": "adam", "log_variance": "descent"}
        return optax.multi_transform({"adam": adam, "descent": descent}, labels)

    # Init -------------------------------------------------------------------------------------

    @property
    def first_updates(self) -> int:
        return self.clone_steps

    def init_learner(self, key: jax.Array, obs: jax.Array) -> XQCfDLearner:
        """Fresh critics, and the policy cloned already."""
        assert self.data is not None
        keys = jax.random.split(key, 4)
        features = RandomFeatures.draw(keys[0], self.bottleneck, self.num_features)
        actor, moments = self.clone(keys[3], features, *self.init_actor(keys[1], obs.size))
        critic = init_network(self.make_critic(), keys[2], obs.size + self.action_size)
        critic["params"] = unit_columns(critic["params"])
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        done = self.data.terminated | self.data.truncated
        rewards, gamma = self.prepare(self.data.reward), self.step_discount
        return XQCfDLearner(
            actor=actor,
            prior=copy_of(actor),
            moments=moments,
            features=features,
            critic=critic,
            target_critic=copy_of(critic["params"]),
            log_temperature=log_temperature,
            actor_opt=self.optimizer(0).init(actor),
            critic_opt=self.optimizer(0).init(critic["params"]),
            temperature_opt=self.temperature_optimizer(0).init(log_temperature),
            reward_scale=RewardScale.of_recorded(self.num_envs, rewards, done, gamma),
        )

    def init_actor(self, key: jax.Array, obs_size: int) -> tuple[Any, Any]:
        """Parameters, with zero mean and the greatest variance everywhere; running moments."""
        network = init_network(self.make_actor(), key, obs_size)
        params: dict[str, Any] = {"network": unit_columns(network["params"])}
        if self.stationary_head:
            shape = (self.num_features, self.action_size)
            params["mean"] = jnp.zeros(shape, jnp.float32)
            params["log_variance"] = jnp.full(shape, 2 * jnp.log(self.max_std), jnp.float32)
        return params, network["batch_stats"]

    def clone(
        self, key: jax.Array, features: RandomFeatures, params: Any, moments: Any
    ) -> tuple[Any, Any]:
        """Parameters and running moments after `clone_steps` steps down the faithful loss."""
        assert self.data is not None
        data, obs_moments = self.data, RunningMoments.of_shape(self.obs_shape)
        if self.normalize_observations:
            obs_moments = obs_moments.update(self.encode(data.obs))

        def step(i, carry):
            params, moments, opt_state = carry
            batch = replay.draw(jax.random.fold_in(key, i), data, self.batch_size)
            obs = self.normalize(obs_moments, batch.obs).reshape(self.batch_size, -1)
            wanted = jnp.arctanh(jnp.clip(batch.action, -EDGE, EDGE))

            def loss_fn(params):
                network = params["network"]
                output, updated = train_batch(self.make_actor(), network, moments, obs)
                dist = self.head(params, features, output)
                return faithful_loss(*dist, wanted).mean(), updated

            params, opt_state, _, moments = descend(
                self.cloning_optimizer(i), loss_fn, params, opt_state
            )
            return params | {"network": unit_columns(params["network"])}, moments, opt_state

        start = params, moments, self.cloning_optimizer(0).init(params)
        params, moments, _ = lax.fori_loop(0, self.clone_steps, step, start)
        return params, moments

    # Update -----------------------------------------------------------------------------------

    def observe(self, learner: XQCfDLearner, steps: Transition) -> XQCfDLearner:
        """Counts new rewards, which are stored as they are and scaled when they are drawn."""
        done, rewards = steps.terminated | steps.truncated, self.prepare(steps.reward)
        scale = learner.reward_scale.update(rewards, done, self.step_discount)
        return learner._replace(reward_scale=scale)

    def update(
        self, learner: XQCfDLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[XQCfDLearner, dict[str, jax.Array]]:
        critic_key, actor_key = jax.random.split(key)
        learner, critic_metrics = self.critic_step(learner, batch, critic_key, n)

        # Actor and temperature, at every policy_delay-th gradient step.
        def move(learner):
            return self.actor_step(learner, batch, actor_key, n)

        learner, actor_metrics = learn_if(n % self.policy_delay == 0, move, learner, MISSING)
        return learner, critic_metrics | actor_metrics

    def critic_step(
        self, learner: XQCfDLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[XQCfDLearner, dict[str, jax.Array]]:
        """Towards r + gamma (1 - terminated) [Z(s', a') - temperature KL(pi(s') || prior(s'))]."""
        size, moments = len(batch.action), learner.critic["batch_stats"]
        next_dist = self.unsquashed(learner, learner.actor, batch.next_obs)
        next_action = jnp.tanh(next_dist.sample(key))
        kl = next_dist.kl(self.unsquashed(learner, learner.prior, batch.next_obs))
        # Both steps pass the critic as one batch, so that its statistics are those of both.
        inputs = jnp.concatenate(
            [critic_inputs(batch.obs, batch.action), critic_inputs(batch.next_obs, next_action)]
        )
        target_logits, _ = train_batch(self.make_critic(), learner.target_critic, moments, inputs)
        target = categorical_target(
            target_logits[None, size:],
            learner.reward_scale.scale(batch.reward),
            batch.terminated,
            jnp.exp(learner.log_temperature) * kl,
            self.step_discount,
            self.atoms,
        )

        def critic_loss(params):
            logits, updated = train_batch(self.make_critic(), params, moments, inputs)
            errors = cross_entropy(logits[:size], target)
            q_mean = mean_of_atoms(logits[:size], self.atoms).mean()
            return valid_mean(errors, batch.valid), (updated, q_mean)

        params, critic_opt, loss, (moments, q_mean) = descend(
            self.optimizer(n), critic_loss, learner.critic["params"], learner.critic_opt
        )
        params = unit_columns(params)
        learner = learner._replace(
            critic={"params": params, "batch_stats": moments},
            target_critic=polyak(learner.target_critic, params, self.tau),
            critic_opt=critic_opt,
        )
        return learner, {"critic_loss": loss, "q_mean": q_mean}

    def actor_step(
        self, learner: XQCfDLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[XQCfDLearner, dict[str, jax.Array]]:
        """E[temperature KL(pi(s) || prior(s)) - Q(s, a)], and the temperature to its budget."""
        temperature = jnp.exp(learner.log_temperature)
        prior = self.unsquashed(learner, learner.prior, batch.obs)

        def actor_loss(params):
            dist = self.unsquashed(learner, params, batch.obs)
            q = self.q_values(learner.critic, batch.obs, jnp.tanh(dist.sample(key)))
            kl = dist.kl(prior).mean()
            return temperature * kl - q.mean(), kl

        actor, actor_opt, loss, kl = descend(
            self.optimizer(n), actor_loss, learner.actor, learner.actor_opt
        )
        change, temperature_opt = self.temperature_optimizer(n).update(
            self.kl_budget * self.action_size - kl, learner.temperature_opt
        )
        learner = learner._replace(
            actor=actor | {"network": unit_columns(actor["network"])},
            log_temperature=learner.log_temperature + change,
            actor_opt=actor_opt,
            temperature_opt=temperature_opt,
        )
        return learner, {"actor_loss": loss, "temperature": temperature, "prior_kl": kl}

    # Acting -----------------------------------------------------------------------------------

    def explore(
        self, learner: XQCfDLearner, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        return self.distribution(learner, obs).sample(key)

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array:
        obs = self.normalize(state.obs_moments, obs)
        return self.distribution(state.learner, obs).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.learner, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy


def critic_inputs(obs: jax.Array, action: jax.Array) -> jax.Array:
    """[obs, action] (B, ...) in a row."""
    return jnp.concatenate([obs.reshape(len(action), -1), action], axis=-1)
