"""Training a population: one compiled program per chunk of iterations, spread over the devices.

Between chunks the host shows progress, evaluates, saves, and listens for Ctrl-C. A population of
one is not vmapped.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxrl.agent import Tag, derive
from jaxrl.training import hosts, programs
from jaxrl.training.checkpoint import Checkpoints, Store, checksum
from jaxrl.training.devices import MEMBERS, compiled, place
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.members import (
    environment_mesh,
    environment_specs,
    layout,
    map_members,
    specs,
)

CHUNK_SECONDS = 10.0  # pieces that last longer are cut again, but for the first, not yet timed


class Progress(NamedTuple):
    """What a `progress` callback gets between chunks.

    Attributes:
        iteration, iterations: done, and of the whole run.
        env_steps, total_steps: done, and of the whole run, of all members together.
        seconds: that the run has taken, without compiling.
        metrics: means over the chunk and the members, and `evaluation_return` where it ended with
            an evaluation; NaN where there is no value.
        by_member: the same for each member (members,).
        rows: the members' numbers in the sweep.
        program: which of the sweep's programs this is, from 0.
    """

    iteration: int
    iterations: int
    env_steps: int
    total_steps: int
    seconds: float
    metrics: dict[str, float]
    by_member: dict[str, np.ndarray]
    rows: list[int]
    program: int


class Trained(NamedTuple):
    """A population after training: the fields of `Run` with a leading axis of members."""

    agents: Any
    states: Any
    metrics: dict[str, np.ndarray]
    env_steps: np.ndarray
    iterations: np.ndarray
    evaluations: dict[str, np.ndarray]
    diverged_at: np.ndarray
    compile_seconds: float
    run_seconds: float
    interrupted: bool


def run_population(
    agents: Any,
    seeds: list[int],
    evaluations: int = 0,
    episodes: int = 64,
    progress: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
    states: Any = None,
    first: int = 0,
    last: int | None = None,
    rows: list[int] | None = None,
    program: int = 0,
    stop_on_nan: bool = False,
    data_parallel: bool = False,
) -> Trained:
    """Train members that share one program, spread over the local devices.

    Args:
        agents: a stacked agent (leading axis of members on every traced field).
        seeds: one root seed a member.
        evaluations: how many during the whole run, evenly spaced, the last at its end.
        checkpoints: where to save, and what to go on from where there is something.
        states: stacked states to go on from at iteration `first`, instead of fresh ones.
        last: stop after this iteration.
        rows, program: the members' numbers in a sweep, and that of their program, for reports.
        stop_on_nan: stop once the loss or the parameters of a member are not finite.
        data_parallel: spread the environments of the only member over the local devices.

    A member whose loss or parameters are not finite is warned of and trains on, to no effect on
    the others; from there on its metrics and returns are NaN, which is "missing" everywhere.
    """
    begin, compile_seconds = time.perf_counter(), 0.0
    members = len(seeds)
    rows = list(range(members)) if rows is None else rows
    mesh, mine = layout(members)
    one_device = mesh  # of the only member, to evaluate it on
    spread = map_members(lambda x: x[mine], agents)
    where, agents_where = MEMBERS, specs(spread)
    if data_parallel:
        mesh = environment_mesh()
        where = environment_specs(agents, programs.shapes(agents, members), mesh.size)
        agents_where = jax.tree.map(lambda x: P(), spread)
    store, saved = None, None
    if checkpoints and hosts.is_writer():
        store = Store(checkpoints, _identity(agents, seeds))
        saved = store.restore(programs.shapes(agents, members))
    saved = hosts.of_writer(saved)
    history: list[dict[str, np.ndarray]] = []
    if saved is not None:
        first, history = saved.iteration, saved.history
        begin -= saved.seconds
        states = place(jax.tree.map(lambda x: x[mine], saved.states), mesh, where)
        saved = saved._replace(states=None)  # not twice in memory
    elif states is None:
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)[mine])
        states, compile_seconds = programs.fresh(spread, keys, one_device)
        states = place(states, mesh, where)
    else:
        states = place(jax.tree.map(lambda x: x[mine], states), mesh, where)
    spread = place(spread, mesh, agents_where)

    whole = agents.num_iterations
    last = whole if last is None else min(last, whole)
    bounds, targets = programs.bounds_of(whole, evaluations)
    length = int(np.diff(bounds).max())
    t, limit = first, length
    unsaved: list[dict[str, np.ndarray]] = []
    steps_taken = np.zeros(members, int)
    for piece in history:
        steps_taken = np.maximum(steps_taken, piece["env_steps"].max(axis=1, initial=0))
    diverged_at = history[-1]["diverged_at"][:, -1] if history else np.full(members, np.nan)
    interrupted = False

    # Closing waits for what is being written, whatever ends the loop.
    closing = contextlib.closing(store) if store else contextlib.nullcontext()
    with closing, _stop_on_signal() as stop_asked:
        while t < last and (steps_taken < agents.total_steps).any():
            stop = min(int(bounds[bounds > t][0]), t + limit, last)
            args: Any = spread, states, np.int32(t), np.int32(stop)
            run_chunk, seconds = compiled(programs.chunk, *args, mesh=mesh, length=length)
            compile_seconds += seconds
            chunk_begin = time.perf_counter()
            states, *made = jax.block_until_ready(run_chunk(*args))
            limit = max(1, int(CHUNK_SECONDS * (stop - t) / (time.perf_counter() - chunk_begin)))
            made = jax.tree.map(np.asarray, made)
            done, finite, piece = jax.tree.map(lambda x: x[:members], hosts.gather(made))
            piece = jax.tree.map(lambda x, n=stop - t: x[:, :n], piece)
            steps_taken = np.maximum(steps_taken, piece["env_steps"].max(axis=1))
            metrics = piece.pop("metrics")
            newly = _diverged(metrics, finite, stop - t) + t
            newly = np.where(np.isnan(diverged_at), newly, np.nan)
            lost = np.flatnonzero(~np.isnan(newly))
            for i in lost:
                warnings.warn(
                    f"member {rows[i]} (seed {seeds[i]}) has a loss or parameters that are not "
                    f"finite after iteration {newly[i]:.0f}: it is left out of all statistics",
                    stacklevel=2,
                )
            diverged_at = np.fmin(diverged_at, newly)
            piece["diverged_at"] = diverged_at[:, None]
            out = np.arange(t, stop) >= diverged_at[:, None]
            metrics = {name: np.where(out, np.nan, values) for name, values in metrics.items()}
            t = stop
            piece |= {f"metrics/{name}": values for name, values in metrics.items()}
            ended = bool(np.all(done))
            if t in targets or (ended and evaluations):
                keys = _member_keys(states.key, Tag.EVALUATE, t)
                args = (spread, *place((states, keys), one_device))
                if data_parallel:
                    args = place(args, one_device, P())
                # The very program that `evaluate_population` runs in the end.
                test, seconds = compiled(
                    programs.evaluate_all,
                    *args,
                    mesh=one_device,
                    episodes=episodes,
                    deterministic=True,
                )
                compile_seconds += seconds
                piece["evaluation_steps"] = steps_taken[:, None].astype(float)
                returns = np.array(hosts.gather(test(*args).returns))[:members, None]
                returns[~np.isnan(diverged_at)] = np.nan
                piece["evaluation_returns"] = returns
            unsaved.append(piece)
            if progress is not None:
                if "evaluation_returns" in piece:
                    metrics["evaluation_return"] = piece["evaluation_returns"][:, 0]
                progress(
                    Progress(
                        t,
                        agents.num_iterations,
                        int(steps_taken.sum()),
                        agents.total_steps * members,
                        time.perf_counter() - begin - compile_seconds,
                        {name: float(_mean(values)) for name, values in metrics.items()},
                        {name: _mean(values, axis=1) for name, values in metrics.items()},
                        rows,
                        program,
                    )
                )
            # What depends on time or on signals has to be the same for all processes.
            signs = np.array([[stop_asked.is_set(), store is not None and store.due(), limit]])
            signs = np.asarray(hosts.gather(signs))
            limit, interrupted = int(signs[0, 2]), bool(signs[:, 0].any())
            interrupted |= stop_on_nan and lost.size > 0
            over = interrupted or ended or t == last
            if checkpoints and (over or signs[0, 1]):
                kept, newest = _to_host(states, members), _join(unsaved)
                seconds = time.perf_counter() - begin - compile_seconds
                if store is None or store.save(
                    t, kept, newest, _score([*history, newest]), seconds
                ):
                    history.append(newest)
                    unsaved = []
            if over:
                break

    took = compile_seconds, time.perf_counter() - begin - compile_seconds
    before = 0 if saved is not None else first  # iterations that no history tells of
    joined = _join([*history, *unsaved])
    returned = _returned(states, members)
    return _trained(agents, returned, joined, before, episodes, took, interrupted)


def evaluate_population(
    trained: Trained, episodes: int = 64, seed: int = 0, deterministic: bool = True
) -> Evaluation:
    """Fresh episodes of every member, keys from its root key and `seed`; (members, episodes)."""
    members = len(trained.iterations)
    mesh, mine = layout(members)
    agents = map_members(lambda x: x[mine], trained.agents)
    states = jax.tree.map(lambda x: x[mine], trained.states)
    keys = _member_keys(states.key, Tag.TEST, seed)
    args = place(agents, mesh, specs(agents)), *place((states, keys), mesh)
    program, _ = compiled(
        programs.evaluate_all, *args, mesh=mesh, episodes=episodes, deterministic=deterministic
    )
    result = jax.tree.map(lambda x: np.array(x)[:members], hosts.gather(program(*args)))
    result.returns[~np.isnan(trained.diverged_at)] = np.nan
    return result


def _returned(states: Any, members: int) -> Any:
    """The states of all members, without the rows that were filled up."""
    if jax.process_count() > 1:
        return _to_host(states, members)
    filled = len(states.key) > members
    return jax.tree.map(lambda x: x[:members], states) if filled else states


def _to_host(states: Any, members: int) -> Any:
    """States of all processes' members, arrays in NumPy: sliced here, not copied on a device."""
    words = hosts.gather(hosts.to_numpy(states))
    return hosts.from_numpy(jax.tree.map(lambda x: x[:members], words), states)


