"""The programs of a batch: its first states, a chunk of iterations, an evaluation, a refill.

Members are spread over a mesh of devices, each of which runs its own; or the environments of one
member are, and the compiler splits the work. `jaxrl.training.engine` compiles and runs them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.training.loop import all_finite, finished, iterate
from jaxrl.training.members import for_each, map_members
from jaxrl.training.placement import MEMBERS, agent_specs, environment_specs, named


@partial(jax.jit, static_argnames=("mesh",))
def initialise(agents: Any, keys: jax.Array, *, mesh: Any) -> Any:
    """Fresh states, on each device of one member after the other.

    Side by side they would compile for longer, and the initializers of someone's own network may
    call LAPACK, which batched can hang for ever; see `parts.initializers`.
    """

    def all_of(agents, keys):
        def init(row):
            i, key = row
            return map_members(lambda x: x[i], agents).init(key)

        return lax.map(init, (jnp.arange(len(keys)), keys))

    specs = agent_specs(agents), MEMBERS
    spread = jax.shard_map(all_of, mesh=mesh, in_specs=specs, out_specs=MEMBERS, check_vma=False)
    return spread(agents, keys)


# Members that a CPU advances side by side through a chunk, one such group after the other: more of
# them than its caches hold are slower. 32 members in groups of 8: 1.2 times as fast (PPO with 64
# environments, PQN), 1.0 to 1.05 times with 4 environments.
GROUP = 8


def group_size(agents: Any, states: Any) -> int:
    """How many members are advanced side by side on one device: a divisor of their number.

    All of them where they have a replay: SAC and DQN gain nothing from groups, of which each would
    have its members' memories copied out of the others' and back.
    """
    members = len(states.key)
    has_replay = len(jax.tree.leaves(agents.without_replay(states))) < len(jax.tree.leaves(states))
    if has_replay or jax.default_backend() != "cpu":
        return members
    divisors = (n for n in range(GROUP, GROUP // 2 - 1, -1) if members % n == 0)
    return next(divisors, members)


def _iterations(agents: Any, states: Any, t: Any, stop: Any, length: int) -> Any:
    """Iterations t..stop-1 of the members on one device.

    Returns their states, who has taken all steps (members,), who is finite (members,), and rows
    (members, length) of metrics and steps.
    """

    def alone(agent, state):
        return iterate(agent.step, agent, state, t, stop, length)

    def together(agents, states):
        def step(states, t):
            each = jax.vmap(lambda agent, state: agent.step(state, t), in_axes=(agents.axes(), 0))
            return each(agents, states)

        states, rows = iterate(step, agents, states, t, stop, length)
        return states, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)

    members = len(states.key)
    size = group_size(agents, states)

    def group(states, first):
        def part_of(x):
            return lax.dynamic_slice_in_dim(x, first, size)

        part, rows = together(map_members(part_of, agents), jax.tree.map(part_of, states))
        put = partial(lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
        return jax.tree.map(put, states, part), rows

    if members == 1:
        # An axis put on and taken off within the loop would copy a replay each time.
        states, rows = for_each(alone, agents, states)
    elif size == members:
        states, rows = together(agents, states)
    else:
        states, rows = lax.scan(group, states, jnp.arange(0, members, size))
        rows = jax.tree.map(lambda x: x.reshape(members, *x.shape[2:]), rows)
    return states, finished(agents, states), all_finite(agents, states), rows


@partial(jax.jit, static_argnames=("mesh", "length"), donate_argnums=(1,))
def chunk(agents: Any, states: Any, t: Any, stop: Any, *, mesh: Any, length: int) -> Any:
    """Iterations t..stop-1 (traced; at most `length`) of every member, each device its own."""
    spread = jax.shard_map(
        partial(_iterations, length=length),
        mesh=mesh,
        in_specs=(agent_specs(agents), MEMBERS, P(), P()),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, t, stop)


@partial(jax.jit, static_argnames=("mesh", "length"), donate_argnums=(1,))
def chunk_over_environments(
    agents: Any, states: Any, t: Any, stop: Any, *, mesh: Any, length: int
) -> Any:
    """The same of one member whose environments are spread: the compiler splits the work."""
    states, *results = _iterations(agents, states, t, stop, length)
    shardings = named(mesh, environment_specs(agents, states, mesh.size))
    return lax.with_sharding_constraint(states, shardings), *results


@partial(jax.jit, static_argnames=("mesh",), donate_argnums=(0,))
def gather(states: Any, parents: Any, *, mesh: Any) -> Any:
    """The states of the members' `parents` (members,), each under the root key that it has."""
    gathered = jax.tree.map(lambda x: x[parents], states)._replace(key=states.key)
    placed = named(mesh, jax.tree.map(lambda x: MEMBERS, states))
    return lax.with_sharding_constraint(gathered, placed)


@partial(jax.jit, static_argnames=("mesh",))
def refill(agents: Any, states: Any, t: Any, *, mesh: Any) -> Any:
    """Every member's state after iteration t with a replay memory, where there is none."""

    def all_of(agents, states, t):
        return for_each(lambda agent, state: agent.refilled(state, t), agents, states)

    if "members" not in mesh.axis_names:
        states = all_of(agents, states, t)
        shardings = named(mesh, environment_specs(agents, states, mesh.size))
        return lax.with_sharding_constraint(states, shardings)
    specs = agent_specs(agents), MEMBERS, P()
    spread = jax.shard_map(all_of, mesh=mesh, in_specs=specs, out_specs=MEMBERS, check_vma=False)
    return spread(agents, states, t)


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
        in_specs=(agent_specs(agents), MEMBERS, MEMBERS),
        out_specs=MEMBERS,
        check_vma=False,
    )
    return spread(agents, states, keys)
