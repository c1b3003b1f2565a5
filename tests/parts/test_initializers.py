"""Orthogonal weights: flax's, also of many keys at once."""

import jax
import numpy as np
import pytest
from flax.linen import initializers

from jaxrl.parts.initializers import orthogonal

KEYS = jax.random.split(jax.random.key(0), (3, 2))


@pytest.mark.parametrize("shape", [(4, 2), (2, 5), (3, 3, 2, 8)])
def test_they_are_those_of_flax_one_by_one(shape):
    ours, plain = (f(1.5) for f in (orthogonal, initializers.orthogonal))
    batch = jax.vmap(jax.vmap(lambda key: ours(key, shape)))(KEYS)
    assert batch.shape == (3, 2, *shape)
    for i in range(3):
        for j in range(2):
            np.testing.assert_array_equal(batch[i, j], plain(KEYS[i, j], shape))


def test_weights_are_orthogonal():
    weights = 0.5 * orthogonal(2.0)(KEYS[0, 0], (3, 2, 4))
    rows = weights.reshape(6, 4)
    np.testing.assert_allclose(rows.T @ rows, np.eye(4), atol=1e-6)
