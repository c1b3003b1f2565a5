"""The network: shapes, formulas, initial weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxrl.parts import networks
from jaxrl.parts.networks import Network, patches_3x3

KEY = jax.random.key(0)


@partial(jax.jit, static_argnums=0)
def init(network, obs):
    return network.init(KEY, obs)


@partial(jax.jit, static_argnums=0)
def apply(network, params, obs):
    return network.apply(params, obs)


def test_dense_on_patches_is_a_convolution():
    image = jax.random.normal(KEY, (2, 7, 5, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    expected = lax.conv_general_dilated(
        image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    actual = patches_3x3(image) @ kernel.reshape(-1, 4)
    assert actual.shape == (2, 5, 3, 4)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("obs_shape", "options"),
    [
        ((4,), {}),
        ((4,), {"layer_norm": True, "residual_blocks": 2}),
        ((4,), {"hidden_sizes": ()}),
        ((2, 3), {}),
        ((6, 5, 2), {"conv_features": 4, "layer_norm": True}),
    ],
)
def test_any_leading_axes_give_the_same_outputs(obs_shape, options):
    network = Network(3, obs_ndim=len(obs_shape), **{"hidden_sizes": (8, 8), **options})
    obs = jax.random.normal(KEY, (5, 2, *obs_shape))
    params = init(network, obs[0, 0])
    whole = apply(network, params, obs)
    assert whole.shape == (5, 2, 3)
    np.testing.assert_allclose(apply(network, params, obs[:, 0]), whole[:, 0], atol=1e-5)
    np.testing.assert_allclose(apply(network, params, obs[1, 0]), whole[1, 0], atol=1e-5)


def test_boolean_images_are_taken():
    network = Network(3, obs_ndim=3, hidden_sizes=(8,), conv_features=4)
    obs = jax.random.bernoulli(KEY, shape=(2, 10, 10, 4))
    assert apply(network, init(network, obs[0]), obs).dtype == jnp.float32


def layer_norm(x, weights):
    centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return centred * weights["scale"] + weights["bias"]


@pytest.mark.parametrize("output_norm", [False, True])
def test_residual_blocks_follow_their_formula(output_norm):
    options = {"activation": "relu", "layer_norm": True, "residual_blocks": 2}
    network = Network(2, obs_ndim=1, hidden_sizes=(6,), output_norm=output_norm, **options)
    obs = jax.random.normal(KEY, (4, 3))
    params = init(network, obs[0])
    # Away from their first values, scale 1 and bias 0, which would hide a wrong order.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.normal(size=x.shape), "f"), params)
    p = params["params"]

    def dense(i, x):
        return x @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"]

    def norm(i, x):
        return layer_norm(x, p[f"LayerNorm_{i}"])

    def relu(x):
        return np.maximum(x, 0)

    h = g = relu(norm(0, dense(0, np.asarray(obs))))
    for i in (1, 3):
        h = relu(h + norm(i + 1, dense(i + 1, relu(norm(i, dense(i, h)))))) + g
    expected = norm(5, dense(5, h)) if output_norm else dense(5, h)
    np.testing.assert_allclose(apply(network, params, obs), expected, rtol=1e-4, atol=1e-4)


def test_weights_start_orthogonal_and_biases_at_zero():
    network = Network(2, obs_ndim=1, hidden_sizes=(8, 5), output_scale=0.01)
    params = init(network, jnp.zeros(12))["params"]
    for name, gain in [("Dense_0", 2**0.5), ("Dense_1", 2**0.5), ("Dense_2", 0.01)]:
        kernel = params[name]["kernel"]
        np.testing.assert_allclose(
            kernel.T @ kernel, gain**2 * np.eye(kernel.shape[1]), atol=1e-5 * gain
        )
        assert not params[name]["bias"].any()


def test_activation_is_the_one_asked_for():
    obs = jax.random.normal(KEY, (3, 4))
    outputs = []
    for activation in ("tanh", "relu", "swish"):
        network = Network(2, obs_ndim=1, hidden_sizes=(8,), activation=activation)
        outputs.append(np.asarray(apply(network, init(network, obs[0]), obs)))
    assert not np.allclose(outputs[0], outputs[1])
    assert not np.allclose(outputs[1], outputs[2])


def test_dropout_acts_in_training_alone():
    """Half of the hidden outputs are 0, the others twice what they were; its key is needed."""
    network = Network(outputs=1, obs_ndim=1, hidden_sizes=(400,), dropout=0.5)
    obs = jnp.ones((3, 2))
    params = network.init(KEY, obs)
    plain = network.clone(dropout=0.0).apply(params, obs)
    np.testing.assert_array_equal(network.apply(params, obs), plain)
    head = params["params"]["Dense_1"]
    kernel = jnp.ones_like(head["kernel"])
    params = {"params": params["params"] | {"Dense_1": head | {"kernel": kernel}}}
    hidden = params["params"] | {"Dense_1": head | {"kernel": jnp.eye(400), "bias": jnp.zeros(400)}}
    full = network.clone(outputs=400).apply({"params": hidden}, obs)
    dropped = network.clone(outputs=400).apply(
        {"params": hidden}, obs, training=True, rngs={"dropout": KEY}
    )
    kept = np.asarray(dropped != 0)
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(np.asarray(dropped)[kept], 2 * np.asarray(full)[kept], rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (7, 5, 5),
        (7, 9, 2),
        (7, 2, 9),
        (networks.MOST_COPIED // 9, 12, 10),
        (networks.MOST_COPIED // 9, 10, 3),
    ],
)
def test_gradients_of_a_dense_layer_are_those_of_a_plain_product(rows, inputs, outputs):
    """However it is computed, to the last bits; also with more axes, and members side by side."""
    random = np.random.default_rng(0)
    x, w = random.normal(size=(rows, inputs)), random.normal(size=(inputs, outputs))
    g = random.normal(size=(rows, outputs))
    x, w, g = (jnp.asarray(array, jnp.float32) for array in (x, w, g))

    def product(x, w):
        return networks.dense_product(x, w, (((x.ndim - 1,), (0,)), ((), ())))

    out, pull = jax.vjp(product, x, w)
    of_x, of_w = pull(g)
    np.testing.assert_allclose(out, np.float64(x) @ np.float64(w), atol=1e-5)
    np.testing.assert_allclose(of_x, np.float64(g) @ np.float64(w).T, atol=1e-5)
    exact = np.float64(x).T @ np.float64(g)
    np.testing.assert_allclose(of_w, exact, rtol=1e-4, atol=1e-3)
    _, pull = jax.vjp(jax.vmap(product, (0, None)), x[None], w)
    np.testing.assert_allclose(pull(g[None])[1], exact, rtol=1e-4, atol=1e-3)


def test_a_network_for_forward_mode_can_be_differentiated_so():
    plain = Network(outputs=2, obs_ndim=1, hidden_sizes=(4,), forward_mode=True)
    x = jnp.ones((3, 2))
    params = plain.init(jax.random.key(0), x)
    tangents = jax.tree.map(jnp.ones_like, params)
    _, out = jax.jvp(lambda p: plain.apply(p, x), (params,), (tangents,))
    _, pull = jax.vjp(lambda p: plain.clone(forward_mode=False).apply(p, x), params)
    along = optax.tree.vdot(pull(jnp.ones((3, 2)))[0], tangents)
    np.testing.assert_allclose(out.sum(), along, rtol=1e-5)


@pytest.mark.parametrize("width", [8, networks.NARROW])
def test_operands_in_bfloat16_are_rounded_and_their_products_added_up_in_float32(width):
    """Forwards and to go back; what is multiplied after them is float32 again."""
    random = np.random.default_rng(1)
    x, w = random.normal(size=(64, width)), random.normal(size=(width, width))
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)

    def product(x, w):
        dimensions = ((1,), (0,)), ((), ())
        return networks.dense_product(x, w, dimensions, operands="bfloat16")

    def rounded(array):
        return np.float64(jnp.asarray(array, jnp.bfloat16))

    out, pull = jax.jit(lambda x, w: jax.vjp(product, x, w))(x, w)
    of_x, of_w = pull(out)
    assert out.dtype == of_x.dtype == of_w.dtype == jnp.float32
    exact = rounded(x) @ rounded(w)
    np.testing.assert_allclose(out, exact, atol=1e-4)
    assert np.abs(exact - np.float64(x) @ np.float64(w)).max() > 1e-3  # it is not float32
    np.testing.assert_allclose(of_x, rounded(out) @ rounded(w).T, atol=1e-3)
    if jax.default_backend() == "cpu":
        np.testing.assert_allclose(of_w, np.float64(x).T @ np.float64(out), rtol=1e-4, atol=1e-2)


def test_dropout_is_before_layer_norm():
    """So that each layer's inputs still have mean 0 and variance 1 (DroQ), in training too."""
    network = Network(outputs=64, obs_ndim=1, hidden_sizes=(64,), layer_norm=True, dropout=0.5)
    obs = jax.random.normal(KEY, (5, 3))
    params = network.init(KEY, obs)
    head = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    params = {"params": params["params"] | {"Dense_1": head}}
    seen = network.apply(params, obs, training=True, rngs={"dropout": KEY})
    before = np.arctanh(np.asarray(seen, np.float64))
    np.testing.assert_allclose(before.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(before.std(axis=1), 1, atol=1e-2)
    # What was dropped is one value: that which LayerNorm makes of 0.
    for row in before:
        _, counts = np.unique(row.round(4), return_counts=True)
        assert counts.max() > 16
