"""gymnasium/: environments of the host, stepped from within a program."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import envs_jax
import jaxrl
from agents.on_policy.ppo import PPO
from envs_jax import gymnasium_envs
from tests.envs_jax.test_envs import check_time_limit, rollout, row, types

CARTPOLE = "gymnasium/CartPole-v1"


class Count(gymnasium.Env):
    """Counts steps and shows the seed of its episode; ends at 3 by `ends`, else never."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2, start=5)

    def __init__(self, ends="terminated"):
        self.ends = ends

    def reset(self, seed=None, options=None):
        self.count, self.seed = 0, seed
        return np.array([0.0, seed]), {}

    def step(self, action):
        assert action in (5, 6)
        self.count += 1
        over = self.count == 3
        obs = np.array([float(self.count), self.seed])
        return obs, float(action), over and self.ends == "terminated", over, {}


gymnasium.register("Count-v0", Count, max_episode_steps=100)
COUNT = "gymnasium/Count-v0"


@pytest.fixture(scope="module")
def run():
    """Random steps of 3 environments, jitted: arrays (environments, steps, ...)."""

    @jax.jit
    def cartpole(key, params):
        keys = jax.random.split(key, 3)
        return jax.vmap(rollout, in_axes=(None, 0, None, None))(env, keys, params, 60)

    env, params = envs_jax.make(CARTPOLE)
    return lambda key, limit: jax.tree.map(
        np.asarray, cartpole(key, params.replace(max_steps_in_episode=jnp.int32(limit)))
    )


@pytest.mark.parametrize("id", [CARTPOLE, "gymnasium/Pendulum-v1", "gymnasium/FrozenLake-v1"])
def test_catalogue(id):
    env, params = envs_jax.make(id)
    assert envs_jax.make(id)[0] is env
    assert env.name == id
    assert envs_jax.describe(id) == row(id, env, params)
    key = jax.random.key(0)
    obs, state = jax.eval_shape(env.reset, key, params)
    action = env.action_space(params).sample(key)
    after, stepped, reward, *flags, info = jax.eval_shape(env.step, key, state, action, params)
    assert types(obs) == types(after) == types(info["final_observation"])
    assert types(state) == types(stepped)
    space = env.observation_space(params)
    assert (obs.shape, obs.dtype) == (space.shape, space.dtype)
    assert [(x.shape, x.dtype) for x in (reward, *flags)] == [
        ((), jnp.float32),
        ((), jnp.bool),
        ((), jnp.bool),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "id", [id for id in envs_jax.list_envs() if id.startswith("gymnasium/") and "-v5" in id]
)
def test_catalogue_of_mujoco(id):
    pytest.importorskip("imageio")  # gymnasium[mujoco] brings it
    env, params = envs_jax.make(id)
    assert envs_jax.describe(id) == row(id, env, params)
    obs, state = env.reset(jax.random.key(0), params)
    action = env.action_space(params).sample(jax.random.key(1))
    obs, state, reward, *_ = env.step(jax.random.key(2), state, action, params)
    assert np.isfinite(obs).all()
    assert np.isfinite(reward)


def test_cartpole_is_gymnax_s_step_by_step():
    """From the same state, with the same actions, until and including the ends of episodes."""
    ours, params = envs_jax.make("CartPole-v1")
    step = jax.jit(ours.step_env)
    env, _ = envs_jax.make(CARTPOLE)
    host_step = jax.jit(jax.vmap(env.step))
    obs, host = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2))
    _, state = ours.reset(jax.random.key(0), params)
    ends = 0
    for t in range(40):
        action = jax.random.randint(jax.random.key(t), (2,), 0, 2)
        expected = [
            step(jax.random.key(0), _cartpole(state, x, host.time[i]), action[i], params)
            for i, x in enumerate(obs)
        ]
        keys = jax.random.split(jax.random.key(t), 2)
        obs, host, reward, terminated, truncated, info = host_step(keys, host, action)
        for i, (final, _, their_reward, their_end, _) in enumerate(expected):
            np.testing.assert_allclose(info["final_observation"][i], final, rtol=1e-4, atol=1e-6)
            assert (reward[i], bool(terminated[i])) == (their_reward, bool(their_end))
        assert not truncated.any()
        ends += int(terminated.sum())
    assert ends


def _cartpole(state, obs, time):
    x, x_dot, theta, theta_dot = obs
    return state.replace(x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot, time=time)


def test_time_limits_are_traced_and_truncate(run):
    for limit in (500, 7):
        data = run(jax.random.key(1), limit)
        check_time_limit(data, limit)
        done = data["terminated"] | data["truncated"]
        assert done.any()
        starts = data["after"][done]
        assert (np.abs(starts) <= 0.05).all()  # a new episode
        moved = np.abs(data["final"][done]).max(axis=-1)
        assert (moved > 0.05).all()  # the last observation of the old one


