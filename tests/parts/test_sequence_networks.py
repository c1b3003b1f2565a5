"""Networks of sequences: written token by token they are what they are read at once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.sequence_networks import Gru, Pointer, Table, Transformer, number_of_rows

V, N = 3, 4
NETWORKS = {
    "gru": Gru(V, N, 8),
    "transformer": Transformer(V, N, 8, layers=2, heads=2),
    "table": Table(V, N),
}


def randomised(network):
    """Its parameters, none of which is 0."""
    params = network.init(jax.random.key(0), jnp.zeros((1, N), jnp.int32))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize("name", NETWORKS)
def test_token_by_token_is_all_at_once(name):
    network = NETWORKS[name]
    params = randomised(network)
    tokens = jax.random.randint(jax.random.key(2), (5, N), 0, V)
    whole = network.apply(params, tokens)

    def read(memory, step):
        memory, hidden = network.apply(params, memory, *step, method="read")
        return memory, (hidden, network.apply(params, hidden, method="logits"))

    _, (hidden, logits) = jax.lax.scan(read, network.initial(5), (tokens.T, jnp.arange(N)))
    last = N - (name == "table")  # which has no row after the last token
    for one, other in ((hidden, whole.hidden), (logits, whole.logits)):
        np.testing.assert_allclose(one.swapaxes(0, 1)[:, :last], other[:, :last], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_comes_later_changes_nothing(name):
    network = NETWORKS[name]
    params = randomised(network)
    tokens = jax.random.randint(jax.random.key(2), (5, N), 0, V)
    other = tokens.at[:, 2:].set((tokens[:, 2:] + 1) % V)
    first, second = (network.apply(params, x).logits for x in (tokens, other))
    np.testing.assert_allclose(first[:, :2], second[:, :2], atol=1e-6)
    assert float(jnp.abs(first[:, 2] - second[:, 2]).min(axis=0).max()) > 1e-3  # and tells them


def test_a_table_has_a_row_of_its_own_for_every_context():
    network = NETWORKS["table"]
    rows = number_of_rows(V, N)
    params = {"params": {"rows": jnp.arange(rows * V, dtype=jnp.float32).reshape(rows, V)}}
    seen = []
    for length in (1, 2, 3):
        for context in itertools.product(range(V), repeat=length):
            tokens = jnp.asarray([[*context, *[0] * (N - length)]])
            row = network.apply(params, tokens).logits[0, length - 1]
            np.testing.assert_array_equal(np.diff(row), 1)
            seen.append(int(row[0]) // V)
    assert sorted(seen) == list(range(rows))


def test_a_pointer_is_a_dot_product_for_each_candidate():
    """Written out in float64; candidates that are added or moved leave the others as they are."""
    network = Pointer(width=6)
    rng = np.random.default_rng(0)
    state, candidates = rng.normal(size=(5, 4)), rng.normal(size=(5, 3, 2))
    arrays = [jnp.asarray(x, jnp.float32) for x in (state, candidates)]
    shapes = network.init(jax.random.key(0), *arrays)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    hidden = state
    for name in ("Dense_0", "Dense_1"):
        hidden = np.tanh(hidden @ layers[name]["kernel"] + layers[name]["bias"])
    query, none = (
        hidden @ layers[name]["kernel"] + layers[name]["bias"] for name in ("query", "none")
    )
    for i in range(5):
        scores = [z @ layers["keys"]["kernel"] @ query[i] / 6**0.5 for z in candidates[i]]
        logits = network.apply(params, arrays[0][i], arrays[1][i])
        np.testing.assert_allclose(logits, [*scores, none[i, 0]], rtol=1e-5, atol=1e-5)
    more = jnp.concatenate([arrays[1][:, ::-1], jnp.ones((5, 1, 2))], axis=1)
    one, other = (network.apply(params, arrays[0], x) for x in (arrays[1], more))
    np.testing.assert_allclose(other[:, [2, 1, 0, 4]], one, rtol=1e-5, atol=1e-5)
