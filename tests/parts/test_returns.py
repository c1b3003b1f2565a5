"""Returns and advantages against their definitions, summed forward in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.returns import bootstrap_values, gae, lambda_returns, n_step_returns, vtrace

GAMMA, LAM = 0.93, 0.7
N = 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def data(num_steps, ending="random", seed=0):
    """A rollout as a dict; `ending` says when episodes end: at random, or in the last steps."""
    rng = np.random.default_rng(seed)
    shape = (num_steps, N)
    terminated, truncated = rng.random(shape) < 0.2, rng.random(shape) < 0.2
    if ending == "never":
        terminated[:], truncated[:] = False, False
    elif ending != "random":
        terminated[:], truncated[:] = False, False
        row = num_steps - int(ending)
        terminated[row, :2] = True
        truncated[row, 1:4] = True  # environment 1 ends for both reasons at once
    return {
        "rewards": rng.normal(size=shape),
        "values": rng.normal(size=shape),
        "next_values": rng.normal(size=shape),
        "terminated": terminated,
        "truncated": truncated,
    }


CASES = [(1, "random"), (2, "random"), (17, "random"), (17, "1"), (17, "2"), (1, "1"), (2, "2")]
cases = pytest.mark.parametrize(("num_steps", "ending"), CASES)


def episode_end(d, t, n):
    """The last step of the episode of step t in environment n, or of the rollout."""
    ends = np.flatnonzero((d["terminated"] | d["truncated"])[t:, n])
    return t + ends[0] if len(ends) else len(d["rewards"]) - 1


def n_step(d, t, n, k):
    """The k-step return: k discounted rewards, then the value unless the last step was terminal."""
    last = t + k - 1
    total = sum(GAMMA**i * d["rewards"][t + i, n] for i in range(k))
    return total + GAMMA**k * (not d["terminated"][last, n]) * d["next_values"][last, n]


def each(d, fn):
    return np.array([[fn(t, n) for n in range(N)] for t in range(len(d["rewards"]))])


def arguments(d, *names):
    return [jnp.asarray(d[k]) for k in (*names, "terminated", "truncated")]


def close(actual, expected, tolerance=1e-12):
    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@cases
def test_gae_is_the_sum_of_discounted_errors(num_steps, ending):
    d = data(num_steps, ending)

    def advantage(t, n):
        steps = range(t, episode_end(d, t, n) + 1)
        next_values = np.where(d["terminated"], 0, d["next_values"])
        errors = d["rewards"] + GAMMA * next_values - d["values"]
        return sum((GAMMA * LAM) ** (k - t) * errors[k, n] for k in steps)

    actual = gae(*arguments(d, "rewards", "values", "next_values"), GAMMA, LAM)
    close(actual, each(d, advantage))


@cases
@pytest.mark.parametrize("limits", [(1.0, 1.0), (np.inf, 0.8)])
def test_vtrace_is_the_sum_of_weighted_errors(num_steps, ending, limits):
    """Espeholt et al. 2018, eq. 1, whose c_i are lam min(max_trace, ratio_i); and its advantages:
    r + gamma V' - V, with V' moved towards the next step's target by a share lam."""
    d = data(num_steps, ending)
    ratios = np.exp(np.random.default_rng(1).normal(size=(num_steps, N)))
    rho, c = np.minimum(limits[0], ratios), LAM * np.minimum(limits[1], ratios)
    next_values = np.where(d["terminated"], 0, d["next_values"])
    deltas = d["rewards"] + GAMMA * next_values - d["values"]

    def error(t, n):
        steps = range(t, episode_end(d, t, n) + 1)
        return sum(GAMMA ** (k - t) * c[t:k, n].prod() * rho[k, n] * deltas[k, n] for k in steps)

    def advantage(t, n):
        goes_on = t < episode_end(d, t, n)
        return deltas[t, n] + (GAMMA * LAM * error(t + 1, n) if goes_on else 0)

    before, after = ("rewards", "values", "next_values"), ("terminated", "truncated")
    numbers, flags = ([jnp.asarray(d[k]) for k in names] for names in (before, after))
    advantages, errors = vtrace(*numbers, jnp.asarray(ratios), *flags, GAMMA, LAM, *limits)
    close(errors, each(d, error))
    close(advantages, each(d, advantage))


