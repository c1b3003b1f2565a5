"""Linear algebra without LAPACK, against NumPy; under members spread over two devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxrl.parts.curvature import (
    cg,
    condition_number,
    gauss_newton,
    hessian_product,
    lanczos,
    tridiagonal_eigenvalues,
    truncated_cg,
)
from jaxrl.parts.linalg import cho_solve, cholesky, qr, solve_triangular

PRECISIONS = ("float32", "float64")
SIZES = (1, 2, 7)


@pytest.fixture(params=PRECISIONS)
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def definite(size, dtype, condition=10.0, seed=0):
    """A symmetric matrix with eigenvalues from 1 / condition to 1."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    eigenvalues = np.geomspace(1 / condition, 1, size) if size > 1 else np.ones(1)
    return jnp.asarray(basis * eigenvalues @ basis.T, dtype)


def normal(*shape, dtype="float64", seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def exact(x):
    return np.asarray(x, np.float64)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_against_numpy(size, dtype):
    a, b = definite(size, dtype), normal(size, 3, dtype=dtype)
    close = partial(np.testing.assert_allclose, atol=50 * np.finfo(dtype).eps)

    factor = jax.jit(cholesky)(a)
    assert factor.dtype == dtype
    close(factor, np.linalg.cholesky(exact(a)))
    expected = np.linalg.solve(exact(a), exact(b))
    scale = np.abs(expected).max()
    for x, y in ((b, expected), (b[:, 0], expected[:, 0])):
        solved = jax.jit(cho_solve)(factor, x)
        assert solved.dtype == dtype
        close(solved / scale, y / scale)
        solved = jax.jit(solve_triangular)(factor, x)
        close(factor @ solved, x, rtol=1e-5)
        solved = jax.jit(partial(solve_triangular, lower=False))(factor.T, x)
        close(factor.T @ solved, x, rtol=1e-5)

    solved = jax.jit(lambda a, b: cg(lambda x: a @ x, b, 3 * size, 1e-12))(a, b[:, 0])
    assert solved.dtype == dtype
    np.testing.assert_allclose(solved, expected[:, 0], rtol=1e-3 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 7), (9, 4), (5, 1)])
def test_qr_against_numpy(shape, dtype):
    a = normal(*shape, dtype=dtype)
    q, r = jax.jit(qr)(a)
    assert q.dtype == r.dtype == dtype
    expected_q, expected_r = np.linalg.qr(exact(a))
    signs = np.where(np.diag(expected_r) < 0, -1, 1)
    atol = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(q, expected_q * signs, atol=atol)
    np.testing.assert_allclose(r, expected_r * signs[:, None], atol=10 * atol)


def test_ill_conditioned_matrices(dtype):
    """Residuals stay at the precision's level, as LAPACK's do, where solutions cannot."""
    eps = np.finfo(dtype).eps
    a = definite(8, dtype, condition=0.01 / eps)
    factor = jax.jit(cholesky)(a)
    np.testing.assert_allclose(factor @ factor.T, a, atol=10 * eps)
    b = normal(8, dtype=dtype)
    x = exact(jax.jit(cho_solve)(factor, b))
    assert np.abs(exact(a) @ x - exact(b)).max() < 50 * eps * np.abs(x).max()

    # The columns of a Vandermonde matrix are nearly parallel: Gram-Schmidt once would lose them.
    a = jnp.asarray(np.vander(np.linspace(0, 1, 20), 12), dtype)
    q, r = jax.jit(qr)(a)
    np.testing.assert_allclose(q.T @ q, np.eye(12), atol=20 * eps)
    np.testing.assert_allclose(q @ r, a, atol=20 * eps)


def test_qr_of_a_deficient_rank_and_of_extreme_sizes(dtype):
    a = jnp.zeros((4, 3), dtype).at[:, 1].set(1)
    for scale in (1, float(np.finfo(dtype).max) / 100, 100 * float(np.finfo(dtype).tiny)):
        q, r = jax.jit(qr)(a * scale)
        np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(q @ (r / scale), a, atol=1e-6)


