"""Off-policy evaluation against the exact value of a small random process."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts import ope

GAMMA, HORIZON, STATES, ACTIONS = 0.9, 5, 5, 2
RNG = np.random.default_rng(3)
TRANSITION = RNG.dirichlet(np.ones(STATES), (STATES, ACTIONS))
REWARD = RNG.normal(size=(STATES, ACTIONS))
BEHAVIOUR = RNG.dirichlet(3 * np.ones(ACTIONS), STATES)
TARGET = RNG.dirichlet(3 * np.ones(ACTIONS), STATES)
START = RNG.dirichlet(np.ones(STATES))
STOP = 0.2  # chance to terminate at each step: episodes differ in length


def exact():
    """Q and V of the target policy with h steps to go, h = 0..HORIZON; and its value."""
    v, qs, vs = np.zeros(STATES), [], [np.zeros(STATES)]
    for _ in range(HORIZON):
        q = REWARD + GAMMA * (1 - STOP) * TRANSITION @ v
        v = (TARGET * q).sum(1)
        qs.append(q)
        vs.append(v)
    return np.asarray(qs), np.asarray(vs), START @ v


QS, VS, VALUE = exact()


def episodes(key, n):
    """n episodes of the behaviour policy: reward, ratio, mask, states, actions, all (n, H)."""

    def step(carry, key):
        s, alive = carry
        a_key, s_key, stop_key = jax.random.split(key, 3)
        a = jax.random.categorical(a_key, jnp.log(BEHAVIOUR)[s])
        row = jnp.asarray(REWARD)[s, a], jnp.asarray(TARGET / BEHAVIOUR)[s, a], alive, s, a
        new = jax.random.categorical(s_key, jnp.log(TRANSITION)[s, a])
        return (new, alive & ~jax.random.bernoulli(stop_key, STOP)), row

    def episode(key):
        start_key, key = jax.random.split(key)
        s = jax.random.categorical(start_key, jnp.log(START))
        return jax.lax.scan(step, (s, jnp.bool_(True)), jax.random.split(key, HORIZON))[1]

    return jax.vmap(episode)(jax.random.split(key, n))


@cache
def recorded(datasets, n):
    """Many datasets of n episodes: the same for all methods."""
    draw = jax.jit(jax.vmap(partial(episodes, n=n)))
    return draw(jax.random.split(jax.random.key(0), datasets))


def estimates(method, datasets=4000, n=10):
    """The method's estimate on each of many datasets of n episodes."""
    return np.asarray(jax.jit(jax.vmap(method))(*recorded(datasets, n)), np.float64)


def plain(method, **options):
    return lambda reward, ratio, mask, s, a: method(reward, jnp.log(ratio), mask, GAMMA, **options)


def robust(noise):
    """Doubly robust with Q off by a constant pattern of this size."""
    to_go = HORIZON - 1 - np.arange(HORIZON)
    wrong = QS + noise * RNG.normal(size=QS.shape)

    def method(reward, ratio, mask, s, a):
        q_all = jnp.asarray(wrong)[to_go][jnp.arange(HORIZON), s]  # (n, H, A)
        q = jnp.take_along_axis(q_all, a[..., None], axis=-1)[..., 0]
        v = (jnp.asarray(TARGET)[s] * q_all).sum(-1)
        return ope.doubly_robust(reward, jnp.log(ratio), mask, GAMMA, q, v)

    return method


@pytest.mark.parametrize(
    "method",
    [plain(ope.importance_sampling), plain(ope.per_decision), robust(0.0), robust(1.0)],
    ids=["importance", "per-decision", "doubly-robust", "doubly-robust-wrong-q"],
)
def test_unbiased(method):
    found = estimates(method)
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - VALUE) < 3 * error
    assert error < 0.02  # else the bound says nothing


def test_variances_are_in_order():
    variance = {
        "is": estimates(plain(ope.importance_sampling)).var(),
        "wis": estimates(plain(ope.importance_sampling, weighted=True)).var(),
        "pdis": estimates(plain(ope.per_decision)).var(),
        "wpdis": estimates(plain(ope.per_decision, weighted=True)).var(),
        "dr": estimates(robust(0.0)).var(),
    }
    assert variance["pdis"] < variance["is"]
    assert variance["wis"] < variance["is"]
    assert variance["wpdis"] < variance["pdis"]
    assert variance["dr"] < variance["pdis"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [ope.importance_sampling, ope.per_decision])
def test_weighted_estimates_are_consistent(method):
    few = estimates(plain(method, weighted=True), n=2).mean()
    many = estimates(plain(method, weighted=True), datasets=200, n=2000).mean()
    assert abs(many - VALUE) < 0.02
    assert abs(few - VALUE) > 2 * abs(many - VALUE)  # biased where there is little


