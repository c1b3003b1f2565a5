"""ABS: equal to PQN at a fixed length, its gradient in slices, its scheduler, populations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrl
from agents.value_based.abs import ABS, _warn_of_standstill, divergence
from agents.value_based.pqn import PQN
from jaxrl.agent import Tag, derive
from jaxrl.loops.q_lambda import Batch
from jaxrl.parts.optimize import permutation
from jaxrl.training.members import stack
from jaxrl.training.placement import Placement
from jaxrl.training.programs import chunk
from tests.helpers import assert_close, assert_same, interrupted, primitives
from tests.probes import Chain, Match

KEY = jax.random.key(0)
FIXED = {
    "num_envs": 4,
    "num_minibatches": 4,
    "learning_rate": 1e-2,
    "learning_rate_end": 0.3,
    "epsilon_end": 0.1,
    "epsilon_fraction": 0.5,
    "hidden_sizes": (8,),
    "total_steps": 4 * 8 * 20,
}


def abs_agent(env=None, **changes):
    env = env or Match()
    return ABS(env, env.default_params, **{**FIXED, "min_steps": 4, "max_steps": 16, **changes})


# Learning ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fixed_length_equals_pqn():
    """Eight steps: two epochs by eq. 10. Episodes end in both ways.

    But for rounding: ABS adds up the gradients of slices.
    """
    env = Chain(limit=3)
    fixed = jaxrl.train(abs_agent(env, min_steps=8, max_steps=8), seed=3)
    plain = PQN(env, env.default_params, num_steps=8, num_epochs=2, **FIXED)
    plain = jaxrl.train(plain, seed=3)
    for part in ("params", "opt_state"):
        pairs = zip(*(jax.tree.leaves(getattr(x.state, part)) for x in (fixed, plain)), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert_same(fixed.state.actors, plain.state.actors)
    np.testing.assert_array_equal(fixed.history.env_steps, plain.history.env_steps)
    for name in ("epsilon", "episode_return", "episode_length", "episodes"):
        np.testing.assert_array_equal(fixed.history.metrics[name], plain.history.metrics[name])
    np.testing.assert_allclose(
        fixed.history.metrics["loss"], plain.history.metrics["loss"], rtol=1e-5
    )
    np.testing.assert_allclose(
        fixed.history.metrics["q_mean"], plain.history.metrics["q_mean"], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("length", [4, 9, 16, 50])
def test_gradient_in_slices_is_the_whole_minibatch_gradient(length):
    """Slices of 4 rows; with 9 steps the minibatches hold 9 rows, with 50 steps 50 in 3 epochs."""
    agent = abs_agent(max_steps=50, total_steps=10_000, learning_rate=0.1)
    state = agent.init(KEY)
    capacity, used = 4 * 50, 4 * length
    rng = np.random.default_rng(0)
    batch = Batch(
        jnp.asarray(rng.normal(size=(capacity, 1)), jnp.float32),
        jnp.asarray(rng.integers(2, size=capacity)),
        # Rows that do not count would be noticed.
        jnp.asarray(rng.normal(size=capacity), jnp.float32).at[used:].set(1e6),
    )
    learn = jax.jit(agent.learn)
    params, opt_state, loss, num_epochs = learn(state, 5, 0.25, batch, jnp.asarray(length))
    assert num_epochs == max(2, 2 * length // 32)

    expected, expected_opt, losses = state.params, state.opt_state, []
    optimizer = agent.optimizer(0.25)

    @jax.jit
    def update(params, opt_state, minibatch):
        size = minibatch.target.shape[0]
        loss, grads = agent.loss_and_grad(params, minibatch, size, jnp.ones(size, bool))
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    for epoch in range(int(num_epochs)):
        key = jax.random.fold_in(derive(state.key, Tag.LEARN, 5), epoch)
        for rows in np.split(np.asarray(permutation(key, capacity, used))[:used], 4):
            minibatch = jax.tree.map(lambda x, rows=rows: x[rows], batch)
            expected, expected_opt, part = update(expected, expected_opt, minibatch)
            losses.append(part)
    assert_close((params, opt_state), (expected, expected_opt), 1e-6)
    assert loss == pytest.approx(float(np.mean(losses)), rel=1e-5)


def test_rows_that_are_not_valid_count_nothing():
    agent = abs_agent()
    params = jax.jit(agent.init)(KEY).params
    rng = np.random.default_rng(0)
    obs, target = rng.normal(size=(12, 1)).astype("f"), rng.normal(size=12).astype("f")
    action = rng.integers(2, size=12)
    loss_and_grad = jax.jit(agent.loss_and_grad)
    wrong = Batch(obs, action, np.where(np.arange(12) < 7, target, 1e6).astype("f"))
    seven = Batch(obs[:7], action[:7], target[:7])
    actual = loss_and_grad(params, wrong, 7, jnp.arange(12) < 7)
    assert_close(actual, loss_and_grad(params, seven, 7, jnp.ones(7, bool)), 1e-5)
    chosen = np.asarray(agent.q_values(params, obs))[np.arange(7), action[:7]]
    assert actual[0] == pytest.approx(0.5 * np.mean((chosen - target[:7]) ** 2), rel=1e-5)


def test_minibatches_of_unequal_size_cover_the_batch():
    """14 rows in 4 minibatches: 3, 4, 3 and 4 rows in slices of at most 2."""
    agent = abs_agent(num_envs=2, min_steps=4, max_steps=7, max_grad_norm=1e9)
    state = agent.init(KEY)
    batch = Batch(jnp.ones((14, 1)), jnp.zeros(14, jnp.int32), jnp.arange(14.0))
    seen = []

    def loss_and_grad(params, minibatch, count, valid):
        jax.debug.callback(lambda *x: seen.append(x), minibatch.target, count, valid)
        return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)

    object.__setattr__(agent, "loss_and_grad", loss_and_grad)
    agent.learn(state, 0, 0.0, batch, jnp.asarray(7))
    jax.effects_barrier()
    rows = [(float(r), int(count)) for target, count, ok in seen for r in target[ok]]
    assert sorted(r for r, _ in rows) == sorted([*range(14)] * 2)  # two epochs
    assert sorted(count for _, count in rows) == [3] * 12 + [4] * 16


# The scheduler ----------------------------------------------------------------------------------


def test_divergence_is_the_share_of_changed_greedy_actions():
    q = jax.random.normal(KEY, (100, 4))
    assert divergence(q, q) == 0
    assert divergence(q, 2 * q + 1) == 0
    assert divergence(q, jnp.roll(q, 1, axis=1)) == 1
    assert divergence(q, jnp.concatenate([-q[:25], q[25:]])) == 0.25


@pytest.mark.parametrize(
    ("mean", "expected"),
    [(0.05, 64), (0.95, 16), ((0.05 * 0.95) ** 0.5, 40), (0.0, 64), (1.0, 16)],
)
def test_length_that_a_divergence_asks_for(mean, expected):
    agent = abs_agent(min_steps=16, max_steps=64, total_steps=10_000)
    assert agent.target_length(jnp.asarray(mean)) == pytest.approx(expected, abs=1e-4)


def test_range_of_the_divergence():
    limits = {"divergence_low": 0.1, "divergence_high": 0.4}
    agent = abs_agent(min_steps=16, max_steps=64, total_steps=10_000, **limits)
    lengths = [float(agent.target_length(jnp.asarray(mean))) for mean in (0.05, 0.2, 0.5)]
    np.testing.assert_allclose(lengths, [64, 40, 16], atol=1e-4)
    line = "abs: divergence_low=0.4 is not below divergence_high=0.4"
    with pytest.raises(ValueError, match=line):
        agent.replace(divergence_low=0.4)


def schedule(agent, readings):
    """The lengths after each reading, and the ring buffer at the end."""

    def one(carry, reading):
        carry = agent.schedule(*carry, reading)
        return carry, carry[2]

    start = (
        jnp.zeros(agent.reading_window),
        jnp.zeros((), jnp.int32),
        jnp.asarray(float(agent.min_steps)),
    )
    (buffer, count, _), lengths = jax.lax.scan(one, start, jnp.asarray(readings, jnp.float32))
    return np.asarray(lengths), np.asarray(buffer), int(count)


def test_schedule_follows_its_equations():
    """Against a plain loop over random readings, of which some iterations have none."""
    rng = np.random.default_rng(0)
    readings = np.where(rng.random(200) < 0.3, np.nan, rng.beta(0.5, 1.5, 200))
    agent = abs_agent(min_steps=16, max_steps=64, total_steps=10_000)
    lengths, buffer, count = schedule(agent, readings)
    length, taken, expected = 16.0, [], []
    for reading in readings:
        if not np.isnan(reading):
            taken.append(reading)
            if len(taken) >= 10:
                mean = np.clip(np.mean(taken[-20:]), 0.05, 0.95)
                share = np.log(mean / 0.05) / np.log(0.95 / 0.05)
                length = np.clip(0.9 * length + 0.1 * (64 - share * 48), 16, 64)
        expected.append(length)
    assert max(expected) > 20
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)
    assert count == len(taken)
    np.testing.assert_allclose(sorted(buffer), sorted(np.float32(taken[-20:])))


def test_a_fixed_length_refuses_what_would_move_it():
    line = "abs: smoothing=0.5 has no effect with min_steps equal to max_steps; leave it out"
    with pytest.raises(ValueError, match=line):
        abs_agent(min_steps=16, smoothing=0.5)


def test_fewer_than_ten_readings_keep_the_length():
    agent = abs_agent(min_steps=16, max_steps=64, total_steps=10_000)
    lengths = schedule(agent, [0.0] * 12)[0]
    np.testing.assert_array_equal(lengths[:9], 16)
    assert lengths[9] == pytest.approx(0.9 * 16 + 0.1 * 64)


def test_length_reaches_its_maximum_unless_truncated():
    agent = abs_agent(min_steps=16, max_steps=64, total_steps=10_000)
    assert round(schedule(agent, [0.0] * 200)[0][-1]) == 64
    stalled = schedule(agent.replace(truncate_length=True), [0.0] * 200)[0]
    assert stalled[-1] == 55
    assert (stalled == np.trunc(stalled)).all()
    down = schedule(agent, [0.0] * 200 + [1.0] * 200)[0]
    assert round(down[-1]) == 16


# Runs whose iterations vary in length -----------------------------------------------------------


# A reading each iteration and a length that moves from the second on.
OFTEN = {"measure_every": 1, "min_readings": 2, "smoothing": 0.5, "total_steps": 1200}


@pytest.mark.slow
def test_population_of_varying_lengths():
    agent = abs_agent(**OFTEN)
    population = jaxrl.sweep(agent, seeds=5, evaluations=2, episodes=4)
    assert population.history.env_steps.shape[1] <= agent.num_iterations
    last = np.nanmax(population.history.env_steps, axis=1)
    assert (last >= 1200).all()
    assert (last < 1200 + 4 * 16).all()
    lengths = population.history.metrics["rollout_length"]
    assert np.nanmax(lengths) > 8
    assert len({tuple(row) for row in np.nan_to_num(lengths)}) > 2
    iterations = []
    for i in range(5):
        run = population[i]
        np.testing.assert_array_equal(
            np.diff(run.history.env_steps, prepend=0), 4 * lengths[i, : run.iteration]
        )
        assert np.isfinite(run.history.metrics["loss"]).all()
        assert run.state.env_steps == last[i]
        np.testing.assert_array_equal(
            run.history.metrics["num_epochs"],
            np.maximum(2, 2 * run.history.metrics["rollout_length"] // 32),
        )
        iterations.append(run.iteration)
    assert len(set(iterations)) > 1
    # The last evaluation is at the end of each member's run.
    np.testing.assert_array_equal(population.history.evaluations["env_steps"][:, -1], last)

    alone = jaxrl.train(agent, seed=3)
    run = population[3]
    assert run.iteration == alone.iteration
    assert_close(run.state, alone.state, 1e-4)
    assert_close(run.history.metrics, alone.history.metrics, 1e-3)
    state, metrics = jax.jit(jaxrl.fused)(agent, jax.random.key(3))
    assert_close(state, alone.state, 1e-4)
    rows = jax.tree.map(lambda x: x[: alone.iteration], metrics)
    assert_close(rows, alone.history.metrics, 1e-3)
    assert np.isnan(metrics["loss"][alone.iteration :]).all()


@pytest.mark.slow
def test_going_on_equals_one_long_run():
    agent = abs_agent(**OFTEN)
    whole = jaxrl.train(agent, seed=1)
    first = interrupted(agent, 12, seed=1)
    assert first.iteration == 12
    second = jaxrl.train(agent, start=first)
    assert_same(second.state, whole.state)
    assert second.iteration == whole.iteration < agent.num_iterations
    np.testing.assert_array_equal(
        np.append(first.history.env_steps, second.history.env_steps), whole.history.env_steps
    )


def test_a_finished_run_has_nothing_left_to_do():
    run = jaxrl.train(abs_agent(**OFTEN))
    with pytest.raises(ValueError, match="nothing to do"):
        jaxrl.train(run.agent, start=run)


def test_divergence_is_measured_in_a_branch():
    """Under vmap too: a `select` would measure in every iteration."""
    agents = stack([abs_agent()] * 2)
    states = jax.vmap(lambda agent, key: agent.init(key))(agents, jax.random.split(KEY, 2))
    mesh = Placement.of_members(1).mesh
    args = agents, states, np.int32(0), np.int32(4)
    program = chunk.trace(*args, mesh=mesh, length=4)
    assert "cond" in primitives(program.jaxpr.jaxpr)


def test_a_run_too_short_to_adapt_says_so():
    _warn_of_standstill.cache_clear()
    with pytest.warns(UserWarning, match="64 iterations take at most 2 readings"):
        abs_agent(total_steps=64 * 8 * 4, min_steps=8, measure_every=50)
    assert ABS.total_steps == 20_000_000  # the published run, in which it does
    assert 20_000_000 // (128 * 16) // 50 > 10
