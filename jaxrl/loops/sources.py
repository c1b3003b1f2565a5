"""Where a learner's batches come from: recorded steps, environments with a replay, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl import spaces
from jaxrl.agent import Tag, derive
from jaxrl.parts import replay
from jaxrl.parts.normalize import RunningMoments
from jaxrl.parts.replay import Batch, Dataset, Replay
from jaxrl.parts.rollout import Actors, reset, rollout

Explore = Callable[[jax.Array, jax.Array], jax.Array]  # observations (N, ...), key -> actions
Learn = Callable[[Any], tuple[Any, dict[str, jax.Array]]]  # learner -> learner, metrics


class Source(Protocol):
    """What `Learner` asks of a source; its state is a pytree that the source alone looks into.

    All randomness follows from the run's root `key` and the iteration `t`, which is never batched.
    """

    def init(self, key: jax.Array) -> tuple[Any, jax.Array, RunningMoments]:
        """Its first state, one observation, and the moments of what is known before training."""
        ...

    def advance(
        self, state: Any, moments: RunningMoments, key: jax.Array, t: jax.Array, explore: Explore
    ) -> tuple[Any, RunningMoments, dict[str, jax.Array]]:
        """Iteration `t`'s new steps; the moments with them in, and metrics."""
        ...

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """`learn(learner)`, or nothing learnt and NaN metrics while there is too little to draw."""
        ...

    def draw(self, state: Any, key: jax.Array, t: jax.Array, size: int) -> Batch:
        """`size` steps for one gradient step of iteration `t`."""
        ...


class Recorded(NamedTuple):
    """Steps that were recorded before; nothing is collected.

    Attributes:
        best: draw only from this share of the steps, those of the episodes with the highest return.
    """

    data: Dataset
    best: float | jax.Array = 1.0

    def init(self, key: jax.Array) -> tuple[Any, jax.Array, RunningMoments]:
        obs = self.data.obs
        return (), obs[0], RunningMoments.of_shape(obs.shape[1:]).update(obs)

    def advance(
        self, state: Any, moments: RunningMoments, key: jax.Array, t: jax.Array, explore: Explore
    ) -> tuple[Any, RunningMoments, dict[str, jax.Array]]:
        return state, moments, {}

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        return learn(learner)

    def draw(self, state: Any, key: jax.Array, t: jax.Array, size: int) -> Batch:
        return replay.draw(key, self.data, size, self.best)


class CollectedState(NamedTuple):
    actors: Actors
    replay: Replay | None  # None once a finished run has given its memory back


class Collected(NamedTuple):
    """`num_steps` steps in each of `num_envs` environments per iteration, kept in a replay.

    Attributes:
        num_rows: rows of the replay, each a step of all environments; a multiple of `num_steps`, so
            that a rollout never wraps around.
        lean: store observations once; steps cut by time are then lost.
        learning_starts: environment steps, uniformly random, that are taken before learning.
        newest, newest_share: this share of each batch is drawn from this many newest rows.
    """

    env: Any
    env_params: Any
    record: tuple[str, ...]
    num_envs: int
    num_steps: int
    num_rows: int
    lean: bool
    learning_starts: int
    newest: int = 0
    newest_share: float = 0.0

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def random_action(self, key: jax.Array) -> jax.Array:
        return spaces.random_action(self.env.action_space(self.env_params), key, self.num_envs)

    def init(self, key: jax.Array) -> tuple[CollectedState, jax.Array, RunningMoments]:
        reset_key = derive(key, Tag.RESET)
        actors = reset(reset_key, self.env, self.env_params, self.num_envs, self.record)
        action = jax.eval_shape(self.random_action, key)
        memory = replay.create(actors.obs, action, self.num_rows, self.lean)
        moments = RunningMoments.of_shape(actors.obs.shape[1:])
        return CollectedState(actors, memory), actors.obs[0], moments

    def advance(
        self,
        state: CollectedState,
        moments: RunningMoments,
        key: jax.Array,
        t: jax.Array,
        explore: Explore,
    ) -> tuple[CollectedState, RunningMoments, dict[str, jax.Array]]:
        assert state.replay is not None
        space = self.env.action_space(self.env_params)
        # All that this condition and the replay's indices follow from is t, so they are never
        # batched: a population keeps real branches and writes its replay as one.
        exploring = t * self.steps_per_iteration >= self.learning_starts

        def act(obs, key):
            action = lax.cond(exploring, lambda: explore(obs, key), lambda: self.random_action(key))
            return action, spaces.to_env(space, action), ()

        rollout_key = derive(key, Tag.ROLLOUT, t)
        actors, steps, episodes = rollout(
            rollout_key, self.env, self.env_params, state.actors, act, self.num_steps
        )
        memory = replay.add(state.replay, t * self.num_steps, steps)
        return CollectedState(actors, memory), moments.update(steps.obs), episodes.metrics()

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        def wait(learner):
            shapes = jax.eval_shape(learn, learner)[1]
            return learner, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

        ready = (t + 1) * self.steps_per_iteration >= self.learning_starts
        return lax.cond(ready, learn, wait, learner)

    def draw(self, state: CollectedState, key: jax.Array, t: jax.Array, size: int) -> Batch:
        assert state.replay is not None
        written = (t + 1) * self.num_steps
        newest = round(self.newest_share * size)
        if newest == 0:
            return replay.sample(key, state.replay, written, size)
        keys = jax.random.split(key)
        return concatenate(
            replay.sample(keys[0], state.replay, written, size - newest),
            replay.sample(keys[1], state.replay, written, newest, newest=self.newest),
        )


class Mixed(NamedTuple):
    """A `share` of each batch from recorded steps, the rest from what is collected."""

    recorded: Recorded
    collected: Collected
    share: float

    def init(self, key: jax.Array) -> tuple[CollectedState, jax.Array, RunningMoments]:
        state, obs, _ = self.collected.init(key)
        return state, obs, self.recorded.init(key)[2]

    def advance(
        self,
        state: CollectedState,
        moments: RunningMoments,
        key: jax.Array,
        t: jax.Array,
        explore: Explore,
    ) -> tuple[CollectedState, RunningMoments, dict[str, jax.Array]]:
        return self.collected.advance(state, moments, key, t, explore)

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        return self.collected.once_ready(t, learn, learner)

    def draw(self, state: CollectedState, key: jax.Array, t: jax.Array, size: int) -> Batch:
        recorded_key, collected_key = jax.random.split(key)
        recorded = round(self.share * size)
        return concatenate(
            self.recorded.draw((), recorded_key, t, recorded),
            self.collected.draw(state, collected_key, t, size - recorded),
        )


def concatenate(*batches: Batch) -> Batch:
    """Batches as one."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *batches)
