"""PQN: known answers on probes, Q* of a table, behaviour, schedules."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.value_based.pqn import PQN
from jaxrl.loops.q_lambda import Batch
from jaxrl.parts.distributions import epsilon_greedy
from tests.probes import (
    GAMMA,
    MATCH,
    Chain,
    ConstantReward,
    ObsValue,
    any_of,
    known_answers,
    settings,
)

KEY = jax.random.key(0)


def pqn(env, iterations=300, **changes):
    options = {
        "num_envs": 8,
        "num_steps": 8,
        "num_epochs": 4,
        "num_minibatches": 2,
        "learning_rate": 1e-2,
        "gamma": GAMMA,
        "hidden_sizes": (16,),
        "epsilon_fraction": 0.5,
    } | changes
    return PQN(env, env.default_params, total_steps=64 * iterations, **options)


def q_values(run, observations):
    return run.agent.q_values(run.state.params, jnp.asarray(observations)[:, None])


PROBES = known_answers()


@pytest.fixture(scope="module")
def population():
    """A member for each probe, and the first again with smaller rewards, all in one program."""
    agent = pqn(any_of(PROBES), iterations=600)
    return jaxrl.sweep(agent, [*settings(PROBES), {"env.which": 0, "reward_scale": 0.1}])


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(PROBES)))
def test_q_reaches_the_known_answer(population, i):
    actual = q_values(population[i], PROBES[i].observations)
    np.testing.assert_allclose(actual, PROBES[i].q, rtol=0.01, atol=0.05)


def test_reward_scale_scales_q(population):
    run = population[len(PROBES)]
    np.testing.assert_allclose(q_values(run, [1.0]), [[0.1, 0.1]], atol=0.01)
    assert (run.history.metrics["episode_return"] == 1).all()  # what is reported is not scaled


@pytest.mark.slow
def test_greedy_policy_finds_the_best_action(population):
    run = population[MATCH]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))
    noisy = run.agent.replace(epsilon_end=1.0)
    sampled = jaxrl.evaluate(noisy, run.state, KEY, episodes=256, deterministic=False)
    assert abs(sampled.returns.mean()) < 0.2


def test_epsilon_follows_its_schedule(population):
    """From 1 to 0.05 over the first half of 600 iterations."""
    expected = np.maximum(1 - 0.95 * np.arange(600) / 300, 0.05)
    np.testing.assert_allclose(population.history.metrics["epsilon"][0], expected, rtol=1e-4)


@pytest.mark.slow
def test_a_table_reaches_the_optimal_q():
    """One-hot observations and no hidden layer are a table; one-step targets are Q-learning's."""
    env = Chain()
    options = {"hidden_sizes": (), "q_lambda": 0.0, "epsilon_end": 1.0}
    run = jaxrl.train(pqn(env, iterations=1000, **options))
    optimal = np.zeros((env.size, 2))
    for _ in range(200):  # value iteration
        best = optimal.max(1)
        optimal[:, 0] = GAMMA * best[np.maximum(np.arange(env.size) - 1, 0)]
        optimal[:, 1] = np.append(GAMMA * best[1:], 1.0)
    actual = run.agent.q_values(run.state.params, jnp.eye(env.size))
    np.testing.assert_allclose(actual, optimal, atol=0.01)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    q = jnp.broadcast_to(jnp.array([0.0, 3.0, 1.0, 2.0]), (40_000, 4))
    actions = np.asarray(epsilon_greedy(KEY, q, epsilon))
    expected = np.full(4, epsilon / 4)
    expected[1] += 1 - epsilon
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / 40_000, expected, atol=0.01)


def test_learning_rate_follows_its_schedule():
    agent = pqn(ConstantReward(), learning_rate=0.5)

    def step_size(agent, progress):
        """Of RAdam's first update of one number, which is plain momentum: the rate itself."""
        params = jnp.zeros(())
        optimizer = agent.optimizer(progress)
        return -float(optimizer.update(jnp.ones(()), optimizer.init(params))[0])

    rates = [step_size(agent, p) for p in (0.0, 0.5, 0.9)]
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.05], rtol=1e-4)
    rates = [step_size(agent.replace(learning_rate_end=0.5), p) for p in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(rates, [0.5, 0.375, 0.25], rtol=1e-4)


def test_loss_is_half_the_mean_squared_error_of_the_chosen_action():
    agent = pqn(ObsValue())
    params = jax.jit(agent.init)(KEY).params
    rng = np.random.default_rng(0)
    obs, target = rng.normal(size=(12, 1)).astype("f"), rng.normal(size=12).astype("f")
    action = rng.integers(2, size=12)
    loss = jax.jit(agent.loss)(params, Batch(obs, action, target))
    chosen = np.asarray(agent.q_values(params, obs))[np.arange(12), action]
    assert loss == pytest.approx(0.5 * np.mean((chosen - target) ** 2), rel=1e-5)


def test_continuous_actions_are_refused():
    env, params = gymnax.make("Pendulum-v1")
    with pytest.raises(ValueError, match=r"^pqn needs discrete actions, but Pendulum.* has cont"):
        PQN(env, params)
