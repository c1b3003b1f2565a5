"""Spaces: what agents take, bounds that are none, one-hot observations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces as gymnax_spaces

import jaxrl
from agents.off_policy.sac import SAC
from agents.on_policy.ppo import PPO
from jaxrl import spaces
from tests.probes import Match, Probe

KEY = jax.random.key(0)
HUGE = float(np.finfo(np.float32).max)


def box(low, high, shape=(2,)):
    return gymnax_spaces.Box(low, high, shape)


def test_a_bound_beyond_all_use_is_none():
    """Scaled to +-finfo.max, an action would be infinite or NaN."""
    action = jnp.array([0.25, 3.0])
    for low, high in ((-HUGE, HUGE), (-np.inf, np.inf), (-HUGE, np.inf)):
        np.testing.assert_array_equal(spaces.to_box(box(low, high), action), action)
        np.testing.assert_array_equal(spaces.from_box(box(low, high), action), action)
    np.testing.assert_array_equal(spaces.to_box(box(0.0, HUGE), -action), [0.0, 0.0])
    np.testing.assert_array_equal(spaces.to_box(box(-2.0, 6.0), jnp.array([0.0, 2.0])), [2.0, 6.0])


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_agents_on_unbounded_actions_are_finite_and_say_so_once(cls):
    class Unbounded(Match):
        def action_space(self, params):
            return box(-HUGE, HUGE, (1,))

    spaces._warn_of_bounds.cache_clear()
    env = Unbounded(continuous=True)
    sizes = {"num_envs": 2, "num_steps": 2, "hidden_sizes": (8,), "total_steps": 64}
    sizes |= {"num_minibatches": 2} if cls is PPO else {"learning_starts": 8, "buffer_size": 64}
    with pytest.warns(UserWarning, match="1 action dimensions without finite bounds") as caught:
        agent = cls(env, env.default_params, **sizes)
    assert len(caught) == 1
    state = agent.init(KEY)
    assert np.isfinite(agent.policy(state, deterministic=False)(jnp.ones(1), KEY)).all()
    agent.replace(gamma=0.5)  # warns no more


class Corridor(Probe):
    """Which of three rooms it is in, as a number; the best action differs from room to room."""

    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        state = state.replace(sign=jax.random.randint(key, (), 0, 3).astype(jnp.float32))
        return self.see(state), state

    def see(self, state):
        return state.sign.astype(jnp.int32)

    def reward(self, state, goodness):
        return goodness

    def wanted(self, state):
        return jnp.where(state.sign == 1, -1.0, 1.0)  # not linear in the number

    def observation_space(self, params):
        return gymnax_spaces.Discrete(3)


def test_discrete_observations_enter_networks_as_one_hot_vectors():
    env = Corridor()
    sizes = {"num_envs": 8, "num_steps": 16, "hidden_sizes": (), "num_minibatches": 2}
    agent = PPO(env, env.default_params, total_steps=8192, learning_rate=0.03, **sizes)
    assert agent.obs_shape == (3,)
    run = jaxrl.train(agent)
    act = agent.policy(run.state)
    assert [int(act(jnp.int32(room), KEY)) for room in range(3)] == [1, 0, 1]


def test_bytes_enter_networks_between_0_and_1():
    space = gymnax_spaces.Box(0, 255, (2,), jnp.uint8)
    encoded = spaces.encode(space, jnp.array([0, 255], jnp.uint8))
    np.testing.assert_array_equal(encoded, [0.0, 1.0])
    assert spaces.encode(space, jnp.array([0.0, 255.0])).tolist() == [0.0, 255.0]
