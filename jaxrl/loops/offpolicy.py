"""The loop of off-policy agents: environments and gradient steps in one iteration."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl import spaces
from jaxrl.agent import Agent, Tag, derive, static
from jaxrl.loops.offline import Offline, OfflineState
from jaxrl.parts import replay
from jaxrl.parts.normalize import RunningMoments
from jaxrl.parts.replay import Batch, Replay
from jaxrl.parts.rollout import reset, rollout


class OffPolicy(Offline):
    """Collect `num_steps` steps in every environment, keep them, take `num_updates` gradient steps.

    Updates per environment step are num_updates / (num_envs * num_steps), below or above one. Until
    `learning_starts` environment steps are taken, actions are uniformly random and nothing learns.
    Given a dataset it collects nothing and learns from that, like any `Offline` agent.

    A subclass implements `explore` as well.
    """

    num_envs: int = static(8, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(1, "[1, inf)", "steps per environment and iteration")
    num_updates: int = static(8, "[1, inf)", "gradient steps per iteration")
    buffer_size: int = static(100_000, "[1, inf)", "environment steps that the replay holds")
    lean_buffer: bool = static(False, None, "store observations once; steps cut by time are lost")
    learning_starts: int = static(1_000, "[1, inf)", "random environment steps before learning")

    def explore(self, learner: Any, obs: jax.Array, key: jax.Array, progress: jax.Array) -> Any:
        """Actions to collect with, for observations (N, ...); continuous ones within [-1, 1]."""
        raise NotImplementedError

    def check(self) -> None:
        Agent.check(self)
        if self.data is not None:
            return
        if self.num_rows < self.num_steps + 1:
            raise ValueError(
                f"{self.name}: buffer_size={self.buffer_size} does not hold two iterations of "
                f"{self.steps_per_iteration} environment steps"
            )
        if self.learning_starts > self.total_steps:
            raise ValueError(
                f"{self.name}: learning_starts={self.learning_starts} is more than "
                f"total_steps={self.total_steps}: nothing would be learnt"
            )

    @property
    def steps_per_iteration(self) -> int:
        return self.num_updates if self.data is not None else self.num_envs * self.num_steps

    @property
    def num_rows(self) -> int:
        """Rows of the replay: a multiple of `num_steps`, so that a rollout never wraps around."""
        return self.buffer_size // (self.num_envs * self.num_steps) * self.num_steps

    def random_action(self, key: jax.Array) -> jax.Array:
        """Uniform actions for all environments; continuous ones over the whole box [-1, 1]."""
        size = spaces.action_size(self.action_space)
        if spaces.is_discrete(self.action_space):
            return jax.random.randint(key, (self.num_envs,), 0, size)
        return jax.random.uniform(key, (self.num_envs, size), minval=-1.0, maxval=1.0)

    def init(self, key: jax.Array) -> OfflineState:
        if self.data is not None:
            return super().init(key)
        actors = reset(derive(key, Tag.RESET), self.env, self.env_params, self.num_envs)
        action = jax.eval_shape(self.random_action, key)
        return OfflineState(
            key=key,
            learner=self.init_learner(derive(key, Tag.INIT), actors.obs[0]),
            replay=replay.create(actors.obs, action, self.num_rows, self.lean_buffer),
            actors=actors,
            obs_moments=RunningMoments.of_shape(actors.obs.shape[1:]),
        )

    def step(self, state: OfflineState, t: jax.Array) -> tuple[OfflineState, dict[str, jax.Array]]:
        if self.data is not None:
            return super().step(state, t)
        assert state.replay is not None
        assert state.actors is not None
        # All that these conditions and indices follow from is t, so they are never batched: a
        # population keeps real branches and writes its replay as one.
        learning = (t + 1) * self.steps_per_iteration >= self.learning_starts
        acting = t * self.steps_per_iteration >= self.learning_starts
        moments, progress = state.obs_moments, self.progress(state, t)

        def act(obs, key):
            def explore():
                return self.explore(state.learner, self.normalize(moments, obs), key, progress)

            action = lax.cond(acting, explore, lambda: self.random_action(key))
            return action, self.env_action(action), ()

        actors, steps, episodes = rollout(
            derive(state.key, Tag.ROLLOUT, t),
            self.env,
            self.env_params,
            state.actors,
            act,
            self.num_steps,
        )
        memory = replay.add(state.replay, t * self.num_steps, steps)
        if self.normalize_observations:
            moments = moments.update(steps.obs)

        def learn(learner):
            written = (t + 1) * self.num_steps
            sample = lambda key: self.sample(key, memory, written)  # noqa: E731
            return self.learn(learner, state.key, t, sample, moments)

        def skip(learner):
            shapes = jax.eval_shape(learn, learner)[1]
            return learner, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

        learner, metrics = lax.cond(learning, learn, skip, state.learner)
        metrics |= episodes.metrics()
        return OfflineState(state.key, learner, memory, actors, moments), metrics

    def without_replay(self, state: OfflineState) -> OfflineState:
        return state._replace(replay=None)

    def sample(self, key: jax.Array, memory: Replay, written: jax.Array) -> Batch:
        """The steps of one gradient step, from the replay."""
        return replay.sample(key, memory, written, self.batch_size)
