"""Linear algebra by loops and matrix products, without LAPACK.

XLA hands `jnp.linalg.cholesky`, `qr` and `solve` to LAPACK on CPUs. Batched over members inside a
program that runs on several CPU devices those calls can wait for each other for ever; what stands
here cannot, and is fast enough for the small matrices (some hundred rows) that agents solve.

All functions take one matrix; `jax.vmap` them for many. float32 or float64, as the input is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def cholesky(a: jax.Array) -> jax.Array:
    """The lower triangular L (N, N) with L L^T = A of a symmetric positive definite A (N, N).

    Column by column (Golub & Van Loan 2013, section 4.2). A's symmetric part is taken. NaN where it
    is not positive definite. The derivative is Murray 2016's (arXiv:1602.07527, eq. 8).

    >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[2.0, 0.0], [1.0, 2.0]]

    Raises:
        ValueError: A is not a square matrix.
    """
    a = _square("cholesky", a)
    a = (a + a.T) / 2
    rows = jnp.arange(len(a))

    def column(j: jax.Array, factor: jax.Array) -> jax.Array:
        rest = a[:, j] - factor @ factor[j]  # columns from j on are still zero
        return factor.at[:, j].set(jnp.where(rows >= j, rest / jnp.sqrt(rest[j]), 0))

    return lax.fori_loop(0, len(a), column, jnp.zeros_like(a))


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    factor = cholesky(*primals)
    (change,) = tangents
    change = (change + change.T) / 2
    inner = solve_triangular(factor, solve_triangular(factor, change).T)
    halved = jnp.tril(inner) - jnp.diag(jnp.diag(inner)) / 2
    return factor, factor @ halved


def solve_triangular(a: jax.Array, b: jax.Array, lower: bool = True) -> jax.Array:
    """Solve A x = b for a triangular A by substitution, row by row.

    Golub & Van Loan 2013, section 3.1. Differentiable in A and b without keeping its steps.

    Args:
        a: (N, N), of which only the lower triangle is read, or the upper one where not `lower`. For
            A^T x = b with a lower triangular A, pass `a.T` and `lower=False`.
        b: (N,) or (N, K).

    Returns x, of b's shape; infinite or NaN where the diagonal has a zero.

    >>> solve_triangular(jnp.array([[2.0, 0.0], [1.0, 4.0]]), jnp.array([2.0, 5.0])).tolist()
    [1.0, 1.0]

    Raises:
        ValueError: A is not a square matrix, or b has another number of rows.
    """
    a, b = _square("solve_triangular", a), jnp.asarray(b)
    if b.ndim not in (1, 2) or len(b) != len(a):
        raise ValueError(f"solve_triangular: b of shape {b.shape} does not fit a of {a.shape}")
    a = jnp.tril(a) if lower else jnp.triu(a)

    def solve(_, b: jax.Array) -> jax.Array:
        return _substitute(a, b) if lower else _substitute(a[::-1, ::-1], b[::-1])[::-1]

    def transpose_solve(_, b: jax.Array) -> jax.Array:
        return _substitute(a.T[::-1, ::-1], b[::-1])[::-1] if lower else _substitute(a.T, b)

    return lax.custom_linear_solve(lambda x: a @ x, b, solve, transpose_solve)


def _substitute(a: jax.Array, b: jax.Array) -> jax.Array:
    """A^-1 b of a lower triangular A, from the first row to the last."""

    def row(i: jax.Array, x: jax.Array) -> jax.Array:
        return x.at[i].set((b[i] - a[i] @ x) / a[i, i])  # rows from i on are still zero

    return lax.fori_loop(0, len(a), row, jnp.zeros_like(b))


def cho_solve(factor: jax.Array, b: jax.Array) -> jax.Array:
    """Solve A x = b given A's Cholesky factor: `cho_solve(cholesky(a), b)`.

    Args:
        factor: lower triangular (N, N).
        b: (N,) or (N, K).

    Returns x, of b's shape.

    >>> cho_solve(jnp.array([[2.0, 0.0], [1.0, 2.0]]), jnp.array([6.0, 7.0])).tolist()
    [1.0, 1.0]

    Raises:
        ValueError: as `solve_triangular`.
    """
    return solve_triangular(jnp.asarray(factor).T, solve_triangular(factor, b), lower=False)


def qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A = Q R with orthonormal columns of Q and an upper triangular R, by Householder reflections.

    Golub & Van Loan 2013, section 5.2. R's diagonal is not negative, which makes both unique where
    A has full rank. Q is orthonormal also where A has not; only then derivatives are NaN.

    Args:
        a: (M, N) with M >= N.

    Returns Q (M, N) and R (N, N).

    >>> q, r = qr(jnp.array([[0.0, 1.0], [-2.0, 3.0]]))
    >>> (q.round(6) + 0.0).tolist(), (r.round(6) + 0.0).tolist()
    ([[0.0, 1.0], [-1.0, 0.0]], [[2.0, -3.0], [0.0, 1.0]])

    Raises:
        ValueError: A is not a matrix, or has fewer rows than columns.
    """
    a = jnp.asarray(a)
    if a.ndim != 2 or a.shape[0] < a.shape[1]:
        raise ValueError(f"qr: a of shape {a.shape} must be a matrix with rows >= columns")
    rows, columns = jnp.arange(a.shape[0]), a.shape[1]

    def reflect(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        r, normals = carry
        below = jnp.where(rows >= j, r[:, j], 0)
        # Scaled first, so that squares neither overflow nor vanish.
        largest = jnp.abs(below).max()
        below = below / jnp.where(largest > 0, largest, 1)
        norm = jnp.sqrt(below @ below)
        # Away from zero: adding numbers of the same sign loses nothing.
        normal = below.at[j].add(jnp.where(below[j] < 0, -norm, norm))
        square = normal @ normal
        normal = normal * jnp.where(square > 0, jnp.sqrt(2 / jnp.where(square > 0, square, 1)), 0)
        return r - jnp.outer(normal, normal @ r), normals.at[:, j].set(normal)

    r, normals = lax.fori_loop(0, columns, reflect, (a, jnp.zeros_like(a)))

    def undo(i: jax.Array, q: jax.Array) -> jax.Array:
        normal = normals[:, columns - 1 - i]
        return q - jnp.outer(normal, normal @ q)

    q = lax.fori_loop(0, columns, undo, jnp.eye(a.shape[0], columns, dtype=a.dtype))
    r = jnp.triu(r[:columns])
    signs = jnp.where(jnp.diag(r) < 0, -1, 1).astype(a.dtype)
    return q * signs, r * signs[:, None]


def _square(owner: str, a: jax.Array) -> jax.Array:
    a = jnp.asarray(a)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"{owner}: a of shape {a.shape} must be a square matrix")
    return a
