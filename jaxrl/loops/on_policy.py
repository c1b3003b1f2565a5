"""The loop of on-policy agents: collect a rollout, estimate advantages, improve, forget it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import masks, spaces
from jaxrl.agent import OWN, Agent, Policy, Tag, derive, memoryless, static, traced
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.normalize import RewardScale, RunningMoments
from jaxrl.parts.optimize import learn_if
from jaxrl.parts.returns import bootstrap_values, gae
from jaxrl.parts.rollout import Actors, Transition, reset, rollout
from jaxrl.parts.trees import first_of


class OnPolicyState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any
    actors: Actors
    obs_moments: RunningMoments  # updated only if normalize_observations
    reward_scale: RewardScale  # updated only if normalize_rewards


class Batch(NamedTuple):
    """Steps of a rollout (B, ...), flattened over time and environments.

    Attributes:
        obs: normalised, where the agent normalises.
        log_prob, value: of the policy and critic that collected.
        advantage: by GAE, unless `estimate` says otherwise; target: of the critic.
    """

    obs: Any
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


class OnPolicy(Agent):
    """Each iteration takes `num_steps` steps in `num_envs` environments and learns from them once.

    A subclass implements `init_optimizer` and `improve`. Its networks are an actor and a critic of
    one kind, unless it says otherwise; its parameters a dictionary of what `init_policy` makes and
    of "critic", unless it has an `init_params`, a `distribution` and a `value` of its own.
    """

    num_envs: int = static(64, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(128, "[1, inf)", "steps per environment and iteration")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    gae_lambda: float = traced(0.95, "[0, 1]", "lambda of the advantage estimates")
    normalize_observations: bool = static(False, None, "by running mean and std, clipped to +-10")
    normalize_rewards: bool = static(False, None, "by the std of the discounted return so far")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths, of each network")
    activation: str = static("tanh", ("tanh", "relu", "swish"), "of the hidden layers")

    # What a subclass provides -----------------------------------------------------------------

    def init_optimizer(self, params: Any) -> Any:
        """The optimiser's first state."""
        raise NotImplementedError

    def improve(
        self, params: Any, opt_state: Any, batch: Batch, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Learn from a rollout: new parameters, optimiser state and scalar metrics."""
        raise NotImplementedError

    # Networks: what a subclass changes whose paper has others ----------------------------------

    def check(self) -> None:
        super().check()
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)
        require_body(self.network, self.obs_shape, self.name)

    def make_actor(self) -> Network:
        """Logits, or means. Its last layer is small, so that it is near uniform at first."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
            output_scale=0.01,
        )

    def make_critic(self) -> Network:
        return self.make_actor().clone(outputs=1, output_scale=1.0)

    def init_policy(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        """Fresh parameters of the policy: "actor", and of continuous actions "log_std" (D,)."""
        policy: dict[str, Any] = {"actor": self.make_actor().init(key, obs)}
        if not self.discrete:
            size = spaces.action_size(self.action_space)
            policy["log_std"] = jnp.zeros((size,), jnp.float32)
        return policy

    def init_params(self, key: jax.Array, obs: jax.Array) -> Any:
        """Fresh parameters, given one observation."""
        actor_key, critic_key = jax.random.split(key)
        policy = self.init_policy(actor_key, obs)
        return policy | {"critic": self.make_critic().init(critic_key, obs)}

    def distribution(self, params: Any, obs: Any) -> Categorical | Normal:
        """The policy at normalised observations, which may be `Masked`."""
        obs, mask = masks.split(obs)
        output = self.make_actor().apply(params["actor"], obs)
        if self.discrete:
            return Categorical(masks.masked(output, mask))
        return Normal(output, params["log_std"])

    def value(self, params: Any, obs: Any) -> jax.Array:
        """The critic at normalised observations, which may be `Masked`."""
        return self.make_critic().apply(params["critic"], masks.split(obs)[0])[..., 0]

    # What a subclass changes that collects by another policy than the one it improves ---------

    def behaviour(self, params: Any, obs: jax.Array) -> Any:
        """The policy that collects, at normalised observations: `sample_by` and `log_prob`."""
        return self.distribution(params, obs)

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """What `sample_by` takes, for logits or means (T, N, D)."""
        return (Categorical if self.discrete else Normal).noise(key, shape)

    def estimate(
        self,
        params: Any,
        obs: jax.Array,
        steps: Transition,
        rewards: jax.Array,
        values: jax.Array,
        next_values: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Advantages and the critic's targets (T, N); `obs` and `rewards` are normalised."""
        ended = steps.terminated, steps.truncated
        advantages = gae(rewards, values, next_values, *ended, self.gamma, self.gae_lambda)
        return advantages, advantages + values

    # The loop ---------------------------------------------------------------------------------

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def init(self, key: jax.Array) -> OnPolicyState:
        reset_key = derive(key, Tag.RESET)
        actors = reset(reset_key, self.env, self.env_params, self.num_envs, self.reported)
        init_key, (obs, _) = derive(key, Tag.INIT), masks.split(first_of(actors.obs))
        params = self.init_params(init_key, self.encode(obs))
        return OnPolicyState(
            key=key,
            params=params,
            opt_state=self.init_optimizer(params),
            actors=actors,
            obs_moments=RunningMoments.of_shape(self.obs_shape),
            reward_scale=RewardScale.of_envs(self.num_envs),
        )

    def step(
        self, state: OnPolicyState, t: jax.Array
    ) -> tuple[OnPolicyState, dict[str, jax.Array]]:
        moments = state.obs_moments

        def noise(key, num_steps):
            size = spaces.action_size(self.action_space)
            return self.noise(key, (num_steps, self.num_envs, size))

        def act(obs, noise):
            dist = self.behaviour(state.params, self.normalize(moments, obs))
            action = dist.sample_by(noise)
            return action, self.env_action(action), {"log_prob": dist.log_prob(action)}

        rollout_key = derive(state.key, Tag.ROLLOUT, t)
        actors, steps, episodes = rollout(
            rollout_key, self.env, self.env_params, state.actors, act, self.num_steps, noise=noise
        )
        batch, reward_scale = self.advantages(state, steps, actors.obs)

        def improve(learner):
            params, opt_state = learner
            key = derive(state.key, Tag.LEARN, t)
            progress = self.progress(state, t)
            params, opt_state, metrics = self.improve(params, opt_state, batch, key, progress)
            return (params, opt_state), metrics

        learner = state.params, state.opt_state
        if self.normalize_observations:  # the first rollout only gathers its statistics
            learner, metrics = learn_if(t > 0, improve, learner)
        else:
            learner, metrics = improve(learner)
        # The statistics change only now, so that acting and learning saw the same ones.
        if self.normalize_observations:
            moments = moments.update(masks.split(self.encode(steps.obs))[0])
        metrics["explained_variance"] = 1 - jnp.var(batch.advantage) / jnp.var(batch.target)
        metrics |= episodes.metrics()
        params, opt_state = learner
        return OnPolicyState(state.key, params, opt_state, actors, moments, reward_scale), metrics

    def advantages(
        self, state: OnPolicyState, steps: Transition, last_obs: Any
    ) -> tuple[Batch, RewardScale]:
        """The rollout with its advantages, flattened; and the scale of rewards with it in."""

        def value_fn(obs):
            return self.value(state.params, self.normalize(state.obs_moments, obs))

        obs = self.normalize(state.obs_moments, steps.obs)
        values = self.value(state.params, obs)
        ended = steps.terminated, steps.truncated
        next_values = bootstrap_values(value_fn, values, last_obs, steps.final_obs, *ended)
        rewards, reward_scale = steps.reward, state.reward_scale
        if self.normalize_rewards:
            done = steps.terminated | steps.truncated
            reward_scale = reward_scale.update(rewards, done, self.gamma)
            rewards = reward_scale.scale(rewards)
        advantages, targets = self.estimate(state.params, obs, steps, rewards, values, next_values)
        log_prob = steps.extras["log_prob"]
        batch = Batch(obs, steps.action, log_prob, values, advantages, targets)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), reward_scale

    def normalize(self, moments: RunningMoments, obs: Any) -> Any:
        """Observations as networks take them."""
        obs = self.encode(obs)
        return masks.map_obs(moments.normalize, obs) if self.normalize_observations else obs

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: OnPolicyState, obs: jax.Array, action: jax.Array) -> Any:
        if not self.discrete:
            return None  # samples are clipped to the box
        dist = self.distribution(state.params, self.normalize(state.obs_moments, obs))
        return dist.log_prob(action)

    def policy(self, state: OnPolicyState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.params, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy
