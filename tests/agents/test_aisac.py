"""AISAC: its gradient by enumeration and quadrature, its fit, its limits, known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.on_policy.aisac import AISAC, Batch
from jaxrl.parts.active_sampling import limited, moved, weighted_moments
from jaxrl.parts.distributions import Normal
from jaxrl.parts.rollout import Transition
from tests.helpers import assert_close
from tests.probes import (
    GAMMA,
    MATCH,
    ActionChoice,
    AnyOf,
    ConstantReward,
    Match,
    TwoSteps,
    any_of,
    known_answers,
    settings,
)

KEY = jax.random.key(0)


def aisac(env, iterations=300, **changes):
    options = {
        "num_envs": 8,
        "num_steps": 8,
        "learning_rate": 1e-2,
        "critic_learning_rate": 1e-2,
        "gamma": GAMMA,
        "hidden_sizes": (8,),
    } | changes
    return AISAC(env, env.default_params, total_steps=64 * iterations, **options)


def scattered(tree, scale=0.5):
    """Parameters moved at random: the active policy is not the policy any more."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(KEY, len(leaves))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [x + n for x, n in zip(leaves, noise, strict=True)])


# The gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("continuous", [False, True])
def test_the_expected_gradient_is_that_of_the_policy(continuous):
    """Over q of all actions at one observation: E_q[(pi/q) A grad log pi] = E_pi[A grad log pi]."""
    agent = aisac(ActionChoice(continuous), max_kl=0.3, hidden_sizes=(4,))
    params = jax.jit(lambda key: scattered(agent.init_params(key, jnp.zeros(1))))(KEY)
    if continuous:
        action = jnp.linspace(-9, 9, 4001)[:, None]
        step = float(action[1, 0] - action[0, 0])
    else:
        action, step = jnp.arange(2), 1.0
    advantage = jnp.sin(3.0 * action.reshape(len(action))) + 0.7
    obs = jnp.full((len(action), 1), 0.4)

    @jax.jit
    def both(params):
        mixture = agent.behaviour(params, obs)
        own, log_q = mixture.policy.log_prob(action), mixture.log_prob(action)
        # The loss is a mean over its batch: each action counts by q here.
        share = jnp.exp(log_q) * step * len(action)
        batch = Batch(obs, action, log_q, 0 * log_q, share * advantage, 0 * log_q)

        def gain(policy):
            log_prob = agent.distribution({"policy": policy}, obs).log_prob(action)
            return -(jnp.exp(own) * step * advantage * log_prob).sum()

        apart = jnp.abs(own - log_q).max()
        policy = params["policy"]
        return jax.grad(agent.policy_loss)(policy, batch), jax.grad(gain)(policy), apart

    actual, expected, apart = both(params)
    assert apart > 0.1
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 0.02
    assert_close(actual, expected, 1e-5)


def test_targets_are_values_of_the_policy():
    """Of one step's reward, by quadrature over q: E_q[target] = E_pi[r], whatever V is."""
    agent = aisac(ActionChoice(continuous=True), max_kl=0.3, hidden_sizes=(4,))
    action = jnp.linspace(-9, 9, 4001)[:, None]
    obs, reward = jnp.full((len(action), 1), 0.4), jnp.sin(3 * action[:, 0]) + action[:, 0]

    @jax.jit
    def expectations(key):
        params = scattered(agent.init_params(key, jnp.zeros(1)))
        mixture = agent.behaviour(params, obs)
        log_q = mixture.log_prob(action)
        done = jnp.ones((1, len(action)), bool)
        kept = {"log_prob": log_q[None]}
        row = Transition(obs[None], action[None], reward[None], done, ~done, obs[None], kept)
        values = jnp.full((1, len(action)), 0.7)
        advantage, target = agent.estimate(params, obs[None], row, row.reward, values, values)
        densities = jnp.exp(jnp.stack([mixture.policy.log_prob(action), log_q]))
        weights = (action[1] - action[0]) * densities
        return weights @ reward, weights[1] @ target[0], advantage[0] - (reward - 0.7)

    (of_policy, of_mixture), actual, error = expectations(KEY)
    assert abs(of_policy - of_mixture) > 0.05
    assert actual == pytest.approx(float(of_policy), abs=1e-4)
    np.testing.assert_allclose(error, 0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"defensive": 1.0}, {"max_kl": 0.0}])
def test_without_active_samples_it_is_an_actor_critic(limit):
    agent = aisac(ActionChoice(continuous=True), hidden_sizes=(4,), iterations=2, **limit)

    @jax.jit
    def step(agent, key):
        state = agent.init(key)
        return agent.step(state._replace(params=scattered(state.params)), jnp.int32(0))[1]

    metrics = step(agent, KEY)
    assert metrics["effective_samples"] == pytest.approx(1, abs=1e-5)
    assert metrics["variance_ratio"] == pytest.approx(1, abs=1e-5)
    other = step(agent.replace(defensive=0.1, max_kl=0.5), KEY)
    assert other["effective_samples"] < 0.99
    assert other["active_kl"] > 0.01


# The active policy ------------------------------------------------------------------------------