def test_what_is_not_positive_definite_gives_nan():
    assert np.isnan(cholesky(jnp.array([[1.0, 2.0], [2.0, 1.0]]))).any()


def test_cholesky_takes_the_symmetric_part():
    a = definite(3, "float32")
    skew = jnp.array([[0, 1, 2], [-1, 0, 3], [-2, -3, 0]])
    np.testing.assert_allclose(cholesky(a + skew), cholesky(a), atol=1e-6)


def test_triangular_solves_read_one_triangle():
    a, b = definite(4, "float32"), normal(4, dtype="float32")
    for lower, triangle in ((True, jnp.tril), (False, jnp.triu)):
        solve = jax.jit(partial(solve_triangular, lower=lower))
        np.testing.assert_array_equal(solve(a, b), solve(triangle(a), b))


def test_cg_of_a_pytree_stops_and_does_nothing_for_zero():
    scales = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.array(4.0)}

    def matvec(x):
        return jax.tree.map(jnp.multiply, scales, x)

    products = jax.jit(lambda b, n: cg(matvec, b, n))
    b = {"w": jnp.array([[3.0, 2.0]]), "b": jnp.array(8.0)}
    x = products(b, 10)
    np.testing.assert_allclose(x["w"], [[3, 1]], rtol=1e-5)
    np.testing.assert_allclose(x["b"], 2, rtol=1e-5)
    # One step goes along b, to where |x| in A's norm is smallest.
    length = (9 + 4 + 64) / (9 + 8 + 256)
    np.testing.assert_allclose(products(b, 1)["b"], 8 * length, rtol=1e-6)
    zero = products(jax.tree.map(jnp.zeros_like, b), 10)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_truncated_cg_solves_where_it_can_and_ascends_elsewhere(dtype):
    solve = jax.jit(lambda a, b: truncated_cg(lambda x: a @ x, b, 21, 1e-12))
    a, b = definite(7, dtype), normal(7, dtype=dtype)
    x, negative = solve(a, b)
    assert not negative
    expected = np.linalg.solve(exact(a), exact(b))
    np.testing.assert_allclose(x, expected, rtol=1e-3 if dtype == "float32" else 1e-10)
    eigenvalues, basis = np.linalg.eigh(exact(a))
    indefinite = jnp.asarray(basis * (eigenvalues - 0.3) @ basis.T, dtype)
    x, negative = solve(indefinite, b)
    assert negative
    assert exact(b) @ exact(x) > 0
    # Of a negative definite matrix nothing is known but the right-hand side.
    x, negative = solve(-a, b)
    np.testing.assert_array_equal(x, b)
    assert negative
    x, negative = solve(a, jnp.zeros_like(b))
    assert not np.any(x)
    assert not negative


def test_curvature_products_are_those_of_explicit_matrices(dtype):
    inputs, weights = normal(9, 3, dtype=dtype), normal(3, 2, dtype=dtype, seed=2)

    def outputs(w):
        return jnp.tanh(inputs @ w)

    def loss(y):
        return jnp.sum(jnp.exp(y) + y[:, :1] * y[:, 1:])

    @jax.jit  # one program
    def compute(v):
        flat = weights.ravel()
        jacobian = jax.jacobian(lambda w: outputs(w.reshape(3, 2)).ravel())(flat)
        inner = jax.hessian(lambda y: loss(y.reshape(9, 2)))(outputs(weights).ravel())
        whole = jax.hessian(lambda w: loss(outputs(w.reshape(3, 2))))(flat)
        return (
            (gauss_newton(outputs, loss, weights)(v).ravel(), jacobian.T @ inner @ jacobian),
            (hessian_product(lambda w: loss(outputs(w)), weights)(v).ravel(), whole),
        )

    v = normal(3, 2, dtype=dtype, seed=3)
    for product, matrix in compute(v):
        tolerance = 1e-12 if dtype == "float64" else 1e-4
        np.testing.assert_allclose(product, matrix @ v.ravel(), atol=tolerance)


