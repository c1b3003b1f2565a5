"""Running normalisation against numpy over all that was seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.normalize import RewardScale, RunningMoments, normalized


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 1)])
def test_running_moments_are_those_of_all_batches_together(shape):
    rng = np.random.default_rng(0)
    batches = [
        rng.normal(5 * i, 1 + i, (*lead, *shape)).astype(np.float32)
        for i, lead in enumerate([(4,), (3, 5), (1,), (20,)])
    ]
    moments = RunningMoments.of_shape(shape)
    seen = np.zeros((0, *shape))
    for batch in batches:
        moments = jax.jit(RunningMoments.update)(moments, batch)
        seen = np.concatenate([seen, batch.reshape(-1, *shape)])
        assert moments.seen == len(seen)
        np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-5)
        np.testing.assert_allclose(moments.var, seen.var(0), rtol=1e-4)


def test_a_large_mean_does_not_spoil_the_variance():
    rng = np.random.default_rng(0)
    moments = RunningMoments.of_shape(())
    for _ in range(20):
        moments = moments.update(jnp.asarray(rng.normal(1000, 1, 100), jnp.float32))
    assert moments.var == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("n", "updates"), [(1, 20_000), (8, 20_000), (1000, 1_000)])
def test_moments_do_not_run_away_once_float32_cannot_count(n, updates):
    """A count of 2^24 stands still when one is added; the variance then grew without end."""
    rng = np.random.default_rng(0)
    moments = RunningMoments(jnp.float32(2.0**34), jnp.float32(0), jnp.float32(1))
    batches = jnp.asarray(rng.normal(0, 1, (updates, n)), jnp.float32)
    step = lambda moments, batch: (moments.update(batch), None)  # noqa: E731
    moments, _ = jax.jit(lambda m: jax.lax.scan(step, m, batches))(moments)
    assert moments.var == pytest.approx(1, abs=0.01)
    assert moments.seen <= 2.0**34 or moments.seen == pytest.approx(2.0**34, rel=1e-2)


def test_boolean_images_can_be_normalised():
    moments = RunningMoments.of_shape((2,)).update(jnp.array([[True, False], [False, False]]))
    np.testing.assert_allclose(moments.mean, [0.5, 0])
    np.testing.assert_allclose(moments.var, [0.25, 0])


def test_normalize_and_scale_clip():
    nothing = RunningMoments.of_shape(())
    np.testing.assert_allclose(nothing.normalize(jnp.array([0.5, -3.0])), [0.5, -3.0])
    moments = RunningMoments(jnp.array(10.0), jnp.array(2.0), jnp.array(4.0))
    x = jnp.array([2.0, 4.0, 1000.0, -1000.0])
    np.testing.assert_allclose(moments.normalize(x), [0, 1, 10, -10])
    np.testing.assert_allclose(moments.scale(x), [1, 2, 10, -10])
    np.testing.assert_allclose(moments.scale(x, clip=5.0), [1, 2, 5, -5])
    constant = RunningMoments(jnp.array(10.0), jnp.array(2.0), jnp.array(0.0))
    assert jnp.isfinite(constant.normalize(x)).all()


def test_reward_scale_is_the_deviation_of_discounted_returns_so_far():
    rng = np.random.default_rng(0)
    gamma, num_envs = 0.9, 3
    scale = RewardScale.of_envs(num_envs)
    running, seen = np.zeros(num_envs), []
    for num_steps in (4, 7):  # a return goes on over the border of two rollouts
        rewards = rng.normal(2, 3, (num_steps, num_envs)).astype(np.float32)
        dones = rng.random((num_steps, num_envs)) < 0.3
        scale = jax.jit(RewardScale.update)(scale, rewards, dones, gamma)
        for reward, done in zip(rewards, dones, strict=True):
            running = reward + gamma * running
            seen.append(running.copy())
            running[done] = 0
        np.testing.assert_allclose(scale.returns, running, rtol=1e-5, atol=1e-6)
        std = np.concatenate(seen).std()
        np.testing.assert_allclose(scale.scale(jnp.array([std, -std])), [1, -1], rtol=1e-4)


def test_the_scale_of_recorded_rewards_is_that_of_their_returns():
    rng = np.random.default_rng(0)
    rewards, dones = rng.normal(size=40), rng.random(40) < 0.1
    value, values = 0.0, []
    for reward, done in zip(rewards, dones, strict=True):
        value = reward + 0.9 * value
        values.append(value)
        value = 0.0 if done else value
    scale = RewardScale.of_recorded(3, jnp.asarray(rewards), jnp.asarray(dones), 0.9)
    assert scale.moments.var == pytest.approx(np.var(values), rel=1e-4)
    assert scale.moments.seen == 40
    np.testing.assert_array_equal(scale.returns, np.zeros(3))


def test_denormalising_inverts_normalising():
    rng = np.random.default_rng(0)
    moments = RunningMoments.of_shape((3,)).update(
        jnp.asarray(rng.normal(50, 7, (200, 3)), jnp.float32)
    )
    x = jnp.asarray(rng.normal(50, 700, (20, 3)), jnp.float32)
    normal = moments.normalize(x, clip=jnp.inf)
    assert np.abs(normal).max() > 10
    np.testing.assert_allclose(moments.denormalize(normal), x, rtol=1e-5, atol=1e-3)
    assert RunningMoments.of_shape(()).denormalize(jnp.float32(3)) == 3


def test_normalized_advantages_have_mean_0_and_deviation_1():
    advantage = jnp.asarray(np.random.default_rng(0).normal(5, 3, 100), jnp.float32)
    actual = np.asarray(normalized(advantage))
    assert (actual.mean(), actual.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
