"""The loop of agents that learn by gradient steps on batches of a source: off-policy, offline."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrl import masks, spaces
from jaxrl.agent import Agent, Hyperparameter, Tag, derive, shared, static, traced
from jaxrl.loops.sources import Collected, CollectedState, Explore, Mixed, Recorded, Source
from jaxrl.parts.normalize import RunningMoments
from jaxrl.parts.optimize import mean_over_steps
from jaxrl.parts.replay import Batch, Dataset
from jaxrl.parts.rollout import Actors, Transition

MOST_STEPS = 2**31 - 1  # that a gradient step's number, of 32 bits, can count
COLLECTING = ("num_envs", "num_steps", "buffer_size", "lean_buffer", "learning_starts")
REWARDS = ("reward_shift", "span_returns")
SPAN = 1000.0  # of returns, with span_returns


class LearnerState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    learner: Any  # parameters and optimiser states: what gradient steps change
    source: Any  # the source's state: environments and replay, or ()
    obs_moments: RunningMoments  # of anything only if normalize_observations


class Learner(Agent):
    """Takes `num_updates` gradient steps per iteration on batches of a source.

    Without data the source is environments: collect `num_steps` steps in each of `num_envs`, keep
    them in a replay. Gradient steps per environment step are num_updates / (num_envs * num_steps),
    below or above one. Until `learning_starts` environment steps are taken, actions are uniformly
    random and nothing learns.

    Given a dataset it learns from that and collects nothing; `total_steps` are then gradient steps.
    With `data_share` below 1 it does both, and each batch is drawn from both.

    Rewards are learnt from as (r + `reward_shift`) x 1000 / (highest - lowest return), the latter
    with `span_returns`, before whatever the algorithm makes of them.

    A subclass implements `init_learner`, `update`, `policy`, and `explore` where it can collect.
    """

    offline_only: ClassVar[bool] = False  # a subclass that learns from recorded data alone
    takes_rewards: ClassVar[bool] = True  # False where they are not learnt from, or not changed
    takes_windows: ClassVar[bool] = False  # whether its targets are `n_step_target`
    takes_whole_windows: ClassVar[bool] = False  # whether it learns from all steps of a window

    data: Dataset | None = shared()
    data_share: float = static(
        1.0, "(0, 1]", "of each batch, drawn from recorded data; below 1 it collects as well"
    )
    num_updates: int = static(8, "[1, inf)", "gradient steps per iteration")
    batch_size: int = static(256, "[1, inf)", "steps that each gradient step samples")
    n_step: int = static(1, "[1, inf)", "rewards that a target sums before it takes a value")
    precision: str = static(
        "float32", ("float32", "bfloat16"), "operands of the networks' products; sums are float32"
    )
    normalize_observations: bool = static(
        False,
        None,
        "by mean and std, clipped to +-10; with recorded data by std + 0.001, unclipped",
    )
    reward_shift: float = traced(0.0, "(-inf, inf)", "added to rewards first (-1 for AntMaze)")
    span_returns: bool = static(
        False, None, "scale rewards so that returns of recorded whole episodes span 1000"
    )
    num_envs: int = static(8, "[1, inf)", "environments stepped in parallel")
    num_steps: int = static(1, "[1, inf)", "steps per environment and iteration")
    buffer_size: int = static(100_000, "[1, inf)", "environment steps that the replay holds")
    lean_buffer: bool = static(False, None, "store observations once; steps cut by time are lost")
    learning_starts: int = static(1_000, "[1, inf)", "random environment steps before learning")

    # What a subclass provides -----------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> Any:
        """Fresh parameters and optimiser states, given one observation."""
        raise NotImplementedError

    def update(
        self, learner: Any, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Gradient step number n (never batched) on a batch, and scalar metrics."""
        raise NotImplementedError

    def explore(
        self, learner: Any, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> jax.Array:
        """Actions to collect with, for observations (N, ...); continuous ones within [-1, 1]."""
        raise NotImplementedError

    def initial_memory(self) -> Any:
        """What it remembers at the start of an episode, of one environment; None: it never does.

        One that remembers implements `explore_from` in the place of `explore`.
        """
        return None

    def explore_from(
        self, learner: Any, memory: Any, obs: jax.Array, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Memories (N, ...) after acting, and actions, from the memories before."""
        raise NotImplementedError

    def observe(self, learner: Any, steps: Transition) -> Any:
        """The learner with what it counts of new steps (T, N, ...), before it learns from any."""
        return learner

    # Hyper-parameters -------------------------------------------------------------------------

    @classmethod
    def hyperparameters(cls) -> list[Hyperparameter]:
        without = (*COLLECTING, "data_share") if cls.offline_only else ()
        if not cls.takes_rewards:
            without = (*without, *REWARDS)
        if not cls.takes_windows:
            without = (*without, "n_step")
        return [h for h in super().hyperparameters() if h.name not in without]

    def unused(self) -> dict[str, str]:
        why = {} if self.takes_windows else {"n_step": f"on {self.name}"}
        if self.data is None:
            return why | dict.fromkeys(("data_share", "span_returns"), "without recorded data")
        if not self.takes_rewards:
            why |= dict.fromkeys(REWARDS, f"on {self.name}")
        if self.collects:
            return why
        names = (*COLLECTING, "data_share") if self.offline_only else COLLECTING
        return why | dict.fromkeys(names, "with recorded data alone")

    def check(self) -> None:
        super().check()
        if self.data is not None and self.masked:
            raise ValueError(
                f"{self.name}: recorded data says nothing of the actions that "
                f"{spaces.name_of(self.env)} masks: learn without data"
            )
        if self.offline_only and self.data is None:
            raise ValueError(f"{self.name}: learns from recorded data only: give it --data FILE")
        gradient_steps = self.num_iterations * self.num_updates
        if gradient_steps > MOST_STEPS:
            raise ValueError(
                f"{self.name}: num_updates={self.num_updates} in {self.num_iterations} iterations "
                f"are {gradient_steps} gradient steps; at most {MOST_STEPS} can be counted"
            )
        if self.collects:
            self._check_collecting()
        if self.span_returns and self.data is not None:
            self._check_returns(self.data)

    def _check_returns(self, data: Dataset) -> None:
        if isinstance(data.return_range, jax.core.Tracer):
            return  # inside of a program, whose agent was checked when it was made
        low, high = (float(x) for x in data.return_range)
        if low == high:
            raise ValueError(
                f"{self.name}: span_returns=True needs recorded episodes whose returns differ, "
                f"but all are {low:g}"
            )

    def _check_collecting(self) -> None:
        if self.num_rows < self.num_steps + 1:
            raise ValueError(
                f"{self.name}: buffer_size={self.buffer_size} does not hold two iterations of "
                f"{self.steps_per_iteration} environment steps"
            )
        if self.num_rows < self.n_step:
            raise ValueError(
                f"{self.name}: buffer_size={self.buffer_size} does not hold n_step={self.n_step} "
                f"steps of each of {self.num_envs} environments"
            )
        if self.learning_starts > self.total_steps:
            raise ValueError(
                f"{self.name}: learning_starts={self.learning_starts} is more than "
                f"total_steps={self.total_steps}: nothing would be learnt"
            )
        recorded = round(self.data_share * self.batch_size)
        if self.data is not None and not 0 < recorded < self.batch_size:
            raise ValueError(
                f"{self.name}: data_share={self.data_share} of batch_size={self.batch_size} is "
                f"{recorded} steps: at least one from each source is needed"
            )

    @property
    def window(self) -> int:
        """Steps of the windows that it learns from."""
        return self.n_step

    @property
    def collects(self) -> bool:
        """Whether environments are stepped, rather than recorded data read alone."""
        return not self.offline_only and (self.data is None or self.data_share < 1)

    @property
    def unit(self) -> str:
        return "environment steps" if self.collects else "gradient steps"

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps if self.collects else self.num_updates

    @property
    def num_rows(self) -> int:
        """Rows of the replay: a multiple of `num_steps`, so that a rollout never wraps around."""
        return self.buffer_size // (self.num_envs * self.num_steps) * self.num_steps

    # The loop ---------------------------------------------------------------------------------

    def source(self) -> Source:
        """Where batches come from."""
        if self.data is None:
            return self.collected()
        recorded = Recorded(self.data, n_step=self.window, whole=self.takes_whole_windows)
        return Mixed(recorded, self.collected(), self.data_share) if self.collects else recorded

    def collected(self) -> Collected:
        return Collected(
            self.env,
            self.env_params,
            self.reported,
            self.num_envs,
            self.num_steps,
            self.num_rows,
            self.lean_buffer,
            self.learning_starts,
            n_step=self.window,
            whole=self.takes_whole_windows,
            initial_memory=self.initial_memory(),
        )

    def init(self, key: jax.Array) -> LearnerState:
        source = self.source()
        source_state, obs = source.init(key)
        moments = RunningMoments.of_shape(self.obs_shape)
        if self.normalize_observations and source.known is not None:
            moments = moments.update(self.encode(source.known))
        init_key, (obs, _) = derive(key, Tag.INIT), masks.split(obs)
        learner = self.init_learner(init_key, self.encode(obs))
        return LearnerState(key, learner, source_state, moments)

    def step(self, state: LearnerState, t: jax.Array) -> tuple[LearnerState, dict[str, jax.Array]]:
        source, explore = self.source(), self.explorer(state, t)
        source_state, steps, collected = source.advance(state.source, state.key, t, explore)
        moments, learner = state.obs_moments, state.learner
        if steps is not None:
            learner = self.observe(learner, steps)
            if self.normalize_observations:
                moments = moments.update(masks.split(self.encode(steps.obs))[0])
        key = derive(state.key, Tag.LEARN, t)

        def gradient_step(learner, i):
            draw_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            batch = source.draw(source_state, draw_key, t, self.batch_size)
            batch = batch._replace(
                obs=self.normalize(moments, batch.obs),
                next_obs=self.normalize(moments, batch.next_obs),
                reward=self.prepare(batch.reward),
            )
            return self.update(learner, batch, update_key, t * self.num_updates + i)

        def learn(learner):
            learner, metrics = lax.scan(gradient_step, learner, jnp.arange(self.num_updates))
            return learner, jax.tree.map(mean_over_steps, metrics)

        learner, metrics = source.once_ready(t, learn, learner)
        return LearnerState(state.key, learner, source_state, moments), metrics | collected

    def explorer(self, state: LearnerState, t: jax.Array) -> Explore:
        """How it collects in iteration t."""
        progress = self.progress(state, t)

        def explore(obs, key):
            obs = self.normalize(state.obs_moments, obs)
            return self.explore(state.learner, obs, key, progress)

        def explore_from(memory, obs, key):
            obs = self.normalize(state.obs_moments, obs)
            return self.explore_from(state.learner, memory, obs, key, progress)

        return explore if self.initial_memory() is None else explore_from

    def normalize(self, moments: RunningMoments, obs: Any) -> Any:
        """Observations as networks take them."""
        obs = self.encode(obs)
        if not self.normalize_observations:
            return obs
        return masks.map_obs(moments.normalize if self.data is None else moments.standardize, obs)

    def prepare(self, reward: jax.Array) -> jax.Array:
        """Rewards as the algorithm takes them."""
        if not self.takes_rewards:
            return reward
        reward = reward + self.reward_shift
        if not self.span_returns:
            return reward
        assert self.data is not None
        low, high = self.data.return_range
        return reward * (SPAN / (high - low))

    def adopt(self, state: Any) -> LearnerState:
        """The learner and the moments of a state with another source; a source of its own."""
        fresh = self.init(derive(getattr(state, "key", jax.random.key(0)), Tag.ADOPT))
        learnt = getattr(state, "learner", None), getattr(state, "obs_moments", None)
        same = [
            [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
            for tree in (learnt, (fresh.learner, fresh.obs_moments))
        ]
        if same[0] != same[1]:
            return super().adopt(state)
        return fresh._replace(learner=state.learner, obs_moments=state.obs_moments)

    # What the engine asks for -----------------------------------------------------------------

    def learned(self, state: LearnerState) -> Any:
        return state.learner

    def actors(self, state: LearnerState) -> Actors | None:
        return state.source.actors if isinstance(state.source, CollectedState) else None

    def with_actors(self, state: LearnerState, actors: Actors) -> LearnerState:
        return state._replace(source=state.source._replace(actors=actors))

    def without_replay(self, state: LearnerState) -> LearnerState:
        if not isinstance(state.source, CollectedState):
            return state
        return state._replace(source=state.source._replace(replay=None))

    def refilled(self, state: LearnerState, t: jax.Array) -> LearnerState:
        """The replay as full as it was, of what its policy collects by now."""
        key = derive(state.key, Tag.REFILL, t)
        explore = self.explorer(state, t)
        source = self.collected().refilled(state.source.actors, key, t, explore)
        return state._replace(source=source)
