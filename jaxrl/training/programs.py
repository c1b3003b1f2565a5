"""The compiled programs of a population: its first states, a chunk of iterations, an evaluation.

Members are spread over a mesh of devices, each of which runs its own; or the environments of one
member are, and the compiler splits the work.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrl.training import devices
from jaxrl.training.devices import MEMBERS, compiled, named, shapes_on
from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.training.loop import all_finite, finished, iterate
from jaxrl.training.members import environment_specs, for_each, layout, map_members, specs

CHUNKS = 100  # pieces that a run is cut into, between which the host may act


def shapes(agents: Any, members: int) -> Any:
    """Shapes of the states of so many members."""
    seeds = jax.ShapeDtypeStruct((members,), np.uint32)
    one = map_members(lambda x: x[0], agents)
    return jax.eval_shape(
        lambda seeds: lax.map(lambda s: one.init(jax.random.key(s)), seeds), seeds
    )


def fresh(agents: Any, keys: jax.Array, mesh: Any) -> tuple[Any, float]:
    """Fresh states spread over the mesh, made on one device, a share at a time; compile seconds."""
    share = len(keys) // mesh.size
    parts, compile_seconds = [], 0.0
    for number, device in enumerate(mesh.devices.flat):
        rows = slice(number * share, (number + 1) * share)
        args = map_members(lambda x, rows=rows: x[rows], agents), keys[rows]
        program, seconds = compiled(initialise, *args)
        compile_seconds += seconds
        made = jax.block_until_ready(program(*args))
        parts.append(jax.tree.map(lambda x, device=device: jax.device_put(x, device), made))
    sharding = NamedSharding(mesh, MEMBERS)

    def join(*arrays: jax.Array) -> jax.Array:
        shape = len(keys), *arrays[0].shape[1:]
        return jax.make_array_from_single_device_arrays(shape, sharding, list(arrays))

    return jax.tree.map(join, *parts), compile_seconds


@jax.jit
def initialise(agents: Any, keys: jax.Array) -> Any:
    """Fresh states, one member after the other, on one device.

    Orthogonal initialisers call LAPACK. Batched by vmap, its CPU kernel waits for threads of the
    pool that runs the programs of all CPU devices, and hangs for ever where those are taken.
    """

    def init(row):
        i, key = row
        return map_members(lambda x: x[i], agents).init(key)

    return lax.map(init, (jnp.arange(len(keys)), keys))


@partial(jax.jit, static_argnames=("mesh", "length"), donate_argnums=(1,))
def chunk(agents: Any, states: Any, t: Any, stop: Any, *, mesh: Any, length: int) -> Any:
    """Iterations t..stop-1 (traced; at most `length`) of every member, each device its own."""

    def local(agents, states, t, stop):
        def step(states, t):
            each = jax.vmap(lambda agent, state: agent.step(state, t), in_axes=(agents.axes(), 0))
            return each(agents, states)

        def alone(agent, state):
            return iterate(agent.step, agent, state, t, stop, length)

        if len(states.key) == 1:
            # An axis put on and taken off within the loop would copy a replay each time.
            states, rows = for_each(alone, agents, states)
        else:
            states, rows = iterate(step, agents, states, t, stop, length)
            rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
        return states, finished(agents, states), all_finite(agents, states), rows

    if mesh.axis_names == ("environments",):  # the compiler splits the work as the states are
        states, *more = local(agents, states, t, stop)
        where = environment_specs(agents, states, mesh.size)
        return lax.with_sharding_constraint(states, named(mesh, where)), *more
    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs(agents), MEMBERS, P(), P()),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, t, stop)


@partial(jax.jit, static_argnames=("mesh", "episodes", "deterministic"))
def evaluate_all(
    agents: Any, states: Any, keys: Any, *, mesh: Any, episodes: int, deterministic: bool
) -> Evaluation:
    """Evaluate every member's policy; arrays (members, episodes)."""

    def one(agent, state, key):
        return evaluate(agent, state, key, episodes, deterministic=deterministic)

    spread = jax.shard_map(
        partial(for_each, one),
        mesh=mesh,
        in_specs=(specs(agents), MEMBERS, MEMBERS),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, keys)


def needed_bytes(agents: Any, members: int, evaluations: int = 0) -> int:
    """What training so many of these agents at once needs, on all local devices together."""
    mesh, mine = layout(members)
    spread = map_members(lambda x: x[mine], agents)
    states = shapes_on(shapes(spread, len(mine)), mesh)
    bounds, _ = bounds_of(agents.num_iterations, evaluations)
    args = shapes_on(spread, mesh, specs(spread)), states, np.int32(0), np.int32(0)
    length = int(np.diff(bounds).max())
    return mesh.size * devices.bytes_of(compiled(chunk, *args, mesh=mesh, length=length)[0])


def bounds_of(iterations: int, evaluations: int) -> tuple[np.ndarray, np.ndarray]:
    """Iterations between which the host acts, and those after which it evaluates.

    They follow from the whole run, not from where a part of it begins and ends.
    """
    pieces = max(1, evaluations) * max(1, round(CHUNKS / max(1, evaluations)))
    bounds = np.unique(np.round(np.linspace(0, iterations, pieces + 1)).astype(int))
    return bounds, np.round(np.linspace(0, iterations, evaluations + 1)).astype(int)[1:]