def _diverged(metrics: dict[str, np.ndarray], finite: np.ndarray, length: int) -> np.ndarray:
    """The iteration of a chunk, from 0, after which a member is not finite any more; NaN: it is.

    `finite` tells of the parameters at the chunk's end, the losses (members, n) tell since when.
    """
    found = np.where(finite, np.nan, length - 1)
    for values in (x for name, x in metrics.items() if name.endswith("loss")):
        infinite = np.isinf(values)
        first = np.where(infinite.any(axis=1), infinite.argmax(axis=1), np.nan)
        # NaN alone may be no value at all; up to the end of a lost member it is the loss.
        trailing = (~np.isfinite(values))[:, ::-1].cumprod(axis=1).sum(axis=1)
        found = np.fmin(found, np.fmin(first, np.where(finite, np.nan, length - trailing)))
    return found


def _member_keys(keys: jax.Array, tag: Tag, t: int) -> jax.Array:
    return jax.vmap(lambda key: derive(key, tag, t))(keys)


def _trained(
    agents: Any,
    states: Any,
    joined: dict[str, np.ndarray],
    before: int,
    episodes: int,
    seconds: tuple[float, float],
    interrupted: bool,
) -> Trained:
    """The result of a run whose history, from iteration `before` on, is `joined`."""
    taken = joined["env_steps"] >= 0
    rows = taken.any(axis=0)
    members = len(taken)
    return Trained(
        agents,
        states,
        {
            name.removeprefix("metrics/"): values[:, rows]
            for name, values in joined.items()
            if name.startswith("metrics/")
        },
        np.where(taken, joined["env_steps"], np.nan)[:, rows],
        before + taken.sum(axis=1),
        {
            "env_steps": joined.get("evaluation_steps", np.zeros((members, 0))),
            "returns": joined.get("evaluation_returns", np.zeros((members, 0, episodes))),
        },
        joined["diverged_at"][:, -1],
        *seconds,
        interrupted,
    )


