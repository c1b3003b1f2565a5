"""Observations that say which actions may be taken, and what agents make of them.

An environment of discrete actions masks some by what it returns as observation, from `reset`, from
`step` and as `final_observation`: `Masked(obs, action_mask)`. So the mask goes wherever the
observation goes: into rollouts, a replay, the value of the next state, an evaluation, a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Masked(NamedTuple):
    """An observation, and which actions may be taken at it.

    Attributes:
        obs: the observation proper (..., *shape), which alone the environment's observation space
            describes and networks see.
        action_mask: booleans (..., A), true where the action may be taken. Where none may, as at
            the end of a game, all are taken to be.
    """

    obs: jax.Array
    action_mask: jax.Array


def split(obs: Any) -> tuple[jax.Array, jax.Array | None]:
    """The observation proper, and the mask of its actions: None where there is none."""
    return (obs.obs, obs.action_mask) if isinstance(obs, Masked) else (obs, None)


def map_obs(function: Callable[[jax.Array], jax.Array], obs: Any) -> Any:
    """`function` of the observation proper, with the mask that it had."""
    return obs._replace(obs=function(obs.obs)) if isinstance(obs, Masked) else function(obs)


def allowed(mask: jax.Array) -> jax.Array:
    """The actions (..., A) that may be taken: those of the mask, all where it has none."""
    return mask | ~mask.any(axis=-1, keepdims=True)


def masked(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Logits or action values (..., A), the lowest number where the action may not be taken.

    Their maximum is then that of the actions that may be, and the softmax the distribution over
    these alone (Huang & Ontanon 2022, arXiv:2006.14171): probability 0 elsewhere, and no gradient.
    The lowest number, not -inf, of which 0 x -inf would be NaN in an entropy.

    >>> logits, mask = jnp.zeros(3), jnp.array([True, False, True])
    >>> jax.nn.softmax(masked(logits, mask)).tolist()
    [0.5, 0.0, 0.5]
    """
    if mask is None:
        return values
    return jnp.where(allowed(mask), values, jnp.finfo(values.dtype).min)
