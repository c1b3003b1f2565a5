"""RePPO: the limits of its advantage, its gradient, known answers on probes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.on_policy.reppo import RePPO, retry_advantage
from jaxrl.loops.on_policy import Batch
from jaxrl.parts.retries import expected_maximum
from tests.helpers import assert_close
from tests.probes import CHOICE, GAMMA, MATCH, ActionChoice, any_of, known_answers, settings

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
ROWS, ACTIONS = 6, 4
Q = RNG.normal(size=(ROWS, ACTIONS))
PROBS = RNG.dirichlet(np.ones(ACTIONS), size=ROWS)
ACTION = RNG.integers(0, ACTIONS, ROWS)
RETURNS = 2 * RNG.normal(size=ROWS)


jitted = jax.jit(retry_advantage)


def advantage(attempts, q=Q, probs=PROBS, action=ACTION, returns=RETURNS):
    arrays = [jnp.asarray(x) for x in (q, probs, action, returns)]
    return np.asarray(jitted(*arrays, attempts))


def reppo(env, iterations=150, **changes):
    options = {
        "num_envs": 8,
        "num_steps": 8,
        "num_epochs": 4,
        "num_minibatches": 2,
        "learning_rate": 1e-2,
        "gamma": GAMMA,
        "hidden_sizes": (8,),
        "value_clip_range": float("inf"),
        "entropy_coef": 0.0,
    } | changes
    return RePPO(env, env.default_params, total_steps=64 * iterations, **options)


# The advantage ----------------------------------------------------------------------------------


def released(threshold, q, probs, draws):
    """EI = v_1 + sum_i (v_{i+1} - v_i) (1 - C_i)^m, v_i = (R - q_(i))_+, q in descending order."""
    order = np.argsort(-q)
    v = np.maximum(threshold - q[order], 0)
    mass = np.cumsum(probs[order])
    return v[0] + sum((v[i + 1] - v[i]) * (1 - mass[i]) ** draws for i in range(len(q) - 1))


@pytest.mark.parametrize("attempts", [1.0, 1.2, 2.0, 5.0])
def test_advantage_is_that_of_a_loop(attempts):
    expected = []
    for q, probs, a, returns in zip(Q.copy(), PROBS, ACTION, RETURNS, strict=True):
        q[a] = returns
        worth = [released(x, q, probs, attempts - 1) for x in q]
        expected.append(worth[a] - probs @ worth)
    np.testing.assert_allclose(advantage(attempts), expected, rtol=1e-4, atol=1e-5)


def test_one_attempt_is_the_ordinary_advantage():
    """EI_0 is R - min q: what is left is R - V, with R in place of Q(s, a)."""
    q = Q.copy()
    q[np.arange(ROWS), ACTION] = RETURNS
    ordinary = RETURNS - (PROBS * q).sum(axis=1)
    np.testing.assert_allclose(advantage(1.0), ordinary, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantage(1.0 + 1e-5), ordinary, atol=1e-3)
    assert np.abs(advantage(1.5) - ordinary).max() > 0.1


@pytest.mark.parametrize("attempts", [1.2, 3.0])
def test_expected_gradient_is_that_of_the_best_of_the_attempts(attempts):
    """Where Q is exact, E grad log pi A = grad E max(Q_A1, ..., Q_AM) / M."""
    logits, q = jnp.log(jnp.asarray(PROBS[:1])), jnp.asarray(Q[:1])
    actions = np.arange(ACTIONS)
    of_each = advantage(
        attempts, *(np.repeat(x, ACTIONS, 0) for x in (q, PROBS[:1])), actions, q[0]
    )

    def surrogate(logits):
        return (PROBS[0] * jax.nn.log_softmax(logits)[0] * of_each).sum()

    def objective(logits):
        return expected_maximum(q, jax.nn.softmax(logits), attempts)[0] / attempts

    expected = jax.grad(objective)(logits)
    np.testing.assert_allclose(jax.grad(surrogate)(logits), expected, rtol=1e-4, atol=1e-5)


# The update -------------------------------------------------------------------------------------


def test_first_gradient_is_the_policy_gradient_and_that_of_q():
    agent = reppo(ActionChoice(), attempts=2.0, value_coef=0.5)
    params = agent.init(KEY).params
    obs = jnp.asarray(RNG.normal(size=(16, 1)), jnp.float32)
    dist = agent.distribution(params, obs)
    action = dist.sample(KEY)
    numbers = [jnp.asarray(RNG.normal(size=16), jnp.float32) for _ in range(3)]
    plain = Batch(obs, action, dist.log_prob(action), *numbers)
    batch = agent.with_retries(params, plain)

    q = np.asarray(agent.q_values(params, obs))
    probs = np.asarray(jax.nn.softmax(dist.logits))
    taken = np.arange(16), np.asarray(action)
    np.testing.assert_allclose(batch.value, q[taken])
    np.testing.assert_allclose(agent.value(params, obs), (probs * q).sum(axis=1), rtol=1e-5)
    raw = advantage(2.0, q, probs, np.asarray(action), np.asarray(plain.target))
    np.testing.assert_allclose(
        batch.advantage, (raw - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-5
    )

    def vanilla(params):
        log_prob = agent.distribution(params, obs).log_prob(action)
        error = agent.q_values(params, obs)[taken] - batch.target
        return -(log_prob * batch.advantage).mean() + 0.5 * 0.5 * (error**2).mean()

    gradient, metrics = jax.jit(jax.grad(agent.loss, has_aux=True))(params, batch)
    assert metrics["clip_fraction"] == 0
    assert_close(gradient, jax.jit(jax.grad(vanilla))(params), 1e-6)


def test_continuous_actions_are_refused():
    with pytest.raises(ValueError, match="reppo") as refusal:
        reppo(ActionChoice(continuous=True))
    assert len(str(refusal.value).splitlines()) == 1
    assert "discrete" in str(refusal.value)


# Known answers ----------------------------------------------------------------------------------

PROBES = known_answers()


@pytest.fixture(scope="module")
def population():
    """A member for each probe, all in one program."""
    agent = reppo(any_of(PROBES), iterations=300, entropy_coef=0.001, attempts=1.2)
    return jaxrl.sweep(agent, settings(PROBES))


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(PROBES)))
def test_values_reach_the_known_answer(population, i):
    run, observations = population[i], jnp.asarray(PROBES[i].observations)[:, None]
    actual = run.agent.value(run.state.params, observations)
    np.testing.assert_allclose(actual, np.max(PROBES[i].q, axis=1), rtol=0.01, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("i", [CHOICE, MATCH])
def test_policy_finds_the_best_action(population, i):
    run = population[i]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))