def test_seeds_follow_from_the_key(run):
    one, again, other = (run(jax.random.key(k), 50) for k in (2, 2, 3))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert not np.allclose(one["before"][:, 0], other["before"][:, 0])
    begins = np.concatenate([one["before"][:, 0], one["after"][one["terminated"]]])
    assert len(np.unique(begins, axis=0)) == len(begins)  # each episode has a seed of its own


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_ends_of_the_environment_s_own(ends):
    env, params = envs_jax.make(COUNT, ends=ends)
    data = jax.jit(lambda key: rollout(env, key, params, 7))(jax.random.key(0))
    np.testing.assert_array_equal(data["final"][:, 0], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(data["after"][:, 0], [1, 2, 0, 1, 2, 0, 1])
    seeds = data["after"][:, 1]
    assert len(np.unique(seeds)) == 3
    over = np.arange(7) % 3 == 2
    np.testing.assert_array_equal(data["truncated"], over)
    np.testing.assert_array_equal(data["terminated"], over & (ends == "terminated"))
    assert set(data["reward"].tolist()) <= {5.0, 6.0}


def test_batches_are_kept_apart_and_a_lost_one_begins_anew():
    env, params = envs_jax.make(COUNT, ends="truncated")
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, None, None)))
    keys = jax.random.split(jax.random.key(5), 2)

    def after(state):
        obs, state, *_ = step(keys, state, jnp.array(0), params)
        return obs[:, 0].tolist(), state

    _, one = jax.vmap(env.reset)(keys)
    _, two = jax.vmap(env.reset)(jax.random.split(jax.random.key(6), 2))
    assert after(one)[0] == [1, 1]
    assert after(one)[0] == [2, 2]
    assert after(two)[0] == [1, 1]
    for number in range(gymnasium_envs.BATCHES):
        env.reset(jax.random.key(number), params)
    assert len(env._batches) == gymnasium_envs.BATCHES
    assert after(one)[0] == [1, 1]


def test_environments_are_stepped_together():
    env, params = envs_jax.make(COUNT)
    _, state = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))
    first = jax.tree.map(lambda x: x[0], state)
    with pytest.raises(Exception, match="stepped together"):
        jax.block_until_ready(jax.jit(env.step)(jax.random.key(0), first, jnp.array(0), params))


@pytest.mark.slow
def test_trains_one_member_after_the_other():
    env, params = envs_jax.make(CARTPOLE)
    agent = PPO(env, params, total_steps=64, num_envs=2, num_steps=16, num_minibatches=2)
    population = jaxrl.sweep(agent, seeds=2, evaluations=1, episodes=2)
    returns = population.history.evaluations["returns"]
    assert returns.shape[0] == 2
    assert (returns > 5).all()
    again = jaxrl.train(agent, seed=1, evaluations=1, episodes=2)
    np.testing.assert_array_equal(again.history.evaluations["returns"], returns[1])


def test_populations_are_refused():
    env, params = envs_jax.make(CARTPOLE)
    agent = PPO(env, params, total_steps=64, num_envs=2, num_steps=16, num_minibatches=2)
    for arguments in ({"batch_size": 2}, {"data_parallel": True}):
        with pytest.raises(ValueError, match="one member at a time") as error:
            jaxrl.sweep(agent, seeds=2, **arguments)
        assert "\n" not in str(error.value)
    keys = jax.random.split(jax.random.key(0), (3, 2))
    with pytest.raises(ValueError, match="no population of 3"):
        jax.eval_shape(jax.vmap(jax.vmap(env.reset)), keys)
    obs, _ = jax.vmap(jax.vmap(env.reset))(keys[:1])
    np.testing.assert_array_equal(obs[0], jax.vmap(env.reset)(keys[0])[0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartPole-v7", {}, "CartPole-v7"),
        ("no_such_module:Env-v0", {}, "no_such_module"),
        ("CartPole-v1", {"resets": "pool"}, "unknown option 'resets'"),
        ("CartPole-v1", {"sutton": True}, "sutton_barto_reward"),
        ("Choices-v0", {}, "agents do not take its actions"),
    ],
)
def test_errors_are_one_line(name, options, message):
    if name == "Choices-v0":
        gymnasium.register(name, Choices)
    with pytest.raises(ValueError, match=message) as error:
        envs_jax.make(f"gymnasium/{name}", **options)
    assert "\n" not in str(error.value)


class Choices(Count):
    action_space = spaces.MultiDiscrete([2, 3])


def test_nested_observations_are_flattened():
    env, params = envs_jax.make("gymnasium/Blackjack-v1")
    obs, _ = env.reset(jax.random.key(0), params)
    assert obs.shape == (32 + 11 + 2,)
    assert obs.sum() == 3
