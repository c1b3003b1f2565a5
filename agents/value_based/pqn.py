"""PQN: Simplifying Deep Temporal Difference Learning (Gallici et al. 2025, arXiv:2407.04811)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from jaxrl import masks, spaces
from jaxrl.agent import OWN, Tag, derive, static, traced
from jaxrl.loops.q_lambda import Batch, QLambda
from jaxrl.parts.losses import action_value
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import descend, linear_schedule, minibatch_epochs
from jaxrl.parts.rollout import Actors
from jaxrl.parts.trees import first_of


class PQNState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any
    actors: Actors


class PQN(QLambda):
    """Q(lambda) on parallel environments, with LayerNorm for a target network; discrete actions."""

    num_steps: int = static(32, "[1, inf)", "steps per environment and iteration")
    num_epochs: int = static(2, "[1, inf)", "passes over each rollout")
    num_minibatches: int = static(32, "[1, inf)", "gradient steps per pass; divides the batch")
    learning_rate: float = traced(5e-4, "(0, inf)", "RAdam's step size at the start")
    learning_rate_end: float = traced(0.0, "[0, inf)", "its fraction left at the end (linear)")
    max_grad_norm: float = traced(10.0, "(0, inf]", "global norm that gradients are clipped to")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")
    residual_blocks: int = static(0, "[0, inf)", "multi-skip blocks after them (5 and 10 in ABS)")
    layer_norm: bool = static(True, None, "LayerNorm before each activation")
    output_norm: bool = static(False, None, "LayerNorm of Q, as ABS's residual networks have it")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        batch = self.steps_per_iteration
        if batch % self.num_minibatches:
            raise ValueError(
                f"pqn: num_minibatches={self.num_minibatches} does not divide the batch of "
                f"{batch} = num_envs {self.num_envs} x num_steps {self.num_steps}"
            )
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)
        require_body(self.network, self.obs_shape, self.name)

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.num_steps

    def make_network(self) -> Network:
        """Q of every action."""
        return Network(
            outputs=spaces.action_size(self.action_space),
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            conv_features=16 if self.network == "cnn" else 0,
            body=body_of(self.network),
            layer_norm=self.layer_norm,
            residual_blocks=self.residual_blocks,
            output_norm=self.output_norm,
        )

    def q_values(self, params: Any, obs: Any) -> jax.Array:
        obs, mask = masks.split(obs)
        return masks.masked(self.make_network().apply(params, obs), mask)

    def optimizer(self, progress: jax.Array | float) -> optax.GradientTransformation:
        end = self.learning_rate_end * self.learning_rate
        learning_rate = linear_schedule(self.learning_rate, end, progress)
        clip = optax.clip_by_global_norm(self.max_grad_norm)
        return optax.chain(clip, optax.radam(learning_rate))

    # Init -------------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> PQNState:
        actors = self.reset_envs(key)
        init_key, (obs, _) = derive(key, Tag.INIT), masks.split(first_of(actors.obs))
        params = self.make_network().init(init_key, self.encode(obs))
        return PQNState(key, params, self.optimizer(0.0).init(params), actors)

    # Update -----------------------------------------------------------------------------------

    def step(self, state: PQNState, t: jax.Array) -> tuple[PQNState, dict[str, jax.Array]]:
        progress, rollout_key = self.progress(state, t), derive(state.key, Tag.ROLLOUT, t)
        actors, batch, metrics = self.collect(
            state.params, state.actors, rollout_key, progress, self.num_steps
        )
        optimizer = self.optimizer(progress)

        def update(carry, minibatch):
            def loss_fn(params):
                return self.loss(params, minibatch), ()

            params, opt_state, loss, _ = descend(optimizer, loss_fn, *carry)
            return (params, opt_state), loss

        (params, opt_state), losses = minibatch_epochs(
            derive(state.key, Tag.LEARN, t),
            update,
            (state.params, state.opt_state),
            batch,
            self.num_epochs,
            self.num_minibatches,
        )
        return PQNState(state.key, params, opt_state, actors), metrics | {"loss": losses.mean()}

    def loss(self, params: Any, batch: Batch) -> jax.Array:
        """The mean of 0.5 (Q(s, a) - target)^2."""
        q = action_value(self.q_values(params, batch.obs), batch.action)
        return (0.5 * (q - batch.target) ** 2).mean()
