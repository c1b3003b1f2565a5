"""BC: behaviour cloning, the baseline of offline RL; with a part of the data, 10 % BC."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import static, traced
from jaxrl.loops.offline import Offline, OfflineState
from jaxrl.parts import replay
from jaxrl.parts.networks import Network
from jaxrl.parts.replay import Batch


class BCLearner(NamedTuple):
    params: Any
    opt_state: Any


class BC(Offline):
    """The recorded action regressed on its observation: least squares, or cross-entropy.

    `best=0.1` learns from the episodes of highest return that hold a tenth of all steps: 10 % BC.
    """

    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size")
    best: float = traced(1.0, "(0, 1]", "share of the steps, those of the best episodes")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")

    def make_network(self) -> Network:
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.env.observation_space(self.env_params).shape),
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            output_scale=0.01,
        )

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def init_learner(self, key: jax.Array, obs: jax.Array) -> BCLearner:
        params = self.make_network().init(key, obs)
        return BCLearner(params, self.optimizer().init(params))

    def draw(self, key: jax.Array) -> Batch:
        assert self.data is not None
        return replay.draw(key, self.data, self.batch_size, self.best)

    def update(
        self, learner: BCLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[BCLearner, dict[str, jax.Array]]:
        def loss_fn(params):
            output = self.make_network().apply(params, batch.obs)
            if self.discrete:
                losses = optax.softmax_cross_entropy_with_integer_labels(output, batch.action)
            else:
                losses = ((jnp.tanh(output) - batch.action) ** 2).mean(axis=-1)
            return losses.mean()

        loss, grads = jax.value_and_grad(loss_fn)(learner.params)
        updates, opt_state = self.optimizer().update(grads, learner.opt_state)
        return BCLearner(optax.apply_updates(learner.params, updates), opt_state), {"loss": loss}

    def policy(self, state: OfflineState, deterministic: bool = True) -> Any:
        """The likeliest action; sampled by likelihood where discrete and not deterministic."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            output = self.make_network().apply(state.learner.params, obs)
            if not self.discrete:
                return self.env_action(jnp.tanh(output))
            return output.argmax(-1) if deterministic else jax.random.categorical(key, output)

        return act
