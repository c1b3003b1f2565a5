"""ACSAC: adaptive chunk-size actor-critic (Chen et al. 2026), on Q-chunking (Li et al. 2025,
arXiv:2507.07969).

Actions are planned in chunks of H. A flow-matching policy clones the chunks of the data, and the
critic chooses: of N samples it takes the best prefix, whose length is how many actions are executed
before it looks again. All prefixes are valued at once, by a transformer that sees no later action.

The maximum over lengths is taken in value as published. It leans towards short prefixes, after
which a maximum over new samples follows sooner; `length_by=advantage` compares Q_h with its mean
over the samples, of each length by itself. Where an episode terminates inside a chunk, what the
chunk holds beyond repeats the last action, and the value of those prefixes is known; where it is
cut by time they are left out. Targets are of the mean over critics, as in Q-chunking.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.flow import carry, matching_error
from jaxrl.parts.losses import prefix_targets
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.prefixes import PrefixCritic, best_prefix
from jaxrl.parts.replay import Batch, valid_mean
from jaxrl.parts.rollout import where_done

QC: dict[str, Any] = {"chunk_lengths": (5,)}  # Q-chunking: as many actions every time


class ACSACLearner(NamedTuple):
    actor: Any  # the velocity of chunks
    critics: Any  # `num_critics`
    target_critics: Any
    actor_opt: Any
    critic_opt: Any


class Plan(NamedTuple):
    """The memory: actions (H, D) of which the first `left` () are still to be executed."""

    actions: jax.Array
    left: jax.Array


class ACSAC(Learner):
    """Best of N cloned action chunks by a critic of their prefixes, and as far as it trusts them.

    Offline, online and from one to the other; continuous actions. Both policies, the deterministic
    one too, draw their N chunks. A prefix is executed without looking, also while it learns.
    """

    takes_whole_windows: ClassVar[bool] = True

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size, of all networks")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target critics move at each gradient step")
    chunk_lengths: tuple[int, ...] = static(
        (1, 2, 3, 4, 5), "[1, inf)", "prefixes to choose from, ascending; H is the last"
    )
    length_by: str = static(
        "value", ("value", "advantage"), "what lengths are compared by: Q_h, or Q_h - mean Q_h"
    )
    num_samples: int = static(32, "[1, inf)", "N, chunks that the policy draws at a state")
    flow_steps: int = static(10, "[1, inf)", "Euler steps from noise to a chunk")
    num_critics: int = static(2, "[1, inf)", "whose mean counts")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours, of every network")
    hidden_sizes: tuple[int, ...] = static((512,) * 4, "[1, inf)", "widths of the policy")
    width: int = static(128, "[1, inf)", "of the critics; a multiple of `heads`")
    layers: int = static(2, "[1, inf)", "of the critics")
    heads: int = static(8, "[1, inf)", "of the critics' attention")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        lengths = self.chunk_lengths
        if not lengths or list(lengths) != sorted(set(lengths)):
            raise ValueError(f"acsac: chunk_lengths={lengths} must ascend, from at least one")
        if self.width % self.heads:
            raise ValueError(f"acsac: heads={self.heads} does not divide width={self.width}")
        if self.length_by == "advantage" and self.num_samples == 1:
            raise ValueError("acsac: length_by=advantage needs num_samples of at least 2")
        super().check()
        spaces.require(self.action_space, "continuous", self.name, self.env)
        require_body(self.network, self.obs_shape, self.name)
        if self.collects and self.num_rows < self.window:
            raise ValueError(
                f"acsac: buffer_size={self.buffer_size} does not hold chunks of {self.window} "
                f"steps of each of {self.num_envs} environments"
            )

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if len(self.chunk_lengths) == 1:
            why["length_by"] = "with one chunk length"
        return why

    @property
    def window(self) -> int:
        return self.chunk_lengths[-1]

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return self.window, spaces.action_size(self.action_space)

    def make_actor(self) -> Network:
        """From an observation, a place between noise and chunk, and its time, to a velocity."""
        length, size = self.chunk_shape
        return Network(
            outputs=length * size,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="swish",
            body=body_of(self.network),
        )

    def make_critic(self) -> PrefixCritic:
        return PrefixCritic(
            obs_ndim=len(self.obs_shape),
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            body=body_of(self.network),
            precision=self.precision,
        )

    def velocity(self, actor: Any, obs: jax.Array) -> Any:
        """Of flattened chunks (..., H D) at (normalised) observations (..., *obs)."""
        network = self.make_actor()
        return lambda x, t: network.apply(actor, obs, jnp.concatenate([x, t], axis=-1))

    def samples(self, actor: Any, obs: jax.Array, key: jax.Array) -> jax.Array:
        """N chunks (B, N, H, D) within [-1, 1] at each observation (B, *obs)."""
        length, size = self.chunk_shape
        batch = obs.shape[0], self.num_samples
        obs = jnp.broadcast_to(obs[:, None], (*batch, *obs.shape[1:]))
        noise = jax.random.normal(key, (*batch, length * size), jnp.float32)
        chunks = carry(self.velocity(actor, obs), noise, self.flow_steps)
        return jnp.clip(chunks, -1, 1).reshape(*batch, length, size)

    def q_values(self, critics: Any, obs: jax.Array, chunks: jax.Array) -> jax.Array:
        """All critics' values (C, B, N, L) of the prefixes that there are to choose from."""
        critic, lengths = self.make_critic(), jnp.asarray(self.chunk_lengths)
        return jnp.stack([critic.apply(c, obs, chunks)[..., lengths - 1] for c in critics])

    def best(
        self, actor: Any, critics: Any, obs: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The best of N chunks (B, H, D), how much of it to execute (B,), and its Q (B,)."""
        chunks = self.samples(actor, obs, key)
        q = self.q_values(critics, obs, chunks).mean(axis=0)
        by_advantage = self.length_by == "advantage"
        chosen = best_prefix(q, q.mean(axis=1, keepdims=True) if by_advantage else 0.0)
        chunk = jnp.take_along_axis(chunks, chosen.chunk[:, None, None, None], axis=1)[:, 0]
        lengths = jnp.asarray(self.chunk_lengths, jnp.int32)
        return chunk, lengths[chosen.length], chosen.value

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> ACSACLearner:
        actor_key, critic_key = jax.random.split(key)
        length, size = self.chunk_shape
        actor = self.make_actor().init(actor_key, obs, jnp.zeros((length * size + 1,)))
        chunks = jnp.zeros((1, 1, length, size))
        keys = jax.random.split(critic_key, self.num_critics)
        critics = tuple(self.make_critic().init(k, obs[None], chunks) for k in keys)
        return ACSACLearner(
            actor=actor,
            critics=critics,
            target_critics=copy_of(critics),
            actor_opt=self.optimizer().init(actor),
            critic_opt=self.optimizer().init(critics),
        )

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: ACSACLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[ACSACLearner, dict[str, jax.Array]]:
        next_key, flow_key = jax.random.split(key)

        # Critics, each prefix towards its own target: sum_{j<h} gamma^j r_j, and unless the
        # episode ended gamma^h max_{i, h'} Q'_{h'}(s_h, a^i).
        target, next_length = self.targets(learner, batch, next_key)
        valid = batch.valid[:, self.places]

        def critic_loss(critics):
            q = self.q_values(critics, batch.obs, batch.action[:, None])[:, :, 0]
            errors = 0.5 * ((q - target) ** 2).sum(axis=0)
            return valid_mean(errors, valid), valid_mean(q.mean(axis=0), valid)

        critics, critic_opt, critic_loss_value, q_mean = descend(
            self.optimizer(), critic_loss, learner.critics, learner.critic_opt
        )

        # Policy: flow matching on the chunks of the data.
        def actor_loss(actor):
            chunks = batch.action.reshape(len(batch.action), -1)
            velocity = self.velocity(actor, batch.obs)
            errors = matching_error(velocity, flow_key, chunks).reshape(batch.action.shape)
            return valid_mean(errors.mean(axis=-1), batch.valid), ()

        actor, actor_opt, actor_loss_value, _ = descend(
            self.optimizer(), actor_loss, learner.actor, learner.actor_opt
        )
        metrics = {
            "critic_loss": critic_loss_value,
            "q_mean": q_mean,
            "actor_loss": actor_loss_value,
            "chunk_length": next_length,
        }
        return ACSACLearner(
            actor=actor,
            critics=critics,
            target_critics=polyak(learner.target_critics, critics, self.tau),
            actor_opt=actor_opt,
            critic_opt=critic_opt,
        ), metrics

    @property
    def places(self) -> jax.Array:
        """Of the last steps of the prefixes, in a chunk."""
        return jnp.asarray(self.chunk_lengths) - 1

    def targets(
        self, learner: ACSACLearner, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Of every prefix of the batch's chunks (B, L); and the mean length chosen after them."""
        assert batch.num_steps is not None
        next_obs = batch.next_obs[:, self.places].reshape(-1, *self.obs_shape)
        _, length, value = self.best(learner.actor, learner.target_critics, next_obs, key)
        # Prefixes that there are not to choose from have no value; nothing is learnt there.
        shape = len(batch.reward), len(self.chunk_lengths)
        values = jnp.zeros_like(batch.reward).at[:, self.places].set(value.reshape(shape))
        target = prefix_targets(batch.reward, batch.num_steps, batch.terminated, values, self.gamma)
        return target[:, self.places], length.astype(jnp.float32).mean()

    # Acting -----------------------------------------------------------------------------------

    def initial_memory(self) -> Plan:
        return Plan(jnp.zeros(self.chunk_shape, jnp.float32), jnp.zeros((), jnp.int32))

    def explore_from(
        self, learner: ACSACLearner, memory: Plan, obs: jax.Array, key: jax.Array, progress: Any
    ) -> tuple[Plan, jax.Array]:
        """The next action of each plan (N, ...), or the first of a new one."""
        chunk, length, _ = self.best(learner.actor, learner.critics, obs, key)
        plan = where_done(memory.left == 0, Plan(chunk, length), memory)
        return Plan(jnp.roll(plan.actions, -1, axis=1), plan.left - 1), plan.actions[:, 0]

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The best of N draws; its memory is what is left of it."""

        def step(plan: Plan, obs: jax.Array, key: jax.Array) -> tuple[Plan, jax.Array]:
            obs = self.normalize(state.obs_moments, obs)
            plan, obs = jax.tree.map(lambda x: x[None], (plan, obs))
            plan, action = self.explore_from(state.learner, plan, obs, key, None)
            return jax.tree.map(lambda x: x[0], (plan, self.env_action(action)))

        return Policy(self.initial_memory, step)
