"""Where a learner's batches come from: recorded steps, environments with a replay, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl import masks, spaces
from jaxrl.agent import Tag, derive
from jaxrl.parts import replay
from jaxrl.parts.optimize import learn_if
from jaxrl.parts.replay import Batch, Dataset, Replay
from jaxrl.parts.rollout import Actors, Transition, reset, rollout
from jaxrl.parts.trees import first_of

# Observations (N, ...), key -> actions; with a memory: memory, observations, key -> both.
Explore = Callable[..., Any]
Learn = Callable[[Any], tuple[Any, dict[str, jax.Array]]]  # learner -> learner, metrics


class Source(Protocol):
    """What `Learner` asks of a source; its state is a pytree that the source alone looks into.

    All randomness follows from the run's root `key` and the iteration `t`, which is never batched.
    """

    @property
    def known(self) -> jax.Array | None:
        """The observations (M, ...) that it has before training."""
        ...

    def init(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """Its first state, and one observation."""
        ...

    def advance(
        self, state: Any, key: jax.Array, t: jax.Array, explore: Explore
    ) -> tuple[Any, Transition | None, dict[str, jax.Array]]:
        """Take iteration `t`'s steps: the new state, the steps (T, N, ...), and metrics."""
        ...

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """`learn(learner)`, or nothing learnt and NaN metrics while there is too little to draw."""
        ...

    def draw(self, state: Any, key: jax.Array, t: jax.Array, size: int) -> Batch:
        """`size` steps, or windows of steps, for one gradient step of iteration `t`."""
        ...


class Recorded(NamedTuple):
    """Steps that were recorded before; nothing is collected.

    Attributes:
        best: draw only from this share of the steps, those of the episodes with the highest return.
        n_step: draw windows of this many steps.
        whole: keep all steps of a window.
    """

    data: Dataset
    best: float | jax.Array = 1.0
    n_step: int = 1
    whole: bool = False

    @property
    def known(self) -> jax.Array | None:
        return self.data.obs

    def init(self, key: jax.Array) -> tuple[Any, jax.Array]:
        return (), self.data.obs[0]

    def advance(
        self, state: Any, key: jax.Array, t: jax.Array, explore: Explore
    ) -> tuple[Any, Transition | None, dict[str, jax.Array]]:
        return state, None, {}

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        return learn(learner)

    def draw(self, state: Any, key: jax.Array, t: jax.Array, size: int) -> Batch:
        return replay.draw(key, self.data, size, self.best, self.n_step, self.whole)


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
        n_step: draw windows of this many steps, shorter where an episode ends in them, or what has
            been collected.
        whole: keep all steps of a window.
        initial_memory: of a policy with memory, what it starts an episode with (no axis of N).
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
    n_step: int = 1
    whole: bool = False
    initial_memory: Any = None

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def random_action(self, key: jax.Array, obs: Any) -> jax.Array:
        space = self.env.action_space(self.env_params)
        return spaces.random_action(space, key, self.num_envs, masks.split(obs)[1])

    @property
    def known(self) -> jax.Array | None:
        return None

    def init(self, key: jax.Array) -> tuple[CollectedState, jax.Array]:
        reset_key = derive(key, Tag.RESET)
        memory = () if self.initial_memory is None else self.initial_memory
        actors = reset(reset_key, self.env, self.env_params, self.num_envs, self.record, memory)
        return self.emptied(actors), first_of(actors.obs)

    def emptied(self, actors: Actors) -> CollectedState:
        """These environments, and a replay that holds nothing."""
        action = jax.eval_shape(self.random_action, jax.random.key(0), actors.obs)
        windows = self.n_step > 1 or self.whole
        memory = replay.create(actors.obs, action, self.num_rows, self.lean, windows)
        return CollectedState(actors, memory)

    def refilled(
        self, actors: Actors, key: jax.Array, t: jax.Array, explore: Explore
    ) -> CollectedState:
        """A replay as full as after iteration t, of steps that are taken now.

        `explore` acts, at random where iterations did before learning. `key` is a root of its own.
        """
        first = jnp.maximum(t - self.num_rows // self.num_steps, 0)

        def again(i: jax.Array, state: CollectedState) -> CollectedState:
            return self.advance(state, key, i, explore)[0]

        return lax.fori_loop(first, t, again, self.emptied(actors))

    def advance(
        self, state: CollectedState, key: jax.Array, t: jax.Array, explore: Explore
    ) -> tuple[CollectedState, Transition | None, dict[str, jax.Array]]:
        assert state.replay is not None
        space = self.env.action_space(self.env_params)
        # All that this condition and the replay's indices follow from is t, so they are never
        # batched: a population keeps real branches and writes its replay as one.
        exploring = t * self.steps_per_iteration >= self.learning_starts

        def act(obs, key):
            action = lax.cond(
                exploring, lambda: explore(obs, key), lambda: self.random_action(key, obs)
            )
            return action, spaces.to_env(space, action), ()

        def act_with_memory(memory, obs, key):
            memory, action = lax.cond(
                exploring,
                lambda: explore(memory, obs, key),
                lambda: (memory, self.random_action(key, obs)),
            )
            return memory, action, spaces.to_env(space, action), ()

        actors, steps, episodes = rollout(
            derive(key, Tag.ROLLOUT, t),
            self.env,
            self.env_params,
            state.actors,
            act if self.initial_memory is None else act_with_memory,
            self.num_steps,
            initial_memory=self.initial_memory,
        )
        memory = replay.add(state.replay, t * self.num_steps, steps)
        return CollectedState(actors, memory), steps, episodes.metrics()

    def once_ready(
        self, t: jax.Array, learn: Learn, learner: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        enough = (t + 1) * self.steps_per_iteration >= self.learning_starts
        # A lean replay needs the row after the one that is drawn.
        ready = enough & ((t + 1) * self.num_steps > int(self.lean))
        return learn_if(ready, learn, learner)

    def draw(self, state: CollectedState, key: jax.Array, t: jax.Array, size: int) -> Batch:
        assert state.replay is not None
        written = (t + 1) * self.num_steps
        newest = round(self.newest_share * size)
        if newest == 0:
            return replay.sample(key, state.replay, written, size, None, self.n_step, self.whole)
        keys, windows = jax.random.split(key), (self.n_step, self.whole)
        return concatenate(
            replay.sample(keys[0], state.replay, written, size - newest, None, *windows),
            replay.sample(keys[1], state.replay, written, newest, self.newest, *windows),
        )


class Mixed(NamedTuple):
    """A `share` of each batch from recorded steps, the rest from what is collected."""

    recorded: Recorded
    collected: Collected
    share: float

    @property
    def known(self) -> jax.Array | None:
        return self.recorded.known

    def init(self, key: jax.Array) -> tuple[CollectedState, jax.Array]:
        return self.collected.init(key)

    def advance(
        self, state: CollectedState, key: jax.Array, t: jax.Array, explore: Explore
    ) -> tuple[CollectedState, Transition | None, dict[str, jax.Array]]:
        return self.collected.advance(state, key, t, explore)

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
