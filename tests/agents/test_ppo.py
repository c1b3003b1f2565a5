"""PPO: known answers on probes, its loss term by term, normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

import jaxrl
from agents.on_policy.ppo import PPO, Batch
from envs_jax.preprocessing import Flat
from jaxrl.parts.normalize import RunningMoments
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


# What an update may do --------------------------------------------------------------------------


def improved(agent, **changes):
    """Parameters after one call of `improve` on a rollout, and its metrics."""
    agent = agent.replace(**changes)
    params, batch = minibatch(agent, 64)
    opt_state = agent.init_optimizer(params)
    improve = jax.jit(agent.improve)
    after, _, metrics = improve(params, opt_state, batch, KEY, jnp.float32(0.5))
    return params, after, metrics


def test_updates_stop_beyond_the_target_divergence():
    agent = ppo(ActionChoice(), learning_rate=0.03, num_epochs=8)
    params, free, metrics = improved(agent)
    assert metrics["approx_kl"] > 0.005
    _, stopped, metrics = improved(agent, kl_rule="stop", target_kl=0.003)
    taken = round(float(metrics["update_fraction"]) * 16)
    assert 1 <= taken < 16
    assert not np.allclose(*(jax.tree.leaves(x)[0] for x in (free, stopped)))
    # The steps until then are those without the rule: all of them, where it is never broken.
    _, same, metrics = improved(agent, kl_rule="stop", target_kl=1e3)
    assert metrics["update_fraction"] == 1
    assert_close(same, free, 1e-6)
    # A divergence that is broken at once leaves what the first step did, whose own was 0.
    _, one, metrics = improved(agent, kl_rule="stop", target_kl=1e-30)
    assert metrics["update_fraction"] == 1 / 16
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, one)), strict=True))


def test_the_step_size_follows_the_divergence():
    agent = ppo(ActionChoice(), learning_rate=0.03, num_epochs=8, learning_rate_end=1.0)
    agent = agent.replace(kl_rule="learning_rate")
    params, _ = minibatch(agent)
    adam, factor = agent.init_optimizer(params)
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def descend(kl, factor):
        (new, (_, factor)), metrics = agent.descend(params, (adam, factor), grads, kl, 0.0)
        return jax.tree.leaves(new)[0] - jax.tree.leaves(params)[0], factor, metrics

    usual, _, _ = descend(0.01, factor)
    for kl, wanted in [(0.021, 1 / 1.5), (0.019, 1.0), (0.006, 1.0), (0.004, 1.5)]:
        step, after, metrics = descend(kl, factor)
        assert after == metrics["learning_rate_factor"] == pytest.approx(wanted)
        np.testing.assert_allclose(step, wanted * usual, rtol=1e-4)
    assert descend(1.0, 1 / 32)[1] == 1 / 32
    assert descend(0.0, 32.0)[1] == 32


def test_advantages_are_normalised_over_what_is_said():
    agent = ppo(ActionChoice(), num_epochs=1, num_minibatches=2)
    advantage = jnp.arange(64.0)
    wanted = {"none": (31.5, 18.47), "batch": (0, 1)}
    seen = {}

    class Spy(PPO):
        def loss(self, params, batch, noise_key=None, progress=0.0):
            jax.debug.callback(lambda x: rows.append(np.asarray(x)), batch.advantage)
            return super().loss(params, batch, noise_key, progress)

    for kind in wanted:
        rows = []
        spy = Spy(agent.env, agent.env_params, num_epochs=1, num_minibatches=2, hidden_sizes=(8,),
                  num_envs=8, num_steps=8, normalize_advantages=kind)  # fmt: skip
        params, batch = minibatch(spy, 64)
        state = spy.init_optimizer(params)
        jax.block_until_ready(
            jax.jit(spy.improve)(params, state, batch._replace(advantage=advantage), KEY, 0.0)
        )
        jax.effects_barrier()
        seen[kind] = np.concatenate(rows)
    for kind, (mean, std) in wanted.items():
        assert len(seen[kind]) == 64
        assert seen[kind].mean() == pytest.approx(mean, abs=1e-5)
        assert seen[kind].std() == pytest.approx(std, rel=1e-3)


def test_schedules_reach_the_loss():
    """Half way to 0, a clip range of 0.4 cuts where one of 0.2 does, and the bonus is halved."""
    base = {"num_epochs": 1, "num_minibatches": 1, "learning_rate": 1e-3}
    agent = ppo(ActionChoice(), **base)

    def after(**changes):
        return improved(agent, **changes)[1]

    half = after(
        clip_range=0.4,
        clip_range_high=0.2,
        clip_range_end=1e-9,
        entropy_coef=0.2,
        entropy_coef_end=0.0,
    )
    assert_close(half, after(clip_range=0.2, clip_range_high=0.1, entropy_coef=0.1), 1e-7)


def test_deviations_may_depend_on_the_state_and_actions_be_squashed():
    env = ActionChoice(continuous=True)
    agent = ppo(env, log_std_start=-1.0, state_dependent_std=True, squash_actions=True)
    params, _ = minibatch(agent)
    assert "log_std" not in params
    dist = agent.distribution(params, jnp.asarray([[0.0], [5.0]]))
    np.testing.assert_allclose(dist.log_std, -1, atol=0.05)  # the actor's last layer is small
    assert dist.log_std[0] != dist.log_std[1]
    np.testing.assert_allclose(
        agent.env_action(jnp.array([[-50.0], [0.5], [50.0]]))[:, 0],
        [-2, 2 * np.tanh(0.5), 2],
        rtol=1e-6,
    )
    plain = ppo(env, log_std_start=-1.0)
    params, _ = minibatch(plain)
    np.testing.assert_array_equal(params["log_std"], [-1.0])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"target_kl": 0.1}, "ppo: target_kl=0.1 has no effect with kl_rule=none"),
        ({"squash_actions": True}, "ppo: squash_actions=True has no effect with discrete actions"),
        ({"log_std_floor": -3.0}, "ppo: log_std_floor=-3.0 has no effect with discrete actions"),
        (
            {"action_distribution": "beta"},
            "ppo: action_distribution='beta' has no effect with discrete actions",
        ),
        (
            {"critic_observation": "state"},
            "critic_observation='state' has no effect where the environment names no parts",
        ),
    ],
)
def test_what_has_no_effect_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        ppo(ActionChoice(), **changes)


def test_a_beta_policy_has_no_deviation_to_set():
    line = "log_std_floor=-3.0 has no effect with action_distribution=beta"
    with pytest.raises(ValueError, match=line):
        ppo(ActionChoice(continuous=True), action_distribution="beta", log_std_floor=-3.0)


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


# Values -----------------------------------------------------------------------------------------


def test_normalised_values_are_turned_back_where_advantages_are_estimated():
    """Episodes of one step and reward 1: a target of 1, an advantage of 1 - V."""
    agent = ppo(ConstantReward(), normalize_values=True)
    state = jax.jit(agent.init)(KEY)
    assert state.target_moments.seen == 0
    before = RunningMoments(jnp.float32(64), jnp.float32(100), jnp.float32(25))
    state = state._replace(target_moments=before)

    @jax.jit
    def batches(state):
        _, steps, _ = agent.collect(state, KEY)
        raw, _ = agent.advantages(state, steps, state.actors)
        return raw, *agent.normalize_targets(before, raw)

    raw, batch, after = batches(state)
    predicted = np.asarray(agent.value(state.params, raw.obs))
    np.testing.assert_allclose(raw.value, 100 + 5 * predicted, rtol=1e-6)
    np.testing.assert_allclose(agent.state_value(state, raw.obs), raw.value, rtol=1e-6)
    np.testing.assert_allclose(raw.target, 1, atol=1e-4)
    np.testing.assert_allclose(raw.advantage, 1 - raw.value, rtol=1e-5)
    # Half of what was seen is 1, the other half 100 +- 5.
    mean, var = 50.5, 12.5 + 49.5**2
    np.testing.assert_allclose([after.mean, after.var], [mean, var], rtol=1e-5)
    np.testing.assert_allclose(batch.value, predicted, atol=1e-5)
    np.testing.assert_allclose(batch.target, (1 - mean) / var**0.5, rtol=1e-4)
    np.testing.assert_allclose(batch.advantage, np.asarray(raw.advantage) / var**0.5, rtol=1e-4)


@pytest.mark.slow
def test_normalised_values_reach_far_targets_at_once():
    """V = -999 and 1001: 40 iterations are far too few for a critic that has to predict that."""
    agent = ppo(ObsValue(), iterations=40, value_clip_range=INF)
    settings = [{"env.bonus": 1000.0}]
    far = jaxrl.sweep(agent.replace(normalize_values=True), settings)[0]
    obs = jnp.array([[-1.0], [1.0]])
    np.testing.assert_allclose(far.agent.state_value(far.state, obs), [999, 1001], atol=0.5)
    plain = jaxrl.sweep(agent, settings)[0]
    assert np.abs(plain.agent.state_value(plain.state, obs) - 1000).min() > 100
    assert far.history.metrics["explained_variance"][-1] > 0.5


# Parts of observations --------------------------------------------------------------------------


class Privileged(ObsValue):
    """As MuJoCo Playground has it: the policy's `state`, and all there is beside it.

    The reward is the hidden sign, and what the action that the state asks for adds.
    """

    def see(self, state):
        return {"state": jnp.ones(1), "privileged_state": jnp.stack([jnp.float32(1), state.sign])}

    def reward(self, state, goodness):
        return state.sign + goodness

    def observation_space(self, params):
        box = spaces.Box(-10.0, 10.0, (1,))
        return spaces.Dict({"state": box, "privileged_state": spaces.Box(-10.0, 10.0, (2,))})


def test_the_critic_sees_what_the_policy_does_not():
    parts = {"actor_observation": "state", "critic_observation": "privileged_state"}
    agent = ppo(Flat(Privileged()), iterations=60, **parts)
    run = jaxrl.train(agent)
    where = agent.env.slices["privileged_state"]
    obs = jnp.ones((2, 3)).at[0, where.stop - 1].set(-1)
    value = agent.value(run.state.params, obs)
    np.testing.assert_allclose(value, [0, 2], atol=0.2)  # the action is found, and worth 1
    logits = agent.distribution(run.state.params, obs).logits
    np.testing.assert_array_equal(logits[0], logits[1])
    kernels = {k: v["params"]["Dense_0"]["kernel"].shape for k, v in run.state.params.items()}
    assert kernels == {"actor": (1, 8), "critic": (2, 8)}


def test_parts_that_are_not_there_are_one_line():
    line = "ppo: critic_observation='all' is no part of the observations of Privileged: it has "
    with pytest.raises(ValueError, match=line):
        ppo(Flat(Privileged()), critic_observation="all")
