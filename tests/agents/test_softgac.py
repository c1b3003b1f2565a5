"""SoftGAC's bridge and critic against closed forms; its learning stands in test_offpolicy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

from agents.off_policy.softgac import SoftGAC
from jaxrl.parts.bridge import Noise, antithetic, bridge
from jaxrl.parts.networks import BatchRenorm
from tests.probes import ConstantReward
from tests.records import bandit

KEY = jax.random.key(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def noise(key, num_steps, num_paths, dims=1):
    base_key, step_key = jax.random.split(key)
    base = jax.random.uniform(base_key, (num_paths, dims), minval=-1.0, maxval=1.0)
    return Noise(base, jax.random.normal(step_key, (num_steps, num_paths, dims)))


def reference(params, z):
    return -2 * jnp.tanh(z), jnp.ones_like(z)


# Kolmogorov-Smirnov distances of the reference's actions from the uniform law, by number of steps.
@pytest.mark.parametrize(
    ("num_steps", "distance"),
    [(1, 0.129), (2, 0.064), (4, 0.031), (6, 0.021), (8, 0.016), (16, 0.0085)],
)
def test_reference_costs_nothing_and_is_near_uniform(num_steps, distance):
    action, cost = bridge(reference, jnp.zeros(num_steps), noise(KEY, num_steps, 1_000_000))
    assert (cost == 0).all()
    found = scipy.stats.kstest(np.asarray(action)[:, 0], scipy.stats.uniform(-1, 2).cdf).statistic
    assert found == pytest.approx(distance, abs=0.002)
    if num_steps == 6:
        assert action.var() == pytest.approx(0.362, abs=0.002)


def wobbly(params, z):
    """Some drift and scale that depend on step and place, and couple the dimensions."""
    drift = jnp.sin(3 * z + params) - z[..., ::-1]
    return drift, jnp.exp(0.4 * jnp.cos(z + params))


@pytest.mark.usefixtures("float64")
def test_cost_is_the_divergence_of_the_path():
    """Monte-Carlo log-ratio of the two path densities, whose expectation is E[C]."""
    num_steps, dims = 4, 2
    h, params = 1 / num_steps, jnp.arange(num_steps, dtype=float)
    paths = noise(KEY, num_steps, 400_000, dims)
    _, cost = bridge(wobbly, params, paths)
    z, log_ratio = jnp.arctanh(paths.base), 0.0
    for k in range(num_steps):
        drift, scale = wobbly(params[k], z)
        new = z + h * drift + np.sqrt(2 * h) * scale * paths.steps[k]
        actor = jax.scipy.stats.norm.logpdf(new, z + h * drift, np.sqrt(2 * h) * scale)
        rest = jax.scipy.stats.norm.logpdf(new, z - 2 * h * jnp.tanh(z), np.sqrt(2 * h))
        z, log_ratio = new, log_ratio + (actor - rest).sum(-1)
    error = (log_ratio - cost).std() / np.sqrt(len(cost))
    assert float(cost.mean()) > 1
    assert abs(log_ratio.mean() - cost.mean()) < 4 * error
    assert error < 0.01


@pytest.mark.usefixtures("float64")
def test_cost_of_no_drift():
    """Specification: .462 per action dimension with six steps, zero drift and unit scale."""
    _, cost = bridge(
        lambda params, z: (jnp.zeros_like(z), jnp.ones_like(z)),
        jnp.zeros(6),
        noise(KEY, 6, 400_000),
    )
    assert cost.mean() == pytest.approx(0.462, abs=0.002)


def test_cost_bounds_the_divergence_of_the_actions():
    """E[C] >= KL(actions || the reference's actions), by histogram."""
    paths = noise(KEY, 6, 1_000_000)
    params = jnp.full(6, 0.3)
    action, cost = bridge(lambda p, z: (1.5 - 2 * z, 0.8 * jnp.ones_like(z)), params, paths)
    rest, _ = bridge(reference, params, noise(jax.random.key(1), 6, 1_000_000))
    bins = np.linspace(-1, 1, 101)
    p, q = (np.histogram(x, bins)[0] / len(x) for x in (np.asarray(action), np.asarray(rest)))
    seen = p > 0
    divergence = (p[seen] * np.log(p[seen] / q[seen])).sum()
    assert 0.1 < divergence < float(cost.mean())


def test_antithetic_paths_mirror_each_other():
    action, _ = bridge(reference, jnp.zeros(6), antithetic(noise(KEY, 6, 50)))
    np.testing.assert_allclose(action[:50], -action[50:], atol=1e-5)


def agent(**changes):
    env = ConstantReward(continuous=True)
    options = {"bridge_width": 16, "hidden_sizes": (16,), "total_steps": 4000} | changes
    return SoftGAC(env, env.default_params, **options)


def test_the_policy_starts_with_unit_scale_and_costs_what_its_drift_does():
    soft = agent()
    actor = soft.init_actor(KEY, jnp.ones(1))
    obs, z = jnp.ones((4, 1)), jnp.linspace(-1, 1, 4)[:, None]
    for k in range(6):
        _, scale = soft.make_actor().apply(jax.tree.map(lambda x, k=k: x[k], actor), obs, z)
        np.testing.assert_allclose(scale, 1, atol=1e-6)
    assert soft.path_cost_target == pytest.approx(0.2 * 6 * 1)


def test_deterministic_action_is_the_path_without_noise():
    soft = agent()
    actor = soft.init_actor(KEY, jnp.ones(1))
    first = soft.act(actor, jnp.ones(1), jax.random.key(1), deterministic=True)
    np.testing.assert_array_equal(first, soft.act(actor, jnp.ones(1), KEY, deterministic=True))
    z = jnp.zeros(1)
    for k in range(6):
        drift, _ = soft.make_actor().apply(jax.tree.map(lambda x, k=k: x[k], actor), jnp.ones(1), z)
        z = z + drift / 6
    np.testing.assert_allclose(first, jnp.tanh(z), rtol=1e-5)


def test_odd_particles_are_refused():
    with pytest.raises(ValueError, match="num_particles=3 must be 1 or even"):
        agent(num_particles=3)


def test_critic_atoms_span_the_value_bound():
    soft = agent(value_bound=50.0, num_atoms=51)
    np.testing.assert_allclose(soft.atoms, np.linspace(-50, 50, 51), rtol=1e-5, atol=1e-5)


def test_a_share_of_each_batch_is_drawn_from_the_newest_rows():
    """Rows are numbered by their observations; a share of 0.5 of the newest two of 32."""
    soft = agent(num_envs=4, newest_steps=8, newest_share=0.5, batch_size=64, learning_starts=4)
    source = soft.source()
    assert (source.newest, source.newest_share) == (2, 0.5)
    state, _ = source.init(KEY)
    rows = jnp.broadcast_to(jnp.arange(32.0)[:, None, None], (32, 4, 1))
    memory = state.replay._replace(obs=state.replay.obs.at[:32].set(rows))
    batch = source.draw(state._replace(replay=memory), KEY, jnp.int32(31), 64)
    assert (np.asarray(batch.obs)[32:] >= 30).all()
    assert (np.asarray(batch.obs)[:32] < 30).mean() > 0.7
    assert agent(num_envs=8, newest_steps=3).source().newest == 2  # a lean memory needs two


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tau": 0.1}, "tau=0.1 has no effect with critic=crossq"),
        ({"layer_norm": True}, "layer_norm=True has no effect with critic=crossq"),
        ({"critic": "twin", "num_atoms": 7}, "num_atoms=7 has no effect with critic=twin"),
        ({"critic": "twin", "critic_momentum": 0.1}, "critic_momentum=0.1 has no effect"),
        ({"newest_share": 0.0, "newest_steps": 7}, "newest_steps=7 has no effect with newest_sh"),
        ({"data": True, "newest_share": 0.5}, "newest_share=0.5 has no effect with recorded data"),
    ],
)
def test_what_has_no_effect_is_refused(changes, line):
    env = ConstantReward(continuous=True)
    if "data" in changes:
        changes = changes | {"data": bandit(env, size=10)}
    with pytest.raises(ValueError, match=line):
        agent(**changes)


