"""The matrix products of a program, and how long a machine needs for nothing but them.

It is a floor for the time of a run: a program that has to multiply these matrices cannot be done
sooner, whatever else it leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Product(NamedTuple):
    """`batch` products of (rows, inner) by (inner, columns)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * math.prod(self)


def products(jaxpr: Any) -> Counter[Product]:
    """The products of a jaxpr and of those inside it, and how often each is computed.

    A scan counts as often as it repeats, of a condition's branches the one with most work, and the
    body of a loop of unknown length once.

    >>> def power(x):
    ...     return lax.scan(lambda y, _: (y @ x, None), x, length=9)[0]
    >>> products(jax.make_jaxpr(power)(jnp.eye(4)).jaxpr)
    Counter({Product(batch=1, rows=4, inner=4, columns=4): 9})
    """
    total: Counter[Product] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total[_product(equation)] += 1
            continue
        inner = [products(part) for part in _inside(equation)]
        if equation.primitive.name == "cond":
            inner = [max(inner, key=flops)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in inner:
            for product, number in part.items():
                total[product] += times * number
    return total


def flops(numbers: Mapping[Product, int]) -> int:
    """Multiplications and additions of all products."""
    return sum(product.flops * number for product, number in numbers.items())


def _inside(equation: Any) -> list[Any]:
    parts = jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns"))
    parts = [getattr(part, "jaxpr", part) for part in parts]
    return [part for part in parts if hasattr(part, "eqns")]


def _product(equation: Any) -> Product:
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    left, right = (x.aval.shape for x in equation.invars[:2])
    batch = math.prod(left[i] for i in batched)
    inner = math.prod(left[i] for i in contracted)
    rows, columns = (math.prod(shape) // (batch * inner) for shape in (left, right))
    return Product(batch, rows, inner, columns)


def alone(numbers: Mapping[Product, int]) -> Callable[[], list[jax.Array]]:
    """A function that does nothing but these products, as often as they are counted.

    Each is laid out as processors like it, (rows, inner) by (inner, columns): no transposition is
    part of the floor.
    """

    def repeated(product: Product, number: int) -> jax.Array:
        batch, rows, inner, columns = product
        shapes = (batch, rows, inner), (batch, inner, columns), (batch, rows, columns)

        def once(_: Any, carry: Any) -> Any:
            left, right, _ = carry
            # Through the barrier, or the compiler would multiply once and not again.
            return lax.optimization_barrier((left, right, left @ right))

        carry = tuple(jnp.full(shape, 0.01) for shape in shapes)
        return lax.fori_loop(0, number, once, carry)[2]

    return lambda: [repeated(product, number) for product, number in numbers.items()]
