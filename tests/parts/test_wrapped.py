"""Wrappers around environments with pooled and cached resets are not bypassed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.wrappers.purerl import (
    FlattenObservationWrapper,
    GymnaxWrapper,
    LogWrapper,
    StickyActionWrapper,
)

import jaxrl
from jaxrl.parts import rollout as rooms
from jaxrl.parts.rollout import reset, rollout
from tests.helpers import Toy
from tests.probes import TwoSteps

KEY = jax.random.key(0)
KINDS = ("fresh", "pool", "cached")


class Hundredfold(GymnaxWrapper):
    """Rewards times 100, as a wrapper of a user's own does it."""

    def reset(self, key, params=None):
        return self._env.reset(key, params)

    def step(self, key, state, action, params=None):
        obs, state, reward, *more = self._env.step(key, state, action, params)
        return obs, state, 100 * reward, *more


class Own(TwoSteps):
    """A `step` of its own in a subclass."""

    def step(self, key, state, action, params=None):
        obs, state, reward, *more = super().step(key, state, action, params)
        return obs, state, 100 * reward, *more


def inner(kind, cls=TwoSteps):
    env = cls()
    env.resets, env.pool_size = kind, 3
    return env


@pytest.fixture(autouse=True)
def warnings_anew():
    rooms._warn_of_fresh.cache_clear()


def steps_of(env, params):
    def act(obs, key):
        action = jnp.ones(obs.shape[:1], jnp.int32)
        return action, action, ()

    actors = reset(KEY, env, params, 4)
    return jax.jit(lambda actors: rollout(KEY, env, params, actors, act, 6)[1])(actors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [lambda kind: Hundredfold(inner(kind)), lambda k: inner(k, Own)])
@pytest.mark.filterwarnings("default")
def test_rewards_of_a_wrapper_are_what_is_learnt_and_evaluated(make, kind, recwarn):
    env = make(kind)
    params = env.default_params
    rewards = np.asarray(steps_of(env, params).reward)
    np.testing.assert_array_equal(rewards, np.tile([[0.0], [100.0]], (3, 4)))
    agent = Toy(env, params, total_steps=8)
    assert (jaxrl.evaluate(agent, agent.init(KEY), KEY, episodes=3).returns == 100).all()
    messages = [str(w.message) for w in recwarn if "would bypass" in str(w.message)]
    assert len(messages) == (kind != "fresh")  # once, however often it is traced


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrapper",
    [FlattenObservationWrapper, LogWrapper, lambda env: StickyActionWrapper(env, 0.5)],
    ids=["flatten", "log", "sticky"],
)
@pytest.mark.filterwarnings("ignore:resets=.*would bypass")
def test_gymnax_own_wrappers_around_every_kind(wrapper, kind):
    env = wrapper(inner(kind))
    steps = steps_of(env, env.default_params)
    np.testing.assert_array_equal(steps.reward, np.tile([[0.0], [1.0]], (3, 4)))
    np.testing.assert_array_equal(steps.terminated, np.tile([[False], [True]], (3, 4)))


class FiveValues(TwoSteps):
    """The interface of gymnax before 1.0."""

    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, _, info = super().step(key, state, action, params)
        return obs, state, reward, terminated, info


def test_an_old_interface_is_named():
    env = FiveValues()
    with pytest.raises(ValueError, match="FiveValues: step returned 5 values; agents need those"):
        steps_of(env, env.default_params)


@pytest.mark.parametrize(("num_steps", "replaced"), [(1, 1), (4, 2), (40, 16)])
def test_a_pool_is_renewed_by_as_many_resets_as_pay(num_steps, replaced):
    """One reset for 8 steps of the rollout at most, at least one: 1, 4 and 40 steps of 4."""
    env = inner("pool")
    env.pool_size = 16
    actors = reset(KEY, env, env.default_params, 4)
    actors = actors._replace(starts=jax.tree.map(lambda x: jnp.full_like(x, 7), actors.starts))
    after = rooms.refresh_pool(jax.random.key(1), env, env.default_params, actors, num_steps)
    old = np.asarray(after.starts[1].time) == 7
    assert (~old).sum() == replaced
