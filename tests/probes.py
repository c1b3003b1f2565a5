"""Probe environments: each has one thing to learn, and a known answer.

Observations are (1,) floats. Those with `continuous=True` take one action in [-2, 2], of which an
agent that clips its own to [-1, 1] and does not scale them misses the best one.
`known_answers` has a row for each, `settings` makes a population of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment


@struct.dataclass
class State:
    time: jax.Array
    sign: jax.Array  # -1 or 1, drawn at each reset
    which: jax.Array  # of several probes; see `AnyOf`


@struct.dataclass
class Params:
    max_steps_in_episode: jax.Array
    bonus: jax.Array  # added to every reward
    which: jax.Array


class Probe(Environment):
    """An episode of one step with reward 1; what subclasses change is a line or two.

    `traces` counts how many times `step_env` was traced.
    """

    length = 1  # steps to the terminal state

    def __init__(self, continuous: bool = False, limit: int = 100):
        self.continuous, self.limit, self.traces = continuous, limit, 0

    @property
    def default_params(self):
        return Params(jnp.asarray(self.limit, jnp.int32), jnp.float32(0), jnp.int32(0))

    def reset_env(self, key, params):
        sign = 2 * jax.random.bernoulli(key).astype(jnp.float32) - 1
        state = State(jnp.int32(0), sign, params.which)
        return self.see(state), state

    def step_env(self, key, state, action, params):
        self.traces += 1
        reward = self.reward(state, self.goodness(state, action)) + params.bonus
        state = state.replace(time=state.time + 1)
        return self.see(state), state, reward, state.time >= self.steps(state), {}

    def steps(self, state):
        return self.length

    def see(self, state):
        return jnp.ones(1)

    def reward(self, state, goodness):
        return jnp.ones(())

    def goodness(self, state, action):
        """1 for the best action, -1 for the wrong one of two; continuous: minus the distance."""
        wanted = self.wanted(state)
        if self.continuous:
            return -jnp.abs(action[0] - wanted)
        return jnp.where(action == (wanted > 0), 1.0, -1.0)

    def wanted(self, state):
        """The best action: its sign where discrete."""
        return jnp.float32(1.5)

    @property
    def num_actions(self):
        return 2

    def action_space(self, params):
        return spaces.Box(-2.0, 2.0, (1,)) if self.continuous else spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (1,))


class ConstantReward(Probe):
    """V = 1."""


class ObsValue(Probe):
    """V(obs) = obs."""

    def see(self, state):
        return state.sign[None]

    def reward(self, state, goodness):
        return state.sign


class TwoSteps(Probe):
    """Observations 0 and 1, reward 1 after the second: V(0) = gamma, V(1) = 1."""

    length = 2

    def see(self, state):
        return state.time[None].astype(jnp.float32)

    def reward(self, state, goodness):
        return (state.time == 1).astype(jnp.float32)


class ActionChoice(Probe):
    """The action 1 is the best."""

    def reward(self, state, goodness):
        return goodness


class Match(ObsValue):
    """The best action has the observation's sign, and is half of it where continuous."""

    def reward(self, state, goodness):
        return goodness

    def wanted(self, state):
        return 0.5 * state.sign


class TimeLimit(Probe):
    """Reward 1 for ever, cut every `limit` steps: V = 1 / (1 - gamma), whatever the limit."""

    length = 10**9


class SignedLimit(TimeLimit):
    """The same with the episode's sign as observation and reward: V = sign / (1 - gamma).

    Only bootstrapping from the state that was cut gives this; the next episode's start has the
    other sign half of the time.
    """

    def see(self, state):
        return state.sign[None]

    def reward(self, state, goodness):
        return state.sign


class AnyOf(Probe):
    """Several probes in one program: the parameter `which` says which one it is."""

    def __init__(self, *probes):
        super().__init__(probes[0].continuous)
        self.probes = probes

    def choose(self, method, state, *args):
        methods = [getattr(probe, method) for probe in self.probes]
        return jax.lax.switch(state.which, methods, state, *args)

    def steps(self, state):
        return jnp.asarray([probe.length for probe in self.probes])[state.which]

    def see(self, state):
        return self.choose("see", state)

    def reward(self, state, goodness):
        return self.choose("reward", state, goodness)

    def goodness(self, state, action):
        return self.choose("goodness", state, action)


class Chain(Probe):
    """Five one-hot states in a row; action 1 goes right, 0 left; reward 1 for leaving on the right.

    Starts anywhere, so that every state is seen.
    """

    size = 5

    def reset_env(self, key, params):
        place = jax.random.randint(key, (), 0, self.size)
        state = State(jnp.int32(0), place, params.which)
        return self.see(state), state

    def step_env(self, key, state, action, params):
        place = jnp.maximum(state.sign + 2 * action - 1, 0)
        out = place >= self.size
        state = state.replace(time=state.time + 1, sign=jnp.minimum(place, self.size - 1))
        return self.see(state), state, out.astype(jnp.float32), out, {}

    def see(self, state):
        return jax.nn.one_hot(state.sign, self.size)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (self.size,))


GAMMA = 0.9


class KnownAnswer(NamedTuple):
    probe: Probe
    limit: int  # of an episode's steps
    observations: list[float]
    q: list[list[float]]  # of both discrete actions at each, under the best policy and GAMMA


def known_answers(continuous: bool = False) -> list[KnownAnswer]:
    """Where actions are continuous, `q` holds for the best but in ActionChoice and Match."""
    c = continuous

    def both(values):
        return np.repeat(np.asarray(values)[:, None], 2, axis=1).tolist()

    return [
        KnownAnswer(ConstantReward(c), 100, [1.0], both([1.0])),
        KnownAnswer(ObsValue(c), 100, [-1.0, 1.0], both([-1.0, 1.0])),
        KnownAnswer(TwoSteps(c), 100, [0.0, 1.0], both([GAMMA, 1.0])),
        KnownAnswer(ActionChoice(c), 100, [1.0], [[-1, 1]]),
        KnownAnswer(Match(c), 100, [-1.0, 1.0], [[1, -1], [-1, 1]]),
        # In rollouts of 8 steps limits of 3 and 5 do not divide them, and those of 1 to 5 cut
        # several times. Taking a time limit for a death would give 1, 2.7, 4.1 and 8.8, not 10.
        *[KnownAnswer(TimeLimit(c), limit, [1.0], both([10.0])) for limit in (1, 3, 5, 20)],
        KnownAnswer(SignedLimit(c), 3, [-1.0, 1.0], both([-10.0, 10.0])),
    ]


CHOICE, MATCH = 3, 4  # rows whose answer depends on the action


def any_of(rows: list[KnownAnswer]) -> AnyOf:
    """All of their probes in one environment."""
    return AnyOf(*[row.probe for row in rows])


def settings(rows: list[KnownAnswer]) -> list[dict[str, Any]]:
    """A member of a sweep for each."""
    return [{"env.which": i, "env.max_steps_in_episode": r.limit} for i, r in enumerate(rows)]
