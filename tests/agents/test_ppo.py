"""PPO: known answers on probes, its loss term by term, normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.on_policy.ppo import PPO, Batch
from tests.helpers import assert_close, assert_same
from tests.probes import (
    CHOICE,
    GAMMA,
    MATCH,
    ActionChoice,
    AnyOf,
    ConstantReward,
    Match,
    ObsValue,
    TwoSteps,
    any_of,
    known_answers,
    settings,
)

KEY = jax.random.key(0)
INF = float("inf")


def ppo(env, iterations=150, **changes):
    options = {
        "num_envs": 8,
        "num_steps": 8,
        "num_epochs": 4,
        "num_minibatches": 2,
        "learning_rate": 1e-2,
        "gamma": GAMMA,
        "hidden_sizes": (8,),
        "value_clip_range": INF,
        "entropy_coef": 0.0,
    } | changes
    return PPO(env, env.default_params, total_steps=64 * iterations, **options)


def values(run, observations):
    return run.agent.value(run.state.params, jnp.asarray(observations)[:, None])


PROBES = known_answers()


@pytest.fixture(scope="module")
def population():
    """A member for each probe, all in one program."""
    agent = ppo(any_of(PROBES), iterations=300, entropy_coef=0.001)
    return jaxrl.sweep(agent, settings(PROBES))


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(PROBES)))
def test_values_reach_the_known_answer(population, i):
    actual = values(population[i], PROBES[i].observations)
    np.testing.assert_allclose(actual, np.max(PROBES[i].q, axis=1), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("i", [CHOICE, MATCH])
def test_policy_finds_the_best_action(population, i):
    run = population[i]
    best = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32)
    np.testing.assert_array_equal(best.returns, np.ones(32))
    sampled = jaxrl.evaluate(run.agent, run.state, KEY, episodes=32, deterministic=False)
    assert sampled.returns.mean() > 0.9


def test_what_is_not_normalised_has_no_statistics(population):
    state = population[0].state
    assert state.obs_moments.seen == 0
    assert state.reward_scale.moments.seen == 0


@pytest.mark.slow
def test_continuous_policy_finds_the_best_action():
    """The best actions of the last two are 1.5, and half of the observation, in [-2, 2]."""
    probes = [cls(continuous=True) for cls in (TwoSteps, ActionChoice, Match)]
    population = jaxrl.sweep(ppo(AnyOf(*probes), iterations=250), {"env.which": [0, 1, 2]})
    np.testing.assert_allclose(values(population[0], [0.0, 1.0]), [GAMMA, 1], atol=0.05)
    best = population.evaluate(episodes=32)
    np.testing.assert_allclose(best.returns[1:], np.zeros((2, 32)), atol=0.1)
    for i in (1, 2):
        assert jnp.exp(population[i].state.params["log_std"]).item() < 0.5


def test_actions_are_clipped_and_scaled_at_the_environment():
    agent = ppo(ActionChoice(continuous=True))
    action = jnp.array([[-3.0], [-1.0], [0.25], [1.0], [9.0]])
    np.testing.assert_allclose(agent.env_action(action)[:, 0], [-2, -2, 0.5, 2, 2])


# The loss ---------------------------------------------------------------------------------------


def minibatch(agent, size=16):
    """Random observations and advantages; actions and their log-probability from the policy."""
    state = agent.init(KEY)
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(size, 1)), jnp.float32)
    dist = agent.distribution(state.params, obs)
    action = dist.sample(KEY)
    numbers = [jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(3)]
    return state.params, Batch(obs, action, dist.log_prob(action), *numbers)


@pytest.mark.parametrize("kind", ["discrete", "normal", "beta"])
def test_first_gradient_is_the_vanilla_policy_gradient(kind):
    options = {"action_distribution": "beta"} if kind == "beta" else {}
    agent = ppo(ActionChoice(kind != "discrete"), value_coef=0.0, **options)
    params, batch = minibatch(agent)
    advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()

    def vanilla(params):
        log_prob = agent.distribution(params, batch.obs).log_prob(batch.action)
        return -(log_prob * advantage).mean()

    gradient, metrics = jax.jit(jax.grad(agent.loss, has_aux=True))(params, batch)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert metrics["clip_fraction"] == 0
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(gradient))
    assert_close(gradient, jax.jit(jax.grad(vanilla))(params), 1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.3)])
def test_clipping_masks_the_gradient_exactly_where_it_should(low, high):
    own = {"clip_range_high": high} if high != low else {}
    agent = ppo(ActionChoice(), value_coef=0.0, clip_range=low, **own)
    params, batch = minibatch(agent, 64)
    ratio = np.random.default_rng(1).uniform(0.6, 1.4, 64)
    batch = batch._replace(log_prob=batch.log_prob - jnp.log(ratio))
    # Every sample's share in the gradient shows in the derivative by its own old log-probability.
    gradient, metrics = jax.jit(
        jax.grad(lambda old: agent.loss(params, batch._replace(log_prob=old)), has_aux=True)
    )(batch.log_prob)
    advantage = np.asarray((batch.advantage - batch.advantage.mean()) / batch.advantage.std())
    masked = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    assert 5 < masked.sum() < 59
    np.testing.assert_allclose(gradient, np.where(masked, 0, ratio * advantage) / 64, atol=1e-6)
    outside = (ratio > 1 + high) | (ratio < 1 - low)
    assert metrics["clip_fraction"] == pytest.approx(outside.mean())
    assert metrics["approx_kl"] == pytest.approx((ratio - 1 - np.log(ratio)).mean(), abs=1e-5)


def test_value_loss_is_clipped_around_the_old_value():
    agent = ppo(ConstantReward())
    params, batch = minibatch(agent)
    value = np.asarray(agent.value(params, batch.obs))
    for limit in (0.2, INF):
        metrics = agent.replace(value_clip_range=limit).loss(params, batch)[1]
        clipped = np.asarray(batch.value) + np.clip(value - np.asarray(batch.value), -limit, limit)
        errors = np.maximum((value - batch.target) ** 2, (clipped - batch.target) ** 2)
        assert metrics["value_loss"] == pytest.approx(0.5 * float(errors.mean()), rel=1e-5)
    unclipped = 0.5 * np.mean((value - np.asarray(batch.target)) ** 2)
    assert metrics["value_loss"] == pytest.approx(unclipped, rel=1e-5)


def test_loss_is_the_weighted_sum_of_its_parts():
    agent = ppo(ConstantReward(), value_coef=0.7, entropy_coef=0.3)
    loss, parts = agent.loss(*minibatch(agent))
    expected = parts["policy_loss"] + 0.7 * parts["value_loss"] - 0.3 * parts["entropy"]
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert parts["entropy"] == pytest.approx(np.log(2), abs=0.01)  # near-uniform at first


# Normalisation ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_statistics_are_frozen_while_acting_and_learning():
    """With one gradient step per iteration, learning sees the very policy that acted.

    The first iteration learns nothing: until it is over there are no statistics.
    """
    agent = ppo(
        ObsValue(), num_epochs=1, num_minibatches=1, normalize_observations=True, iterations=6
    )
    run = jaxrl.train(agent)
    assert np.isnan(run.history.metrics["approx_kl"][0])
    np.testing.assert_allclose(run.history.metrics["approx_kl"][1:], 0, atol=1e-6)
    assert (run.history.metrics["clip_fraction"][1:] == 0).all()
    assert run.state.obs_moments.seen == 6 * 64
    assert abs(run.state.obs_moments.mean.item()) < 0.3
    assert run.state.obs_moments.var.item() == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_rewards_are_scaled_by_the_deviation_of_returns():
    run = jaxrl.train(ppo(ObsValue(), normalize_rewards=True))
    # Rewards of -1 and 1 in episodes of one step: already of deviation 1.
    assert run.state.reward_scale.moments.var.item() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(values(run, [-1.0, 1.0]), [-1, 1], atol=0.05)
    assert not run.state.reward_scale.returns.any()


def test_reward_scale_is_a_factor_on_rewards():
    """Halved and doubled again is the same run, to the bit; halved alone is not."""

    class Halved(ObsValue):
        def reward(self, state, goodness):
            return 0.5 * super().reward(state, goodness)

    run = jax.jit(lambda agent: jaxrl.fused(agent, jax.random.key(0))[0].params)
    agent = ppo(Halved(), iterations=2)
    whole, mended = run(ppo(ObsValue(), iterations=2)), run(agent.replace(reward_scale=2.0))
    assert_same(whole, mended)
    with pytest.raises(AssertionError):
        assert_same(whole, run(agent))


# Continuous actions -----------------------------------------------------------------------------


def test_a_deviation_is_held_at_its_floor_and_can_rise_from_it():
    env = ActionChoice(continuous=True)
    agent = ppo(env, log_std_start=-0.5, log_std_floor=-1.0, learning_rate=0.3)
    params, _ = minibatch(agent)
    opt_state = agent.init_optimizer(params)
    down = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def descend(params, opt_state, grads):
        return agent.descend(params, opt_state, grads, 0.0, 0.0)[0]

    seen = []
    for _ in range(4):
        params, opt_state = descend(params, opt_state, down)
        seen.append(params["log_std"].item())
    np.testing.assert_allclose(seen, [-0.8, -1.0, -1.0, -1.0], atol=1e-3)
    fresh = agent.init_optimizer(params)
    up = jax.tree.map(jnp.negative, down)
    assert descend(params, fresh, up)[0]["log_std"].item() == pytest.approx(-0.7, abs=1e-3)
    # A start below the floor is at it; deviations of each state are, too.
    low = agent.replace(log_std_start=-4.0)
    assert minibatch(low)[0]["log_std"].item() == -1
    each = low.replace(state_dependent_std=True)
    dist = each.distribution(minibatch(each)[0], jnp.zeros((2, 1)))
    np.testing.assert_array_equal(dist.log_std, [[-1], [-1]])


@pytest.mark.slow
def test_a_beta_policy_finds_the_best_action():
    """1.5, and half of the observation, in [-2, 2]: inside the box, where Beta's modes are."""
    probes = [cls(continuous=True) for cls in (ActionChoice, Match)]
    agent = ppo(AnyOf(*probes), iterations=250, action_distribution="beta")
    population = jaxrl.sweep(agent, {"env.which": [0, 1]})
    best = population.evaluate(episodes=32)
    np.testing.assert_allclose(best.returns, np.zeros((2, 32)), atol=0.1)
    dist = agent.distribution(population[0].state.params, jnp.ones((1, 1)))
    assert dist.sample(KEY).shape == (1, 1)
    assert float(dist.alpha[0, 0] + dist.beta[0, 0]) > 20
    log_prob = agent.log_prob(population[0].state, jnp.ones(1), jnp.array([0.75]))
    assert log_prob == pytest.approx(float(dist.log_prob(jnp.array([0.75]))[0]))
