"""Networks: an MLP, the MinAtar CNN, a deep residual body or one's own body, all one module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxrl import imports
from jaxrl.parts.initializers import orthogonal

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "swish": nn.swish}


class Network(nn.Module):
    """[3x3 convolution, or a body] -> hidden layers -> [residual blocks] -> linear head.

    Input (..., *observation), output (..., outputs). Layers are Dense -> [LayerNorm] -> activation,
    with orthogonal weights and zero biases (Schulman et al. 2017's released code).

    Attributes:
        outputs: size of the head.
        obs_ndim: axes of one observation.
        hidden_sizes: widths of the hidden layers.
        activation: a key of `ACTIVATIONS`.
        conv_features: channels of a 3x3 valid convolution on (H, W, C); 0 for none. 16 with
            hidden_sizes (128,) is the MinAtar network (Young & Tian 2019).
        body: a flax module or a function, of observations (B, *observation) to features (B, ...);
            what it holds is initialised and learnt with the rest.
        layer_norm: normalise before each activation (channels only, on images).
        residual_blocks: multi-skip residual blocks on the last hidden width (Park 2026):
            h <- ReLU(h + LN(W2 ReLU(LN(W1 h)))) + g, where g is the body's input.
        output_scale: gain of the head's orthogonal weights.
        output_norm: an affine LayerNorm of the head's outputs (Park 2026's released code).
        dropout: share of each hidden layer's outputs that are set to 0, and the others scaled up
            for it, while `training`, by the key `rngs={"dropout": key}` (Srivastava et al. 2014).
            With `layer_norm`, of what goes into LayerNorm instead (Hiraoka et al. 2022, figure 1).
        precision: "float32", or "bfloat16" for the operands of its products; see `dense_product`.
        forward_mode: it can be differentiated by `jax.jvp`; weights' gradients are slower on CPUs.

    >>> network = Network(outputs=2, obs_ndim=1, hidden_sizes=(8,))
    >>> init = network.init_with_output  # (the output, the parameters)
    >>> jax.eval_shape(init, jax.random.key(0), jnp.zeros((5, 4)))[0].shape
    (5, 2)
    """

    outputs: int
    obs_ndim: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    conv_features: int = 0
    body: Callable[[jax.Array], jax.Array] | None = None
    layer_norm: bool = False
    residual_blocks: int = 0
    output_scale: float = 1.0
    output_norm: bool = False
    dropout: float = 0.0
    precision: str = "float32"
    forward_mode: bool = False

    @nn.compact
    def __call__(
        self, obs: jax.Array, action: jax.Array | None = None, training: bool = False
    ) -> jax.Array:
        """The head's outputs; an action (..., D) enters the hidden layers beside the features."""
        activation = ACTIVATIONS[self.activation]

        def dense(width: int, x: jax.Array, scale: float = 2**0.5) -> jax.Array:
            dot = partial(dense_product, operands=self.precision, forward_mode=self.forward_mode)
            return nn.Dense(width, kernel_init=orthogonal(scale), dot_general=dot)(x)

        def layer(width: int, x: jax.Array) -> jax.Array:
            dropout = nn.Dropout(self.dropout, deterministic=not training)
            x = dense(width, x)
            if self.layer_norm:
                return activation(nn.LayerNorm()(dropout(x)))
            return dropout(activation(x))

        x = jnp.asarray(obs, jnp.float32)
        if self.conv_features:
            x = layer(self.conv_features, patches_3x3(x))
        x = features(self.body, x, self.obs_ndim)
        if action is not None:
            x = jnp.concatenate([x, jnp.asarray(action, jnp.float32)], axis=-1)
        for width in self.hidden_sizes:
            x = layer(width, x)
        skip = x
        for _ in range(self.residual_blocks):
            inner = nn.relu(nn.LayerNorm()(dense(x.shape[-1], x)))
            x = nn.relu(x + nn.LayerNorm()(dense(x.shape[-1], inner))) + skip
        x = dense(self.outputs, x, self.output_scale)
        return nn.LayerNorm()(x) if self.output_norm else x


