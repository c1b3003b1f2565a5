"""Categorical critics' targets against a plain loop in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.categorical import (
    categorical_target,
    cross_entropy,
    mean_of_atoms,
)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def target_by_loop(next_logits, reward, terminated, penalty, gamma, atoms):
    """Algorithm 1 of Bellemare et al. 2017, an atom at a time."""
    critics, size, number = next_logits.shape
    target, gap = np.zeros((size, number)), atoms[1] - atoms[0]
    for b in range(size):
        options = [softmax(next_logits[c, b]) for c in range(critics)]
        probs = min(options, key=lambda p: float(p @ atoms))
        for j in range(number):
            place = reward[b] + (0.0 if terminated[b] else gamma * (atoms[j] - penalty[b]))
            place = min(max(place, atoms[0]), atoms[-1])
            position = (place - atoms[0]) / gap
            low = min(int(np.floor(position)), number - 2)
            target[b, low] += probs[j] * (1 - (position - low))
            target[b, low + 1] += probs[j] * (position - low)
    return target


def batch(scale=1.0, critics=2, size=6, number=11):
    rng = np.random.default_rng(0)
    terminated = np.arange(size) % 3 == 2
    return (
        rng.normal(size=(critics, size, number)),
        scale * rng.normal(size=size),
        terminated,
        0.3 * scale * rng.normal(size=size),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [0.5, 5.0])  # within the support, and often beyond it
def test_the_target_is_that_of_the_plain_loop(scale):
    steps, atoms = batch(scale), jnp.linspace(-5, 5, 11)
    target = jax.jit(categorical_target)(*map(jnp.asarray, steps), 0.9, atoms)
    expected = target_by_loop(*steps, 0.9, np.asarray(atoms))
    np.testing.assert_allclose(target, expected, atol=1e-12)
    np.testing.assert_allclose(target.sum(axis=-1), 1)


@pytest.mark.usefixtures("float64")
def test_the_target_keeps_the_mean_of_the_smaller_critic():
    """Inside the support: r + gamma (Q - penalty) of the critic whose Q is less, or r."""
    logits, reward, terminated, penalty = batch(0.5)
    atoms = jnp.linspace(-20, 20, 41)
    logits = np.pad(logits, ((0, 0), (0, 0), (15, 15)), constant_values=-50.0)
    target = categorical_target(
        jnp.asarray(logits), *map(jnp.asarray, (reward, terminated, penalty)), 0.9, atoms
    )
    q = np.asarray(mean_of_atoms(jnp.asarray(logits), atoms)).min(axis=0)
    expected = reward + np.where(terminated, 0, 0.9 * (q - penalty))
    np.testing.assert_allclose(target @ atoms, expected, atol=1e-10)


def test_cross_entropy_is_least_at_the_target():
    """Its gradient by the logits is softmax - target; at the target it is the entropy."""
    target, logits = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.1, -0.4, 1.0])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, target)
    np.testing.assert_allclose(gradient, softmax(np.asarray(logits)) - target, atol=1e-6)
    entropy = -float((target * jnp.log(target)).sum())
    assert cross_entropy(jnp.log(target), target) == pytest.approx(entropy, rel=1e-5)
    assert value > entropy
