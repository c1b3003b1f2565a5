"""Running normalisation of observations and rewards."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RunningMoments(NamedTuple):
    """Number, mean and variance of everything seen so far; mean and variance share a shape.

    >>> moments = RunningMoments.of_shape(()).update(jnp.array([1.0, 3.0]))
    >>> float(moments.mean), float(moments.var), float(moments.normalize(jnp.array(4.0)))
    (2.0, 1.0, 2.0)
    """

    seen: jax.Array
    mean: jax.Array
    var: jax.Array

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> RunningMoments:
        """Nothing seen yet: normalising by it only clips."""
        single = jnp.float32  # in x64 mode too
        return cls(jnp.zeros((), single), jnp.zeros(shape, single), jnp.ones(shape, single))

    def update(self, batch: jax.Array) -> RunningMoments:
        """Add a batch (..., *shape) (Chan et al. 1983, parallel variance)."""
        # Float32 counts to 2^24 and then stands still. As many batches as fit below are kept in
        # mind; beyond that the moments are a moving average over them.
        axes = tuple(range(batch.ndim - self.mean.ndim))
        batch = batch.astype(self.mean.dtype)
        n = batch.size // max(self.mean.size, 1)
        batch_mean, batch_var = batch.mean(axes), batch.var(axes)
        seen = jnp.minimum(self.seen, n * 2.0**22)
        total = seen + n
        delta = batch_mean - self.mean
        m2 = self.var * seen + batch_var * n + delta**2 * seen * n / total
        return RunningMoments(total, self.mean + delta * n / total, m2 / total)

    def normalize(self, x: jax.Array, clip: float = 10.0) -> jax.Array:
        """(x - mean) / std, clipped to +-`clip`."""
        return jnp.clip((x - self.mean) / jnp.sqrt(self.var + 1e-8), -clip, clip)

    def denormalize(self, x: jax.Array) -> jax.Array:
        """The inverse of `normalize`, but for what that clips.

        >>> moments = RunningMoments.of_shape(()).update(jnp.array([1.0, 5.0]))
        >>> float(moments.denormalize(moments.normalize(jnp.array(4.0))))
        4.0
        """
        return self.mean + jnp.sqrt(self.var + 1e-8) * x

    def standardize(self, x: jax.Array, offset: float = 1e-3) -> jax.Array:
        """(x - mean) / (std + `offset`), unclipped: of what is known from the start, as offline
        codes have it (Fujimoto & Gu 2021, section 5).
        """
        return (x - self.mean) / (jnp.sqrt(self.var) + offset)

    def scale(self, x: jax.Array, clip: float = 10.0) -> jax.Array:
        """x / std, clipped to +-`clip`: for rewards, whose sign must stay."""
        return jnp.clip(x / jnp.sqrt(self.var + 1e-8), -clip, clip)


def normalized(advantage: jax.Array) -> jax.Array:
    """Advantages (B,) with mean 0 and standard deviation 1.

    >>> normalized(jnp.array([1.0, 5.0])).tolist()
    [-1.0, 1.0]
    """
    centred = advantage - advantage.mean()
    return centred / (advantage.std() + 1e-8)


class RewardScale(NamedTuple):
    """Moments of the discounted return so far of every environment, and those returns (N,).

    >>> rewards, dones = jnp.ones((3, 2)), jnp.zeros((3, 2))
    >>> RewardScale.of_envs(2).update(rewards, dones, gamma=0.5).returns.tolist()
    [1.75, 1.75]
    """

    moments: RunningMoments
    returns: jax.Array

    @classmethod
    def of_envs(cls, num_envs: int) -> RewardScale:
        """Nothing seen yet, in any of `num_envs` environments."""
        return cls(RunningMoments.of_shape(()), jnp.zeros((num_envs,), jnp.float32))

    @classmethod
    def of_recorded(
        cls, num_envs: int, rewards: jax.Array, dones: jax.Array, gamma: float | jax.Array
    ) -> RewardScale:
        """What recorded steps (M,), in their episodes' order, say; no return so far in any of
        `num_envs` environments.
        """
        recorded = cls.of_envs(1).update(rewards[:, None], dones[:, None], gamma)
        return cls(recorded.moments, jnp.zeros((num_envs,), jnp.float32))

    def update(self, rewards: jax.Array, dones: jax.Array, gamma: float | jax.Array) -> RewardScale:
        """Add a rollout's rewards (T, N); a return starts anew after the step that ended it."""

        def forward(carry, row):
            reward, done = row
            value = reward + gamma * carry
            return jnp.where(done, 0, value), value

        last, returns = jax.lax.scan(forward, self.returns, (rewards, dones))
        return RewardScale(self.moments.update(returns), last)

    def scale(self, rewards: jax.Array) -> jax.Array:
        """Rewards divided by the standard deviation of the returns."""
        return self.moments.scale(rewards)
