"""Learning from a batch: gradient steps, schedules, shuffling, minibatch epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def clipped_adam(
    learning_rate: float | jax.Array, max_grad_norm: float | jax.Array, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped to `max_grad_norm` first."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=eps))


def clipped_rmsprop(
    learning_rate: float | jax.Array, max_grad_norm: float | jax.Array
) -> optax.GradientTransformation:
    """RMSprop on clipped gradients, as in OpenAI's release of A2C.

    Its decay is 0.99, its mean of squares starts at 1 and epsilon 1e-5 stands under the root.
    """
    rmsprop = optax.rmsprop(learning_rate, decay=0.99, eps=1e-5, initial_scale=1.0)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), rmsprop)


def clipped_adamw(
    learning_rate: float | jax.Array, max_grad_norm: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adam on clipped gradients, with decoupled weight decay (Loshchilov & Hutter 2019, alg. 2).

    Each step also takes learning_rate x weight_decay x the parameters off them. Its state is that
    of `optax.adam`, which it is with an infinite norm and no decay.
    """
    adam, clip = optax.adam(learning_rate), optax.clip_by_global_norm(max_grad_norm)
    if math.isinf(max_grad_norm) and weight_decay == 0:
        return adam  # to the bit: what stands between a gradient and Adam changes its rounding

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        clipped, _ = clip.update(grads, optax.EmptyState())
        updates, state = adam.update(clipped, state)
        decay = learning_rate * weight_decay
        return jax.tree.map(lambda u, p: u - decay * p, updates, params), state

    return optax.GradientTransformation(adam.init, update)


def descend(
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Any], tuple[jax.Array, Any]],
    params: Any,
    opt_state: Any,
) -> tuple[Any, Any, jax.Array, Any]:
    """One gradient step down `loss_fn(params) -> (loss, aux)`.

    Returns the new parameters, the optimiser's new state, the loss before the step, and `aux`.

    >>> optimizer, params = optax.sgd(0.25), jnp.array(1.0)
    >>> step = descend(optimizer, lambda x: (x**2, "aux"), params, optimizer.init(params))
    >>> params, opt_state, loss, aux = step
    >>> float(params), float(loss), aux
    (0.5, 1.0, 'aux')
    """
    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, aux


def scale_gradient(x: jax.Array, factor: float | jax.Array) -> jax.Array:
    """x as it is, but what flows back through it is multiplied by `factor` (broadcast to x).

    >>> float(scale_gradient(jnp.array(2.0), 3.0))
    2.0
    >>> float(jax.grad(lambda x: scale_gradient(x, 3.0) ** 2)(2.0))
    12.0
    """
    return x + jax.lax.stop_gradient(factor - 1) * (x - jax.lax.stop_gradient(x))


# Stands for a metric that a gradient step did not compute. NaN would do, if it did not also stand
# for a loss that has become NaN, which a mean over gradient steps must not hide.
MISSING = -3.0e38


def mean_over_steps(values: jax.Array) -> jax.Array:
    """Mean over gradient steps (n, ...) of what is not MISSING; NaN where nothing is there.

    >>> print(mean_over_steps(jnp.array([1.0, MISSING, 3.0])))
    2.0
    >>> print(mean_over_steps(jnp.array([1.0, MISSING, jnp.nan])))
    nan
    """
    there = values != MISSING
    number = there.sum(axis=0)
    mean = jnp.where(there, values, 0).sum(axis=0) / number
    return jnp.where(number > 0, mean, jnp.nan)


def learn_if(
    ready: jax.Array,
    learn: Callable[[Any], tuple[Any, dict[str, jax.Array]]],
    learner: Any,
    missing: float = jnp.nan,
) -> tuple[Any, dict[str, jax.Array]]:
    """`learn(learner)` where `ready` (a scalar, never batched), else nothing.

    Metrics are `missing` where nothing is learnt: NaN of a whole iteration, MISSING of a gradient
    step among others.
    """

    def wait(learner: Any) -> tuple[Any, dict[str, jax.Array]]:
        shapes = jax.eval_shape(learn, learner)[1]
        return learner, jax.tree.map(lambda x: jnp.full(x.shape, missing, x.dtype), shapes)

    return jax.lax.cond(ready, learn, wait, learner)