def features(
    body: Callable[[jax.Array], jax.Array] | None, obs: jax.Array, obs_ndim: int
) -> jax.Array:
    """What a body makes of observations (..., *observation), in a row (..., F).

    Without a body that is the observations themselves. However many axes a batch has, a body sees
    one.

    >>> features(None, jnp.zeros((5, 3, 4, 4, 2)), obs_ndim=3).shape
    (5, 3, 32)
    >>> features(lambda obs: obs.mean(axis=(1, 2)), jnp.zeros((5, 3, 4, 4, 2)), obs_ndim=3).shape
    (5, 3, 2)
    """
    batch = obs.shape[: obs.ndim - obs_ndim]
    if body is not None:
        obs = body(obs.reshape(-1, *obs.shape[len(batch) :]))
    return obs.reshape(*batch, -1)


def body_of(network: Any) -> Callable[[jax.Array], jax.Array] | None:
    """The `body` that a hyper-parameter `network` means: None for the name of a built-in one.

    Args:
        network: module:NAME of a flax module or a function, or these themselves; of a module also
            its class, if that needs no arguments.

    Raises: ValueError (one line) where there is nothing of that name.
    """
    if isinstance(network, str):
        if ":" not in network:
            return None
        network = imports.load(network, "network")
    body: Callable[[jax.Array], jax.Array] = network() if isinstance(network, type) else network
    return body


class _Features(nn.Module):
    """What a body makes of observations."""

    body: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        return self.body(obs)


def require_body(network: Any, shape: tuple[int, ...], agent: str) -> None:
    """Raise ValueError (one line) unless a `network` makes features of observations (*shape)."""
    if isinstance(network, str) and ":" not in network:
        return
    who = f"{agent}: network={imports.name_of(network)}"
    try:
        body = body_of(network)
    except TypeError as error:
        raise ValueError(f"{who} is a class that {error}: pass an instance") from error
    try:
        hash(body)
    except TypeError:
        raise ValueError(
            f"{who} cannot be hashed, as a part of what identifies a program: "
            "give it numbers, words and tuples"
        ) from None
    if not callable(body):
        raise ValueError(f"{who} is neither a flax module nor a function of observations")
    module, key = _Features(body), jax.eval_shape(lambda: jax.random.key(0))
    obs = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    try:
        variables = jax.eval_shape(module.init, key, obs)
        features = jax.eval_shape(module.apply, variables, obs)
    except Exception as error:  # whatever the body's own code does
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{who} fails on observations {('B', *shape)}: {type(error).__name__}: {line}"
        ) from error
    if getattr(features, "shape", ())[:1] != (3,):
        raise ValueError(
            f"{who} makes {getattr(features, 'shape', type(features).__name__)} of three "
            "observations: features of each, (3, ...), are needed"
        )
    if set(variables) - {"params"}:
        others = ", ".join(sorted(set(variables) - {"params"}))
        raise ValueError(f"{who} holds {others} beside its parameters, which nothing would update")


def dense_product(
    x: jax.Array,
    w: jax.Array,
    dimensions: Any,
    *,
    operands: str = "float32",
    forward_mode: bool = False,
    **options: Any,
) -> jax.Array:
    """A dense layer's x @ w, as `nn.Dense(dot_general=...)` asks for it.

    Args:
        operands: "bfloat16": x and w, and to go back also gradients, are rounded to it; products
            are added up in float32, and everything between two products is float32.
        forward_mode: it can be differentiated by `jax.jvp`. Else the gradient of w is
            `weight_gradient`'s on a CPU, where it is float32 in any case.
    """
    if forward_mode:
        return rounded_product(x, w, operands)
    if operands == "float32" and jax.default_backend() != "cpu":
        return lax.dot_general(x, w, dimensions, **options)
    return _product(x, w, operands)


NARROW = 48  # a CPU multiplies narrower matrices no faster in bfloat16: measured


def rounded_product(x: jax.Array, w: jax.Array, operands: str) -> jax.Array:
    """x (..., K) @ w (K, N) of "float32" or "bfloat16" operands, added up in float32.

    >>> x = jnp.full((1, 1), 1 + 2**-8)
    >>> float(rounded_product(x, x, "bfloat16")[0, 0])
    1.0
    """
    if operands == "float32":
        return x @ w
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    if jax.default_backend() == "cpu" and min(w.shape) < NARROW:
        return x.astype(jnp.float32) @ w.astype(jnp.float32)
    inner = ((x.ndim - 1,), (0,)), ((), ())
    return lax.dot_general(x, w, inner, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, w: jax.Array, operands: str) -> jax.Array:
    return rounded_product(x, w, operands)


