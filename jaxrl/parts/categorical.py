"""Critics that predict a categorical distribution of the return on fixed atoms (C51)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.parts.distributions import project_to_atoms
from jaxrl.parts.losses import td_target


def evenly_spaced(bound: float | jax.Array, number: int) -> jax.Array:
    """Atoms (A,) from -bound to bound, float32.

    >>> evenly_spaced(2.0, 5).tolist()
    [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    return jnp.linspace(-1.0, 1.0, number, dtype=jnp.float32) * bound


def mean_of_atoms(logits: jax.Array, atoms: jax.Array) -> jax.Array:
    """The mean (...) of distributions with logits (..., A) on the atoms (A,): Q.

    >>> float(mean_of_atoms(jnp.log(jnp.array([0.5, 0.5])), jnp.array([-1.0, 3.0])))
    1.0
    """
    return jax.nn.softmax(logits) @ atoms


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-sum p log q (...) of target probabilities p (..., A) and logits of q (..., A).

    >>> float(cross_entropy(jnp.zeros(2), jnp.array([0.25, 0.75])))
    0.693
    """
    return -(target * jax.nn.log_softmax(logits)).sum(axis=-1)


def categorical_target(
    next_logits: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    penalty: jax.Array,
    gamma: float | jax.Array,
    atoms: jax.Array,
) -> jax.Array:
    """The distribution of r + gamma (1 - terminated) [Z(s', a') - penalty], projected to atoms.

    Z is that of the critic whose mean is smallest, for each step apart (Bellemare, Dabney & Munos
    2017, algorithm 1; Palenicek et al. 2026). A terminated step's mass lies at its reward.

    Args:
        next_logits: of C critics at (s', a'), (C, B, A).
        reward, terminated: (B,).
        penalty: taken from the next return (B,): the temperature times log pi(a'|s').
        atoms: (A,), evenly spaced.

    Returns probabilities (B, A).

    >>> certain = jnp.array([[[0.0, 0.0, 50.0]]])  # Z = 1
    >>> step = jnp.array([0.25]), jnp.array([False]), jnp.array([0.0])
    >>> categorical_target(certain, *step, gamma=0.5, atoms=evenly_spaced(1.0, 3)).tolist()
    [[0.0, 0.25, 0.75]]
    """
    smallest = mean_of_atoms(next_logits, atoms).argmin(axis=0)[None, :, None]
    probs = jax.nn.softmax(jnp.take_along_axis(next_logits, smallest, axis=0)[0])
    places = td_target(reward[:, None], terminated[:, None], atoms - penalty[:, None], gamma)
    return project_to_atoms(probs, places, atoms)
