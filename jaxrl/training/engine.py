"""The engine: the only room that compiles programs and runs them.

Of a state it knows one field by name, the root `key`; for all else it asks the agent.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from jaxrl.agent import Tag, derive
from jaxrl.parts.trees import nbytes
from jaxrl.training import programs
from jaxrl.training.devices import use_compilation_cache
from jaxrl.training.evaluate import Evaluation, warn_of_unfinished
from jaxrl.training.history import History
from jaxrl.training.hosts import is_key
from jaxrl.training.members import map_members
from jaxrl.training.placement import MEMBERS, Placement, shapes_on


class Engine:
    """The states of a batch of members, on the devices, and the programs that advance them.

    Attributes:
        placement: where they are.
        rate: iterations per second of the last chunk, the same on all processes; inf: none yet.
        finished: whether all members have taken all their steps.
        compile_seconds: spent on compiling so far.
    """

    def __init__(self, agents: Any, placement: Placement, length: int = 0) -> None:
        """For stacked agents of all members, in chunks of at most `length` iterations.

        Raises: ValueError where the environments cannot be placed as asked for.
        """
        self.began = time.perf_counter()
        self.placement, self.length = placement, length
        self.like = shapes(agents, placement.members)  # of all members' states
        placement.state_specs(agents, self.like)  # which raises
        self.rate, self.finished, self.compile_seconds = math.inf, False, 0.0
        self.share = placement.share(agents)
        self.agents: Any = None  # placed, as the states are
        self.states: Any = None

    def start(self, seeds: list[int]) -> None:
        """Fresh states, from one root seed per member."""
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)[self.placement.rows])
        self._place(self._fresh(keys))

    def load(self, states: Any, agents: Any = None) -> None:
        """Given states of all members, which stay as they are: a copy is advanced.

        `agents` take the place of those that there were, where traced values have changed.
        """
        if agents is not None:
            self.share = self.placement.share(agents)
        rows = self.placement.rows
        self._place(jax.tree.map(lambda x: x[rows], states))

    def _place(self, states: Any) -> None:
        self.states = self.placement.put_states(self.share, states)
        self.agents = self.placement.put_agents(self.share)

    def _fresh(self, keys: jax.Array) -> Any:
        """Fresh states on the devices; see `programs.initialise`."""
        placement = self.placement.whole_members
        keys = jax.device_put(keys, NamedSharding(placement.mesh, MEMBERS))
        args = placement.put_agents(self.share), keys
        run = self._compiled(programs.initialise, *args, mesh=placement.mesh)
        return jax.block_until_ready(run(*args))

    def advance(self, t: int, stop: int) -> History:
        """Run iterations t..stop-1 of all members; the states are replaced by those after them."""
        args: Any = self.agents, self.states, np.int32(t), np.int32(stop)
        mesh = self.placement.mesh
        over_members = "members" in mesh.axis_names
        program = programs.chunk if over_members else programs.chunk_over_environments
        run = self._compiled(program, *args, mesh=mesh, length=self.length)
        begin = time.perf_counter()
        self.states, *results = _awaited(run(*args), (stop - t) / self.rate)
        seconds = np.array([time.perf_counter() - begin])
        finished, finite, rows, seconds = self.placement.get((*results, seconds))
        self.rate = (stop - t) / float(seconds[0])  # the writer's, for all processes
        self.finished = bool(np.all(finished))
        rows = jax.tree.map(lambda x: x[:, : stop - t], rows)
        return History.of_chunk(t, rows["env_steps"], rows["metrics"], finite)

    def gather(self, agents: Any, parents: np.ndarray) -> None:
        """All members go on as these agents, from the states of their `parents` (members,).

        Each keeps its own root key: it draws other random numbers than the one that it copies.
        """
        if jax.process_count() > 1:  # whose programs are each process's own
            states = self.states_on_host()
            copied = jax.tree.map(lambda x: x[parents], states)
            self.load(copied._replace(key=states.key), agents)
            return
        args = self.states, parents[self.placement.rows].astype(np.int32)
        self.states = self._compiled(programs.gather, *args, mesh=self.placement.mesh)(*args)
        self.share = self.placement.share(agents)
        self.agents = self.placement.put_agents(self.share)

    def refill(self, t: int) -> None:
        """Give all members, after iteration t, the replay memories that were not kept.

        Raises: ValueError where their agent cannot fill one again.
        """
        args = self.agents, self.states, np.int32(t)
        run = self._compiled(programs.refill, *args, mesh=self.placement.mesh)
        self.states = _awaited(run(*args))

    def evaluate(self, tag: Tag, t: int, episodes: int, deterministic: bool = True) -> Evaluation:
        """Evaluate all members by keys of this tag and number; NumPy (members, episodes).

        The same program serves during training and after it.
        """
        placement = self.placement.whole_members
        keys = jax.vmap(lambda key: derive(key, tag, t))(self.states.key)
        agents, states = self.agents, self.states
        if placement is not self.placement:
            agents, states = placement.put_agents(agents), placement.put_states(agents, states)
        args = agents, states, jax.device_put(keys, NamedSharding(placement.mesh, MEMBERS))
        statics = {"mesh": placement.mesh, "episodes": episodes, "deterministic": deterministic}
        result = _awaited(self._compiled(programs.evaluate_all, *args, **statics)(*args))
        evaluation: Evaluation = jax.tree.map(np.array, placement.get(result))
        warn_of_unfinished(evaluation)
        return evaluation

    def states_on_host(self) -> Any:
        """The states of all members in NumPy, on all processes; keys stay keys."""
        return self.placement.get(self.states)

    def result(self) -> Any:
        """The states of all members, where they are."""
        return self.placement.trimmed(self.states)

    @property
    def seconds(self) -> float:
        """Since it began, without compiling."""
        return time.perf_counter() - self.began - self.compile_seconds

    def _compiled(self, jitted: Any, *args: Any, **statics: Any) -> Any:
        program, seconds = compiled(jitted, *args, **statics)
        self.compile_seconds += seconds
        return program


def _awaited(results: Any, expected: float = 0.0) -> Any:
    """Results once they are there; meanwhile signals are answered, as `block_until_ready` does not.

    It looks often enough to lose half a hundredth of the time, but hardly before most of the
    seconds that are `expected` have passed: looking takes time from the programs. (A thread that
    waits for them could not be left behind by a second Ctrl-C: Python aborts over it.)
    """
    begin = time.perf_counter()
    for array in jax.tree.leaves(results):
        while not (is_key(array) or array.is_ready()):
            elapsed = time.perf_counter() - begin
            time.sleep(min(0.1, max(1e-4 + elapsed / 200, 0.8 * expected - elapsed)))
    return jax.block_until_ready(results)


def shapes(agents: Any, members: int) -> Any:
    """Shapes of the states of so many members of stacked agents."""
    return jax.eval_shape(_initial, agents, jax.ShapeDtypeStruct((members,), np.uint32))


@jax.jit  # whose traces are kept: a script may call `train` many times
def _initial(agents: Any, seeds: jax.Array) -> Any:
    one = map_members(lambda x: x[0], agents)
    return lax.map(lambda seed: one.init(jax.random.key(seed)), seeds)


def needed_bytes(
    agents: Any,
    members: int,
    length: int,
    episodes: int = 0,
    saves: bool = False,
    gathers: bool = False,
) -> tuple[int, float]:
    """What training so many of these agents at once needs, on all local devices together.

    Compiles what they would run: chunks of at most `length` iterations, evaluations of so many
    episodes, where there are any. Where their states are saved and devices are the computer's own
    CPU, the copies that are being written count too. Where members copy each other, in between
    the states are there twice.

    Returns bytes and the seconds that it took.
    """
    placement = Placement.of_members(members)
    mesh, shared = placement.mesh, placement.share(agents)
    states = shapes_on(shapes(shared, len(placement.rows)), mesh)
    placed = shapes_on(shared, mesh, placement.agent_specs(shared))
    args = placed, states, np.int32(0), np.int32(0)
    program, seconds = compiled(programs.chunk, *args, mesh=mesh, length=length)
    needed = _bytes_of(program)
    if episodes:
        keys = shapes_on(jax.eval_shape(lambda: states.key), mesh)
        statics = {"mesh": mesh, "episodes": episodes, "deterministic": True}
        program, more = compiled(programs.evaluate_all, placed, states, keys, **statics)
        needed, seconds = max(needed, _bytes_of(program)), seconds + more
    needed *= mesh.size
    if gathers:
        needed = max(needed, nbytes((placed, states, states)))
    if saves and jax.default_backend() == "cpu":
        needed += COPIES_WHILE_SAVING * nbytes(states)
    return needed, seconds


COPIES_WHILE_SAVING = 4  # of the states: measured, orbax's included


def _bytes_of(program: Any) -> int:
    """What a compiled program needs on each device, its arguments included."""
    stats = program.memory_analysis()
    own = stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    return int(stats.argument_size_in_bytes + own)


# The last programs that were asked for: each maps memory that the system has a limited number of.
_programs: OrderedDict[Any, Any] = OrderedDict()
PROGRAMS = 64
_compile_seconds = 0.0


def compile_clock() -> float:
    """Seconds that this process has spent compiling: a clock that runs only then."""
    return _compile_seconds


def forget_programs() -> None:
    """Give back the memory of all compiled programs; what is asked for again compiles again."""
    _programs.clear()
    jax.clear_caches()


def compiled(jitted: Any, *args: Any, **statics: Any) -> tuple[Any, float]:
    """The compiled program of a jitted function for these arguments, and the seconds it took.

    Compiling apart from running is what lets the two be reported apart. The last PROGRAMS of them
    are kept: the same function, statics, tree structure, shapes and placement compile once.

    Raises: ValueError where a size in it is larger than a machine can hold.
    """

    def describe(x: Any) -> Any:
        where = getattr(x, "sharding", None)
        if where is not None and where.num_devices == 1:  # one placement, of many names
            (where,) = where.device_set
        return x.shape, x.dtype, getattr(x, "weak_type", False), where

    leaves, structure = jax.tree.flatten(args)
    key = (jitted, tuple(sorted(statics.items())), structure, tuple(map(describe, leaves)))
    global _compile_seconds
    seconds = 0.0
    if key not in _programs:
        use_compilation_cache()
        start = time.perf_counter()
        try:
            traced = jitted.trace(*args, **statics)
        except OverflowError as error:  # a product of sizes that is no integer of 32 bits
            line = " ".join(str(error).split())[:200]
            raise ValueError(f"a size is too large: {line}") from None
        _require_sizes(traced.jaxpr.jaxpr)
        _programs[key] = traced.lower().compile(_options_of(jitted, args))
        seconds = time.perf_counter() - start
        _compile_seconds += seconds
        if len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key], seconds


# Gradient steps in first states, of all members, from which on an optimised program is worth its
# compiling: that took 19 s more for self-play, and saved 10 ms a step.
MANY_UPDATES = 1_000


def _options_of(jitted: Any, args: tuple[Any, ...]) -> dict[str, int]:
    """What the compiler is told: to make first states, which happens once, as it finds them.

    Optimising takes most of the time on a CPU: 13 s instead of 6 for Brax's hopper, to save 0.02 s.
    """
    if jitted is not programs.initialise or jax.default_backend() != "cpu":
        return {}
    agents, keys = args
    many = agents.first_updates * len(keys) >= MANY_UPDATES
    return {} if many else {"xla_backend_optimization_level": 0}


LARGEST = 2**60  # bytes of an array; where the product of sizes overflows, XLA ends the process


def _require_sizes(jaxpr: Any) -> None:
    """Raise ValueError where an array of a program, or of one within, is larger than LARGEST."""
    for equation in jaxpr.eqns:
        for shape in (x.aval.shape for x in equation.outvars if hasattr(x.aval, "shape")):
            if math.prod(shape) * 8 > LARGEST:
                raise ValueError(f"a size is too large: it makes an array of shape {shape}")
        inner = list(equation.params.values())
        for part in jax.tree.leaves(inner, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(part, "eqns"):
                _require_sizes(getattr(part, "jaxpr", part))
