"""Networks that remember: a recurrent core between an encoder and the heads of actor and critic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.parts.initializers import orthogonal
from jaxrl.parts.networks import ACTIVATIONS, dense_product, features, patches_3x3
from jaxrl.parts.rollout import where_done

CORES = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class RecurrentNetwork(nn.Module):
    """[3x3 convolution, or a body] -> hidden layers -> recurrent core -> heads of actor and critic.

    Attributes:
        outputs: size of the actor's head.
        obs_ndim: axes of one observation.
        core: a key of `CORES` (Cho et al. 2014's GRU; Hochreiter & Schmidhuber 1997's LSTM).
        core_size: units of the core.
        hidden_sizes: widths of the hidden layers before the core.
        activation: a key of `ACTIVATIONS`, of the hidden layers.
        conv_features: channels of a 3x3 valid convolution on (H, W, C); 0 for none.
        body: a flax module or a function, of observations (B, *observation) to features (B, ...).
        precision: "float32", or "bfloat16" for the operands of dense layers' products.

    >>> network = RecurrentNetwork(outputs=2, obs_ndim=1, core_size=8)
    >>> obs, starts = jnp.zeros((5, 3, 4)), jnp.zeros((5, 3), bool)
    >>> args = jax.random.key(0), network.initial(3), obs, starts
    >>> memory, output, value = jax.eval_shape(network.init_with_output, *args)[0]
    >>> memory.shape, output.shape, value.shape
    ((3, 8), (5, 3, 2), (5, 3))
    """

    outputs: int
    obs_ndim: int
    core: str = "gru"
    core_size: int = 64
    hidden_sizes: tuple[int, ...] = (64,)
    activation: str = "tanh"
    conv_features: int = 0
    body: Callable[[jax.Array], jax.Array] | None = None
    precision: str = "float32"

    def initial(self, *batch: int) -> Any:
        """The memory at the start of an episode: zeros (*batch, core_size), two of an LSTM."""
        zeros = jnp.zeros((*batch, self.core_size), jnp.float32)
        return zeros if self.core == "gru" else (zeros, jnp.copy(zeros))

    @nn.compact
    def __call__(
        self, memory: Any, obs: jax.Array, starts: jax.Array, values: bool = True
    ) -> tuple[Any, jax.Array, jax.Array | None]:
        """Reads sequences.

        Args:
            memory: before the first step, leading axis N.
            obs: (T, N, *observation).
            starts: (T, N), whether an episode begins at the step: what was before is forgotten.
            values: whether the critic's are wanted: to act takes none.

        Returns the memory after the last step, the actor's outputs (T, N, outputs) and the critic's
        values (T, N), or None.
        """
        activation = ACTIVATIONS[self.activation]

        def dense(width: int, scale: float, **name: str) -> nn.Dense:
            kernel_init = orthogonal(scale)
            dot = partial(dense_product, operands=self.precision)
            return nn.Dense(width, kernel_init=kernel_init, dot_general=dot, **name)

        def layer(width: int, x: jax.Array) -> jax.Array:
            return activation(dense(width, 2**0.5)(x))

        x = jnp.asarray(obs, jnp.float32)
        if self.conv_features:
            x = layer(self.conv_features, patches_3x3(x))
        x = features(self.body, x, self.obs_ndim)
        for width in self.hidden_sizes:
            x = layer(width, x)

        def advance(cell: Any, memory: Any, step: tuple[jax.Array, jax.Array]) -> Any:
            x, start = step
            return cell(where_done(start, self.initial(), memory), x)

        scan = nn.scan(advance, variable_broadcast="params", split_rngs={"params": False})
        core = CORES[self.core](self.core_size, recurrent_kernel_init=orthogonal(), name="core")
        memory, x = scan(core, memory, (x, starts))
        # The actor's last layer is small, so that it is near uniform at first.
        output = dense(self.outputs, 0.01, name="actor")(x)
        if not values:
            return memory, output, None
        value = dense(1, 1.0, name="critic")(x)
        return memory, output, value[..., 0]
