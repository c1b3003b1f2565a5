"""Set up JAX for every test, before its backend starts."""

import os
from pathlib import Path

import jax

# Two CPU devices whatever the machine has, so that populations are really spread in the tests.
jax.config.update("jax_num_cpu_devices", 2)

# Programs compiled by an earlier run of the tests are read back instead of compiled again. Each
# worker has its own, so that none reads what another is still writing.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_CACHE = Path(__file__).resolve().parent.parent / ".cache" / f"xla{_WORKER}"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# A figure in a test must not look for a screen.
os.environ["MPLBACKEND"] = "Agg"