def test_the_fit_is_the_weighted_maximum_likelihood():
    """Gradient steps on the cross-entropy arrive where the closed form is."""
    agent = aisac(ActionChoice(continuous=True), fit="moments")
    rng = np.random.default_rng(0)
    obs, action = jnp.asarray(rng.normal(size=(2, 40, 1)), jnp.float32)
    weight = jnp.asarray(rng.exponential(size=40), jnp.float32)

    @jax.jit
    def gradients(key):
        policy = agent.distribution(scattered(agent.init_params(key, jnp.zeros(1))), obs)
        batch = Batch(obs, action, *[weight] * 4)
        fitted = weighted_moments(policy, action, weight)
        of = jax.grad(agent.cross_entropy)
        return of(fitted, policy, batch, weight), of(fitted + 0.1, policy, batch, weight)

    there, elsewhere = gradients(KEY)
    np.testing.assert_allclose(there, 0, atol=1e-5)
    assert (elsewhere > 0.01).all()


def test_a_network_arrives_at_the_best_density():
    """Reward a: twice as wide as the policy, not shifted; by quadrature its deviation is 1.922."""
    agent = aisac(
        ConstantReward(continuous=True),
        hidden_sizes=(),
        learning_rate=1e-9,  # the policy stays
        active_learning_rate=0.05,
        active_updates=300,
    )
    obs, action = jnp.ones((4096, 1)), 1.5 * jax.random.normal(KEY, (4096, 1))

    @jax.jit
    def fit(key):
        params = agent.init_params(key, jnp.zeros(1))
        policy = agent.distribution(params, obs)
        log_q = Normal(0 * action, jnp.full(1, jnp.log(1.5))).log_prob(action)
        zeros = jnp.zeros(len(action))
        batch = Batch(obs, action, log_q, zeros, action[:, 0], zeros)
        opt_state = agent.init_optimizer(params)
        learnt, _, metrics = agent.improve(params, opt_state, batch, key, 0.0)
        ratio = jnp.exp(policy.log_prob(action) - log_q)
        z = action - policy.mean
        size = jnp.abs(action[:, 0]) * jnp.hypot(z, z**2 - 1)[:, 0]
        expected = weighted_moments(policy, action, ratio * size)
        return agent.residual(learnt["active"], obs[0]), expected, metrics

    residual, expected, metrics = fit(KEY)
    np.testing.assert_allclose(residual, expected, atol=0.01)
    assert np.exp(residual[1]) == pytest.approx(1.922, abs=0.06)
    assert abs(residual[0]) < 0.15
    assert 0.1 < metrics["variance_ratio"] < 0.5  # q is 1.5 times as wide already
    assert metrics["active_kl"] == 0  # of the active policy that collected: it was the policy


@pytest.mark.slow
def test_the_limit_on_the_divergence_is_held_in_a_run():
    """However fast the active policy is fitted; and ratios stay below 10."""
    changes = {"active_learning_rate": 0.5, "active_updates": 4, "max_kl": 0.05}
    agent = aisac(Match(continuous=True), hidden_sizes=(4,), iterations=20, **changes)
    run = jaxrl.train(agent)
    obs = jnp.linspace(-3, 3, 61)[:, None]

    @jax.jit
    def kl(params):
        policy = agent.distribution(params, obs)
        residual = agent.residual(params["active"], obs)
        return [f.kl(policy) for f in (limited(policy, residual, 0.05), moved(policy, residual))]

    held, free = kl(run.state.params)
    assert (held <= 0.05 + 1e-6).all()
    assert free.max() > 0.1
    assert (run.history.metrics["active_kl"] <= 0.05 + 1e-6).all()


def test_what_does_not_fit_is_refused():
    discrete, continuous = ActionChoice(), ActionChoice(continuous=True)
    with pytest.raises(ValueError, match=r"^aisac: fit='moments' needs continuous actions, but"):
        aisac(discrete, fit="moments")
    with pytest.raises(ValueError, match=r"^aisac: active_updates=3 has no effect with fit=moment"):
        aisac(continuous, fit="moments", active_updates=3)
    with pytest.raises(ValueError, match=r"^aisac: defensive=1.5 is outside \[0, 1\]$"):
        aisac(discrete, defensive=1.5)


# Known answers ----------------------------------------------------------------------------------

PROBES = known_answers()


@pytest.fixture(scope="module")
def population():
    """A member for each probe, all in one program."""
    return jaxrl.sweep(aisac(any_of(PROBES), iterations=800), settings(PROBES))


def values(run, observations):
    return run.agent.value(run.state.params, jnp.asarray(observations)[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(PROBES)))
def test_values_reach_the_known_answer(population, i):
    actual = values(population[i], PROBES[i].observations)
    np.testing.assert_allclose(actual, np.max(PROBES[i].q, axis=1), rtol=0.02, atol=0.1)


@pytest.mark.slow
def test_policy_finds_the_best_action(population):
    run = population[MATCH]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["network", "moments"])
def test_continuous_policy_finds_the_best_action(fit):
    """The best actions of the last two are 1.5, and half of the observation, in [-2, 2]."""
    probes = [cls(continuous=True) for cls in (TwoSteps, ActionChoice, Match)]
    agent = aisac(AnyOf(*probes), iterations=600, fit=fit)
    population = jaxrl.sweep(agent, {"env.which": [0, 1, 2]})
    np.testing.assert_allclose(values(population[0], [0.0, 1.0]), [GAMMA, 1], atol=0.05)
    best = population.evaluate(episodes=32)
    np.testing.assert_allclose(best.returns[1:], np.zeros((2, 32)), atol=0.15)