def test_bad_shapes_are_refused_in_one_line():
    square, wide = jnp.ones((2, 2)), jnp.ones((2, 3))
    for refused, line in [
        (lambda: cholesky(wide), r"cholesky: a of shape \(2, 3\) must be a square matrix"),
        (lambda: solve_triangular(wide, wide), r"solve_triangular: a of shape \(2, 3\) must be"),
        (lambda: cho_solve(square, jnp.ones(3)), r"b of shape \(3,\) does not fit a of \(2, 2\)"),
        (lambda: qr(wide), r"qr: a of shape \(2, 3\) must be a matrix with rows >= columns"),
    ]:
        with pytest.raises(ValueError, match=line):
            refused()


# Derivatives ------------------------------------------------------------------------------------


def by_cholesky(a, b):
    return cho_solve(cholesky(a), b)


def by_cg(a, b):
    return cg(lambda x: (a + a.T) / 2 @ x, b, 30, 1e-14)


@pytest.mark.parametrize("solve", [by_cholesky, by_cg])
def test_gradients_of_solves(solve):
    """Of c^T A^-1 b: -A^-1 c b^T A^-1 by A's symmetric part, and A^-1 c by b."""
    with jax.enable_x64():
        a, b, c = definite(5, "float64"), normal(5), normal(5, seed=2)
        by_a, by_b = jax.jit(jax.grad(lambda a, b: c @ solve(a, b), argnums=(0, 1)))(a, b)
        inverse = np.linalg.inv(a)
        outer = -np.outer(inverse @ c, inverse @ b)
        np.testing.assert_allclose(by_a, (outer + outer.T) / 2, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(by_b, inverse @ c, rtol=1e-8)


def test_gradients_against_finite_differences():
    """Forward and backward; of every entry of the triangular matrix, and of the factor."""

    def values(a, b, low, tall):
        solved = solve_triangular(low, b), solve_triangular(low.T, b, lower=False)
        return cholesky(a), *solved, cho_solve(low, b), by_cholesky(a, b), *qr(tall)

    with jax.enable_x64():
        low = np.tril(normal(3, 3)) + 3 * np.eye(3)
        args = definite(3, "float64"), normal(3, 2), low, normal(4, 3)
        check_grads(jax.jit(values), args, order=1, rtol=1e-4, atol=1e-4)


# Members on several devices ---------------------------------------------------------------------


def everything(a, b):
    factor = cholesky(a)
    return cho_solve(factor, b), cg(lambda x: a @ x, b, 20, 1e-7), *qr(a)


def spread(f):
    """f for many members, which two devices share."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("members",), auto, devices=jax.devices()[:2])
    return jax.jit(
        jax.shard_map(
            jax.vmap(f), mesh=mesh, in_specs=P("members"), out_specs=P("members"), check_vma=False
        )
    )


def custom_calls(compiled):
    return re.findall(r'custom_call_target="([^"]*)"', compiled.as_text())


def test_members_on_two_devices_without_lapack():
    a = jnp.stack([definite(6, "float32", seed=seed) for seed in range(8)])
    b = normal(8, 6, dtype="float32")

    def loss(a, b):
        return by_cholesky(a, b).sum() + by_cg(a, b).sum()

    program = spread(lambda a, b: (everything(a, b), jax.grad(loss)(a, b)))
    compiled = program.lower(a, b).compile()
    assert not custom_calls(compiled)
    control = spread(lambda a, b: jnp.linalg.cholesky(a)).lower(a, b).compile()
    assert any("lapack" in name for name in custom_calls(control))
    # With nothing of LAPACK in it, the program has nothing to wait for.
    (*solutions, q, r), gradient = compiled(a, b)
    expected = np.linalg.solve(exact(a), exact(b)[..., None])[..., 0]
    for solution in solutions:
        np.testing.assert_allclose(solution, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(q @ r, a, atol=1e-5)
    np.testing.assert_allclose(gradient[3], jax.jit(jax.grad(loss))(a[3], b[3]), rtol=1e-3)


# Eigenvalues --------------------------------------------------------------------------------------


def symmetric(size, dtype, seed=3):
    """Indefinite, with eigenvalues of very different sizes."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    eigenvalues = np.geomspace(1e-3, 10, size) * rng.choice([-1, 1], size)
    return jnp.asarray(basis * eigenvalues @ basis.T, dtype)


def ritz(matrix, iterations, seed=0):
    lines = lanczos(lambda x: matrix @ x, matrix[0], jax.random.key(seed), iterations)
    return tridiagonal_eigenvalues(*lines)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_all_eigenvalues_against_numpy(size, dtype):
    a = symmetric(size, dtype)
    exactly = np.linalg.eigvalsh(exact(a))
    found = jax.jit(ritz, static_argnums=1)(a, size + 3)  # no more than there are
    assert found.dtype == dtype
    assert found.shape == (size,)
    np.testing.assert_allclose(found, exactly, atol=100 * np.finfo(dtype).eps)
    condition = np.abs(exactly).max() / np.abs(exactly).min()
    tolerance = 100 * np.finfo(dtype).eps * condition
    assert condition_number(found) == pytest.approx(condition, rel=tolerance)


def test_tridiagonal_eigenvalues_against_numpy(dtype):
    diagonal, beside = normal(12, dtype=dtype), normal(11, dtype=dtype, seed=5)
    beside = beside.at[4].set(0)  # two blocks
    whole = np.diag(exact(diagonal)) + np.diag(exact(beside), 1) + np.diag(exact(beside), -1)
    found = tridiagonal_eigenvalues(diagonal, beside)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(whole), atol=30 * np.finfo(dtype).eps)


