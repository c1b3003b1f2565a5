"""The Wasserstein flow against ordinary differential equations, Jacobians and the reparameterised
gradient, in double precision; learning: test_offpolicy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from agents.off_policy.wpo import (
    WPO,
    flow_loss,
    natural,
    samples_of,
    soft_value,
    velocity,
)
from jaxrl.parts.distributions import Normal, TanhMixture
from jaxrl.parts.replay import Batch
from jaxrl.spaces import from_box
from tests.helpers import assert_same
from tests.probes import CHOICE, GAMMA, MATCH, ConstantReward, any_of, known_answers, settings

KEY = jax.random.key(0)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)  # exact for polynomials of degree 39
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SMALL = {
    "num_updates": 2,
    "batch_size": 64,
    "buffer_size": 4096,
    "learning_starts": 256,
    "learning_rate": 3e-3,
    "hidden_sizes": (16,),
    "num_samples": 2,
    "target_period": 20,
    "max_std_kl": 1e-3,
}


@pytest.fixture(autouse=True)
def float64(request):
    with jax.enable_x64("known_answers" not in request.node.name):
        yield


def normal(mean, std):
    """One state, one component, D dimensions."""
    mean, std = (jnp.asarray(x, float).reshape(1, 1, -1) for x in (mean, std))
    return TanhMixture(jnp.zeros((1, 1)), mean, jnp.log(std))


def two_normals():
    """Three states, two components that overlap, two dimensions."""
    shape = (3, 2, 2)
    mean = jax.random.normal(jax.random.key(1), shape)
    log_std = -0.3 + 0.2 * jax.random.normal(jax.random.key(2), shape)
    return TanhMixture(jnp.array([[0.2, -0.4], [0.0, 0.7], [1.0, 0.3]]), mean, log_std)


def bend(a):
    """A critic without symmetries."""
    return jnp.sin(2 * a[..., 0] + 0.3) + 0.5 * a[..., -1] ** 2 + a[..., 0] * a[..., -1]


# Test 1: the flow of a normal on a quadratic ----------------------------------------------------


def test_the_flow_on_a_quadratic_is_its_differential_equation():
    """Q = -h/2 (u - u*)^2, without squashing, and entropy tau, in expectation (by quadrature).

    The mean's error decays as exp(-h t), the variance as s^2' = -2 h s^2 + 2 tau, to tau / h, and
    the divergence from the Boltzmann policy N(u*, tau / h) at least as exp(-2 h t).
    """
    h, tau, best, dt, steps = 1.5, 0.3, 0.4, 1e-3, 2000
    weight = jnp.asarray(WEIGHTS)[:, None]

    def gradient(dist):
        u = dist.mean[..., 0, :] + jnp.exp(dist.log_std[..., 0, :]) * NODES[:, None, None]
        flow = -h * (u - best) + tau * (u - dist.mean[:, 0]) * jnp.exp(-2 * dist.log_std[:, 0])
        return jax.grad(lambda d: flow_loss(natural(d), u, flow, weight))(dist)

    def step(carry, _):
        mean, std = carry
        slope = gradient(normal(mean, std))
        # What moves is the deviation: that of its log, less the factor s of the chain rule.
        new = mean - dt * slope.mean.sum(), std - dt * slope.log_std.sum() / std
        return new, new

    _, (mean, std) = jax.lax.scan(step, (jnp.float64(-1.0), jnp.float64(1.2)), length=steps)
    t = dt * np.arange(1, steps + 1)
    error, variance, limit = mean - best, std**2, tau / h
    np.testing.assert_allclose(error, (-1.0 - best) * np.exp(-h * t), rtol=0.02)
    there = limit + (1.2**2 - limit) * np.exp(-2 * h * t)
    np.testing.assert_allclose(variance, there, rtol=0.02)
    kl = Normal(mean[:, None], jnp.log(std)[:, None]).kl(
        Normal(jnp.array([best]), 0.5 * jnp.log(jnp.array([limit])))
    )
    assert (kl[1:] < kl[:-1]).all()
    rate = np.diff(np.log(kl)) / dt  # never slower than 2 h, which it nears
    assert (rate < -2 * h * 0.98).all()
    assert rate[-1] == pytest.approx(-2 * h, rel=0.02)


# Test 2: a linear critic ------------------------------------------------------------------------


def test_a_linear_critic_pushes_the_mean_by_the_same_with_every_action():
    dist = normal([0.3, -0.2], [0.5, 1.5])
    slope = jnp.array([0.7, -2.0])
    u = dist.mean[:, 0] + jnp.exp(dist.log_std[:, 0]) * jax.random.normal(KEY, (50, 1, 2))

    def of_sample(u):
        flow = jnp.broadcast_to(slope, u.shape)
        return jax.grad(lambda d: flow_loss(natural(d), u, flow, jnp.ones((1, 1))))(dist)

    grads = jax.jit(jax.vmap(of_sample))(u[:, None])
    np.testing.assert_allclose(-grads.mean[:, 0, 0], np.tile(slope, (50, 1)), rtol=1e-12)
    assert grads.log_std.std(axis=0).min() > 0.1


# Test 3: the definition -------------------------------------------------------------------------


def jacobians(dist, u, flow):
    """-E[(grad_theta grad_u log pi)^T flow] from the whole matrix of second derivatives."""

    def log_prob(dist, u):
        z = (u - dist.mean) * jnp.exp(-dist.log_std)
        parts = (-0.5 * z**2 - dist.log_std - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)
        return jax.scipy.special.logsumexp(jax.nn.log_softmax(dist.logits) + parts)

    def of_one(dist, u, flow):
        second = jax.jacfwd(jax.grad(log_prob, argnums=1), argnums=0)(dist, u)
        return jax.tree.map(lambda x: -jnp.tensordot(flow, x, 1), second)

    states = jax.vmap(of_one)
    return jax.vmap(states, (None, 0, 0))(dist, u, flow)  # (S, B, ...)


def test_the_gradient_is_that_of_the_definition_for_a_mixture():
    dist = two_normals()
    u, weight = samples_of(dist, KEY, 4)
    flow = jax.jit(velocity, static_argnums=1)(dist, bend, 0.2, u)
    actual = jax.jit(jax.grad(lambda d: flow_loss(d, u, flow, weight)))(dist)
    each = jax.jit(jacobians)(dist, u, flow)
    for got, terms in zip(actual, each, strict=True):
        expected = jnp.einsum("sb,sb...->b...", weight, terms) / 3
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_natural_gradients_are_those_by_the_fisher_matrix():
    """Of action and component jointly: F = diag(w / s^2), diag(2 w / s^2), diag(w) - w w^T."""
    dist = two_normals()
    u, weight = samples_of(dist, KEY, 4)
    flow = jax.jit(velocity, static_argnums=1)(dist, bend, 0.2, u)
    assert_same(natural(dist)[1:], dist[1:])  # no value changes, but of logits the offset
    np.testing.assert_allclose(jax.nn.softmax(natural(dist).logits), jax.nn.softmax(dist.logits))
    plain = jax.jit(jax.grad(lambda d: flow_loss(d, u, flow, weight)))(dist)
    actual = jax.jit(jax.grad(lambda d: flow_loss(natural(d), u, flow, weight)))(dist)
    w = jax.nn.softmax(dist.logits)[..., None]
    std = jnp.exp(dist.log_std)
    np.testing.assert_allclose(actual.mean, plain.mean * std**2 / w, rtol=1e-9)
    of_std = plain.log_std / std  # by the deviation, and back through its log
    np.testing.assert_allclose(actual.log_std, of_std * std**2 / (2 * w) * std, rtol=1e-9)
    for b in range(3):
        fisher = np.diag(w[b, :, 0]) - np.outer(w[b], w[b])
        expected = np.linalg.pinv(fisher) @ plain.logits[b]
        np.testing.assert_allclose(actual.logits[b], expected, rtol=1e-7, atol=1e-10)


def test_velocity_is_the_slope_of_the_soft_value():
    """By differences: the entropy's term goes through tanh as well."""
    dist, step = two_normals(), 1e-5
    u, _ = samples_of(dist, KEY, 1)
    flow = jax.jit(velocity, static_argnums=1)(dist, bend, 0.4, u)
    value = jax.jit(lambda u: soft_value(dist, bend, 0.4, u))
    for d in range(2):
        shift = step * jnp.eye(2)[d]
        ends = [value(u + sign * shift) for sign in (1, -1)]
        np.testing.assert_allclose(flow[..., d], (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
    log_prob = dist.log_prob(jnp.tanh(u[0]))
    np.testing.assert_allclose(value(u)[0], bend(jnp.tanh(u[0])) - 0.4 * log_prob, rtol=1e-6)


# Test 4: the fixed point ------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 2])
def test_nothing_flows_where_the_policy_is_the_boltzmann_density(components):
    """exp(Q / tau) = pi as a density of actions: for every sample, so also of the mean."""
    tau, many = 0.3, two_normals()
    dist = TanhMixture(*(x[:, :components] for x in many))
    u, weight = samples_of(dist, KEY, 200)

    @jax.jit
    def flow_and_gradient(temperature):
        flow = velocity(dist, lambda a: tau * jax.vmap(dist.log_prob)(a), temperature, u)
        return flow, jax.grad(lambda d: flow_loss(natural(d), u, flow, weight))(dist)

    flow, grads = flow_and_gradient(tau)
    np.testing.assert_allclose(flow, 0, atol=1e-6)
    assert max(jnp.abs(g).max() for g in grads) < 1e-6
    hotter, grads = flow_and_gradient(2 * tau)
    assert jnp.abs(hotter).mean() > 0.1
    assert max(jnp.abs(g).max() for g in grads) > 0.1


# Test 5: the reparameterised gradient -----------------------------------------------------------


def test_one_normal_learns_by_the_reparameterised_gradient_of_each_sample():
    dist, tau = normal([0.3, -0.6], [0.4, 1.3]), 0.2
    noise = jax.random.normal(KEY, (30, 1, 2))

    def flowing(noise):
        u = (dist.mean[:, 0] + jnp.exp(dist.log_std[:, 0]) * noise)[None]
        flow = velocity(dist, bend, tau, u)
        return jax.grad(lambda d: flow_loss(natural(d), u, flow, jnp.ones((1, 1))))(dist)

    def reparameterised(noise):
        def loss(d):  # the density's own parameters are held: their score has mean 0
            u = (d.mean[:, 0] + jnp.exp(d.log_std[:, 0]) * noise)[None]
            return -soft_value(dist, bend, tau, u).sum()

        return jax.grad(loss)(dist)

    pairs = jax.jit(lambda x: (jax.vmap(flowing)(x), jax.vmap(reparameterised)(x)))(noise)
    for got, expected in zip(*pairs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


# Samples and the trust region -------------------------------------------------------------------


def test_weighted_samples_have_the_mixture_s_moments():
    dist = two_normals()
    u, weight = samples_of(dist, KEY, 20_000)
    assert u.shape == (40_000, 3, 2)
    np.testing.assert_allclose(weight.sum(axis=0), 1, rtol=1e-9)
    w = jax.nn.softmax(dist.logits)[..., None]
    mean = (w * dist.mean).sum(axis=1)
    square = (w * (dist.mean**2 + jnp.exp(2 * dist.log_std))).sum(axis=1)
    np.testing.assert_allclose((weight[..., None] * u).sum(axis=0), mean, atol=0.02)
    np.testing.assert_allclose((weight[..., None] * u**2).sum(axis=0), square, atol=0.06)


def test_divergences_of_one_normal_are_exact():
    old, new = normal([0.3, -0.6], [0.4, 1.3]), normal([0.5, 0.1], [0.7, 1.0])
    moved = TanhMixture(old.logits, new.mean, old.log_std)
    wider = TanhMixture(old.logits, old.mean, new.log_std)
    for other, part in ((moved, 0), (wider, 1)):
        exact = Normal(old.mean, old.log_std).kl(Normal(other.mean, other.log_std))[:, 0]
        parts = old.joint_kl(other)
        np.testing.assert_allclose(parts[part], exact, rtol=1e-12)
        np.testing.assert_allclose(parts[1 - part], 0, atol=1e-15)


def test_divergences_of_mixtures_are_those_of_action_and_component():
    """Against a loop; so no less than that of actions alone, by quadrature in one dimension."""
    grid = jnp.linspace(-12, 12, 3001)[:, None, None]
    old = TanhMixture(*(x[..., :1] if x.ndim == 3 else x for x in two_normals()))
    others = [
        old._replace(mean=old.mean + 0.3, logits=old.logits[:, ::-1]),
        old._replace(log_std=old.log_std - 0.2),
    ]
    for part, new in enumerate(others):
        before, after = (jax.vmap(d.unsquashed_log_prob)(grid) for d in (old, new))
        of_actions = jnp.trapezoid(jnp.exp(before) * (before - after), grid[:, 0], axis=0)
        parts = old.joint_kl(new)
        for b in range(3):
            w, v = (np.exp(d.logits[b]) / np.exp(d.logits[b]).sum() for d in (old, new))
            joint = 0.0
            for k in range(2):
                (m, s), (n, r) = ((d.mean[b, k, 0], np.exp(d.log_std[b, k, 0])) for d in (old, new))
                joint += w[k] * np.log(w[k] / v[k])
                joint += w[k] * (np.log(r / s) + (s**2 + (m - n) ** 2) / (2 * r**2) - 0.5)
            np.testing.assert_allclose(parts[part][b], joint, rtol=1e-9)
            assert parts[part][b] >= of_actions[b] > 1e-3


# The update -------------------------------------------------------------------------------------


def test_targets_are_copied_and_duals_follow_their_limits():
    env = ConstantReward(continuous=True)
    agent = WPO(env, env.default_params, target_period=3, num_samples=2, hidden_sizes=(4,))
    learner = agent.init_learner(KEY, jnp.ones(1, jnp.float32))
    flags, obs = jnp.ones(8, bool), jnp.ones((8, 1), jnp.float32)
    action, reward = jnp.linspace(-1, 1, 8, dtype=jnp.float32)[:, None], jnp.ones(8, jnp.float32)
    batch = Batch(obs, action, reward, flags, obs, flags)
    update = jax.jit(agent.update)
    for n in range(3):
        after, metrics = update(learner, batch, jax.random.fold_in(KEY, n), jnp.int32(n))
        start = after if n == 2 else learner
        assert_same(after.target_actor, start.actor if n == 2 else learner.target_actor)
        assert_same(after.target_critics, start.critics if n == 2 else learner.target_critics)
        if n == 0:  # the policy is its target still: nothing diverges, both weights fall
            assert metrics["mean_kl"] == metrics["std_kl"] == 0
            assert (after.log_duals < learner.log_duals).all()
        learner = after
    wide = jax.tree.map(lambda x: x + 0.5, learner.actor)
    apart, metrics = update(
        learner._replace(actor=wide, dual_opt=agent.dual_optimizer().init(learner.log_duals)),
        batch,
        KEY,
        jnp.int32(3),
    )
    assert metrics["mean_kl"] > agent.max_mean_kl
    assert metrics["std_kl"] > agent.max_std_kl
    assert (apart.log_duals > learner.log_duals).all()


# Learning ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reaches_the_known_answers():
    """Values of the probes under the best policy, and the best actions."""
    rows = known_answers(continuous=True)
    env = any_of(rows)
    agent = WPO(env, env.default_params, total_steps=8 * 2500, gamma=GAMMA, **SMALL)
    population = jaxrl.sweep(agent, settings(rows))
    for i, row in enumerate(rows):
        if i in (CHOICE, MATCH):
            continue
        run = population[i]
        obs = jnp.array(row.observations)[:, None]
        action = jax.vmap(run.agent.policy(run.state))(obs, jax.random.split(KEY, len(obs)))
        action = from_box(run.agent.action_space, action)
        actual = run.agent.q_values(run.state.learner.critics, obs, action).mean(0)
        expected = np.max(row.q, axis=1)
        np.testing.assert_allclose(actual, expected, rtol=0.05, atol=0.1, err_msg=str(i))
    returns = population.evaluate(episodes=32).returns.mean(axis=1)
    assert returns[CHOICE] > -0.4  # of the best action 1.5 in [-2, 2]; a clipped one has -0.5
    assert returns[MATCH] > -0.2
