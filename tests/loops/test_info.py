"""What an environment reports in `info`: summed over episodes, in training and in evaluations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
import jaxrl
from agents.off_policy.sac import SAC
from agents.on_policy.ppo import PPO
from jaxrl.parts.rollout import reset, rollout
from tests.helpers import Toy
from tests.probes import Probe

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(3)
N, T = 6, 9
RESETS = ("fresh", "pool", "cached")


class Costly(Probe):
    """Lasts 2 or 4 steps, as its reset draws; step k costs k, and "even" tells if k is even."""

    def __init__(self, resets="fresh", continuous=False):
        super().__init__(continuous)
        self.resets, self.pool_size = resets, 8

    def step_env(self, key, state, action, params):
        obs, after, reward, _, _ = super().step_env(key, state, action, params)
        info = {
            "cost": after.time.astype(jnp.float32) + params.bonus,
            "even": after.time % 2 == 0,  # a bool, as many environments report success
            "distances": jnp.ones(3),
        }
        return obs, after, reward, after.time >= 3 + after.sign, info


ENVS = {resets: Costly(resets) for resets in RESETS}
RECORD = ("even", "cost")


@partial(jax.jit, static_argnums=0)
def two_rollouts(env, params):
    actors = reset(KEY, env, params, N, RECORD)

    def act(obs, key):
        return jnp.zeros(N, int), jnp.zeros(N, int), ()

    def one(actors, key):
        actors, steps, episodes = rollout(key, env, params, actors, act, T)
        return actors, (steps, episodes, episodes.metrics())

    return jax.lax.scan(one, actors, jax.random.split(KEY))


@pytest.mark.parametrize("resets", RESETS)
def test_sums_of_episodes_against_a_loop(resets):
    params = ENVS[resets].default_params
    for limit in (100, 3):
        params = params.replace(max_steps_in_episode=limit)
        actors, results = two_rollouts(ENVS[resets], params)
        time, so_far = np.zeros(N), {"cost": np.zeros(N), "even": np.zeros(N)}
        for i in range(2):
            steps, episodes, metrics = jax.tree.map(lambda x, i=i: np.asarray(x[i]), results)
            assert (steps.truncated.any(), steps.terminated.any()) == (limit == 3, True)
            sums, ended = {"cost": np.zeros(N), "even": np.zeros(N)}, 0
            for t in range(T):
                time += 1
                done = steps.terminated[t] | steps.truncated[t]
                ended += done.sum()
                for name, value in (("cost", time), ("even", time % 2 == 0)):
                    assert steps.info[name].dtype == np.float32
                    np.testing.assert_array_equal(steps.info[name][t], value)
                    so_far[name] = so_far[name] + value
                    sums[name] += np.where(done, so_far[name], 0)
                    so_far[name] = np.where(done, 0, so_far[name])
                time = np.where(done, 0, time)
            for name in RECORD:
                np.testing.assert_array_equal(episodes.info[name], sums[name])
                expected = sums[name].sum() / ended
                assert metrics[f"episode_{name}"] == pytest.approx(expected, rel=1e-6)
        for name in RECORD:
            np.testing.assert_array_equal(actors.episode_info[name], so_far[name])


@pytest.mark.parametrize("resets", RESETS)
def test_evaluations_sum_what_is_recorded(resets):
    agent = Toy(ENVS[resets], ENVS[resets].default_params, record=RECORD)
    result = jaxrl.evaluate(agent, agent.init(KEY), KEY, episodes=40)
    assert set(np.asarray(result.lengths)) == {2, 4}
    assert result.info.keys() == set(RECORD)
    np.testing.assert_array_equal(result.info["cost"], np.where(result.lengths == 2, 3, 10))
    np.testing.assert_array_equal(result.info["even"], result.lengths / 2)


def small(cls, record=(), **options):
    env = Costly(continuous=cls is SAC)
    tiny = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (4,), "total_steps": 128} | options
    return cls(env, env.default_params, record=record, **tiny)


def agents(record=()):
    """One of each loop; SAC's learning is put off, as only its environments matter here."""
    return (
        small(PPO, record, num_minibatches=2, num_epochs=1),
        small(SAC, record, buffer_size=128, learning_starts=128, batch_size=4, num_updates=1),
    )


@pytest.mark.parametrize("agent", agents(), ids=lambda agent: agent.name)
def test_agents_show_what_they_are_asked_to_record(agent):
    def names(agent):
        metrics = jax.eval_shape(lambda key: agent.step(agent.init(key), 0)[1], KEY)
        return {name for name in metrics if name.startswith("episode")}

    usual = {"episodes", "episode_return", "episode_length"}
    assert names(agent) == usual
    assert names(agent.replace(record=("cost",))) == {*usual, "episode_cost"}


@pytest.mark.slow
@pytest.mark.parametrize("agent", agents(("cost",)), ids=lambda agent: agent.name)
def test_a_sweep_records(agent):
    """An episode of 2 steps costs 3, one of 4 steps 10; members with a bonus pay it at each."""
    population = jaxrl.sweep(agent, {"env.bonus": [0.0, 5.0]}, seeds=2)
    metrics = population.history.metrics
    assert metrics["episode_cost"].shape == (4, agent.num_iterations)
    bonus = np.array([[row["env.bonus"]] for row in population.table])
    expected = (3.5 + bonus) * metrics["episode_length"] - 4
    np.testing.assert_allclose(metrics["episode_cost"], expected, rtol=1e-5)
    result = population.evaluate(episodes=16)
    expected = (3.5 + bonus) * result.lengths - 4
    np.testing.assert_allclose(result.info["cost"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (("cost", "costs"), "costs"),
        (("distances",), "distances"),  # three numbers per step
        (("discount",), "discount"),
        (("terminated",), "terminated"),
    ],
)
@pytest.mark.parametrize("resets", RESETS)
def test_unknown_names_are_refused(resets, record, name):
    env = ENVS[resets]
    line = f"^toy: record={name!r} is not a number in the info of Costly; it has cost, even$"
    with pytest.raises(ValueError, match=line):
        Toy(env, env.default_params).replace(record=record)


def test_an_environment_that_reports_nothing_says_so():
    env = Probe()
    with pytest.raises(ValueError, match=r"is not a number in the info of Probe; it has none$"):
        Toy(env, env.default_params, record=("cost",))


@pytest.mark.slow
def test_brax_hands_on_its_metrics():
    """Reacher's two rewards are recorded apart, and their sum is the return."""
    env, params = envs_jax.make("brax/reacher")
    parts = ("reward_dist", "reward_ctrl")
    params = params.replace(max_steps_in_episode=jnp.int32(20))
    agent = SAC(env, params, record=parts, hidden_sizes=(4,), buffer_size=16)
    state = jax.jit(agent.init)(KEY)
    result = jaxrl.evaluate(agent, state, KEY, episodes=2, deterministic=False)
    total = result.info["reward_dist"] + result.info["reward_ctrl"]
    np.testing.assert_allclose(total, result.returns, rtol=1e-4)
    assert (result.info["reward_dist"] < 0).all()
    assert (result.info["reward_ctrl"] < 0).all()
    with pytest.raises(ValueError, match=r"is not a number in the info of .*reward_ctrl, reward_d"):
        agent.replace(record=("reward_distance",))
