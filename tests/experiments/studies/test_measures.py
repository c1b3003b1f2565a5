"""What studies compute by themselves."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.studies import (
    active_sampling,
    curves,
    disagreement,
    noisy_clip,
    second_order,
    two_peaks,
)


@pytest.mark.parametrize("temperature", [0.03, 0.3, 1.0])
def test_distance_to_the_boltzmann_density(temperature):
    """None for samples of it, a half for those of one of its peaks."""
    places = np.linspace(-1, 1, 20_001)
    density = two_peaks.boltzmann(temperature, places)
    np.testing.assert_allclose(np.trapezoid(density, places), 1.0)
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    cumulative = np.cumsum(density)
    samples = np.interp(quantiles, cumulative / cumulative[-1], places)
    measured = two_peaks.measure(samples, temperature)
    assert measured["total_variation_to_boltzmann"] < 0.01
    assert measured["lesser_peak_share"] == pytest.approx(0.5, abs=0.001)
    one = two_peaks.measure(np.abs(samples), temperature)
    assert one["total_variation_to_boltzmann"] == pytest.approx(0.5, abs=0.01)
    assert one["lesser_peak_share"] == 0.0
    assert one["mean_reward"] == pytest.approx(measured["mean_reward"], abs=1e-3)


def test_curves_are_means_over_equal_spans_of_steps():
    steps = np.array([[1.0, 2.0, 39.0, 40.0, np.nan], [10.5, np.nan, np.nan, np.nan, np.nan]])
    values = np.array([[1.0, 3.0, np.nan, 5.0, 9.0], [7.0, 1.0, 1.0, 1.0, 1.0]])
    binned = curves.binned(steps, values, total=80)
    assert binned.shape == (2, curves.BINS)
    assert binned[0, [0, 1, 20]].tolist() == [1.0, 3.0, 5.0]  # spans of 2 steps
    assert binned[1, 5] == 7.0
    assert np.isfinite(binned).sum() == 4


def test_first_span_at_the_threshold():
    returns = np.array([np.nan, 1.0, 5.0, 3.0])
    assert second_order.first(returns, 5.0, 80) == 60
    assert second_order.first(returns, 6.0, 80) == 80


@pytest.mark.parametrize("raw", [False, True])
def test_variance_of_active_samples(raw):
    """That of a linear reward, by quadrature 0.2379; its mean is 0, so that raw is no other."""
    row = active_sampling.estimate("linear", 0.1, 50_000, 0, raw)
    assert row["variance_ratio"] == pytest.approx(0.238, rel=0.05)
    assert row["bias"] < 0.02
    assert row["deviation_beside_policy"] == pytest.approx(1.826, rel=0.01)
    density, advantages, scores = active_sampling.on_grid("linear")
    gradient = np.trapezoid((density * advantages)[:, None] * scores, active_sampling.GRID, axis=0)
    np.testing.assert_allclose(gradient, [1, 0], atol=1e-6)  # d/dmean E[a], d/dlog-deviation E[a]


def test_clipping_rules_are_compared_by_share_by_spread_and_by_what_is_lost():
    cells = {
        "E/noise 4": {
            "final_return": [90.0, 100.0, 110.0],
            "clip_fraction": [0.2] * 3,
            "kept_fraction": [0.05] * 3,
        },
        "E/hard 4": {"final_return": [160.0, 200.0, 240.0], "clip_fraction": [0.1] * 3},
    }
    pair = ("E/", " 4", "noise", "hard")
    assert noisy_clip.relative(cells, *pair).mean == pytest.approx(-0.5)
    assert noisy_clip.spread(cells, *pair).mean == pytest.approx((20 - 80) / 3)
    assert noisy_clip.lost(cells, *pair).mean == pytest.approx(0.05)


def test_runs_of_two_agents_are_compared_by_shares_of_return_and_by_how_near_they_are():
    cells = {
        f"{env}/{agent}": {
            "final_return": returns,
            "log10_kl_at_visited_states": [kl, kl + 0.2],
            "log10_kl_at_random_states": [kl - 1.0] * 2,
        }
        for env in disagreement.ENVS
        for agent, returns, kl in (("SAC", [-100.0, -140.0], 1.0), ("QED", [-120.0, -132.0], -0.6))
    }
    assert disagreement.relative(cells, "brax/reacher", "QED", "SAC").mean == pytest.approx(-0.05)
    assert disagreement.spread(cells, "Pendulum-v1", "QED", "SAC").mean == pytest.approx(6 - 20)
    nearer = disagreement.STUDY.claims()[0].intervals(cells)
    np.testing.assert_allclose([interval.mean for interval in nearer], 1.6)  # SAC's less QED's
    assert len(nearer) == 2 * len(disagreement.ENVS)


def test_pairs_of_runs_are_measured_at_states_that_they_share():
    """Of two pairs of known policies: means 1 apart, deviations of 1."""
    import jax
    import jax.numpy as jnp

    import envs_jax
    from agents.off_policy.qed import QED

    env, env_params = envs_jax.make("Pendulum-v1")
    agent = QED(env, env_params, hidden_sizes=(), buffer_size=64)
    state = agent.init(jax.random.key(0))

    def with_mean(mean):
        actor = jax.tree.map(jnp.zeros_like, state.learner.actor)
        actor["params"]["Dense_0"]["bias"] = jnp.array([mean, 0.0])
        return SimpleNamespace(
            agent=agent, state=state._replace(learner=state.learner._replace(actor=actor))
        )

    found = disagreement.cross_run([with_mean(m) for m in (0.3, 1.3, -0.5, 0.5)])
    for values in found.values():
        np.testing.assert_allclose(values, np.log10(0.5), atol=1e-5)
    assert found.keys() == {"visited", "random"}
