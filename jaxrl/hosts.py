"""Several processes that run one sweep: each trains its share of the members, all know everything.

The compiled programs are each process's own; what they tell each other goes over the host, between
chunks. Of one process, everything here is the identity.
"""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def connect(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of a run, before JAX computes anything.

    Under SLURM, Open MPI, Kubernetes and on TPU pods JAX finds the others itself. Elsewhere
    `coordinator` is HOST:PORT of process 0, the same for all.

    Raises: ValueError where the others cannot be found or reached.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
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

    def words(x: Any) -> np.ndarray:
        return np.asarray(jax.random.key_data(x) if is_key(x) else x)

    def like(x: Any, whole: np.ndarray) -> Any:
        if not is_key(x):
            return whole
        return jax.random.wrap_key_data(jnp.asarray(whole), impl=jax.random.key_impl(x))

    try:
        whole = multihost_utils.process_allgather(jax.tree.map(words, tree), tiled=True)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ConnectionError(f"another process of this run is gone ({line})") from None
    return jax.tree.map(like, tree, whole)


def of_writer(value: Any) -> Any:
    """The writing process's `value`, anything that can be pickled, on all processes."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(pickle.dumps(value if is_writer() else None), np.uint8)
    length = int(gather(np.array([len(content)]))[0])
    padded = np.zeros(length, np.uint8)
    if is_writer():
        padded[:] = content
    return pickle.loads(gather(padded[None])[0].tobytes())


def is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
