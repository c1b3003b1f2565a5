"""PPO beyond its clip range: cut, kept at random (NSR), or kept by as much as that in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.on_policy.ppo import PPO
from jaxrl.loops.on_policy import Batch
from tests.helpers import assert_same
from tests.probes import ActionChoice

KEY = jax.random.key(0)
SIZE = 64


def ppo(**changes):
    env = ActionChoice()
    options = {"num_envs": 2, "num_steps": 4, "num_minibatches": 2, "hidden_sizes": (4,)}
    return PPO(env, env.default_params, **options | {"value_coef": 0.0} | changes)


@pytest.fixture(scope="module")
def case():
    """Parameters and a batch whose ratios lie in and around the clip range."""
    agent, rng = ppo(), np.random.default_rng(0)
    params = agent.init(KEY).params
    obs = jnp.asarray(rng.normal(size=(SIZE, 1)), jnp.float32)
    dist = agent.distribution(params, obs)
    action = dist.sample(KEY)
    old = dist.log_prob(action) - jnp.log(rng.uniform(0.5, 1.7, SIZE).astype(np.float32))
    return params, Batch(obs, action, old, *jnp.asarray(rng.normal(size=(3, SIZE)), jnp.float32))


def ratio_and_advantage(case):
    params, batch = case
    new = ppo().distribution(params, batch.obs).log_prob(batch.action)
    advantage = np.asarray((batch.advantage - batch.advantage.mean()) / batch.advantage.std())
    return np.asarray(jnp.exp(new - batch.log_prob)), advantage


def by_old_log_prob(agent, case, key=None):
    """Each step's own share in the gradient, and the metrics."""
    params, batch = case

    def loss(old):
        return agent.loss(params, batch._replace(log_prob=old), key)

    return jax.grad(loss, has_aux=True)(batch.log_prob)


def test_the_hard_rule_is_the_paper_s_surrogate_to_the_bit(case):
    agent = ppo()

    def loss(params, batch):
        dist = agent.distribution(params, batch.obs)
        log_ratio = dist.log_prob(batch.action) - batch.log_prob
        ratio = jnp.exp(log_ratio)
        clipped_ratio = jnp.clip(ratio, 1 - agent.clip_range, 1 + agent.clip_range)
        advantage = batch.advantage - batch.advantage.mean()
        advantage /= batch.advantage.std() + 1e-8
        return -jnp.minimum(ratio * advantage, clipped_ratio * advantage).mean()

    def of_agent(params, batch):
        return agent.loss(params, batch)[1]["policy_loss"]

    expected, actual = (jax.value_and_grad(f)(*case) for f in (loss, of_agent))
    assert any(np.any(x) for x in jax.tree.leaves(expected[1]))
    assert_same(actual, expected)
    used = {e.primitive.name for e in jax.make_jaxpr(agent.loss)(*case).jaxpr.eqns}
    assert "random_bits" not in used


@pytest.mark.parametrize("rule", ["noise", "decay"])
def test_without_noise_it_is_the_hard_rule_to_the_bit(case, rule):
    params, batch = case
    key = KEY if rule == "noise" else None
    none = ppo(clip_rule=rule, clip_noise=0.0)
    gradient, metrics = jax.grad(none.loss, has_aux=True)(params, batch, key)
    hard, of_hard = jax.grad(ppo().loss, has_aux=True)(params, batch)
    assert metrics.pop("kept_fraction") == 0
    assert_same((gradient, metrics), (hard, of_hard))
    some = jax.grad(none.replace(clip_noise=0.2).loss, has_aux=True)(params, batch, key)[0]
    with pytest.raises(AssertionError):
        assert_same(some, hard)


def test_a_step_has_the_gradient_of_its_ratio_or_none(case):
    """Whole in the range, none far beyond it, in between where noise kept it: none of u."""
    ratio, advantage = ratio_and_advantage(case)
    gradient, metrics = by_old_log_prob(ppo(clip_rule="noise"), case, KEY)
    beyond = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    far = ((advantage > 0) & (ratio > 1.2 / 0.8)) | ((advantage < 0) & (ratio < 0.8 / 1.2))
    whole = ratio * advantage / SIZE
    is_kept = np.abs(np.asarray(gradient)) > 1e-8
    np.testing.assert_allclose(gradient, np.where(is_kept, whole, 0), rtol=1e-4, atol=1e-7)
    assert is_kept[~beyond].all()
    assert not is_kept[far].any()
    between = is_kept[beyond & ~far]
    assert 0 < between.sum() < len(between)
    assert metrics["kept_fraction"] == pytest.approx(between.sum() / SIZE)


def test_expected_gradient_is_that_of_decay(case):
    keys = jax.random.split(KEY, 4000)
    agent = ppo(clip_rule="noise")
    draws = np.asarray(jax.jit(jax.vmap(lambda k: by_old_log_prob(agent, case, k)[0]))(keys))
    decay, metrics = by_old_log_prob(ppo(clip_rule="decay"), case)
    error = draws.std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(draws.mean(axis=0, dtype=float) - decay) <= 4.5 * error + 1e-6).all()
    ratio, advantage = ratio_and_advantage(case)
    share = np.asarray(decay) / (ratio * advantage / SIZE)
    assert ((share > 0.01) & (share < 0.49)).sum() > 3
    assert 0 < metrics["kept_fraction"] < 0.5


def test_noise_of_the_hard_rule_is_refused():
    with pytest.raises(ValueError, match=r"clip_noise=0\.1 has no effect with clip_rule=hard"):
        ppo(clip_noise=0.1)
    with pytest.raises(ValueError, match="'soft' is not one of hard, noise, decay"):
        ppo(clip_rule="soft")
