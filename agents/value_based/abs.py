"""ABS: PQN with adaptive batch scaling (Park 2026, ICML).

The rollout length L, and with it the batch N L, follows the behavioural divergence: the share of
states whose greedy action an iteration's learning changed. While the policy still moves a lot the
batch is small; as it settles, the batch grows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from agents.value_based.pqn import Batch, QLambda
from jaxrl.agent import Tag, derive, static, traced
from jaxrl.parts.optimize import permutation
from jaxrl.parts.rollout import Actors

SAMPLE = 2048  # states that the divergence is measured on, at most
MEASURE_EVERY = 50  # iterations between two readings
READINGS = 20  # newest readings that are averaged
FEWEST = 10  # readings before the length may change
DIVERGENCE_RANGE = (0.05, 0.95)  # readings that ask for the longest and the shortest rollout
SMOOTHING = 0.9  # of the length, per reading


class ABSState(NamedTuple):
    key: jax.Array
    params: Any
    opt_state: Any
    actors: Actors
    env_steps: jax.Array  # int32
    length: jax.Array  # float; rounded where it is used
    readings: jax.Array  # ring buffer (READINGS,) of divergences
    num_readings: jax.Array


class ABS(QLambda):
    """PQN whose rollout length grows from `min_steps` to `max_steps` as the policy settles.

    Epochs follow the length (eq. 10) and the number of minibatches stays, so a minibatch grows with
    the batch. min_steps = max_steps is the fixed-length baseline.
    """

    num_minibatches: int = static(4, "[1, inf)", "gradient steps per pass; they grow with L")
    learning_rate: float = traced(2.5e-4, "(0, inf)", "RAdam's step size")
    learning_rate_end: float = traced(1.0, "[0, inf)", "its fraction left at the end (linear)")
    epsilon_end: float = traced(0.001, "[0, 1]", "share of random actions once it has decayed")
    min_steps: int = static(16, "[1, inf)", "shortest rollout per environment")
    max_steps: int = static(64, "[1, inf)", "longest rollout per environment (128: large nets)")
    truncate_length: bool = static(False, None, "keep L whole, as released: it stalls near L*-9")

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

    @property
    def steps_per_iteration(self) -> int:
        return self.num_envs * self.min_steps

    def env_steps(self, state: ABSState) -> jax.Array:
        return state.env_steps

    def init(self, key: jax.Array) -> ABSState:
        zero, length = jnp.zeros((), jnp.int32), jnp.asarray(float(self.min_steps))
        return ABSState(key, *self.begin(key), zero, length, jnp.zeros((READINGS,)), zero)

    def step(self, state: ABSState, t: jax.Array) -> tuple[ABSState, dict[str, jax.Array]]:
        progress = self.progress(state, t)
        length = jnp.round(state.length).astype(jnp.int32)
        actors, steps, metrics = self.collect(state, t, progress, self.max_steps, length)
        batch = self.batch(state.params, steps, actors, length)
        num_samples = length * self.num_envs
        params, opt_state, loss, num_epochs = self.learn(state, t, progress, batch, length)

        def measure(_):
            key = derive(state.key, Tag.MEASURE, t)
            rows = jax.random.randint(key, (min(SAMPLE, self.steps_per_iteration),), 0, num_samples)
            obs = batch.obs[rows]
            return divergence(self.q_values(state.params, obs), self.q_values(params, obs))

        reading = lax.cond(t % MEASURE_EVERY == 0, measure, lambda _: jnp.nan, None)
        readings, num_readings, float_length = self.schedule(
            state.readings, state.num_readings, state.length, reading
        )
        metrics |= {
            "loss": loss,
            "q_mean": steps.extras.sum() / num_samples,
            "rollout_length": length.astype(jnp.float32),
            "num_epochs": num_epochs.astype(jnp.float32),
            "divergence": reading,
        }
        return ABSState(
            state.key,
            params,
            opt_state,
            actors,
            state.env_steps + num_samples,
            float_length,
            readings,
            num_readings,
        ), metrics

    def learn(
        self, state: ABSState, t: jax.Array, progress: jax.Array, batch: Batch, length: jax.Array
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        """Epochs of minibatches over the first `length * num_envs` rows of the batch.

        A minibatch grows with the length, so it is taken in pieces of one static size, whose
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
            order = jnp.pad(order, (0, size))  # the last piece may reach past the end
            return lax.fori_loop(0, self.num_minibatches, lambda m, c: update(m, c, order), carry)

        def update(m, carry, order):
            params, opt_state, total = carry
            start = m * num_samples // self.num_minibatches
            stop = (m + 1) * num_samples // self.num_minibatches

            def piece(j):
                rows = lax.dynamic_slice(order, (start + j * size,), (size,))
                minibatch = jax.tree.map(lambda x: x[rows], batch)
                valid = start + j * size + jnp.arange(size) < stop
                return self.loss_and_grad(params, minibatch, stop - start, valid)

            def add(j, sums):
                return jax.tree.map(jnp.add, sums, piece(j))

            # The first piece stands outside of the loop: a minibatch of one piece adds nothing.
            pieces = (stop - start + size - 1) // size
            loss, grads = lax.fori_loop(1, pieces, add, piece(0))
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state, total + loss

        carry = state.params, state.opt_state, jnp.zeros(())
        params, opt_state, total = lax.fori_loop(0, num_epochs, epoch, carry)
        return params, opt_state, total / (num_epochs * self.num_minibatches), num_epochs

    def schedule(
        self, readings: jax.Array, count: jax.Array, length: jax.Array, reading: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Add a reading (NaN: none this time) and move the length towards what the mean asks for.

        Eqs. 4, 5 and 9. Returns the readings, their number so far and the new length.
        """
        measured = ~jnp.isnan(reading)
        readings = jnp.where(measured, readings.at[count % READINGS].set(reading), readings)
        count = count + measured
        mean = readings.sum() / jnp.clip(count, 1, READINGS)
        wanted = target_length(mean, self.min_steps, self.max_steps)
        moved = SMOOTHING * length + (1 - SMOOTHING) * wanted
        moved = jnp.clip(
            jnp.trunc(moved) if self.truncate_length else moved, self.min_steps, self.max_steps
        )
        return readings, count, jnp.where(measured & (count >= FEWEST), moved, length)


def divergence(q_old: jax.Array, q_new: jax.Array) -> jax.Array:
    """Behavioural divergence (eq. 3): share of rows of q (B, A) whose greedy action differs."""
    return (q_old.argmax(-1) != q_new.argmax(-1)).mean()


def target_length(mean_divergence: jax.Array, min_steps: int, max_steps: int) -> jax.Array:
    """The length that a divergence asks for, interpolated in its logarithm (eqs. 4 and 5)."""
    low, high = DIVERGENCE_RANGE
    clipped = jnp.clip(mean_divergence, low, high)
    share = jnp.log(clipped / low) / jnp.log(high / low)
    return max_steps - share * (max_steps - min_steps)
