"""Where a batch's members are: which rows this process trains, and on which of its devices.

Members are spread over the devices of all processes, each of which runs its own; or the
environments of a single member are spread over the devices of one process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl.training import hosts
from jaxrl.training.members import map_members

MEMBERS = P("members")
EVERYWHERE = P()


class Placement(NamedTuple):
    """Devices x processes x "members" or "environments".

    Attributes:
        members: how many the batch has.
        rows: of the members that this process trains. They are filled up with copies of the last
            member, so that all devices have as many.
        mesh: of this process's devices, with an axis "members" or "environments".
    """

    members: int
    rows: np.ndarray
    mesh: Mesh

    @classmethod
    def of_members(cls, members: int) -> Placement:
        """Members spread over as many devices as they can use."""
        processes = jax.process_count()
        devices = jax.local_devices()[: -(-members // processes)]
        mesh = Mesh(np.asarray(devices), ("members",), axis_types=(AxisType.Auto,))
        share = -(-members // (processes * mesh.size)) * mesh.size
        rows = np.arange(share) + jax.process_index() * share
        return cls(members, np.minimum(rows, members - 1), mesh)

    @classmethod
    def of_environments(cls) -> Placement:
        """The environments of a single member spread over all local devices.

        Raises: ValueError where there are several processes.
        """
        if jax.process_count() > 1:
            raise ValueError("data_parallel: over the devices of one process only")
        devices = np.asarray(jax.local_devices())
        mesh = Mesh(devices, ("environments",), axis_types=(AxisType.Auto,))
        return cls(1, np.arange(1), mesh)

    @property
    def whole_members(self) -> Placement:
        """The same members, each of them on one device."""
        return self if "members" in self.mesh.axis_names else Placement.of_members(self.members)

    # From a batch to the devices ----------------------------------------------------------------

    def share(self, agents: Any) -> Any:
        """Stacked agents: those that this process trains."""
        return map_members(lambda x: x[self.rows], agents)

    def put_agents(self, agents: Any) -> Any:
        """Its share of the agents, placed: members over the mesh, what they share everywhere."""
        return jax.device_put(agents, named(self.mesh, self.agent_specs(agents)))

    def put_states(self, agents: Any, states: Any) -> Any:
        """Its share of the members' states, placed."""
        return jax.device_put(states, named(self.mesh, self.state_specs(agents, states)))

    def agent_specs(self, agents: Any) -> Any:
        """Specs of the axes of stacked agents."""
        if "environments" in self.mesh.axis_names:
            return jax.tree.map(lambda x: EVERYWHERE, agents)
        return agent_specs(agents)

    def state_specs(self, agents: Any, states: Any) -> Any:
        """Specs of the axes of stacked states."""
        if "environments" in self.mesh.axis_names:
            return environment_specs(agents, states, self.mesh.size)
        return jax.tree.map(lambda x: MEMBERS, states)

    # And back -----------------------------------------------------------------------------------

    def get(self, tree: Any) -> Any:
        """Arrays of all members, of all processes, in NumPy on each of them; keys stay keys.

        Raises: ConnectionError where a process is gone.
        """
        words = hosts.gather(hosts.to_numpy(tree))
        return hosts.from_numpy(jax.tree.map(lambda x: x[: self.members], words), tree)

    def trimmed(self, tree: Any) -> Any:
        """Arrays of all members: on the devices where they are all of this process's own."""
        if jax.process_count() > 1:
            return self.get(tree)
        return jax.tree.map(lambda x: x[: self.members], tree) if self.is_filled else tree

    @property
    def is_filled(self) -> bool:
        """Whether some rows are copies."""
        return len(self.rows) * jax.process_count() > self.members

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(np.asarray(hosts.gather(np.array([flag]))).any())


def agent_specs(agents: Any) -> Any:
    """Where the arrays of stacked agents go: members over the mesh, what they share everywhere."""
    return jax.tree.map(
        lambda axis: EVERYWHERE if axis is None else MEMBERS,
        agents.axes(),
        is_leaf=lambda x: x is None,
    )


def environment_specs(agents: Any, states: Any, devices: int) -> Any:
    """Where the state of one member goes whose environments are spread, all else being everywhere.

    Raises: ValueError where it has none, or a number of them that devices cannot share evenly.
    """
    actors = agents.actors(states)
    if actors is None:
        raise ValueError("data_parallel: there are no environments to spread over the devices")
    number = actors.episode_return.shape[1]
    if number % devices:
        raise ValueError(f"data_parallel: num_envs={number} is not a multiple of {devices} devices")

    def spec(x: Any) -> P:
        return P(None, "environments") if x.ndim > 1 and x.shape[1] == number else EVERYWHERE

    everywhere = jax.tree.map(lambda x: EVERYWHERE, states)
    return agents.with_actors(everywhere, jax.tree.map(spec, actors))


def named(mesh: Mesh, specs: Any) -> Any:
    """Shardings of specs on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def shapes_on(tree: Any, mesh: Mesh, specs: Any = MEMBERS) -> Any:
    """Shapes instead of arrays, placed: what a program is compiled for."""

    def placed(spec: P, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False)
            ),
            part,
        )

    return jax.tree.map(placed, specs, tree, is_leaf=lambda x: isinstance(x, P))
