"""FQE: fitted Q evaluation of a given policy from recorded steps (Le et al. 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import spaces
from jaxrl.agent import OWN, Policy, memoryless, static, traced
from jaxrl.loops.learner import Learner, LearnerState
from jaxrl.parts.losses import action_value, td_target
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import copy_of, descend, polyak
from jaxrl.parts.replay import Batch

ROWS = 4096  # states that are valued at once


class FQELearner(NamedTuple):
    params: Any
    target_params: Any
    opt_state: Any


class FQE(Learner):
    """Fitted Q evaluation of a policy from recorded data; discrete and continuous actions.

    Q is regressed on r + gamma Q'(s', a') with a' from `target`, a policy without memory or a plain
    function `(obs, key) -> action`. It acts in the environment's own units, like
    `agent.policy(state)`, and is part of the program's identity. `value` is what it is all for.
    """

    offline_only: ClassVar[bool] = True
    takes_rewards: ClassVar[bool] = False  # as they are: values are the policy's own

    target: Policy | Callable[[jax.Array, jax.Array], jax.Array] | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    learning_rate: float = traced(3e-4, "(0, inf)", "Adam's step size")
    gamma: float = traced(0.99, "[0, 1]", "discount")
    tau: float = traced(0.005, "(0, 1]", "how far the target network moves at each gradient step")
    network: Any = static("mlp", ("mlp", OWN), "or a body of yours")
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.normalize_observations:
            raise ValueError("fqe: normalize_observations=True: its target sees them as they are")
        if self.target is None:
            raise ValueError("fqe: target=None: give it the policy that is to be evaluated")
        if jax.tree.leaves(self.target_policy.initial()):
            raise ValueError(
                "fqe: target has a memory: recorded steps do not hold what it remembers"
            )
        require_body(self.network, self.obs_shape, self.name)

    def make_critic(self) -> Network:
        """Q of every action where they are discrete, else of an observation and an action."""
        return Network(
            outputs=spaces.action_size(self.action_space) if self.discrete else 1,
            obs_ndim=len(self.obs_shape),
            precision=self.precision,
            hidden_sizes=self.hidden_sizes,
            activation="relu",
            body=body_of(self.network),
        )

    def q_value(self, params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Q (B,) of actions as they are recorded: integers (B,), or (B, D) within [-1, 1]."""
        if self.discrete:
            return action_value(self.make_critic().apply(params, obs), action)
        return self.make_critic().apply(params, obs, action)[:, 0]

    def act(self, obs: jax.Array, key: jax.Array) -> jax.Array:
        """The target policy's actions, as they would be recorded, at observations (B, ...)."""
        action = jax.vmap(self.target_policy)(obs, jax.random.split(key, len(obs)))
        return action if self.discrete else spaces.from_box(self.action_space, action)

    @property
    def target_policy(self) -> Policy:
        assert self.target is not None
        return memoryless(self.target)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # Init -------------------------------------------------------------------------------------

    def init_learner(self, key: jax.Array, obs: jax.Array) -> FQELearner:
        size = spaces.action_size(self.action_space)
        inputs = (obs,) if self.discrete else (obs, jnp.zeros((size,)))
        params = self.make_critic().init(key, *inputs)
        return FQELearner(params, copy_of(params), self.optimizer().init(params))

    # Update -----------------------------------------------------------------------------------

    def update(
        self, learner: FQELearner, batch: Batch, key: jax.Array, n: jax.Array
    ) -> tuple[FQELearner, dict[str, jax.Array]]:
        next_action = self.act(batch.next_obs, key)
        next_q = self.q_value(learner.target_params, batch.next_obs, next_action)
        target = td_target(batch.reward, batch.terminated, next_q, self.gamma)

        def loss_fn(params):
            q = self.q_value(params, batch.obs, batch.action)
            return 0.5 * ((q - target) ** 2).mean(), q.mean()

        params, opt_state, loss, q_mean = descend(
            self.optimizer(), loss_fn, learner.params, learner.opt_state
        )
        target_params = polyak(learner.target_params, params, self.tau)
        return FQELearner(params, target_params, opt_state), {"loss": loss, "q_mean": q_mean}

    # Acting -----------------------------------------------------------------------------------

    def value(self, state: LearnerState, key: jax.Array) -> jax.Array:
        """The target policy's mean value of the states that recorded episodes began in.

        For the host: how many those are must be known.
        """
        assert self.data is not None
        ended = np.asarray(self.data.terminated | self.data.truncated)
        first = np.flatnonzero(np.append(True, ended[:-1]))
        keys = jax.random.split(key, -(-len(first) // ROWS))
        total = jnp.zeros((), jnp.float32)
        for i, key in enumerate(keys):
            obs = self.data.obs[first[i * ROWS : (i + 1) * ROWS]]
            total += self.q_value(state.learner.params, obs, self.act(obs, key)).sum()
        return total / len(first)

    def policy(self, state: LearnerState, deterministic: bool = True) -> Policy:
        """The policy that is evaluated."""
        return self.target_policy
