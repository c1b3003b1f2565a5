"""Shuffling, minibatch epochs, schedules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxrl.parts.optimize import (
    MISSING,
    clipped_adamw,
    descend,
    descend_epochs,
    epoch_keys,
    learn_every,
    learn_if,
    linear_schedule,
    mean_over_steps,
    minibatch_epochs,
    permutation,
    require_minibatches,
)

shuffle = jax.jit(permutation, static_argnums=1)


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000])
def test_permutation_holds_every_index_once(n):
    order = shuffle(jax.random.key(n), n)
    assert order.dtype == jnp.int32
    assert sorted(np.asarray(order)) == list(range(n))


def test_valid_rows_come_first():
    for valid in (0, 1, 7, 63, 64):
        order = np.asarray(shuffle(jax.random.key(0), 64, valid))
        assert sorted(order[:valid]) == list(range(valid))
        assert sorted(order) == list(range(64))


def test_all_rows_valid_is_the_same_order_as_none_said():
    for n in (5, 64, 100):
        key = jax.random.key(n)
        np.testing.assert_array_equal(shuffle(key, n, n), shuffle(key, n))


def test_every_order_is_as_likely():
    keys = jax.random.split(jax.random.key(0), 24_000)
    for valid, n in [(None, 4), (4, 6)]:
        orders = np.asarray(jax.vmap(partial(permutation, n=n, valid=valid))(keys))[:, :4]
        counts = np.unique(orders, axis=0, return_counts=True)[1]
        assert len(counts) == 24
        assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_many_rows_are_as_random_as_few():
    """Beyond 2^15 rows too: of neighbours in a random order, half are in ascending order."""
    n = 2**17
    order = np.asarray(shuffle(jax.random.key(0), n), int)
    assert np.array_equal(np.sort(order), np.arange(n))
    ascending = (np.diff(order) > 0).mean()
    assert abs(ascending - 0.5) < 5 * np.sqrt(1 / 12 / n)
    some = np.asarray(shuffle(jax.random.key(0), n, 1000))
    assert np.array_equal(np.sort(some[:1000]), np.arange(1000))


def test_more_rows_than_a_word_has_room_for_can_be_traced():
    shape = jax.eval_shape(lambda key: permutation(key, 2**22 + 1), jax.random.key(0))
    assert shape.shape == (2**22 + 1,)


def test_each_epoch_visits_every_row_once_in_a_new_order():
    batch = {"row": jnp.arange(12), "twice": 2.0 * jnp.arange(12)}

    def update(calls, minibatch):
        return calls + 1, minibatch

    run = partial(minibatch_epochs, update=update, carry=0, num_epochs=3, num_minibatches=4)
    calls, seen = jax.jit(lambda key: run(key, batch=batch))(jax.random.key(0))
    assert calls == 12
    assert seen["row"].shape == (3, 4, 3)
    epochs = np.asarray(seen["row"]).reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs[1] == epochs[2]).all()
    np.testing.assert_array_equal(seen["twice"], 2 * seen["row"])


def test_updates_that_draw_have_a_key_each_and_the_same_minibatches():
    def update(carry, rows, *key):
        return carry, (rows, *(jax.random.key_data(k) for k in key))

    key, rows = jax.random.key(0), jnp.arange(12)
    _, (plain,) = minibatch_epochs(key, update, (), rows, 3, 4)
    _, (seen, keys) = minibatch_epochs(key, update, (), rows, 3, 4, keyed=True)
    np.testing.assert_array_equal(seen, plain)
    shuffling = jax.random.key_data(epoch_keys(key, 3))
    words = np.concatenate([np.asarray(keys).reshape(12, -1), shuffling])
    assert len(np.unique(words, axis=0)) == 15


def test_linear_schedule():
    progress = jnp.array([0.0, 0.1, 0.2, 0.6, 1.0, 1.5])
    np.testing.assert_allclose(
        linear_schedule(1.0, 0.2, progress, 0.2), [1, 0.6, 0.2, 0.2, 0.2, 0.2], rtol=1e-6
    )
    np.testing.assert_allclose(
        linear_schedule(4.0, 0.0, progress), [4, 3.6, 3.2, 1.6, 0, 0], rtol=1e-6
    )


def test_a_loss_that_became_nan_shows_in_the_mean_over_gradient_steps():
    rows = jnp.array([[1.0, MISSING, MISSING], [2.0, 5.0, MISSING], [jnp.nan, 7.0, MISSING]])
    mean = np.asarray(jax.jit(mean_over_steps)(rows))
    assert np.isnan(mean[0])  # NaN is a result
    assert mean[1] == 6.0  # of the steps that there were
    assert np.isnan(mean[2])  # none: missing


def test_learning_waits_until_it_is_ready():
    learn = lambda x: (x + 1, {"loss": x})  # noqa: E731
    for ready, missing in ((True, np.nan), (False, np.nan), (False, MISSING)):
        learner, metrics = learn_if(jnp.asarray(ready), learn, jnp.float32(1), missing)
        assert learner == 1 + ready
        np.testing.assert_array_equal(metrics["loss"], 1 if ready else np.float32(missing))


def test_clipped_adamw_is_that_of_a_plain_loop():
    """Gradients above and below the norm; decay is of the parameters, not of the gradient."""
    rate, norm, decay = 0.1, 2.0, 0.3
    optimizer = clipped_adamw(rate, norm, decay)
    pulls = np.array([[3.0, -4.0], [0.3, 0.4], [-6.0, 8.0]])
    params = jnp.array([1.0, -2.0])
    state, x, m, v = optimizer.init(params), np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, pull in enumerate(pulls, start=1):
        params, state, _, _ = descend(optimizer, lambda p: (p @ pull, ()), params, state)  # noqa: B023
        gradient = pull * min(1.0, norm / np.linalg.norm(pull))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - rate * step - rate * decay * x
    np.testing.assert_allclose(params, x, rtol=1e-5)
    # Its state is Adam's, so that what was saved by one can be read by the other.
    plain = clipped_adamw(rate, np.inf, 0.0).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(state)


@pytest.mark.parametrize("period", [1, 3])
def test_learn_every_takes_the_last_of_each_period(period):
    def learn(x):
        return x + 1, {"loss": 2.0 * x}

    take = jax.jit(lambda n, x: learn_every(period, n, learn, x))
    x, losses = jnp.float32(0), []
    for n in range(6):
        x, metrics = take(n, x)
        losses.append(float(metrics["loss"]))
    assert x == 6 // period
    missing = float(np.float32(MISSING))
    expected = [0, 2, 4, 6, 8, 10] if period == 1 else [missing, missing, 0, missing, missing, 2]
    assert losses == expected


def test_epochs_of_gradient_steps_are_a_plain_loop_over_the_shuffled_rows():
    rows = {"x": np.linspace(-1.0, 2.0, 12), "y": np.cos(np.arange(12.0))}
    rate, key, w = 0.3, jax.random.key(0), np.float64(0.5)
    optimizer = optax.sgd(rate, momentum=0.9)

    def loss_fn(w, part):
        errors = w * part["x"] - part["y"]
        return 0.5 * (errors**2).mean(), {"largest": jnp.abs(errors).max()}

    start = jnp.float32(w)
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rows)
    learnt, _, loss, aux = jax.jit(
        partial(descend_epochs, optimizer, loss_fn), static_argnums=(4, 5)
    )(start, optimizer.init(start), key, batch, 2, 3)

    velocity, losses, largest = 0.0, [], []
    for epoch_key in epoch_keys(key, 2):
        for part in np.asarray(permutation(epoch_key, 12)).reshape(3, 4):
            x, y = rows["x"][part], rows["y"][part]
            errors = w * x - y
            losses.append(0.5 * (errors**2).mean())
            largest.append(np.abs(errors).max())
            velocity = 0.9 * velocity + (errors * x).mean()
            w -= rate * velocity
    np.testing.assert_allclose(learnt, w, rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(aux["largest"], np.mean(largest), rtol=1e-5)


def test_minibatches_have_one_size():
    require_minibatches(4, 8, 2, "trpo")
    line = "trpo: num_minibatches=3 does not divide the batch of 16 = num_envs 8 x num_steps 2"
    with pytest.raises(ValueError, match=f"^{line}$"):
        require_minibatches(3, 8, 2, "trpo")
