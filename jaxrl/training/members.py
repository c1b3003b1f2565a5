"""Agents of a population as one pytree: a leading axis of members on all that they do not share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def stack(trees: list[Any]) -> Any:
    """One pytree with a leading axis of members, as strongly typed arrays."""

    def leaf(*xs: Any) -> jax.Array:
        stacked = jnp.stack([_array(x) for x in xs])
        return lax.convert_element_type(stacked, stacked.dtype)

    return jax.tree.map(leaf, *trees)


def map_members(fn: Callable[..., Any], agents: Any, *more: Any) -> Any:
    """Agents with `fn` applied to every array but the shared ones, which are the first agent's."""

    def field(axis: int | None, first: Any, *others: Any) -> Any:
        return first if axis is None else jax.tree.map(fn, first, *others)

    return jax.tree.map(field, agents.axes(), agents, *more, is_leaf=lambda x: x is None)


def stack_agents(agents: list[Any]) -> Any:
    """Agents of one program as one, a leading axis of members on all that they do not share."""
    return map_members(lambda *xs: stack(list(xs)), *agents)


def for_each(fn: Callable[..., Any], agents: Any, *trees: Any) -> Any:
    """vmap over members, except that an axis of one is not worth a batched program."""
    if jax.tree.leaves(trees)[0].shape[0] > 1:
        return jax.vmap(fn, in_axes=(agents.axes(), *[0] * len(trees)))(agents, *trees)
    agent, row = map_members(lambda x: x[0], agents), jax.tree.map(lambda x: x[0], trees)
    return jax.tree.map(lambda x: x[None], fn(agent, *row))


def shared_arrays(agents: Any) -> list[Any]:
    """What agents declare with `jaxrl.shared` and have: arrays that all members read."""
    fields = dataclasses.fields(agents)
    values = [getattr(agents, f.name) for f in fields if f.metadata.get("shared")]
    return [value for value in values if value is not None]


def _array(x: Any) -> jax.Array:
    """A Python number in single precision, in x64 mode too: it must not widen a program."""
    kinds = {bool: jnp.bool, int: jnp.int32, float: jnp.float32}
    return jnp.asarray(x, kinds.get(type(x)))
