"""The mixture policy and its gradient estimators against quadrature; learning: test_offpolicy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.off_policy.mixturesac import (
    MixtureSAC,
    collapse,
    gumbel_softmax_loss,
    half_reparameterised_loss,
    likelihood_ratio_loss,
    marginal_value,
    mrp_loss,
    spread,
)
from jaxrl.parts.distributions import TanhMixture, TanhNormal
from tests.probes import ConstantReward

pytestmark = pytest.mark.usefixtures("float64")

ALPHA = 0.2
KEY = jax.random.key(0)
SAMPLES = 40_000
GRID = jnp.linspace(-14.0, 14.0, 20_001)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def bumps(width):
    """Two peaks on (-1, 1), the right one a little higher."""

    def q(a):
        a = a[..., 0]
        left, right = jnp.exp(-(((a + 0.6) / width) ** 2)), jnp.exp(-(((a - 0.6) / width) ** 2))
        return left + 1.2 * right

    return q


CRITICS = {
    "smooth": bumps(0.6),
    "quadratic": lambda a: -2 * (a[..., 0] - 0.3) ** 2,
    "linear": lambda a: a[..., 0],
    "sharp": bumps(0.17),
}


def mixture(log_std, num_components=3):
    """One state, one action dimension."""
    logits = jnp.array([0.2, -0.1, 0.4, 0.0, 0.3])[:num_components]
    mean = jnp.array([-0.8, 0.1, 0.9, 0.4, -0.2])[:num_components, None]
    return TanhMixture(logits[None], mean[None], jnp.full_like(mean, log_std)[None])


def objective(dist, q):
    """E[Q - alpha log pi] by quadrature, and the integral of the density."""
    log_prob = jax.vmap(lambda u: dist.pre_tanh_log_prob(u.reshape(1, 1))[0])(GRID)
    action = jnp.tanh(GRID)
    # d a = (1 - tanh^2) d u, without cancellation far out.
    density = jnp.exp(log_prob) / jnp.cosh(GRID) ** 2
    value = q(action[:, None]) - ALPHA * log_prob
    return jnp.trapezoid(density * value, GRID), jnp.trapezoid(density, GRID)


def exact_gradient(dist, q):
    return flat(jax.grad(lambda d: -objective(d, q)[0])(dist))


def flat(gradient):
    return np.concatenate([np.asarray(x).reshape(-1) for x in gradient])


def gradients(loss, dist, q, samples=SAMPLES, **options):
    """Independent single-state estimates of the gradient (samples, parameters)."""

    @jax.jit
    def all_of_them(keys):
        def one(key):
            return jax.grad(lambda d: loss(d, q, ALPHA, key, **options)[0])(dist)

        grads = jax.lax.map(one, keys, batch_size=2000)
        return jnp.concatenate([g.reshape(samples, -1) for g in grads], axis=1)

    return np.asarray(all_of_them(jax.random.split(KEY, samples)))


def deviation(grads, exact):
    """Of the mean from the exact gradient, in standard errors, the largest of all parameters."""
    error = grads.std(axis=0) / np.sqrt(len(grads))
    return np.max(np.abs(grads.mean(axis=0) - exact) / error)


def variance(grads):
    return grads.var(axis=0).sum()


# The density ------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_std", [0.0, -1.0, -2.0])
@pytest.mark.parametrize("num_components", [1, 3])
def test_density_integrates_to_one(log_std, num_components):
    _, total = objective(mixture(log_std, num_components), CRITICS["linear"])
    assert total == pytest.approx(1, abs=1e-8)


def test_density_integrates_to_one_in_two_dimensions():
    mean = jnp.array([[-0.8, 0.3], [0.5, -0.4], [0.1, 0.9]])
    dist = TanhMixture(jnp.array([0.3, -0.2, 0.0]), mean, jnp.array([[-0.5, 0.1]] * 3))
    u = jnp.linspace(-9.0, 9.0, 601)
    grid = jnp.stack(jnp.meshgrid(u, u, indexing="ij"), axis=-1)
    density = jnp.exp(dist.pre_tanh_log_prob(grid)) / (jnp.cosh(grid) ** 2).prod(-1)
    assert jnp.trapezoid(jnp.trapezoid(density, u), u) == pytest.approx(1, abs=1e-6)
    action = jnp.array([[0.3, -0.5], [-0.9, 0.1]])
    np.testing.assert_allclose(
        dist.log_prob(action), dist.pre_tanh_log_prob(jnp.arctanh(action)), rtol=1e-10
    )


@pytest.mark.slow
def test_samples_have_the_density():
    dist = jax.tree.map(lambda x: jnp.repeat(x, 200_000, axis=0), mixture(-1.0))
    action, log_prob = dist.sample_and_log_prob(KEY)
    entropy = objective(mixture(-1.0), lambda a: jnp.zeros(len(a)))[0] / ALPHA
    error = float(log_prob.std()) / np.sqrt(len(log_prob))
    assert abs(-log_prob.mean() - entropy) < 4 * error
    np.testing.assert_allclose(dist.log_prob(action), log_prob, rtol=1e-6, atol=1e-6)
    bins = jnp.tanh(jnp.linspace(-2, 2, 21))
    centers = jnp.linspace(-2, 2, 2001)
    density = jnp.exp(
        jax.vmap(lambda u: mixture(-1.0).pre_tanh_log_prob(u.reshape(1, 1))[0])(centers)
    )
    density /= jnp.cosh(centers) ** 2
    for i in range(20):
        inside = slice(100 * i, 100 * i + 101)
        expected = jnp.trapezoid(density[inside], centers[inside])
        found = ((action > bins[i]) & (action < bins[i + 1])).mean()
        assert found == pytest.approx(float(expected), abs=5e-3)


def test_mode_is_that_of_the_heaviest_component():
    assert mixture(-1.0).mode() == pytest.approx(np.tanh(0.9))


@pytest.mark.parametrize(
    ("weights", "log_std"),
    [([0.4, 0.6], [-3.0, -0.5]), ([0.4, 0.6], [-2.0, -2.0]), ([0.05, 0.95], [-1.0, -1.2])],
)
def test_the_densest_mean_is_where_a_fine_grid_has_the_highest_density(weights, log_std):
    """Before tanh, of components far apart; the heaviest is the wide one in the first case."""
    mean = jnp.array([[-0.8], [0.9]])
    dist = TanhMixture(jnp.log(jnp.array(weights)), mean, jnp.array(log_std)[:, None])
    grid = np.linspace(-3, 3, 20_001)
    parts = np.exp(-0.5 * ((grid - mean) / np.exp(dist.log_std)) ** 2) / np.exp(dist.log_std)
    densest = grid[np.argmax(np.asarray(weights) @ parts)]
    assert dist.densest_mean().item() == pytest.approx(np.tanh(densest), abs=1e-3)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), dist)
    assert batch.densest_mean().shape == (2, 1)


def test_the_rule_of_the_deterministic_action():
    env = ConstantReward(continuous=True)
    agent = MixtureSAC(env, env.default_params, num_components=2, hidden_sizes=(4,))
    state, acts = agent.init(KEY), {}
    net = jax.tree.map(jnp.zeros_like, state.learner.actor)
    bias = jnp.array([0.0, 1.0, 0.0, 0.0, -4.0, 1.0])  # logits, means, log-deviations
    net["params"]["Dense_1"]["bias"] = bias.astype(jnp.float32)
    state = state._replace(learner=state.learner._replace(actor=net))
    for rule in ("heaviest", "densest"):
        policy = agent.replace(deterministic_action=rule).policy(state)
        acts[rule] = policy(jnp.ones(1), KEY).item()
    assert acts["densest"] < 0 < acts["heaviest"]
    with pytest.raises(ValueError, match="'densest' has no effect with one component"):
        agent.replace(num_components=1, deterministic_action="densest")


# The estimators ---------------------------------------------------------------------------------

UNBIASED = [
    (mrp_loss, {}),
    (likelihood_ratio_loss, {"num_samples": 1}),
    (likelihood_ratio_loss, {"num_samples": 3}),
    (half_reparameterised_loss, {"num_samples": 1}),
    (half_reparameterised_loss, {"num_samples": 3}),
]


@pytest.mark.parametrize(("loss", "options"), UNBIASED)
@pytest.mark.parametrize("critic", ["smooth", pytest.param("sharp", marks=pytest.mark.slow)])
def test_gradient_is_unbiased(loss, options, critic):
    """For logits, means and scales: 9 parameters, within four standard errors of quadrature."""
    dist, q = mixture(-1.0), CRITICS[critic]
    grads = gradients(loss, dist, q, **options)
    assert deviation(grads, exact_gradient(dist, q)) < 4


def test_gumbel_softmax_is_biased():
    dist, q = mixture(-1.0), CRITICS["smooth"]
    grads = gradients(gumbel_softmax_loss, dist, q, temperature=0.5)
    assert deviation(grads, exact_gradient(dist, q)) > 20


def test_marginal_value_is_the_objective():
    dist, q = mixture(-1.0), CRITICS["smooth"]
    many = jax.tree.map(lambda x: jnp.repeat(x, SAMPLES, axis=0), dist)
    values = marginal_value(many, q, ALPHA, KEY)
    error = float(values.std()) / np.sqrt(SAMPLES)
    assert abs(values.mean() - objective(dist, q)[0]) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("log_std", [0.0, -1.0, -2.0])
def test_variances(critic, log_std):
    """The table of the specification, as far as it says what it was measured with.

    MRP is never worse than drawing the component; it beats the likelihood ratio at equal critic
    evaluations (an MRP gradient costs K of them) where components are narrow or the critic smooth,
    and loses to it where a wide component sees a critic narrower than itself.
    """
    dist, q = mixture(log_std), CRITICS[critic]
    baseline = objective(dist, q)[0]
    half = variance(gradients(half_reparameterised_loss, dist, q, baseline=baseline))
    ratio = variance(gradients(likelihood_ratio_loss, dist, q, baseline=baseline))
    mrp = variance(gradients(mrp_loss, dist, q))
    assert mrp < half
    if critic == "sharp" and log_std == 0.0:
        assert ratio / 3 < mrp  # the crossover
    elif log_std <= -2.0:
        assert mrp < ratio / 3


@pytest.mark.slow
def test_one_component_is_sac():
    """The same noise gives the same loss, entropy and gradient, bit for bit."""
    dist, q = mixture(-1.0, num_components=1), CRITICS["smooth"]

    def as_mixture(mean, log_std):
        return mrp_loss(TanhMixture(jnp.zeros((1, 1)), mean, log_std), q, ALPHA, KEY)

    def as_normal(mean, log_std):
        # SAC's loss (Haarnoja et al. 2018, eq. 9); (1, 1, 1): noise of the mixture's shape.
        action, log_prob = TanhNormal(mean, log_std).sample_and_log_prob(KEY)
        return (ALPHA * log_prob - q(action)).mean(), log_prob[0]

    results = [
        jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(dist.mean, dist.log_std)
        for f in (as_mixture, as_normal)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_identical_components_push_their_means_as_one_normal():
    """The expected gradients of the means add up to that of the normal's mean."""
    q = CRITICS["smooth"]
    one = mixture(-1.0, num_components=1)
    three = TanhMixture(jnp.array([[0.2, -0.1, 0.4]]), *(jnp.repeat(x, 3, 1) for x in one[1:]))
    single, triple = exact_gradient(one, q), exact_gradient(three, q)
    assert triple[3:6].sum() == pytest.approx(single[1], rel=1e-6)
    grads = gradients(mrp_loss, three, q)
    error = grads[:, 3:6].sum(1).std() / np.sqrt(SAMPLES)
    assert abs(grads[:, 3:6].sum(1).mean() - single[1]) < 4 * error


