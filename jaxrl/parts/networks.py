"""Networks: an MLP, the MinAtar CNN and a deep residual body, all one module."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import orthogonal
from jax import lax

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "swish": nn.swish}


class Network(nn.Module):
    """[3x3 convolution] -> hidden layers -> [residual blocks] -> linear head.

    Input (..., *observation), output (..., outputs). Layers are Dense -> [LayerNorm] -> activation,
    with orthogonal weights and zero biases (Schulman et al. 2017's released code).

    Attributes:
        outputs: size of the head.
        obs_ndim: axes of one observation.
        hidden_sizes: widths of the hidden layers.
        activation: a key of `ACTIVATIONS`.
        conv_features: channels of a 3x3 valid convolution on (H, W, C); 0 for none. 16 with
            hidden_sizes (128,) is the MinAtar network (Young & Tian 2019).
        layer_norm: normalise before each activation (channels only, on images).
        residual_blocks: multi-skip residual blocks on the last hidden width (Park 2026):
            h <- ReLU(h + LN(W2 ReLU(LN(W1 h)))) + g, where g is the body's input.
        output_scale: gain of the head's orthogonal weights.
        output_norm: an affine LayerNorm of the head's outputs (Park 2026's released code).
        dropout: share of each hidden layer's outputs that are set to 0, and the others scaled up
            for it, while `training`, by the key `rngs={"dropout": key}` (Srivastava et al. 2014).

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
    layer_norm: bool = False
    residual_blocks: int = 0
    output_scale: float = 1.0
    output_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, obs: jax.Array, training: bool = False) -> jax.Array:
        activation = ACTIVATIONS[self.activation]

        def dense(width: int, x: jax.Array) -> jax.Array:
            return nn.Dense(width, kernel_init=orthogonal(2**0.5))(x)

        def layer(width: int, x: jax.Array) -> jax.Array:
            x = dense(width, x)
            x = activation(nn.LayerNorm()(x) if self.layer_norm else x)
            return nn.Dropout(self.dropout, deterministic=not training)(x)

        x = jnp.asarray(obs, jnp.float32)
        batch = x.shape[: x.ndim - self.obs_ndim]
        if self.conv_features:
            x = layer(self.conv_features, patches_3x3(x))
        x = x.reshape(*batch, -1)
        for width in self.hidden_sizes:
            x = layer(width, x)
        skip = x
        for _ in range(self.residual_blocks):
            inner = nn.relu(nn.LayerNorm()(dense(x.shape[-1], x)))
            x = nn.relu(x + nn.LayerNorm()(dense(x.shape[-1], inner))) + skip
        x = nn.Dense(self.outputs, kernel_init=orthogonal(self.output_scale))(x)
        return nn.LayerNorm()(x) if self.output_norm else x


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