def _mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of what is not NaN, NaN where all is."""
    valid = ~np.isnan(values)
    number = np.where(valid.any(axis), valid.sum(axis), np.nan)
    return np.where(valid, values, 0).sum(axis) / number


def _join(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays (members, n, ...) of pieces of a run, one after the other; not all have all."""
    names = {name: None for piece in pieces for name in piece}
    return {
        name: np.concatenate([piece[name] for piece in pieces if name in piece], axis=1)
        for name in names
    }


def _score(history: list[dict[str, np.ndarray]]) -> float:
    """The members' mean return of late: of the newest evaluation, else of training episodes."""
    for piece in reversed(history):
        if "evaluation_returns" in piece:
            return float(_mean(piece["evaluation_returns"][:, -1]))
    return float(_mean(history[-1].get("metrics/episode_return", np.full(1, np.nan))))


def _identity(agents: Any, seeds: list[int]) -> dict[str, Any]:
    """What a checkpoint belongs to: all that the members' runs follow from, but their length."""
    fields: dict[str, Any] = {}
    for h in agents.hyperparameters():
        value = getattr(agents, h.name)
        fields[h.name] = np.asarray(value).tolist() if h.kind == "traced" else value
    del fields["total_steps"]
    recorded = getattr(agents, "data", None)
    return fields | {
        "agent": agents.name,
        "environment": agents.env.name,
        "environment parameters": checksum(agents.env_params),
        "recorded data": None if recorded is None else checksum(recorded),
        "seeds": seeds,
    }


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM finish the chunk under way and keep what was computed; again, they end it.

    SIGTERM is what clusters send before they kill.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_signal(signum: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
