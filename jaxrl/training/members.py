"""Agents of a population as one pytree: a leading axis of members on all that they do not share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def with_values(agents: Any, values: Mapping[str, np.ndarray]) -> Any:
    """Stacked agents with fields, or `env.NAME` parameters, replaced by arrays (members,).

    Their types stay, so that no program changes. The values are not checked.
    """

    def like(old: Any, new: np.ndarray) -> jax.Array:
        return jnp.asarray(new, old.dtype)

    params = agents.env_params
    own = {k[4:]: v for k, v in values.items() if k.startswith("env.")}
    if own:
        arrays = {k: like(getattr(params, k), v) for k, v in own.items()}
        params = dataclasses.replace(params, **arrays)
    children = []
    for f in dataclasses.fields(agents):
        old = params if f.name == "env_params" else getattr(agents, f.name)
        if not f.metadata["static"]:
            children.append(like(old, values[f.name]) if f.name in values else old)
    leaf = lambda x: x is not agents  # noqa: E731
    return jax.tree.unflatten(jax.tree.structure(agents, is_leaf=leaf), children)


def values_of(agents: Any, names: Iterable[str]) -> dict[str, list[Any]]:
    """Values of the fields, or `env.NAME` parameters, of stacked agents: a number per member.

    Numbers are the shortest that mean the same: 0.1 for the number in single precision next to it.
    """

    def column(name: str) -> list[Any]:
        owner, name = (agents.env_params, name[4:]) if name.startswith("env.") else (agents, name)
        array = np.asarray(getattr(owner, name))
        return [float(str(x)) if array.dtype.kind == "f" else x.item() for x in array]

    return {name: column(name) for name in names}


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
