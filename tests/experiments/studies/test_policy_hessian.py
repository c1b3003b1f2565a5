"""The decomposition of the policy's Hessian, against derivatives of the return itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import policy_hessian


@pytest.fixture(scope="module")
def case():
    """A process, logits, the parts of the Hessian there, and the derivatives of the return."""
    with jax.enable_x64(True):
        mdp = policy_hessian.random_mdp(jax.random.key(3))
        flat = jnp.asarray(np.random.default_rng(0).normal(size=24))

        @jax.jit
        def compute(flat):
            def value(flat):
                return policy_hessian.expected_return(mdp, flat)

            return (
                policy_hessian.decompose(mdp, flat),
                jax.grad(value)(flat),
                jax.hessian(value)(flat),
            )

        return mdp, flat, *jax.tree.map(np.asarray, compute(flat))


def test_the_parts_add_up_to_the_hessian_of_the_return(case):
    _, _, parts, gradient, hessian = case
    assert np.abs(hessian).max() > 0.01
    np.testing.assert_allclose(parts.gradient, gradient, atol=1e-13)
    whole = parts.surrogate + parts.mixed + parts.mixed.T
    np.testing.assert_allclose(whole, hessian, atol=1e-13)


def test_the_surrogate_is_indefinite_and_the_log_prob_term_is_not(case):
    """Rewards are positive, so Q is; and log pi of a softmax is concave in its logits."""
    _, _, parts, _, _ = case
    eigenvalues = np.linalg.eigvalsh(parts.surrogate)
    assert eigenvalues[0] < -1e-3 < 1e-3 < eigenvalues[-1]
    assert np.linalg.eigvalsh(parts.log_prob)[-1] < 1e-12


def test_a_newton_step_needs_fewer_updates_than_a_gradient_step(case):
    mdp = case[0]
    with jax.enable_x64(True):
        updates = {
            name: int(jax.jit(policy_hessian.iterations_to_best, static_argnums=0)(name, mdp, 1.0))
            for name in ("gradient", "acgn1")
        }
    assert 0 < 10 * updates["acgn1"] < updates["gradient"] < policy_hessian.CAP