def test_vtrace_of_the_same_policy_is_gae():
    d = data(17)
    numbers = arguments(d, "rewards", "values", "next_values")
    both = vtrace(*numbers[:3], jnp.ones((17, N)), *numbers[3:], GAMMA, LAM)
    for actual in both:
        close(actual, gae(*numbers, GAMMA, LAM))


@pytest.mark.parametrize("max_ratio", [1.0, np.inf])
def test_vtrace_has_the_value_of_its_policy(max_ratio):
    """One state, two actions of rewards 0 and 1: the expected error is 0 at the value of pi_rho,
    which is proportional to min(max_ratio q, pi) (remark 1)."""
    pi, q = np.array([0.2, 0.8]), np.array([0.6, 0.4])
    chosen = np.minimum(max_ratio * q, pi)
    value = np.full((1, 2), (chosen[1] / chosen.sum()) / (1 - GAMMA))
    no = np.zeros((1, 2), bool)
    args = np.array([[0.0, 1.0]]), value, value, (pi / q)[None], no, no, GAMMA, LAM
    errors = vtrace(*map(jnp.asarray, args[:6]), *args[6:], max_ratio)[1]
    close((q * errors).sum(), 0.0)


@cases
def test_lambda_return_is_the_mixture_of_n_step_returns(num_steps, ending):
    d = data(num_steps, ending)

    def mixture(t, n):
        longest = episode_end(d, t, n) - t + 1
        weights = [(1 - LAM) * LAM ** (k - 1) for k in range(1, longest)] + [LAM ** (longest - 1)]
        return sum(w * n_step(d, t, n, k) for k, w in enumerate(weights, 1))

    actual = lambda_returns(*arguments(d, "rewards", "next_values"), GAMMA, LAM)
    close(actual, each(d, mixture))


@cases
@pytest.mark.parametrize("steps", [1, 3, 30])
def test_n_step_return_is_its_sum(num_steps, ending, steps):
    d = data(num_steps, ending)
    actual = n_step_returns(*arguments(d, "rewards", "next_values"), GAMMA, steps)
    expected = each(d, lambda t, n: n_step(d, t, n, min(steps, episode_end(d, t, n) - t + 1)))
    close(actual, expected)


def test_lambda_zero_is_one_step():
    d = data(17)
    one_step = each(d, lambda t, n: n_step(d, t, n, 1))
    close(lambda_returns(*arguments(d, "rewards", "next_values"), GAMMA, 0.0), one_step)
    close(
        gae(*arguments(d, "rewards", "values", "next_values"), GAMMA, 0.0), one_step - d["values"]
    )


def test_lambda_one_is_monte_carlo_and_the_last_value():
    d = data(17, "never")
    whole = each(d, lambda t, n: n_step(d, t, n, 17 - t))
    close(lambda_returns(*arguments(d, "rewards", "next_values"), GAMMA, 1.0), whole)
    # In an unbroken rollout the value of where a step led to is the next row's value.
    d["next_values"][:-1] = d["values"][1:]
    whole = each(d, lambda t, n: n_step(d, t, n, 17 - t))
    close(gae(*arguments(d, "rewards", "values", "next_values"), GAMMA, 1.0), whole - d["values"])


def test_lambda_returns_bootstrap_from_the_next_state():
    """Not from the one after it, as the reverse scan of the reference implementation does."""
    rewards, values = np.zeros((3, 1)), np.array([[1.0], [10.0], [100.0]])
    no = np.zeros((3, 1), bool)
    actual = lambda_returns(rewards, values, no, no, 1.0, 0.5)
    close(actual, [[0.5 * (1 + 0.5 * (10 + 100))], [0.5 * (10 + 100)], [100]])


def test_traced_length_is_the_same_as_shorter_arrays():
    d = data(17)
    args = arguments(d, "rewards", "next_values")
    shortened = jax.jit(lambda n: lambda_returns(*args, GAMMA, LAM, n))
    for length in (1, 2, 9, 17):
        expected = lambda_returns(*(x[:length] for x in args), GAMMA, LAM)
        close(shortened(length)[:length], expected)


