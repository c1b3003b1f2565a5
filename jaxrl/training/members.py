"""Agents of a population as one pytree: a leading axis of members on all that they do not share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxrl.training.devices import MEMBERS, member_mesh


def stack(trees: list[Any]) -> Any:
    """One pytree with a leading axis of members, as strongly typed arrays."""

    def leaf(*xs: Any) -> jax.Array:
        stacked = jnp.stack([jnp.asarray(x) for x in xs])
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


def layout(members: int) -> tuple[Any, np.ndarray]:
    """The mesh of this process for a population, and the rows that it trains.

    Rows are filled up with copies of the last member, so that all devices have as many.
    """
    processes = jax.process_count()
    mesh = member_mesh(-(-members // processes))
    share = -(-members // (processes * mesh.size)) * mesh.size
    rows = np.arange(share) + jax.process_index() * share
    return mesh, np.minimum(rows, members - 1)


def environment_mesh() -> Mesh:
    """A mesh over all local devices, for the environments of one member."""
    devices = np.asarray(jax.local_devices())
    return Mesh(devices, ("environments",), axis_types=(AxisType.Auto,))


def environment_specs(agents: Any, states: Any, devices: int) -> Any:
    """Where the state of one member goes whose environments are spread, all else being everywhere.

    Raises: ValueError where it has none, or a number of them that devices cannot share evenly.
    """
    if jax.process_count() > 1:
        raise ValueError("data_parallel: over the devices of one process only")
    actors = agents.actors(states)
    if actors is None:
        raise ValueError("data_parallel: there are no environments to spread over the devices")
    number = actors.episode_return.shape[1]
    if number % devices:
        raise ValueError(f"data_parallel: num_envs={number} is no multiple of {devices} devices")

    def spec(x: Any) -> P:
        return P(None, "environments") if x.ndim > 1 and x.shape[1] == number else P()

    everywhere = jax.tree.map(lambda x: P(), states)
    return agents.with_actors(everywhere, jax.tree.map(spec, actors))


def specs(agents: Any) -> Any:
    """Where the arrays of stacked agents go: members over the mesh, what they share everywhere."""
    return jax.tree.map(
        lambda axis: P() if axis is None else MEMBERS, agents.axes(), is_leaf=lambda x: x is None
    )