def test_an_exhausted_space_is_left(dtype):
    """Of the identity every direction is an eigenvector; of rank one, all but one have no image."""
    ones = ritz(jnp.eye(5, dtype=dtype) * 3, 5)
    np.testing.assert_allclose(ones, np.full(5, 3.0), rtol=1e-5)
    vector = normal(6, dtype=dtype)
    found = ritz(jnp.outer(vector, vector), 6)
    expected = [*[0] * 5, float(vector @ vector)]
    np.testing.assert_allclose(found, expected, atol=300 * np.finfo(dtype).eps)
    assert condition_number(found) > 0.01 / np.finfo(dtype).eps  # infinite, but for rounding


def test_few_iterations_find_the_outermost_eigenvalues():
    a = symmetric(40, "float32")
    exactly = np.linalg.eigvalsh(exact(a))
    found = np.asarray(jax.jit(ritz, static_argnums=1)(a, 16))
    assert found.shape == (16,)
    np.testing.assert_allclose(found[[0, -1]], exactly[[0, -1]], rtol=1e-3)
    assert exactly[0] - 1e-5 <= found.min() <= found.max() <= exactly[-1] + 1e-5


def test_the_hessian_of_a_network_is_that_of_numpy():
    """An explicit Hessian of a two-layer network's loss: all eigenvalues and the condition."""
    with jax.enable_x64(True):
        inputs, targets = normal(16, 2), normal(16, seed=2)
        params = {"in": normal(2, 3, seed=4), "out": normal(3, seed=5)}

        def loss(p):
            return ((jnp.tanh(inputs @ p["in"]) @ p["out"] - targets) ** 2).mean()

        flat, unravel = jax.flatten_util.ravel_pytree(params)
        explicit = np.linalg.eigvalsh(jax.hessian(lambda x: loss(unravel(x)))(flat))
        product = hessian_product(loss, params)
        found = tridiagonal_eigenvalues(*lanczos(product, params, jax.random.key(0), flat.size))
        np.testing.assert_allclose(found, explicit, atol=1e-12)
        condition = np.abs(explicit).max() / np.abs(explicit).min()
        assert condition_number(found) == pytest.approx(condition, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: lanczos(lambda x: x, jnp.ones(2), jax.random.key(0), 0), "iterations=0"),
        (lambda: tridiagonal_eigenvalues(jnp.ones(3), jnp.ones(3)), r"shapes \(3,\) and \(3,\)"),
    ],
)
def test_what_has_no_eigenvalues_is_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call()