def test_returns_take_any_trailing_axes():
    d = data(4)
    plain = lambda_returns(*arguments(d, "rewards", "next_values"), GAMMA, LAM)
    wide = lambda_returns(
        *(x[:, None, :] for x in arguments(d, "rewards", "next_values")), GAMMA, LAM
    )
    close(wide[:, 0], plain)
    single = lambda_returns(*(x[:, 0] for x in arguments(d, "rewards", "next_values")), GAMMA, LAM)
    close(single, plain[:, 0])


def value_fn(obs):
    return jnp.sin(3 * obs).sum(-1)


def observations(terminated, truncated, seed=0):
    """Rows acted on, where each step led, and what follows the last row."""
    rng = np.random.default_rng(seed)
    done = terminated | truncated
    final = rng.normal(size=(*done.shape, 2))
    starts = rng.normal(size=(*done.shape, 2))
    after = np.where(done[..., None], starts, final)
    first = rng.normal(size=(1, N, 2))
    return np.concatenate([first, after[:-1]]), final, after[-1]


@cases
def test_bootstrap_values_are_of_where_each_step_led(num_steps, ending):
    d = data(num_steps, ending, seed=1)
    obs, final, last = observations(d["terminated"], d["truncated"])
    actual = jax.jit(bootstrap_values, static_argnums=0)(
        value_fn, value_fn(obs), last, final, d["terminated"], d["truncated"]
    )
    # Of terminal states no value is asked for.
    wanted = ~d["terminated"]
    close(actual[wanted], np.sin(3 * final).sum(-1)[wanted])


def test_bootstrap_values_of_a_shorter_rollout():
    d = data(17, seed=2)
    obs, final, _ = observations(d["terminated"], d["truncated"])
    shortened = jax.jit(bootstrap_values, static_argnums=0)
    for length in (1, 5, 16):
        # What `rollout` leaves after its last row are zeros; here, values that must not be read.
        rows = {k: d[k].copy() for k in ("terminated", "truncated")}
        rows["truncated"][length:] = True
        values = value_fn(obs).at[length:].set(jnp.nan)
        actual = shortened(value_fn, values, obs[length], final, *rows.values(), length)
        wanted = ~d["terminated"][:length]
        close(actual[:length][wanted], np.sin(3 * final).sum(-1)[:length][wanted])


def test_final_observations_are_asked_for_only_where_a_time_limit_cut():
    d = data(17, "never")
    obs, final, last = observations(d["terminated"], d["truncated"])
    args = value_fn, value_fn(obs), last, jnp.full_like(final, jnp.nan)
    d["terminated"][3] = True
    actual = bootstrap_values(*args, d["terminated"], d["truncated"])
    assert np.isfinite(actual).all()
    d["truncated"][5, 2] = True
    actual = bootstrap_values(*args, d["terminated"], d["truncated"])
    assert np.argwhere(np.isnan(actual)).tolist() == [[5, 2]]


def test_what_is_not_finite_beyond_an_end_is_not_seen():
    """A simulator may return NaN in a terminal state: its value counts for nothing."""
    rewards, ended = jnp.ones((4, 1)), jnp.array([[False], [True], [False], [True]])
    nothing = jnp.zeros_like(ended)
    next_values = jnp.where(ended, jnp.nan, 1.0)
    zeros, ones = jnp.zeros((4, 1)), jnp.ones((4, 1))
    advantages = gae(rewards, zeros, next_values, ended, nothing, 0.5, 1.0)
    np.testing.assert_allclose(advantages[:, 0], [2.0, 1.0, 2.0, 1.0])
    for found in vtrace(rewards, zeros, next_values, ones, ended, nothing, 0.5, 1.0):
        np.testing.assert_allclose(found, advantages)
    for found in (
        lambda_returns(rewards, next_values, ended, nothing, 0.5, 1.0),
        n_step_returns(rewards, next_values, ended, nothing, 0.5, 3),
    ):
        np.testing.assert_allclose(found[:, 0], [1.5, 1.0, 1.5, 1.0])
