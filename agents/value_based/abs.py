"""ABS: PQN with adaptive batch scaling (Park 2026, ICML).

The rollout length L, and with it the batch N L, follows the behavioural divergence: the share of
states whose greedy action an iteration's learning changed. While the policy still moves a lot the
batch is small; as it settles, the batch grows.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrl import masks, spaces
from jaxrl.agent import OWN, Tag, derive, static, traced
from jaxrl.loops.q_lambda import Batch, QLambda
from jaxrl.parts.losses import action_value
from jaxrl.parts.networks import Network, body_of, require_body
from jaxrl.parts.optimize import linear_schedule, permutation
from jaxrl.parts.rollout import Actors
from jaxrl.parts.trees import first_of


class ABSState(NamedTuple):
    key: jax.Array  # the run's root key; never changes
    params: Any
    opt_state: Any
    actors: Actors
    env_steps: jax.Array  # int32
    length: jax.Array  # float; rounded where it is used
    readings: jax.Array  # ring buffer (reading_window,) of divergences
    num_readings: jax.Array  # taken so far, int32


class ABS(QLambda):
    """Adaptive batch scaling: PQN whose rollouts grow as its policy settles; discrete actions.

    The length of a rollout goes from `min_steps` to `max_steps`. Epochs follow it (eq. 10) and the
    number of minibatches stays, so a minibatch grows with the batch. min_steps = max_steps is the
    fixed-length baseline. The squared error counts half, so that its gradient is Q - target; in the
    released script it counts whole, which RAdam's step hardly sees.
    """

    total_steps: int = static(20_000_000, "[1, 2147483647]", "environment steps of the whole run")
    epsilon_end: float = traced(0.001, "[0, 1]", "share of random actions once it has decayed")
    num_minibatches: int = static(4, "[1, inf)", "gradient steps per pass; they grow with L")
    learning_rate: float = traced(2.5e-4, "(0, inf)", "RAdam's step size")
    learning_rate_end: float = traced(1.0, "[0, inf)", "its fraction left at the end (linear)")
    max_grad_norm: float = traced(10.0, "(0, inf]", "global norm that gradients are clipped to")
    network: Any = static(
        "mlp", ("mlp", "cnn", OWN), "cnn: a 3x3 convolution on (H, W, C) first; or a body of yours"
    )
    hidden_sizes: tuple[int, ...] = static((256, 256), "[1, inf)", "widths of the hidden layers")
    residual_blocks: int = static(0, "[0, inf)", "multi-skip blocks after them (5 and 10 in ABS)")
    layer_norm: bool = static(True, None, "LayerNorm before each activation")
    output_norm: bool = static(False, None, "LayerNorm of Q, as ABS's residual networks have it")
    min_steps: int = static(16, "[1, inf)", "shortest rollout per environment")
    max_steps: int = static(64, "[1, inf)", "longest rollout per environment (128: large nets)")
    divergence_states: int = static(2048, "[1, inf)", "most states that a reading is taken on")
    measure_every: int = static(50, "[1, inf)", "iterations between two readings of the divergence")
    reading_window: int = static(20, "[1, inf)", "newest readings that are averaged")
    min_readings: int = static(10, "[1, inf)", "readings before the length may change")
    divergence_low: float = traced(0.05, "(0, 1]", "mean reading that asks for the longest rollout")
    divergence_high: float = traced(0.95, "(0, 1]", "the one that asks for the shortest")
    smoothing: float = traced(0.9, "[0, 1]", "share of the length that stays at each reading")
    truncate_length: bool = static(False, None, "keep L whole, as released: it stalls near L*-9")

    # Networks ---------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.max_steps < self.min_steps:
            raise ValueError(
                f"abs: max_steps={self.max_steps} is smaller than min_steps={self.min_steps}"
            )
        if self.steps_per_iteration % self.num_minibatches:
            raise ValueError(
                f"abs: num_minibatches={self.num_minibatches} does not divide the smallest batch "
                f"of {self.steps_per_iteration} = num_envs {self.num_envs} x min_steps "
                f"{self.min_steps}"
            )
        low, high = self.divergence_low, self.divergence_high
        if isinstance(low, float) and isinstance(high, float) and low >= high:
            raise ValueError(f"abs: divergence_low={low} is not below divergence_high={high}")
        if self.network == "cnn":
            spaces.require_image(self.obs_shape, self.name)
        require_body(self.network, self.obs_shape, self.name)
        most = 2**31 - 1 - self.num_envs * self.max_steps
        if self.total_steps > most:
            raise ValueError(f"abs: total_steps={self.total_steps} is more than {most}")
        readings = 1 + (self.num_iterations - 1) // self.measure_every
        if self.min_steps < self.max_steps and readings < self.min_readings:
            _warn_of_standstill(readings, self.min_readings, self.num_iterations)

    def unused(self) -> dict[str, str]:
        if self.min_steps < self.max_steps:
            return super().unused()
        # The divergence is still measured and reported, but moves nothing.
        of_length = (
            "reading_window",
            "min_readings",
            "divergence_low",
            "divergence_high",
            "smoothing",
            "truncate_length",
        )
        return super().unused() | dict.fromkeys(of_length, "with min_steps equal to max_steps")

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.min_steps

    def env_steps(self, state: ABSState) -> jax.Array:
        return state.env_steps

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

    def init(self, key: jax.Array) -> ABSState:
        actors = self.reset_envs(key)
        init_key, (obs, _) = derive(key, Tag.INIT), masks.split(first_of(actors.obs))
        params = self.make_network().init(init_key, self.encode(obs))
        zero = jnp.zeros((), jnp.int32)
        return ABSState(
            key=key,
            params=params,
            opt_state=self.optimizer(0.0).init(params),
            actors=actors,
            env_steps=zero,
            length=jnp.asarray(self.min_steps, jnp.float32),
            readings=jnp.zeros((self.reading_window,), jnp.float32),
            num_readings=zero,
        )

    # Update -----------------------------------------------------------------------------------

    def step(self, state: ABSState, t: jax.Array) -> tuple[ABSState, dict[str, jax.Array]]:
        progress, rollout_key = self.progress(state, t), derive(state.key, Tag.ROLLOUT, t)
        length = jnp.round(state.length).astype(jnp.int32)
        num_samples = length * self.num_envs
        actors, batch, metrics = self.collect(
            state.params, state.actors, rollout_key, progress, self.max_steps, length
        )
        params, opt_state, loss, num_epochs = self.learn(state, t, progress, batch, length)

        def measure(_):
            key = derive(state.key, Tag.MEASURE, t)
            size = min(self.divergence_states, self.num_envs * self.max_steps)
            rows = jax.random.randint(key, (size,), 0, num_samples)
            obs = jax.tree.map(lambda x: x[rows], batch.obs)
            return divergence(self.q_values(state.params, obs), self.q_values(params, obs))

        reading = lax.cond(
            t % self.measure_every == 0, measure, lambda _: jnp.float32(jnp.nan), None
        )
        readings, num_readings, next_length = self.schedule(
            state.readings, state.num_readings, state.length, reading
        )
        metrics |= {
            "loss": loss,
            "rollout_length": length.astype(jnp.float32),
            "num_epochs": num_epochs.astype(jnp.float32),
            "divergence": reading,
        }
        return ABSState(
            key=state.key,
            params=params,
            opt_state=opt_state,
            actors=actors,
            env_steps=state.env_steps + num_samples,
            length=next_length,
            readings=readings,
            num_readings=num_readings,
        ), metrics

    def learn(
        self, state: ABSState, t: jax.Array, progress: jax.Array, batch: Batch, length: jax.Array
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """Epochs of minibatches over the first `length * num_envs` rows of the batch.

        A minibatch grows with the length, so it is taken in slices of one static size, whose
        gradients are added up: exactly the whole minibatch's gradient, in constant memory.
        """
        size = self.steps_per_iteration // self.num_minibatches
        num_samples = length * self.num_envs
        num_epochs = jnp.maximum(2, 2 * length // 32)  # eq. 10
        optimizer = self.optimizer(progress)
        key = derive(state.key, Tag.LEARN, t)
        capacity = batch.target.shape[0]

        def epoch(i, carry):
            order = permutation(jax.random.fold_in(key, i), capacity, num_samples)
            order = jnp.pad(order, (0, size))  # the last slice may reach past the end
            return lax.fori_loop(0, self.num_minibatches, lambda m, c: update(m, c, order), carry)

        def update(m, carry, order):
            params, opt_state, total = carry
            start = m * num_samples // self.num_minibatches
            stop = (m + 1) * num_samples // self.num_minibatches

            def of_slice(j):
                rows = lax.dynamic_slice(order, (start + j * size,), (size,))
                minibatch = jax.tree.map(lambda x: x[rows], batch)
                valid = start + j * size + jnp.arange(size) < stop
                return self.loss_and_grad(params, minibatch, stop - start, valid)

            def add(j, sums):
                return jax.tree.map(jnp.add, sums, of_slice(j))

            # The first slice stands outside of the loop: a minibatch of one slice adds nothing.
            num_slices = (stop - start + size - 1) // size
            loss, grads = lax.fori_loop(1, num_slices, add, of_slice(0))
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state, total + loss

        carry = state.params, state.opt_state, jnp.zeros((), jnp.float32)
        params, opt_state, total = lax.fori_loop(0, num_epochs, epoch, carry)
        return params, opt_state, total / (num_epochs * self.num_minibatches), num_epochs

    def loss_and_grad(
        self, params: Any, batch: Batch, count: int | jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Sum of 0.5 (Q(s, a) - target)^2 over the valid rows, divided by `count`, and gradient.

        `count` is the whole minibatch's, so that what its slices give adds up to its gradient.
        """

        def loss_fn(params):
            q = action_value(self.q_values(params, batch.obs), batch.action)
            return jnp.where(valid, 0.5 * (q - batch.target) ** 2, 0).sum() / count

        return jax.value_and_grad(loss_fn)(params)

    # Length of a rollout ----------------------------------------------------------------------

    def schedule(
        self, readings: jax.Array, count: jax.Array, length: jax.Array, reading: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Add a reading (NaN: none this time) and move the length towards what the mean asks for.

        Eqs. 4, 5 and 9. Returns the readings, their number so far and the new length.
        """
        window = self.reading_window
        measured = ~jnp.isnan(reading)
        readings = jnp.where(measured, readings.at[count % window].set(reading), readings)
        count = count + measured
        mean = readings.sum() / jnp.clip(count, 1, window)
        moved = self.smoothing * length + (1 - self.smoothing) * self.target_length(mean)
        if self.truncate_length:
            moved = jnp.trunc(moved)
        moved = jnp.clip(moved, self.min_steps, self.max_steps)
        return readings, count, jnp.where(measured & (count >= self.min_readings), moved, length)

    def target_length(self, mean_divergence: jax.Array) -> jax.Array:
        """The length that a divergence asks for, interpolated in its logarithm (eqs. 4 and 5)."""
        low, high = self.divergence_low, self.divergence_high
        share = jnp.log(jnp.clip(mean_divergence, low, high) / low) / jnp.log(high / low)
        return self.max_steps - share * (self.max_steps - self.min_steps)


@functools.lru_cache(maxsize=64)  # once, not for each member of a sweep
def _warn_of_standstill(readings: int, fewest: int, iterations: int) -> None:
    warnings.warn(
        f"abs: its length cannot adapt: {iterations} iterations take at most {readings} readings "
        f"of the divergence, and min_readings={fewest}: take more steps or a smaller measure_every",
        stacklevel=6,
    )


def divergence(q_old: jax.Array, q_new: jax.Array) -> jax.Array:
    """Behavioural divergence (eq. 3): share of rows of q (B, A) whose greedy action differs."""
    return (q_old.argmax(-1) != q_new.argmax(-1)).mean()