def _product_forward(
    x: Any, w: Any, operands: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array | None]]:
    kept = w.value if x.perturbed else None  # of observations nobody asks for a gradient
    return rounded_product(x.value, w.value, operands), (x.value, kept)


def _product_backward(
    operands: str, kept: tuple[jax.Array, jax.Array | None], gradient: jax.Array
) -> tuple[jax.Array | None, jax.Array]:
    x, w = kept
    of_x = None if w is None else rounded_product(gradient, w.T, operands)
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if jax.default_backend() == "cpu":
        return of_x, weight_gradient(x, gradient)
    return of_x, rounded_product(x.T, gradient, operands)


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)

# Beyond so many numbers a transposed copy costs what it gains, but where the result is narrow.
MOST_COPIED, FEW_OUTPUTS = 2**19, 8


def weight_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """x^T gradient (inputs, outputs), of x (B, inputs) and gradient (B, outputs), fast on a CPU.

    XLA:CPU multiplies slowly where both matrices have their inner axis first: at a thirtieth of its
    speed where the result has two columns, at half of it where it is 64 x 64. So x is transposed
    before, or the gradient and the result, whichever copies less. Barriers keep XLA from undoing
    that.

    >>> weight_gradient(jnp.eye(3), jnp.ones((3, 2))).shape
    (3, 2)
    """
    barrier = lax.optimization_barrier
    (rows, inputs), outputs = x.shape, gradient.shape[-1]
    copies = (rows + inputs) * outputs
    if copies < rows * inputs and (copies <= MOST_COPIED or outputs <= FEW_OUTPUTS):
        return barrier(barrier(gradient.T) @ x).T
    return (barrier(x.T) if rows * inputs <= MOST_COPIED else x.T) @ gradient


class BatchRenorm(nn.Module):
    """Batch renormalisation of the last axis (Ioffe 2017, arXiv:1702.03275), as CrossQ uses it.

    While training, a batch is normalised by its own moments, corrected (within limits, and without
    gradient) to what the running moments would give; so training and inference agree. Plain batch
    normalisation for the first `warm_up` batches, while the running moments settle.

    Collection "batch_stats": "mean", "var" and "seen", the number of batches.
    """

    momentum: float = 0.99
    warm_up: int = 100_000
    max_ratio: float = 3.0
    max_shift: float = 5.0
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise x (B, D)."""
        size = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, size, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, size, jnp.float32)
        seen = self.variable("batch_stats", "seen", jnp.zeros, (), jnp.int32)
        scale = self.param("scale", nn.initializers.ones, size, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, size, jnp.float32)
        running_std = jnp.sqrt(var.value + self.epsilon)
        if not train:
            return scale * (x - mean.value) / running_std + bias
        batch_mean, batch_var = x.mean(axis=0), x.var(axis=0)
        std = jnp.sqrt(batch_var + self.epsilon)
        ratio = jnp.clip(std / running_std, 1 / self.max_ratio, self.max_ratio)
        shift = (batch_mean - mean.value) / running_std
        shift = jnp.clip(shift, -self.max_shift, self.max_shift)
        settled = seen.value >= self.warm_up
        ratio = lax.stop_gradient(jnp.where(settled, ratio, 1.0))
        shift = lax.stop_gradient(jnp.where(settled, shift, 0.0))
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
            seen.value = seen.value + 1
        return scale * ((x - batch_mean) / std * ratio + shift) + bias


def patches_3x3(x: jax.Array) -> jax.Array:
    """All valid 3x3 patches of (..., H, W, C) as (..., H-2, W-2, 9C), row-major.

    A Dense layer on them is a convolution. XLA's own convolution gradient is slow on CPUs, and a
    vmapped one becomes a grouped convolution, slow everywhere; a matrix product is neither.

    >>> patches_3x3(jnp.zeros((5, 7, 2))).shape
    (3, 5, 18)
    """
    height, width = x.shape[-3] - 2, x.shape[-2] - 2
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return jnp.concatenate([x[..., i : i + height, j : j + width, :] for i, j in shifts], axis=-1)
