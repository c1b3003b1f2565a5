"""Networks with batch norm in every layer, and weights whose columns are held at unit length."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.parts.initializers import orthogonal
from jaxrl.parts.networks import dense_product


class NormalizedNetwork(nn.Module):
    """[batch norm] -> hidden layers with batch norm in each -> linear head.

    A hidden layer is Dense (without bias) -> batch norm -> ReLU, as in XQC (Palenicek et al. 2026),
    or with `batch_norm="after"` Dense -> ReLU -> batch norm, as in CrossQ (Bhatt et al. 2024).
    While training a batch is normalised by its own moments, else by the running ones.

    Input (..., D), output (..., outputs). Collections "params", of which "hidden_0", "hidden_1" and
    so on and "head" are the Dense layers, and "batch_stats".

    Attributes:
        outputs: size of the head.
        hidden_sizes: widths of the hidden layers.
        batch_norm: "before" or "after" the activation.
        input_norm: batch norm of the input, too.
        precision: "float32", or "bfloat16" for the operands of its products; see `dense_product`.

    >>> network = NormalizedNetwork(outputs=2, hidden_sizes=(8,))
    >>> variables = jax.eval_shape(lambda key: init_network(network, key, 4), jax.random.key(0))
    >>> sorted(variables["params"])
    ['BatchNorm_0', 'head', 'hidden_0']
    """

    outputs: int
    hidden_sizes: tuple[int, ...]
    batch_norm: str = "before"
    input_norm: bool = False
    precision: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def normalized(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, use_fast_variance=False)(x)

        layer = partial(nn.Dense, dot_general=partial(dense_product, operands=self.precision))
        x = normalized(x) if self.input_norm else x
        for i, width in enumerate(self.hidden_sizes):
            before = self.batch_norm == "before"  # a bias would have no effect then
            dense = layer(
                width, use_bias=not before, kernel_init=orthogonal(2**0.5), name=f"hidden_{i}"
            )
            x = nn.relu(normalized(dense(x))) if before else normalized(nn.relu(dense(x)))
        return layer(self.outputs, kernel_init=orthogonal(1.0), name="head")(x)


def init_network(network: nn.Module, key: jax.Array, size: int) -> dict[str, Any]:
    """Its "params" and "batch_stats", for inputs (B, size)."""
    variables: dict[str, Any] = network.init(key, jnp.zeros((2, size), jnp.float32), True)
    return variables


def params_of(networks: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Parameters of networks without their running moments."""
    return tuple(network["params"] for network in networks)


def joined(
    params: Iterable[dict[str, Any]], moments: Iterable[dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Networks of their parameters and running moments."""
    pairs = zip(params, moments, strict=True)
    return tuple({"params": p, "batch_stats": m} for p, m in pairs)


def train_batch(network: nn.Module, params: Any, stats: Any, x: jax.Array) -> tuple[Any, Any]:
    """The outputs for a batch x (B, D) normalised by its own moments; and the running moments
    after it.
    """
    variables = {"params": params, "batch_stats": stats}
    outputs, updated = network.apply(variables, x, True, mutable=["batch_stats"])
    return outputs, updated["batch_stats"]


def unit_columns(params: dict[str, Any], head: bool = True) -> dict[str, Any]:
    """Parameters of a network whose Dense layers have output columns of unit length.

    Each output's weights, with its bias if there is one, are divided by their Euclidean length:
    batch norm takes the scale out anyway, and the effective step size stays what it is (Palenicek
    et al. 2026). The layer "head" is divided by the length of its weights alone, and its bias
    stays. Other parameters are left alone.

    Args:
        params: by names of layers; a Dense layer has "kernel" (inputs, outputs), maybe "bias".
        head: False leaves the layer "head" as it is.

    >>> params = {"hidden_0": {"kernel": jnp.array([[3.0], [0.0]]), "bias": jnp.array([4.0])}}
    >>> jax.tree.map(lambda x: x.round(3).ravel().tolist(), unit_columns(params))
    {'hidden_0': {'bias': [0.8], 'kernel': [0.6, 0.0]}}
    """

    def unit(name: str, layer: Any) -> Any:
        if "kernel" not in layer or (name == "head" and not head):
            return layer
        with_bias = name != "head" and "bias" in layer
        squares = (layer["kernel"] ** 2).sum(axis=0) + (layer["bias"] ** 2 if with_bias else 0)
        length = jnp.maximum(jnp.sqrt(squares), jnp.finfo(squares.dtype).tiny)
        scaled = {"kernel": layer["kernel"] / length}
        if with_bias:
            scaled["bias"] = layer["bias"] / length
        return layer | scaled

    return {name: unit(name, layer) for name, layer in params.items()}


def decayed(
    params: dict[str, Any], old: dict[str, Any], share: float | jax.Array
) -> dict[str, Any]:
    """Parameters after a step from `old`, all but the hidden layers less a `share` of the latter.

    With unit columns what is left to a decoupled weight decay (Loshchilov & Hutter 2019) is the
    head and batch norm (Palenicek et al. 2025).

    >>> old = {"head": {"kernel": jnp.array([[2.0]])}, "hidden_0": {"kernel": jnp.array([[2.0]])}}
    >>> new = decayed(old, old, 0.5)
    >>> new["head"]["kernel"].tolist(), new["hidden_0"]["kernel"].tolist()
    ([[1.0]], [[2.0]])
    """

    def shrunk(name: str) -> Any:
        if name.startswith("hidden"):
            return params[name]
        return jax.tree.map(lambda new, before: new - share * before, params[name], old[name])

    return {name: shrunk(name) for name in params}
