"""Curvature without matrices: products with Hessians, conjugate gradients and Lanczos on them.

A linear map is a function of a pytree like the parameters to one like it; no matrix is formed, and
nothing here calls LAPACK (`jaxrl.parts.linalg` says why).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree


def cg(
    matvec: Callable[[Any], Any], b: Any, max_iterations: int = 10, tolerance: float = 1e-5
) -> Any:
    """Solve A x = b for a symmetric positive definite A by conjugate gradients, from x = 0.

    Hestenes & Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems". A is
    never formed: `matvec(x)` is A x, for instance a Hessian-vector product. Differentiable in `b`
    and in whatever `matvec` closes over, by the implicit function theorem, as if solved exactly.

    Args:
        matvec: a linear function of a pytree like `b` that returns one like it.
        b: a pytree of arrays, such as a gradient.
        max_iterations: at most so many products; in exact arithmetic, as many as A has distinct
            eigenvalues are enough.
        tolerance: stop once |b - A x| <= tolerance |b|.

    Returns x, a pytree like `b`. Nothing is checked: where A is not positive definite, or
    iterations are too few, x does not solve the system.

    >>> matrix = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> cg(lambda x: matrix @ x, jnp.array([3.0, 3.0])).tolist()
    [1.0, 1.0]
    """

    def solve(matvec: Callable[[Any], Any], b: Any) -> Any:
        enough = tolerance**2 * _dot(b, b)

        def unsolved(carry):
            i, _, _, _, error = carry
            return (i < max_iterations) & (error > enough)

        def advance(carry):
            i, x, residual, direction, error = carry
            product = matvec(direction)
            size = error / _dot(direction, product)
            x = _add(x, size, direction)
            residual = _add(residual, -size, product)
            new_error = _dot(residual, residual)
            direction = _add(residual, new_error / error, direction)
            return i + 1, x, residual, direction, new_error

        start = 0, jax.tree.map(jnp.zeros_like, b), b, b, _dot(b, b)
        return lax.while_loop(unsolved, advance, start)[1]

    return lax.custom_linear_solve(matvec, b, solve, symmetric=True)


def truncated_cg(
    matvec: Callable[[Any], Any], b: Any, max_iterations: int = 10, tolerance: float = 1e-5
) -> tuple[Any, jax.Array]:
    """Conjugate gradients for a symmetric A that need not be positive definite, from x = 0.

    Stops at the first direction d of negative curvature, d^T A d <= 0, and returns what there is
    until then, as truncated Newton methods do (Nocedal & Wright 2006, algorithm 7.1); at once, b
    itself. So x is a direction of ascent of b^T x, whatever A is.

    Args: as `cg`.

    Returns x, a pytree like `b`, and whether negative curvature was met. Not for differentiation.

    >>> indefinite = jnp.array([[2.0, 0.0], [0.0, -1.0]])
    >>> x, negative = truncated_cg(lambda x: indefinite @ x, jnp.array([1.0, 0.0]))
    >>> x.tolist(), bool(negative)
    ([0.5, 0.0], False)
    >>> x, negative = truncated_cg(lambda x: indefinite @ x, jnp.array([0.0, 1.0]))
    >>> x.tolist(), bool(negative)
    ([0.0, 1.0], True)
    """
    enough = tolerance**2 * _dot(b, b)

    def unsolved(carry):
        i, _, residual, _, negative = carry
        return (i < max_iterations) & (_dot(residual, residual) > enough) & ~negative

    def advance(carry):
        i, x, residual, direction, _ = carry
        product = matvec(direction)
        curvature, error = _dot(direction, product), _dot(residual, residual)
        negative = curvature <= 0
        size = jnp.where(negative, 0.0, error / jnp.where(negative, 1.0, curvature))
        size = jnp.where(negative & (i == 0), 1.0, size)
        x = _add(x, size, direction)
        residual = _add(residual, -size, product)
        direction = _add(residual, _dot(residual, residual) / error, direction)
        return i + 1, x, residual, direction, negative

    start = 0, jax.tree.map(jnp.zeros_like, b), b, b, jnp.bool_(False)
    _, x, _, _, negative = lax.while_loop(unsolved, advance, start)
    return x, negative


def gauss_newton(
    outputs: Callable[[Any], Any], loss: Callable[[Any], jax.Array], params: Any
) -> Callable[[Any], Any]:
    """The product v -> J^T H J v, J the Jacobian of `outputs`, H the Hessian of `loss` at them.

    Schraudolph 2002, "Fast Curvature Matrix-Vector Products". Where `outputs` gives the policy's
    distributions and `loss` is the mean KL divergence from their own value, this is the Fisher
    matrix (Schulman et al. 2015, appendix C.1). No matrix is formed; the network is linearised
    once, for all products.

    Args:
        outputs: a function of `params`, to a pytree of arrays.
        loss: a scalar function of such a pytree.
        params: a pytree of arrays.

    Returns a linear function of a pytree like `params` to one like it.

    >>> inputs = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> product = gauss_newton(lambda w: inputs @ w, lambda y: (y**2).sum() / 2, jnp.ones(2))
    >>> product(jnp.ones(2)).tolist()
    [1.0, 4.0]
    """
    at, push = jax.linearize(outputs, params)
    pull = jax.linear_transpose(push, params)

    def product(direction: Any) -> Any:
        change = jax.jvp(jax.grad(loss), (at,), (push(direction),))[1]
        return pull(change)[0]

    return product


def hessian_product(loss: Callable[[Any], jax.Array], params: Any) -> Callable[[Any], Any]:
    """The product v -> H v with the Hessian of a scalar function `loss` at `params`.

    Pearlmutter 1994: a derivative of the gradient; no matrix is formed.

    >>> hessian_product(lambda w: (w**3).sum(), jnp.array([1.0, 2.0]))(jnp.ones(2)).tolist()
    [6.0, 12.0]
    """
    _, pull = jax.vjp(jax.grad(loss), params)
    return lambda v: pull(v)[0]  # H is its own transpose


def lanczos(
    matvec: Callable[[Any], Any], like: Any, key: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """The tridiagonal T = V^T A V of a symmetric A on a Krylov space of a random direction.

    Lanczos 1950; Golub & Van Loan 2013, section 10.1, with every vector made orthogonal to all
    before it, twice (Parlett 1998, section 6.9). Where the space is exhausted it goes on from
    another random direction, so that T's eigenvalues, after as many iterations as A has rows, are
    A's.

    Args:
        matvec: a linear function of a pytree like `like`, such as a Hessian-vector product.
        like: a pytree of arrays, of which only shapes and dtypes count.
        key: of the random directions.
        iterations: products k; at most as many as `like` has entries are taken.

    Returns T's diagonal (k,) and off-diagonal (k - 1,). Holds k vectors like `like`.

    >>> matrix = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    >>> lines = lanczos(lambda x: matrix @ x, jnp.zeros(3), jax.random.key(0), iterations=3)
    >>> [round(float(x), 3) for x in tridiagonal_eigenvalues(*lines)]
    [1.0, 2.0, 4.0]

    Raises:
        ValueError: there are no iterations.
    """
    if iterations < 1:
        raise ValueError(f"lanczos: iterations={iterations} is outside [1, inf)")
    flat, unravel = ravel_pytree(like)
    size, dtype = min(iterations, flat.size), flat.dtype

    def product(v: jax.Array) -> jax.Array:
        return ravel_pytree(matvec(unravel(v)))[0]

    def beside(v: jax.Array, basis: jax.Array) -> jax.Array:
        """Its part that is orthogonal to the basis."""
        for _ in range(2):
            v = v - (basis @ v) @ basis
        return v

    def random_direction(j: jax.Array, basis: jax.Array) -> jax.Array:
        v = jax.random.normal(jax.random.fold_in(key, j), flat.shape, dtype)
        v = beside(v / jnp.linalg.norm(v), basis)
        return v / jnp.linalg.norm(v)

    def advance(j: jax.Array, carry: Any) -> Any:
        basis, diagonal, off_diagonal, largest = carry
        w = product(basis[j])
        diagonal = diagonal.at[j].set(basis[j] @ w)
        largest = jnp.maximum(largest, jnp.linalg.norm(w))
        w = beside(w, basis)
        length = jnp.linalg.norm(w)
        exhausted = length <= 100 * jnp.finfo(dtype).eps * largest
        safe = jnp.where(exhausted, 1, length)
        w = lax.cond(exhausted, lambda: random_direction(j + 1, basis), lambda: w / safe)
        off_diagonal = off_diagonal.at[j].set(jnp.where(exhausted, 0, length))
        return basis.at[j + 1].set(w, mode="drop"), diagonal, off_diagonal, largest

    empty = jnp.zeros((size, flat.size), dtype)
    basis = empty.at[0].set(random_direction(jnp.int32(0), empty))
    zeros = jnp.zeros((size,), dtype)
    start = basis, zeros, zeros, jnp.zeros((), dtype)
    _, diagonal, off_diagonal, _ = lax.fori_loop(0, size, advance, start)
    return diagonal, off_diagonal[:-1]


def tridiagonal_eigenvalues(diagonal: jax.Array, off_diagonal: jax.Array) -> jax.Array:
    """All eigenvalues (N,), ascending, of a symmetric tridiagonal matrix, by bisection.

    The number of negative pivots of T - x is that of eigenvalues below x (Golub & Van Loan 2013,
    section 8.4.1). The error is some rounding units of the largest one in magnitude.

    Args:
        diagonal: (N,).
        off_diagonal: (N - 1,).

    >>> tridiagonal_eigenvalues(jnp.array([0.0, 0.0]), jnp.array([2.0])).tolist()
    [-2.0, 2.0]

    Raises:
        ValueError: the shapes are not these.
    """
    diagonal, off_diagonal = jnp.asarray(diagonal), jnp.asarray(off_diagonal)
    if diagonal.ndim != 1 or off_diagonal.shape != (len(diagonal) - 1,):
        raise ValueError(
            f"tridiagonal_eigenvalues: shapes {diagonal.shape} and {off_diagonal.shape} are not "
            "(N,) and (N - 1,)"
        )
    info = jnp.finfo(diagonal.dtype)
    padded = jnp.pad(jnp.abs(off_diagonal), 1)
    radius = (jnp.abs(diagonal) + padded[1:] + padded[:-1]).max()  # Gershgorin's, of all
    tiny = jnp.maximum(info.eps * info.eps * radius, info.tiny)
    number = jnp.arange(len(diagonal))

    def below(x: jax.Array) -> jax.Array:
        """How many eigenvalues are less than each x (N,)."""

        def pivot(carry: Any, row: Any) -> Any:
            last, count = carry
            entry, beside = row
            new = entry - x - beside**2 / last
            new = jnp.where(jnp.abs(new) < tiny, -tiny, new)
            return (new, count + (new < 0)), None

        start = jnp.ones_like(x), jnp.zeros(x.shape, jnp.int32)
        return lax.scan(pivot, start, (diagonal, padded[:-1]))[0][1]

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) / 2
        is_below = below(middle) > number  # the eigenvalue of that number is
        return jnp.where(is_below, low, middle), jnp.where(is_below, middle, high)

    bounds = jnp.full_like(diagonal, -radius), jnp.full_like(diagonal, radius)
    low, high = lax.fori_loop(0, info.nmant + 4, halve, bounds)
    return low + (high - low) / 2


def condition_number(eigenvalues: jax.Array) -> jax.Array:
    """max |lambda| / min |lambda| () of the eigenvalues (N,) of a symmetric matrix.

    Of those that Lanczos found the smallest is above the matrix's, so this is a lower bound of its
    condition number where it is definite, and it grows with the iterations: compare equal numbers
    of them. The smallest counts as at least a rounding unit of the largest.

    >>> float(condition_number(jnp.array([-4.0, 0.5, 2.0])))
    8.0
    """
    sizes = jnp.abs(eigenvalues)
    largest = sizes.max()
    floor = jnp.finfo(sizes.dtype).eps * largest
    return largest / jnp.maximum(sizes.min(), jnp.maximum(floor, jnp.finfo(sizes.dtype).tiny))


def hessian_condition(
    loss: Callable[[Any], jax.Array], params: Any, key: jax.Array, iterations: int
) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue's magnitude of a loss's Hessian, and its condition number, by Lanczos.

    Args:
        loss: a scalar function of `params`.
        key, iterations: as `lanczos`; the condition number as `condition_number`.

    >>> loss = lambda w: (jnp.array([1.0, -8.0]) * w**2).sum()
    >>> [round(float(x), 2) for x in hessian_condition(loss, jnp.ones(2), jax.random.key(0), 2)]
    [16.0, 8.0]
    """
    lines = lanczos(hessian_product(loss, params), params, key, iterations)
    eigenvalues = tridiagonal_eigenvalues(*lines)
    return jnp.abs(eigenvalues).max(), condition_number(eigenvalues)


def _dot(a: Any, b: Any) -> jax.Array:
    """The inner product of two pytrees."""
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)), jnp.zeros(()))


def _add(a: Any, scale: jax.Array, b: Any) -> Any:
    """a + scale b of two pytrees, in a's precision."""
    return jax.tree.map(lambda x, y: x + scale.astype(x.dtype) * y, a, b)
