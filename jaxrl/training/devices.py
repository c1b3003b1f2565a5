"""Devices: every CPU core as a device, a mesh over members of a population, compiled programs."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MEMBERS = PartitionSpec("members")


def use_all_cores() -> int:
    """Make each CPU core a JAX device, over which populations are spread; returns their number.

    Call it before JAX first computes. Without it a population runs on one core. It does nothing
    where JAX finds an accelerator, and leaves a number set before (JAX_NUM_CPU_DEVICES) alone.

    Raises:
        RuntimeError: JAX has already started with fewer devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if jax.config.jax_num_cpu_devices in (None, -1):  # type: ignore[attr-defined]
        try:
            jax.config.update("jax_num_cpu_devices", cores or 1)
        except RuntimeError as error:
            if jax.default_backend() == "cpu" and jax.local_device_count() < (cores or 1):
                message = "call use_all_cores() first: JAX has already started on one core"
                raise RuntimeError(message) from error
    return jax.local_device_count()


def use_compilation_cache(path: str | Path | None = None) -> None:
    """Keep compiled programs on disk, so that the next process need not compile them again.

    `path` defaults to $JAX_COMPILATION_CACHE_DIR, else to jaxrl/ in the user's cache folder.
    """
    if path is None and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(path or Path(cache_home) / "jaxrl"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def member_mesh(members: int) -> Mesh:
    """A mesh over as many local devices as `members` can use."""
    devices = jax.local_devices()[:members]
    return Mesh(np.asarray(devices), ("members",), axis_types=(AxisType.Auto,))


def shapes_on(tree: Any, mesh: Mesh, specs: Any = MEMBERS) -> Any:
    """Like `place`, of shapes instead of arrays: what a program is compiled for."""

    def placed(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False)
            ),
            part,
        )

    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree.map(placed, specs, tree, is_leaf=is_spec)


def bytes_of(program: Any) -> int:
    """What a compiled program needs on each device: arguments, results, and what lies between."""
    stats = program.memory_analysis()
    own = stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes
    return int(stats.argument_size_in_bytes + own)


def place(tree: Any, mesh: Mesh, specs: Any = MEMBERS) -> Any:
    """Spread the leading axis of every array over the mesh, or as a prefix tree of specs says."""
    return jax.device_put(tree, named(mesh, specs))


def named(mesh: Mesh, specs: Any) -> Any:
    """Shardings of specs on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


# The last programs that were asked for: each maps memory that the system has a limited number of.
_programs: OrderedDict[Any, Any] = OrderedDict()
PROGRAMS = 64


def forget_programs() -> None:
    """Give back the memory of all compiled programs; what is asked for again compiles again."""
    _programs.clear()
    jax.clear_caches()


def compiled(jitted: Any, *args: Any, **statics: Any) -> tuple[Any, float]:
    """The compiled program of a jitted function for these arguments, and the seconds it took.

    Compiling apart from running is what lets the two be reported apart. The last PROGRAMS of them
    are kept: the same function, statics, tree structure, shapes and placement compile once.
    """

    def describe(x: Any) -> Any:
        where = getattr(x, "sharding", None)
        if where is not None and where.num_devices == 1:  # one placement, of many names
            (where,) = where.device_set
        return x.shape, x.dtype, getattr(x, "weak_type", False), where

    leaves, structure = jax.tree.flatten(args)
    key = (jitted, tuple(sorted(statics.items())), structure, tuple(map(describe, leaves)))
    seconds = 0.0
    if key not in _programs:
        start = time.perf_counter()
        _programs[key] = jitted.lower(*args, **statics).compile()
        seconds = time.perf_counter() - start
        if len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
    _programs.move_to_end(key)
    return _programs[key], seconds