def test_a_plain_loop_gives_the_same():
    reward, ratio, mask, *_ = map(np.asarray, episodes(jax.random.key(1), 7))
    whole = stepwise = 0.0
    for i in range(7):
        steps = range(int(mask[i].sum()))
        weights = np.cumprod([ratio[i, t] for t in steps])
        whole += weights[-1] * sum(GAMMA**t * reward[i, t] for t in steps) / 7
        stepwise += sum(weights[t] * GAMMA**t * reward[i, t] for t in steps) / 7
    found = partial(plain(ope.importance_sampling), reward, ratio, mask, None, None)()
    assert found == pytest.approx(whole, rel=1e-5)
    found = plain(ope.per_decision)(reward, ratio, mask, None, None)
    assert found == pytest.approx(stepwise, rel=1e-5)


def test_an_exact_q_leaves_no_variance_where_nothing_is_random():
    """One start, one action a state: doubly robust is the value itself, whatever was done."""
    q, v = jnp.array([[3.0, 2.0, 1.0]]), jnp.array([[3.0, 2.0, 1.0]])
    reward, mask = jnp.ones((1, 3)), jnp.ones((1, 3), bool)
    for ratio in (0.1, 1.0, 10.0):
        found = ope.doubly_robust(reward, jnp.full((1, 3), np.log(ratio)), mask, 1.0, q, v)
        assert float(found) == pytest.approx(3.0, abs=1e-5)


@pytest.mark.parametrize("method", [ope.importance_sampling, ope.per_decision])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_long_episodes_of_equal_rewards_are_worth_their_length(method, scale):
    """Whatever the weights are, a weighted mean of 1,000 is 1,000: no product leaves the range."""
    log_ratio = scale * np.random.default_rng(0).normal(size=(8, 1000))
    reward, mask = np.ones((8, 1000), int), np.ones((8, 1000), int)  # integers are numbers too
    found = method(reward, log_ratio, mask, 1.0, weighted=True)
    assert float(found) == pytest.approx(1000.0, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", [ope.importance_sampling, ope.per_decision])
def test_weights_beyond_single_precision_against_float64(method, weighted):
    """Ratios around 2 for 300 steps, episodes of different lengths; log space in float64."""
    rng = np.random.default_rng(1)
    log_ratio = np.log(2) + 0.3 * rng.normal(size=(6, 300)) - (0 if weighted else 0.6)
    lengths = np.array([300, 280, 5, 299, 100, 300])
    mask = np.arange(300) < lengths[:, None]
    reward = rng.normal(size=(6, 300))
    log_weights = np.cumsum(np.where(mask, log_ratio, 0), axis=1)
    masked = np.where(mask, reward, 0) * 0.9 ** np.arange(300)
    if method is ope.importance_sampling:
        masked, log_weights = masked.sum(1)[:, None], log_weights[:, -1:]
    weights = np.exp(log_weights - log_weights.max(0))
    scale = weights.sum(0) if weighted else len(reward) * np.exp(-log_weights.max(0))
    wanted = ((weights * masked).sum(0) / scale).sum()
    found = method(reward, log_ratio, mask, 0.9, weighted=weighted)
    assert float(found) == pytest.approx(wanted, rel=1e-3)


def test_what_a_cut_recording_leaves_out_is_its_last_value():
    """Reward 1 for ever, gamma 0.9: worth 10 wherever the recording of an episode stops."""
    reward, nothing = np.ones((2, 5)), np.zeros((2, 5))
    mask = np.arange(5) < np.array([[3], [5]])
    ten = np.full((2, 5), 10.0)
    for weighted in (False, True):
        for method in (ope.importance_sampling, ope.per_decision):
            found = method(reward, nothing, mask, 0.9, last_value=10.0, weighted=weighted)
            assert float(found) == pytest.approx(10.0, rel=1e-6)
    found = ope.doubly_robust(reward, nothing, mask, 0.9, ten, ten, np.full(2, 10.0))
    assert float(found) == pytest.approx(10.0, rel=1e-6)
    # One that ended there is worth what was recorded: 1 + 0.9 + 0.81.
    ended = ope.per_decision(reward[:1], nothing[:1], mask[:1], 0.9)
    assert float(ended) == pytest.approx(2.71, rel=1e-6)


def test_impossible_actions_weigh_nothing():
    log_ratio = np.array([[-np.inf, 0.0], [0.0, 0.0]])
    mask = np.ones((2, 2), bool)
    for method in (ope.importance_sampling, ope.per_decision):
        assert float(method(np.ones((2, 2)), log_ratio, mask, 1.0, weighted=True)) == 2.0
        assert float(method(np.ones((1, 2)), log_ratio[:1], mask[:1], 1.0, weighted=True)) == 0.0
    assert (
        float(
            ope.importance_sampling(
                np.zeros((1, 300)), np.full((1, 300), 2.0), np.ones((1, 300)), 1.0
            )
        )
        == 0.0
    )
