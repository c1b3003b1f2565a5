"""PPO: Proximal Policy Optimization Algorithms (Schulman et al. 2017, arXiv:1707.06347)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import Agent, Tag, derive, static, traced
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.networks import Network
from jaxrl.parts.normalize import RewardScale, RunningMoments
from jaxrl.parts.optimize import linear_schedule, minibatch_epochs
from jaxrl.parts.returns import bootstrap_values, gae
from jaxrl.parts.rollout import Actors, reset, rollout


class PPOState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any  # {"actor", "critic", "log_std" (continuous only)}
    opt_state: Any
    actors: Actors
    obs_moments: RunningMoments  # updated only if normalize_observations
    reward_scale: RewardScale  # updated only if normalize_rewards


class Batch(NamedTuple):
    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


class PPO(Agent):
    """PPO with a clipped objective; categorical or diagonal-normal policy, separate critic."""

    num_envs: int = static(64, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(128, "[1, inf)", "steps per environment and iteration")
    num_epochs: int = static(4, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(8, "[1, inf)", "gradient steps per pass; divides the batch")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    gae_lambda: float = traced(0.95, "[0, 1]", "lambda of the advantage estimates")
    clip_range: float = traced(0.2, "(0, inf)", "the probability ratio stays within 1 +- this")
    value_clip_range: float = traced(0.2, "(0, inf]", "a value moves by at most this; inf: freely")
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")
    value_coef: float = traced(0.5, "[0, inf)", "weight of the value loss")
    max_grad_norm: float = traced(0.5, "(0, inf]", "global norm that gradients are clipped to")
    normalize_observations: bool = static(False, None, "by running mean and std, clipped to +-10")
    normalize_rewards: bool = static(False, None, "by the std of the discounted return so far")
    network: str = static("mlp", ("mlp", "cnn"), "cnn: a 3x3 convolution on (H, W, C) first")
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths, actor and critic each")
    activation: str = static("tanh", ("tanh", "relu", "swish"), "of the hidden layers")

    # Structure --------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        batch = self.steps_per_iteration
        if batch % self.num_minibatches:
            raise ValueError(
                f"ppo: num_minibatches={self.num_minibatches} does not divide the batch of "
                f"{batch} = num_envs {self.num_envs} x num_steps {self.num_steps}"
            )
        self.make_networks()

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def action_space(self) -> Any:
        return self.env.action_space(self.env_params)

    def make_networks(self) -> tuple[Network, Network]:
        """Actor (small last layer: near-uniform at first) and critic."""
        shape = self.env.observation_space(self.env_params).shape
        if self.network == "cnn":
            spaces.require_image(shape, self.name)
        body = {
            "obs_ndim": len(shape),
            "hidden_sizes": self.hidden_sizes,
            "activation": self.activation,
            "conv_features": 16 if self.network == "cnn" else 0,
        }
        actor = Network(spaces.action_size(self.action_space), output_scale=0.01, **body)
        return actor, Network(1, output_scale=1.0, **body)

    def optimizer(self, progress: jax.Array | float = 0.0) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    # Policy and value -------------------------------------------------------------------------

    def distribution(self, params: Any, obs: jax.Array) -> Categorical | Normal:
        """The policy at normalised observations."""
        output = self.make_networks()[0].apply(params["actor"], obs)
        if spaces.is_discrete(self.action_space):
            return Categorical(output)
        return Normal(output, params["log_std"])

    def value(self, params: Any, obs: jax.Array) -> jax.Array:
        """The critic at normalised observations."""
        return self.make_networks()[1].apply(params["critic"], obs)[..., 0]

    def normalize(self, moments: RunningMoments, obs: jax.Array) -> jax.Array:
        return moments.normalize(obs) if self.normalize_observations else obs

    def env_action(self, action: jax.Array) -> jax.Array:
        """Continuous actions are clipped at the environment, not in the policy."""
        discrete = spaces.is_discrete(self.action_space)
        return action if discrete else spaces.to_box(self.action_space, action)

    # Training ---------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> PPOState:
        actor_key, critic_key = jax.random.split(derive(key, Tag.INIT))
        actors = reset(derive(key, Tag.RESET), self.env, self.env_params, self.num_envs)
        actor, critic = self.make_networks()
        params = {
            "actor": actor.init(actor_key, actors.obs[0]),
            "critic": critic.init(critic_key, actors.obs[0]),
        }
        if not spaces.is_discrete(self.action_space):
            params["log_std"] = jnp.zeros((spaces.action_size(self.action_space),))
        return PPOState(
            key=key,
            params=params,
            opt_state=self.optimizer().init(params),
            actors=actors,
            obs_moments=RunningMoments.of_shape(actors.obs.shape[1:]),
            reward_scale=RewardScale.of_envs(self.num_envs),
        )

    def step(self, state: PPOState, t: jax.Array) -> tuple[PPOState, dict[str, jax.Array]]:
        moments = state.obs_moments

        def act(obs, key):
            dist = self.distribution(state.params, self.normalize(moments, obs))
            action = dist.sample(key)
            return action, self.env_action(action), dist.log_prob(action)

        rollout_key = derive(state.key, Tag.ROLLOUT, t)
        actors, steps, episodes = rollout(
            rollout_key, self.env, self.env_params, state.actors, act, self.num_steps
        )

        def value_fn(obs):
            return self.value(state.params, self.normalize(moments, obs))

        obs = self.normalize(moments, steps.obs)
        values = self.value(state.params, obs)
        next_values = bootstrap_values(
            value_fn, values, actors.obs, steps.final_obs, steps.terminated, steps.truncated
        )
        rewards, reward_scale = steps.reward, state.reward_scale
        if self.normalize_rewards:
            done = steps.terminated | steps.truncated
            reward_scale = reward_scale.update(rewards, done, self.gamma)
            rewards = reward_scale.scale(rewards)
        advantages = gae(
            rewards,
            values,
            next_values,
            steps.terminated,
            steps.truncated,
            self.gamma,
            self.gae_lambda,
        )
        batch = Batch(obs, steps.action, steps.extras, values, advantages, advantages + values)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        optimizer = self.optimizer(self.progress(state, t))

        def update(carry, minibatch):
            params, opt_state = carry
            grads, metrics = jax.grad(self.loss, has_aux=True)(params, minibatch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        (params, opt_state), metrics = minibatch_epochs(
            derive(state.key, Tag.LEARN, t),
            update,
            (state.params, state.opt_state),
            flat,
            self.num_epochs,
            self.num_minibatches,
        )
        # The statistics change only now, so that acting and learning saw the same ones.
        if self.normalize_observations:
            moments = moments.update(steps.obs)
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["explained_variance"] = 1 - jnp.var(advantages) / jnp.var(flat.target)
        metrics |= episodes.metrics()
        return PPOState(state.key, params, opt_state, actors, moments, reward_scale), metrics

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Clipped surrogate - entropy bonus + clipped value loss (eqs. 7 and 9)."""
        dist = self.distribution(params, batch.obs)
        log_ratio = dist.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped_ratio = jnp.clip(ratio, 1 - self.clip_range, 1 + self.clip_range)
        advantage = batch.advantage - batch.advantage.mean()
        advantage /= batch.advantage.std() + 1e-8
        policy_loss = -jnp.minimum(ratio * advantage, clipped_ratio * advantage).mean()

        value = self.value(params, batch.obs)
        limit = self.value_clip_range
        clipped_value = batch.value + jnp.clip(value - batch.value, -limit, limit)
        errors = (value - batch.target) ** 2, (clipped_value - batch.target) ** 2
        value_loss = 0.5 * jnp.maximum(*errors).mean()

        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),  # Schulman 2020's k3 estimator
            "clip_fraction": (jnp.abs(ratio - 1) > self.clip_range).mean(),
        }

    def policy(self, state: PPOState, deterministic: bool = True) -> Any:
        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.params, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return act
