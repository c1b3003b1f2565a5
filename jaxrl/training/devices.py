"""What a script sets up first: every CPU core as a device, compiled programs on disk."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax

CACHE_BYTES = 4 * 2**30  # of compiled programs on disk


def use_all_cores() -> int:
    """Make each CPU core a JAX device, over which populations are spread; returns their number.

    Call it before JAX first computes. Without it a population runs on one core. It does nothing
    where JAX finds an accelerator, and leaves a number set before (JAX_NUM_CPU_DEVICES) alone.

    Warns where JAX has already started with fewer devices, as `import gymnax` makes it do.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if jax.config.jax_num_cpu_devices in (None, -1):  # type: ignore[attr-defined]
        try:
            jax.config.update("jax_num_cpu_devices", cores or 1)
        except RuntimeError:
            if jax.default_backend() == "cpu" and jax.local_device_count() < (cores or 1):
                warnings.warn(
                    f"JAX has already started with {jax.local_device_count()} of {cores} cores: "
                    "call use_all_cores() before anything computes, also before `import gymnax`",
                    stacklevel=2,
                )
    return jax.local_device_count()


def use_compilation_cache(path: str | Path | None = None) -> None:
    """Keep compiled programs on disk, so that the next process need not compile them again.

    All that trains or evaluates does so, unless JAX's own switch is off
    (JAX_ENABLE_COMPILATION_CACHE=false); this says where.

    `path` defaults to $JAX_COMPILATION_CACHE_DIR, else to jaxrl/programs/ in the user's cache
    folder, where those not used for longest make room once they are CACHE_BYTES. The folder is the
    user's alone: what is in it is run.

    Warns where it cannot be written, or is another user's: then nothing is kept.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return
    if path is None and config.jax_compilation_cache_dir:
        return
    try:
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(path or Path(cache_home) / "jaxrl" / "programs")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise OSError(f"{folder} belongs to another user")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(f"{folder} cannot be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if path is None:  # one that was filled without a limit would be in the way of it
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
