"""PPO with memory: a recurrent core, learnt by back-propagation through whole sequences.

Schulman et al. 2017 (arXiv:1707.06347) for the objective; sequences as in Andrychowicz et al. 2020
(arXiv:2006.05990) and Ni, Eysenbach & Salakhutdinov 2022 (arXiv:2110.05038): minibatches hold whole
sequences, each from the memory that its first step was taken with, forgotten where an episode ends.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import masks, spaces
from jaxrl.agent import Policy, static, traced
from jaxrl.loops.on_policy import OnPolicy, OnPolicyState
from jaxrl.parts.distributions import Categorical, Normal
from jaxrl.parts.losses import clipped_value_loss
from jaxrl.parts.memory import RecurrentNetwork
from jaxrl.parts.networks import body_of
from jaxrl.parts.normalize import RewardScale, normalized
from jaxrl.parts.optimize import clipped_adam, linear_schedule, minibatch_epochs
from jaxrl.parts.returns import bootstrap_values, gae
from jaxrl.parts.rollout import Actors, Episodes, Transition, rollout


class Sequences(NamedTuple):
    """Sequences (B, L, ...) of a rollout's steps.

    Attributes:
        memory: before each one's first step (B, ...).
        starts: whether an episode begins at a step; never at a first one, whose memory says it.
    """

    memory: Any
    starts: jax.Array
    obs: Any
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


class RecurrentPPO(OnPolicy):
    """PPO whose policy and critic remember: a GRU or LSTM, learnt by whole sequences."""

    takes_masks = True

    core: str = static("gru", ("gru", "lstm"), "the recurrent core, of actor and critic together")
    core_size: int = static(64, "[1, inf)", "its units")
    sequence_length: int = static(
        0, "[0, inf)", "steps that gradients go back through; divides num_steps; 0: all of them"
    )
    num_epochs: int = static(4, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(8, "[1, inf)", "gradient steps per pass; divides the sequences")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    clip_range: float = traced(0.2, "(0, inf)", "the probability ratio stays within 1 +- this")
    value_clip_range: float = traced(0.2, "(0, inf]", "a value moves by at most this; inf: freely")
    huber_threshold: float = traced(
        math.inf, "(0, inf]", "larger errors of values count linearly; inf: all are squared"
    )
    entropy_coef: float = traced(0.01, "[0, inf)", "weight of the entropy bonus")
    value_coef: float = traced(0.5, "[0, inf)", "weight of the value loss")
    max_grad_norm: float = traced(0.5, "(0, inf]", "global norm that gradients are clipped to")
    hidden_sizes: tuple[int, ...] = static((64,), "[1, inf)", "widths before the core")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.num_steps % self.length:
            raise ValueError(
                f"recurrentppo: sequence_length={self.sequence_length} does not divide "
                f"num_steps={self.num_steps}"
            )
        sequences = self.steps_per_iteration // self.length
        if sequences % self.num_minibatches:
            raise ValueError(
                f"recurrentppo: num_minibatches={self.num_minibatches} does not divide the "
                f"{sequences} sequences of {self.length} steps in num_envs {self.num_envs} x "
                f"num_steps {self.num_steps}"
            )

    @property
    def length(self) -> int:
        """Steps of a sequence."""
        return self.sequence_length or self.num_steps

    def make_network(self) -> RecurrentNetwork:
        return RecurrentNetwork(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            core=self.core,
            core_size=self.core_size,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
        )

    def read(
        self, params: Any, memory: Any, obs: Any, starts: jax.Array, values: bool = True
    ) -> tuple[Any, Categorical | Normal, Any]:
        """Memory after, policy and values of normalised sequences (T, N, ...)."""
        obs, mask = masks.split(obs)
        memory, output, value = self.make_network().apply(
            params["network"], memory, obs, starts, values
        )
        if self.discrete:
            return memory, Categorical(masks.masked(output, mask)), value
        return memory, Normal(output, params["log_std"]), value

    def read_one(
        self, params: Any, memory: Any, obs: Any, values: bool = True
    ) -> tuple[Any, Categorical | Normal, Any]:
        """The same of one step (N, ...)."""
        obs = jax.tree.map(lambda x: x[None], obs)
        starts = jnp.zeros(masks.split(obs)[0].shape[:2], jnp.bool_)
        memory, dist, value = self.read(params, memory, obs, starts, values)
        value = value[0] if values else None
        if isinstance(dist, Categorical):
            return memory, Categorical(dist.logits[0]), value
        return memory, Normal(dist.mean[0], dist.log_std), value

    def optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        return clipped_adam(learning_rate, self.max_grad_norm, eps=1e-5)

    # Init -------------------------------------------------------------------------------------

    def initial_memory(self) -> Any:
        return self.make_network().initial()

    def init_params(self, key: jax.Array, obs: jax.Array) -> dict[str, Any]:
        network, starts = self.make_network(), jnp.ones((1, 1), jnp.bool_)
        params = {"network": network.init(key, network.initial(1), obs[None, None], starts)}
        if not self.discrete:
            size = spaces.action_size(self.action_space)
            params["log_std"] = jnp.zeros((size,), jnp.float32)
        return params

    def init_optimizer(self, params: Any) -> Any:
        return self.optimizer(0.0).init(params)

    # Update -----------------------------------------------------------------------------------

    def collect(self, state: OnPolicyState, key: jax.Array) -> tuple[Actors, Transition, Episodes]:
        """A rollout that keeps with each step its value, and the memory before and after it."""

        def noise(key, num_steps):
            size = spaces.action_size(self.action_space)
            return self.noise(key, (num_steps, self.num_envs, size))

        def act(memory, obs, noise):
            obs = self.normalize(state.obs_moments, obs)
            after, dist, value = self.read_one(state.params, memory, obs)
            action = dist.sample_by(noise)
            value = self.in_rewards(state.target_moments, value)
            kept = {"log_prob": dist.log_prob(action), "value": value}
            return after, action, self.env_action(action), kept | {"memory": memory, "after": after}

        return rollout(
            key,
            self.env,
            self.env_params,
            state.actors,
            act,
            self.num_steps,
            initial_memory=self.initial_memory(),
            noise=noise,
        )

    def advantages(
        self, state: OnPolicyState, steps: Transition, actors: Actors
    ) -> tuple[Sequences, RewardScale]:
        """The rollout with GAE's advantages, cut into sequences; and the scale of rewards."""
        extras, values = steps.extras, steps.extras["value"]

        def value_fn(obs_and_memory):
            obs, memory = obs_and_memory
            obs = self.normalize(state.obs_moments, obs)
            value = self.read_one(state.params, memory, obs)[2]
            return self.in_rewards(state.target_moments, value)

        ended = steps.terminated, steps.truncated
        next_values = bootstrap_values(
            value_fn,
            values,
            (actors.obs, actors.memory),
            (steps.final_obs, extras["after"]),
            *ended,
        )
        rewards, reward_scale = self.scale_rewards(state.reward_scale, steps)
        advantages = gae(rewards, values, next_values, *ended, self.gamma, self.gae_lambda)

        def cut(x: jax.Array) -> jax.Array:  # (T, N, ...) -> (B, L, ...)
            x = x.reshape(-1, self.length, *x.shape[1:])
            return jnp.moveaxis(x, 2, 1).reshape(-1, self.length, *x.shape[3:])

        done = steps.terminated | steps.truncated
        starts = cut(jnp.roll(done, 1, axis=0)).at[:, 0].set(False)
        batch = Sequences(
            memory=jax.tree.map(lambda x: cut(x)[:, 0], extras["memory"]),
            starts=starts,
            obs=jax.tree.map(cut, self.normalize(state.obs_moments, steps.obs)),
            action=cut(steps.action),
            log_prob=cut(extras["log_prob"]),
            value=cut(values),
            advantage=cut(advantages),
            target=cut(advantages + values),
        )
        return batch, reward_scale

    def improve(
        self, params: Any, opt_state: Any, batch: Any, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Epochs of minibatches of sequences."""
        optimizer = self.optimizer(progress)

        def update(carry, minibatch):
            params, opt_state = carry
            grads, metrics = jax.grad(self.loss, has_aux=True)(params, minibatch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        (params, opt_state), metrics = minibatch_epochs(
            key, update, (params, opt_state), batch, self.num_epochs, self.num_minibatches
        )
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    def loss(self, params: Any, batch: Sequences) -> tuple[jax.Array, dict[str, jax.Array]]:
        """PPO's loss, of policy and critic as they are after reading each sequence so far."""
        memory = batch.memory
        batch = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch._replace(memory=()))
        _, dist, value = self.read(params, memory, batch.obs, batch.starts)
        log_ratio = dist.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped_ratio = jnp.clip(ratio, 1 - self.clip_range, 1 + self.clip_range)
        advantage = normalized(batch.advantage)
        policy_loss = -jnp.minimum(ratio * advantage, clipped_ratio * advantage).mean()

        of_values = self.value_clip_range, self.huber_threshold
        value_loss = clipped_value_loss(value, batch.value, batch.target, *of_values)

        entropy = dist.entropy().mean()
        loss = policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy
        return loss, {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": (ratio - 1 - log_ratio).mean(),  # Schulman 2020's k3 estimator
            "clip_fraction": (jnp.abs(ratio - 1) > self.clip_range).mean(),
        }

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: OnPolicyState, obs: jax.Array, action: jax.Array) -> Any:
        return None  # depends on what was remembered

    def policy(self, state: OnPolicyState, deterministic: bool = True) -> Policy:
        """The mode of the policy, or a sample; its memory is the core's."""

        def step(memory: Any, obs: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
            obs = self.normalize(state.obs_moments, obs)
            memory, obs = jax.tree.map(lambda x: x[None], (memory, obs))
            memory, dist, _ = self.read_one(state.params, memory, obs, values=False)
            action = self.env_action(dist.mode() if deterministic else dist.sample(key))
            return jax.tree.map(lambda x: x[0], (memory, action))

        return Policy(self.initial_memory, step)
