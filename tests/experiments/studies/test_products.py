"""The matrix products of a program, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.studies.products import Product, alone, flops, products
from jaxrl.parts.networks import Network


def counted(function, *args):
    return products(jax.make_jaxpr(function)(*args).jaxpr)


def test_a_gradient_of_an_mlp():
    """Forward, and both products of the backward pass but for the observations' own."""
    network, x = Network(outputs=2, obs_ndim=1, hidden_sizes=(8,)), jnp.zeros((16, 4))
    params = network.init(jax.random.key(0), x)

    def step(params, _):
        gradient = jax.grad(lambda p: jnp.sum(network.apply(p, x) ** 2))(params)
        return jax.tree.map(lambda p, g: p - g, params, gradient), None

    numbers = counted(lambda: lax.scan(step, params, length=3))
    forward = 2 * 16 * (4 * 8 + 8 * 2)
    assert flops(numbers) == 3 * (forward + forward + 2 * 16 * 8 * 2)
    assert set(numbers.values()) == {3}


def test_dimensions_are_told_apart():
    x, y = jnp.zeros((5, 7, 2, 3)), jnp.zeros((3, 5, 11))
    numbers = counted(lambda: jnp.einsum("bijk,kbl->bijl", x, y))
    assert sum(numbers.values()) == 1
    (product,) = numbers
    assert (product.batch, product.inner) == (5, 3)
    assert {product.rows, product.columns} == {14, 11}
    assert product.flops == 2 * 5 * 14 * 3 * 11


def test_a_condition_counts_as_its_larger_branch_and_calls_are_entered():
    x = jnp.eye(4)
    power = jax.jit(lambda y: y @ y @ y)
    numbers = counted(lambda p: lax.cond(p, lambda: x, lambda: power(x)), True)
    assert numbers == {Product(1, 4, 4, 4): 2}


def test_the_floor_multiplies_as_often_as_it_is_told():
    """Neither hoisted out of its loop nor left out: the program's time grows with the number."""
    product = Product(2, 128, 64, 32)
    (result,) = alone({product: 3})()
    np.testing.assert_allclose(result, np.full((2, 128, 32), 64 * 1e-4), rtol=1e-5)
    text = jax.jit(alone({product: 3})).lower().compile().as_text()
    body = text[: text.index("ENTRY")]
    assert " dot(" in body  # within the loop
