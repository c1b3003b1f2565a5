"""The loop of on-policy agents: collect a rollout, estimate advantages, improve, forget it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import masks, spaces
from jaxrl.agent import OWN, Agent, Policy, Tag, derive, memoryless, static, traced
from jaxrl.parts.distributions import Beta, Categorical, Normal
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.normalize import RewardScale, RunningMoments
from jaxrl.parts.optimize import learn_if
from jaxrl.parts.returns import bootstrap_values, gae
from jaxrl.parts.rollout import Actors, Episodes, Transition, reset, rollout
from jaxrl.parts.trees import first_of


class OnPolicyState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any
    actors: Actors
    obs_moments: RunningMoments  # updated only if normalize_observations
    reward_scale: RewardScale  # updated only if normalize_rewards
    target_moments: Any = ()  # RunningMoments of the critic's targets, if normalize_values


class Batch(NamedTuple):
    """Steps of a rollout (B, ...), flattened over time and environments.

    Attributes:
        obs: normalised, where the agent normalises.
        log_prob, value: of the policy and critic that collected.
        advantage: by GAE, unless `estimate` says otherwise; target: of the critic. Of these, of
            values and of targets the unit is the reward's, or with `normalize_values` the standard
            deviation of targets so far.
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

    forward_mode = False  # whether the policy's network is differentiated by `jax.jvp`

    num_envs: int = static(64, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(128, "[1, inf)", "steps per environment and iteration")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    gae_lambda: float = traced(0.95, "[0, 1]", "lambda of the advantage estimates")
    normalize_observations: bool = static(False, None, "by running mean and std, clipped to +-10")
    reward_scale: float = traced(1.0, "(0, inf)", "factor on rewards in advantages and targets")
    normalize_rewards: bool = static(False, None, "by the std of the discounted return so far")
    normalize_values: bool = static(False, None, "the critic predicts targets in their running std")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((64, 64), "[1, inf)", "widths, of each network")
    activation: str = static("tanh", ("tanh", "relu", "swish"), "of the hidden layers")
    precision: str = static(
        "float32", ("float32", "bfloat16"), "operands of the networks' products; sums are float32"
    )

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
        for shape in self.seen_shapes():
            require_body(self.network, shape, self.name)

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.normalize_rewards:
            why["reward_scale"] = "with normalize_rewards=True"
        return why

    def seen_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of what networks are given of an observation."""
        return [self.obs_shape]

    def make_actor(self) -> Network:
        """Logits, or means. Its last layer is small, so that it is near uniform at first."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
            output_scale=0.01,
            forward_mode=self.forward_mode,
        )

    def make_critic(self) -> Network:
        return self.make_actor().clone(outputs=1, output_scale=1.0, forward_mode=False)

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

    def distribution(self, params: Any, obs: Any) -> Categorical | Normal | Beta:
        """The policy at normalised observations, which may be `Masked`."""
        obs, mask = masks.split(obs)
        output = self.make_actor().apply(params["actor"], obs)
        if self.discrete:
            return Categorical(masks.masked(output, mask))
        return Normal(output, params["log_std"])

    def value(self, params: Any, obs: Any) -> jax.Array:
        """The critic at normalised observations, which may be `Masked`; see `in_rewards`."""
        return self.make_critic().apply(params["critic"], masks.split(obs)[0])[..., 0]

    # What a subclass changes that collects by another policy, or with a memory ----------------

    def behaviour(self, params: Any, obs: Any) -> Any:
        """The policy that collects, at normalised observations: `sample_by` and `log_prob`."""
        return self.distribution(params, obs)

    def noise(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        """What `sample_by` takes, for logits or means (T, N, D)."""
        return (Categorical if self.discrete else Normal).noise(key, shape)

    def estimate(
        self,
        params: Any,
        obs: Any,
        steps: Transition,
        rewards: jax.Array,
        values: jax.Array,
        next_values: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Advantages and the critic's targets (T, N); `obs` and `rewards` are normalised."""
        ended = steps.terminated, steps.truncated
        advantages = gae(rewards, values, next_values, *ended, self.gamma, self.gae_lambda)
        return advantages, advantages + values

    def initial_memory(self) -> Any:
        """What a policy with memory starts an episode with, of one environment."""
        return ()

    # The loop ---------------------------------------------------------------------------------

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def init(self, key: jax.Array) -> OnPolicyState:
        reset_key = derive(key, Tag.RESET)
        memory = self.initial_memory()
        actors = reset(reset_key, self.env, self.env_params, self.num_envs, self.reported, memory)
        init_key, (obs, _) = derive(key, Tag.INIT), masks.split(first_of(actors.obs))
        params = self.init_params(init_key, self.encode(obs))
        return OnPolicyState(
            key=key,
            params=params,
            opt_state=self.init_optimizer(params),
            actors=actors,
            obs_moments=RunningMoments.of_shape(self.obs_shape),
            reward_scale=RewardScale.of_envs(self.num_envs),
            target_moments=self.init_target_moments(),
        )

    def step(
        self, state: OnPolicyState, t: jax.Array
    ) -> tuple[OnPolicyState, dict[str, jax.Array]]:
        actors, steps, episodes = self.collect(state, derive(state.key, Tag.ROLLOUT, t))
        batch, reward_scale = self.advantages(state, steps, actors)
        batch, target_moments = self.normalize_targets(state.target_moments, batch)

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
        moments = state.obs_moments
        if self.normalize_observations:
            moments = moments.update(masks.split(self.encode(steps.obs))[0])
        metrics["explained_variance"] = 1 - jnp.var(batch.advantage) / jnp.var(batch.target)
        metrics |= episodes.metrics()
        params, opt_state = learner
        statistics = moments, reward_scale, target_moments
        return OnPolicyState(state.key, params, opt_state, actors, *statistics), metrics

    def collect(self, state: OnPolicyState, key: jax.Array) -> tuple[Actors, Transition, Episodes]:
        """A rollout, with `log_prob` of its actions among the extras."""

        def noise(key, num_steps):
            size = spaces.action_size(self.action_space)
            return self.noise(key, (num_steps, self.num_envs, size))

        def act(obs, noise):
            dist = self.behaviour(state.params, self.normalize(state.obs_moments, obs))
            action = dist.sample_by(noise)
            return action, self.env_action(action), {"log_prob": dist.log_prob(action)}

        return rollout(
            key, self.env, self.env_params, state.actors, act, self.num_steps, noise=noise
        )

    def advantages(
        self, state: OnPolicyState, steps: Transition, actors: Actors
    ) -> tuple[Any, RewardScale]:
        """The rollout with its advantages, flattened; and the scale of rewards with it in."""

        def value_fn(obs):
            return self.state_value(state, self.normalize(state.obs_moments, obs))

        obs = self.normalize(state.obs_moments, steps.obs)
        values = self.state_value(state, obs)
        ended = steps.terminated, steps.truncated
        next_values = bootstrap_values(value_fn, values, actors.obs, steps.final_obs, *ended)
        rewards, reward_scale = self.scale_rewards(state.reward_scale, steps)
        advantages, targets = self.estimate(state.params, obs, steps, rewards, values, next_values)
        log_prob = steps.extras["log_prob"]
        batch = Batch(obs, steps.action, log_prob, values, advantages, targets)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), reward_scale

    def state_value(self, state: OnPolicyState, obs: Any) -> jax.Array:
        """The critic's values at normalised observations, in the unit of rewards."""
        return self.in_rewards(state.target_moments, self.value(state.params, obs))

    def in_rewards(self, target_moments: Any, value: jax.Array) -> jax.Array:
        """What the critic predicts, in the unit of rewards."""
        return target_moments.denormalize(value) if self.normalize_values else value

    def scale_rewards(
        self, reward_scale: RewardScale, steps: Transition
    ) -> tuple[jax.Array, RewardScale]:
        """A rollout's rewards (T, N) as the critic sums them; and their scale with them in."""
        if not self.normalize_rewards:
            return self.reward_scale * steps.reward, reward_scale
        done = steps.terminated | steps.truncated
        reward_scale = reward_scale.update(steps.reward, done, self.gamma)
        return reward_scale.scale(steps.reward), reward_scale

    def init_target_moments(self) -> Any:
        return RunningMoments.of_shape(()) if self.normalize_values else ()

    def normalize_targets(self, moments: Any, batch: Any) -> tuple[Any, Any]:
        """A batch in the critic's unit, and the moments of targets with its own in.

        As in MAPPO (Yu et al. 2022, arXiv:2103.01955): targets are normalised by moments that hold
        them already, by which the next rollout's values are turned back. Advantages are in
        deviations of targets, as in PopArt (Hessel et al. 2019), whose correction of the critic's
        last layer is left out. Values are what the critic predicted, around which it is clipped.
        """
        if not self.normalize_values:
            return batch, moments
        after = moments.update(batch.target)
        batch = batch._replace(
            value=moments.normalize(batch.value, clip=jnp.inf),
            target=after.normalize(batch.target, clip=jnp.inf),
            advantage=after.scale(batch.advantage, clip=jnp.inf),
        )
        return batch, after

    def normalize(self, moments: RunningMoments, obs: Any) -> Any:
        """Observations as networks take them."""
        obs = self.encode(obs)
        return masks.map_obs(moments.normalize, obs) if self.normalize_observations else obs

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: OnPolicyState, obs: jax.Array, action: jax.Array) -> Any:
        dist = self.distribution(state.params, self.normalize(state.obs_moments, obs))
        if isinstance(dist, Normal):
            return None  # samples are clipped to the box
        return dist.log_prob(action)

    def policy(self, state: OnPolicyState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            dist = self.distribution(state.params, self.normalize(state.obs_moments, obs))
            return self.env_action(dist.mode() if deterministic else dist.sample(key))

        return policy
