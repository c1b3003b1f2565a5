"""BC: behaviour cloning, the baseline of offline RL; with a part of the data, 10 % BC."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.loops.sources import Recorded, Source
from jaxrl.parts.distributions import Categorical
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import descend
from jaxrl.parts.replay import Batch


class BCLearner(NamedTuple):
    params: Any
    opt_state: Any


class BC(Learner):
    """Behaviour cloning of recorded data; discrete and continuous actions.

    The recorded action is regressed on its observation by least squares, or by cross-entropy where
    discrete. `best=0.1` learns from the episodes of highest return that hold a tenth of all steps:
    10 % BC.
    """

    offline_only: ClassVar[bool] = True
    takes_rewards: ClassVar[bool] = False  # `best` ranks episodes by rewards as recorded

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size")
    best: float = traced(1.0, "(0, 1]", "share of the steps, those of the best episodes")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")
    activation: str = static("relu", ("tanh", "relu", "swish"), "of the hidden layers")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        require_body(self.network, self.obs_shape, self.name)

    def make_network(self) -> Network:
        """From an observation to logits, or to an action before the tanh that bounds it."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation=self.activation,
            body=body_of(self.network),
            output_scale=0.01,
        )

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def source(self) -> Source:
        assert self.data is not None
        return Recorded(self.data, best=self.best)

    def init_learner(self, key: jax.Array, obs: jax.Array) -> BCLearner:
        params = self.make_network().init(key, obs)
        return BCLearner(params, self.optimizer().init(params))

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: BCLearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[BCLearner, dict[str, jax.Array]]:
        def loss_fn(params):
            output = self.make_network().apply(params, batch.obs)
            if self.discrete:
                losses = optax.softmax_cross_entropy_with_integer_labels(output, batch.action)
            else:
                losses = ((jnp.tanh(output) - batch.action) ** 2).mean(axis=-1)
            return losses.mean(), ()

        params, opt_state, loss, _ = descend(
            self.optimizer(), loss_fn, learner.params, learner.opt_state
        )
        return BCLearner(params, opt_state), {"loss": loss}

    # Acting -----------------------------------------------------------------------------------

    def log_prob(self, state: LearnerState, obs: jax.Array, action: jax.Array) -> jax.Array | None:
        if not self.discrete:
            return None  # it does not sample
        obs = self.normalize(state.obs_moments, obs)
        return Categorical(self.make_network().apply(state.learner.params, obs)).log_prob(action)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The likeliest action; sampled by likelihood where discrete and not deterministic."""

        @memoryless
        def policy(obs: jax.Array, key: jax.Array) -> jax.Array:
            obs = self.normalize(state.obs_moments, obs)
            output = self.make_network().apply(state.learner.params, obs)
            if not self.discrete:
                return self.env_action(jnp.tanh(output))
            return output.argmax(-1) if deterministic else jax.random.categorical(key, output)

        return policy
