"""Set up JAX for every test, before its backend starts."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib.version
import pytest

from jaxrl.training import schedule
from jaxrl.training.engine import forget_programs

# Two CPU devices whatever the machine has, so that populations are really spread in the tests.
jax.config.update("jax_num_cpu_devices", 2)

# XLA's newer emitters of CPU code take 1.7 times as long to compile, for programs that run faster
# than a test needs. jax 0.11 has no others, and ends a process that asks for them.
if jaxlib.version.__version_info__ < (0, 11):
    _FLAGS = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_cpu_use_fusion_emitters=false"

# Programs compiled by an earlier run of the tests are read back instead of compiled again. Each
# worker has its own, so that none reads what another is still writing.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_CACHE = Path(__file__).resolve().parent.parent / ".cache" / f"xla{_WORKER}"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Chunks are not joined for being short: where runs are cut must not hang on the machine's speed.
schedule.SHORTEST = 0.0

# A figure in a test must not look for a screen.
os.environ["MPLBACKEND"] = "Agg"

# Each compiled program maps memory, and Linux lets a process have 65,530 maps: past them LLVM fails
# or crashes. Module by module the tests of one worker would get there.
_MAPS = Path("/proc/self/maps")
_MANY = 20_000


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    yield
    if _MAPS.exists() and _MAPS.read_text().count("\n") > _MANY:
        forget_programs()


def pytest_configure(config: pytest.Config) -> None:
    """Without the slow tests, which run their programs for long, all are compiled quickly."""
    if config.option.markexpr == "not slow":
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """For slow tests that compile many programs, also in other processes, and run them briefly."""
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", before)
