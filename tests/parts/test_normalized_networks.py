"""Networks with batch norm and unit columns, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.normalized_networks import (
    NormalizedNetwork,
    decayed,
    init_network,
    train_batch,
    unit_columns,
)

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(2.0, 3.0, (12, 3)).astype(np.float32)


def make(batch_norm="before", input_norm=True):
    network = NormalizedNetwork(2, (5, 4), batch_norm, input_norm)
    return network, init_network(network, KEY, 3)


def by_numpy(params, x, batch_norm):
    """The training pass in double precision."""

    def normalized(x, norm):
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
        return x * np.asarray(norm["scale"], float) + np.asarray(norm["bias"], float)

    x = normalized(np.asarray(x, float), params["BatchNorm_0"])
    for i in range(2):
        layer, norm = params[f"hidden_{i}"], params[f"BatchNorm_{i + 1}"]
        x = x @ np.asarray(layer["kernel"], float) + np.asarray(layer.get("bias", 0.0), float)
        x = (
            np.maximum(normalized(x, norm), 0)
            if batch_norm == "before"
            else normalized(np.maximum(x, 0), norm)
        )
    return x @ np.asarray(params["head"]["kernel"], float) + np.asarray(
        params["head"]["bias"], float
    )


@pytest.mark.parametrize("batch_norm", ["before", "after"])
def test_a_training_pass_is_that_of_numpy(batch_norm):
    network, variables = make(batch_norm)
    params = jax.tree.map(lambda p: p + 0.1, variables["params"])  # biases and scales, too
    outputs, moments = jax.jit(train_batch, static_argnums=0)(
        network, params, variables["batch_stats"], X
    )
    np.testing.assert_allclose(outputs, by_numpy(params, X, batch_norm), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moments["BatchNorm_0"]["mean"], 0.01 * X.mean(axis=0), rtol=1e-4)
    expected = 0.99 + 0.01 * X.var(axis=0)
    np.testing.assert_allclose(moments["BatchNorm_0"]["var"], expected, rtol=1e-4)
    assert ("bias" in params["hidden_0"]) == (batch_norm == "after")


def test_a_joint_pass_depends_on_both_halves():
    """The outputs of the first half change if the second does, while training and only then."""
    network, variables = make()
    apply = jax.jit(train_batch, static_argnums=0)
    params, moments = variables["params"], variables["batch_stats"]
    other = np.concatenate([X[:6], 5 * X[6:] + 1])
    first, second = (apply(network, params, moments, x)[0][:6] for x in (X, other))
    assert np.abs(np.asarray(first - second)).max() > 0.01
    acting = [network.apply(variables, x, False)[:6] for x in (X, other)]
    np.testing.assert_array_equal(*acting)


def lengths(layer, with_bias):
    squares = (np.asarray(layer["kernel"], float) ** 2).sum(axis=0)
    return np.sqrt(squares + (np.asarray(layer["bias"], float) ** 2 if with_bias else 0))


@pytest.mark.parametrize("batch_norm", ["before", "after"])
def test_columns_have_unit_length(batch_norm):
    _, variables = make(batch_norm)
    params = jax.tree.map(lambda p: p + 0.3, variables["params"])
    unit = unit_columns(params)
    for name in ("hidden_0", "hidden_1"):
        np.testing.assert_allclose(lengths(unit[name], batch_norm == "after"), 1, rtol=1e-6)
    np.testing.assert_allclose(lengths(unit["head"], False), 1, rtol=1e-6)
    np.testing.assert_array_equal(unit["head"]["bias"], params["head"]["bias"])
    np.testing.assert_array_equal(unit["BatchNorm_1"]["scale"], params["BatchNorm_1"]["scale"])
    but_head = unit_columns(params, head=False)
    np.testing.assert_array_equal(but_head["head"]["kernel"], params["head"]["kernel"])
    np.testing.assert_array_equal(but_head["hidden_1"]["kernel"], unit["hidden_1"]["kernel"])
    again = unit_columns(unit)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, unit)
    zero = unit_columns({"hidden_0": {"kernel": jnp.zeros((2, 1))}})
    assert np.isfinite(zero["hidden_0"]["kernel"]).all()


def test_batch_norm_takes_out_the_length_of_columns():
    """But for its epsilon: columns three times as long give the same outputs."""
    network, variables = make()
    params, moments = variables["params"], variables["batch_stats"]
    longer = params | {"hidden_0": {"kernel": 3 * params["hidden_0"]["kernel"]}}
    outputs = [train_batch(network, p, moments, X)[0] for p in (params, longer)]
    np.testing.assert_allclose(*outputs, atol=5e-3)


def test_weight_decay_is_that_of_adamw_without_hidden_layers():
    _, variables = make()
    old = variables["params"]
    new = decayed(jax.tree.map(lambda p: p + 1, old), old, 0.25)
    for name, layer in new.items():
        kept = 1.0 if name.startswith("hidden") else 0.75
        expected = jax.tree.map(lambda p, kept=kept: kept * p + 1, old[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), layer, expected)
