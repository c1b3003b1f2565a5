"""Pytrees of arrays: their size and their types."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def nbytes(tree: Any) -> int:
    """Bytes of a pytree of arrays, or of their shapes.

    >>> nbytes({"obs": jnp.zeros((2, 3)), "done": jnp.zeros(2, bool)})
    26
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def first_of(tree: Any) -> Any:
    """The first of the rows that a pytree of arrays holds."""
    return jax.tree.map(lambda x: x[0], tree)


def strong(tree: Any) -> Any:
    """The same arrays without weak types, which a scan's carry must not have."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, as in `learner.params.kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