# Structure --------------------------------------------------------------------------------------


def test_components_start_apart():
    places = spread(5, 2)
    np.testing.assert_allclose(np.sort(places, axis=0), np.linspace(-1, 1, 5)[:, None].repeat(2, 1))
    assert (places[:, 0] != places[:, 1]).all()
    np.testing.assert_array_equal(spread(1, 3), np.zeros((1, 3)))


def test_collapse_metrics():
    same = TanhMixture(jnp.zeros((1, 4)), jnp.zeros((1, 4, 2)), jnp.zeros((1, 4, 2)))
    metrics = collapse(same)
    assert metrics["weight_entropy"] == pytest.approx(np.log(4))
    assert metrics["heaviest_weight"] == pytest.approx(0.25)
    assert metrics["component_kl"] == pytest.approx(0)
    # KL(N(0, 1) || N(m, s)) = log s + (1 + m^2) / (2 s^2) - 1/2, and the other way round.
    m, s = 1.5, 0.5
    apart = TanhMixture(
        jnp.array([[50.0, 0.0]]), jnp.array([[[0.0], [m]]]), jnp.array([[[0.0], [np.log(s)]]])
    )
    there = np.log(s) + (1 + m**2) / (2 * s**2) - 0.5
    back = -np.log(s) + (s**2 + m**2) / 2 - 0.5
    metrics = collapse(apart)
    assert metrics["component_kl"] == pytest.approx((there + back) / 2)
    assert metrics["heaviest_weight"] == pytest.approx(1)
    assert metrics["weight_entropy"] == pytest.approx(0, abs=1e-9)


def test_the_gumbel_temperature_is_refused_where_it_has_no_effect():
    env = ConstantReward(continuous=True)
    changes = {"gumbel_temperature": 0.1, "num_components": 2}
    MixtureSAC(env, env.default_params, estimator="gumbel_softmax", **changes)
    with pytest.raises(ValueError, match="has no effect with estimator=mrp"):
        MixtureSAC(env, env.default_params, **changes)