# BatchRenorm ------------------------------------------------------------------------------------


def renorm(x, stats, warm_up=0):
    module = BatchRenorm(warm_up=warm_up)
    params = {"scale": jnp.array([2.0]), "bias": jnp.array([1.0])}
    variables = {"params": params, "batch_stats": stats}
    trained, new = module.apply(variables, x, True, mutable=["batch_stats"])
    return trained, module.apply(variables, x, False), new["batch_stats"]


def stats(mean, var, seen=5):
    return {"mean": jnp.array([mean]), "var": jnp.array([var]), "seen": jnp.int32(seen)}


def test_renorm_within_its_limits_equals_inference():
    x = 3 + 2 * jax.random.normal(KEY, (64, 1))
    trained, inferred, new = renorm(x, stats(2.5, 3.0))
    np.testing.assert_allclose(trained, inferred, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new["mean"], 0.99 * 2.5 + 0.01 * x.mean(), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.99 * 3.0 + 0.01 * x.var(), rtol=1e-5)
    assert new["seen"] == 6


def test_renorm_outside_of_its_limits_and_in_the_warm_up():
    x = 100 + 50 * jax.random.normal(KEY, (64, 1))
    plain = (x - x.mean()) / jnp.sqrt(x.var() + 1e-3)
    trained, _, _ = renorm(x, stats(0.0, 1.0))
    np.testing.assert_allclose(trained, 2 * (3 * plain + 5) + 1, rtol=1e-4, atol=1e-4)
    trained, _, _ = renorm(x, stats(0.0, 1.0), warm_up=6)
    np.testing.assert_allclose(trained, 2 * plain + 1, rtol=1e-4, atol=1e-4)
    norm = nn.BatchNorm(use_running_average=False, epsilon=1e-3)
    flax = norm.apply(norm.init(KEY, x), x, mutable=["batch_stats"])[0]
    np.testing.assert_allclose(trained, 2 * flax + 1, rtol=1e-3, atol=1e-3)