def learn_every(
    period: int,
    n: jax.Array,
    learn: Callable[[Any], tuple[Any, dict[str, jax.Array]]],
    learner: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """`learn(learner)` at the last of every `period` gradient steps, of which n is the number.

    At the others nothing, and MISSING metrics.
    """
    if period == 1:
        return learn(learner)
    return learn_if((n + 1) % period == 0, learn, learner, missing=MISSING)


def polyak(target: Any, online: Any, tau: float | jax.Array) -> Any:
    """Target parameters moved by a share `tau` towards the online ones.

    >>> polyak({"weight": 0.0}, {"weight": 1.0}, tau=0.25)
    {'weight': 0.25}
    """
    return jax.tree.map(lambda old, new: old + tau * (new - old), target, online)


def copy_of(params: Any) -> Any:
    """The same values in buffers of their own: a donated carry must not hold one buffer twice."""
    return jax.tree.map(jnp.copy, params)


def linear_schedule(
    start: float | jax.Array,
    end: float | jax.Array,
    progress: float | jax.Array,
    fraction: float | jax.Array = 1.0,
) -> jax.Array:
    """From `start` to `end` over the first `fraction` of training; progress is in [0, 1].

    >>> [round(float(linear_schedule(1.0, 0.2, p, fraction=0.5)), 3) for p in (0, 0.25, 1)]
    [1.0, 0.6, 0.2]
    """
    return start + (end - start) * jnp.clip(progress / fraction, 0.0, 1.0)


def permutation(key: jax.Array, n: int, valid: int | jax.Array | None = None) -> jax.Array:
    """A random permutation of 0..n-1, the indices below `valid` (traced) before all others.

    Up to 2^15 rows it is one sort of single words, random high bits with the index in the low
    ones: on a CPU several times faster than `jax.random.permutation`. Rows with equal high bits
    stay in order, a bias far below what a minibatch can notice. Beyond, too few bits would be left,
    and the index goes along with a word of its own.
    """
    bits = max(n - 1, 1).bit_length()
    if bits > 15:
        words = jax.random.bits(key, (n,), jnp.uint32) >> 1
        if valid is not None:
            words |= (jnp.arange(n) >= valid).astype(jnp.uint32) << 31
        return jax.lax.sort((words, jnp.arange(n, dtype=jnp.int32)), num_keys=1)[1]
    index = jnp.arange(n, dtype=jnp.uint32)
    # The top bit stays free to send the rows that do not count to the end.
    words = (jax.random.bits(key, (n,), jnp.uint32) >> (1 + bits)) << bits | index
    if valid is not None:
        words |= (index >= valid).astype(jnp.uint32) << 31
    return (jnp.sort(words) & (2**bits - 1)).astype(jnp.int32)


def minibatch_epochs(
    key: jax.Array,
    update: Callable[..., tuple[Any, Any]],
    carry: Any,
    batch: Any,
    num_epochs: int,
    num_minibatches: int,
    keyed: bool = False,
) -> tuple[Any, Any]:
    """Scan `update(carry, minibatch)` over shuffled minibatches, reshuffled every epoch.

    Args:
        batch: pytree with leading axis B, a multiple of `num_minibatches`. Only indices are
            shuffled; each minibatch is gathered when its turn comes.
        keyed: each update draws: it is `update(carry, minibatch, key)`, with a key of its own.

    Returns the carry and what `update` returned, stacked (num_epochs, num_minibatches, ...).

    >>> update = lambda total, rows: (total + rows.sum(), rows.max())
    >>> key, rows = jax.random.key(0), jnp.arange(6)
    >>> total, largest = minibatch_epochs(key, update, jnp.int32(0), rows, 2, 3)
    >>> int(total), largest.shape
    (30, (2, 3))
    """
    size = jax.tree.leaves(batch)[0].shape[0]

    def minibatch(carry, row):
        rows, *own_key = row
        return update(carry, jax.tree.map(lambda x: x[rows], batch), *own_key)

    def epoch(carry, keys):
        epoch_key, *own_keys = keys
        rows = permutation(epoch_key, size).reshape(num_minibatches, -1)
        return jax.lax.scan(minibatch, carry, (rows, *own_keys))

    keys = [epoch_keys(key, num_epochs)]
    if keyed:  # from the number that follows those of the epochs
        base = jax.random.fold_in(key, num_epochs)
        keys.append(jax.random.split(base, (num_epochs, num_minibatches)))
    return jax.lax.scan(epoch, carry, tuple(keys))


def descend_epochs(
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]],
    params: Any,
    opt_state: Any,
    key: jax.Array,
    batch: Any,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[Any, Any, jax.Array, Any]:
    """A gradient step down `loss_fn(params, minibatch) -> (loss, aux)` for each shuffled minibatch.

    Returns the new parameters, the optimiser's new state, and the means over the steps of the loss
    before each, and of `aux`.

    >>> optimizer, params = optax.sgd(0.5), jnp.array(0.0)
    >>> loss_fn = lambda x, rows: (0.5 * ((x - rows) ** 2).mean(), {"x": x})
    >>> key, rows, state = jax.random.key(0), jnp.ones(6), optimizer.init(params)
    >>> learnt = descend_epochs(optimizer, loss_fn, params, state, key, rows, 1, 2)
    >>> float(learnt[0]), float(learnt[2]), float(learnt[3]["x"])
    (0.75, 0.3125, 0.25)
    """

    def update(carry, minibatch):
        params, opt_state, loss, aux = descend(optimizer, lambda x: loss_fn(x, minibatch), *carry)
        return (params, opt_state), (loss, aux)

    (params, opt_state), steps = minibatch_epochs(
        key, update, (params, opt_state), batch, num_epochs, num_minibatches
    )
    loss, aux = jax.tree.map(jnp.mean, steps)
    return params, opt_state, loss, aux


def require_minibatches(num_minibatches: int, num_envs: int, num_steps: int, agent: str) -> None:
    """Raise ValueError (one line) unless a rollout falls into minibatches of one size."""
    batch = num_envs * num_steps
    if batch % num_minibatches:
        raise ValueError(
            f"{agent}: num_minibatches={num_minibatches} does not divide the batch of {batch} = "
            f"num_envs {num_envs} x num_steps {num_steps}"
        )


def epoch_keys(key: jax.Array, num_epochs: int) -> jax.Array:
    """The keys (num_epochs,) that shuffle each epoch."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_epochs))
