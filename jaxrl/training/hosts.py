"""Several processes that run one sweep: each trains its share, and all receive every result.

The compiled programs are each process's own; what they tell each other goes over the host, between
chunks. With a single process, `gather` and `of_writer` return their argument.

The processes trust each other: JAX's coordination knows no passwords, and what the writer sends is
unpickled. They need a network that nobody else can reach.
"""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HEARTBEAT = 30  # seconds without one after which a process counts as gone


def connect(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of a run, before JAX computes anything.

    Under SLURM, Open MPI, Kubernetes and on TPU pods JAX finds the others itself. Elsewhere
    `coordinator` is HOST:PORT of process 0, the same for all.

    Raises: ValueError where the others cannot be found or reached.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot join the other processes: {line}") from None


def is_writer() -> bool:
    """Whether this is the one process that writes files."""
    return jax.process_index() == 0


def gather(tree: Any) -> Any:
    """Arrays of all processes, one after the other along their first axis, on each of them.

    Raises: ConnectionError where a process is gone.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    try:
        whole = multihost_utils.process_allgather(to_numpy(tree), tiled=True)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ConnectionError(f"another process of this run is gone ({line})") from None
    return from_numpy(whole, tree)


def of_writer(value: Any) -> Any:
    """The writing process's `value`, anything that can be pickled, on all processes."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(pickle.dumps(value if is_writer() else None), np.uint8)
    high, low = gather(np.array([divmod(len(content), 2**30)]))[0]  # JAX's integers have 32 bits
    length = int(high) * 2**30 + int(low)
    padded = np.zeros(length, np.uint8)
    if is_writer():
        padded[:] = content
    return pickle.loads(gather(padded[None])[0].tobytes())


def to_numpy(tree: Any) -> Any:
    """Arrays of a tree in NumPy, random keys as their words."""
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


def from_numpy(tree: Any, like: Any) -> Any:
    """`to_numpy` undone: words are keys where `like` has keys."""

    def back(x: np.ndarray, like: Any) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(x)) if is_key(like) else x

    return jax.tree.map(back, tree, like)


def is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
