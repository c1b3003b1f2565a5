"""Population-based training: members copy the best ones, on a problem whose best value is known."""

import itertools
import math
import warnings

import numpy as np
import pytest

import jaxrl
from jaxrl import Checkpoints, Lin, Log
from jaxrl.training.exchange import Exchange, Selection, ancestors, truncation
from tests.helpers import StopAt, Toy, assert_same
from tests.training.test_checkpoint import kill_at, survive
from tests.training.tuned import BEST, Tuned, gain, tuned

INF, NAN = math.inf, math.nan
SPACE = {"rate": Log(1e-5, 1.0)}


def pbt(agent=None, **changes):
    arguments = {"random": 6, "share": 0.34, "every": 16, "seed": 1} | changes
    return jaxrl.pbt(agent or tuned(), arguments.pop("space", SPACE), **arguments)


@pytest.fixture(scope="module")
def population():
    return pbt()


# Who copies whom ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_copy_the_best(seed):
    scores = np.array([5.0, 1, 7, 3, 4, 0, 6, 2])
    parents = truncation(scores, 0.25, np.random.default_rng(seed))
    assert set(parents[[1, 5]]) <= {2, 6}
    stay = [0, 2, 3, 4, 6, 7]
    np.testing.assert_array_equal(parents[stay], stay)


def test_each_of_the_best_is_copied_as_often():
    scores = np.arange(8.0)
    drawn = [truncation(scores, 0.25, np.random.default_rng(s))[0] for s in range(400)]
    assert 160 < drawn.count(6) < 240
    assert set(drawn) == {6, 7}


@pytest.mark.parametrize(
    ("scores", "share", "expected"),
    [
        ([1, 2], 0.25, [1, 1]),
        ([2, 1], 0.5, [0, 0]),
        ([1, 1, 1, 1], 0.25, [0, 1, 2, 0]),  # of equal ones the first is the better
        ([-INF, -INF, -INF, 3], 0.25, [3, 3, 3, 3]),  # more than the share have diverged
        ([-INF, -INF], 0.5, [0, 1]),  # nobody is worth copying
        ([NAN, NAN, NAN], 0.3, [0, 1, 2]),
        ([NAN, 5, NAN, 1], 0.25, [0, 1, 2, 1]),  # without a score: no part
        ([5, NAN], 0.5, [0, 1]),
        ([-INF, NAN], 0.5, [0, 1]),
        ([-INF, NAN, 4, 2], 0.25, [2, 1, 2, 3]),
        ([3], 0.5, [0]),
    ],
)
def test_edges_of_truncation(scores, share, expected):
    parents = truncation(np.array(scores, float), share, np.random.default_rng(0))
    np.testing.assert_array_equal(parents, expected)


# What they change ---------------------------------------------------------------------------------


def explored(axis, value, resample, draws=200):
    selection = Selection({"x": axis}, 0.5, resample, 0)
    results = [
        selection(t, np.array([1.0, 0.0]), {"x": [value, value]})[1]["x"] for t in range(draws)
    ]
    assert all(first == value for first, _ in results)  # who stays keeps its own
    return [second for _, second in results]


def test_perturbations_by_hand():
    assert set(explored(Log(1e-4, 1.0), 0.1, 0)) == {0.1 * 1.2, 0.1 * 0.8}
    assert set(explored(Log(1e-4, 1.0), 0.9, 0)) == {1.0, 0.9 * 0.8}  # no further than the end
    np.testing.assert_allclose(sorted(set(explored(Lin(0.0, 1.0), 0.5, 0))), [0.3, 0.7])
    assert set(explored(Lin(0.0, 1.0), 0.0, 0)) == {0.0, 0.2}
    # Lists: one further, at the ends no further; the value may be held in single precision.
    assert set(explored([0.9, 0.95, 0.99], 0.95, 0)) == {0.9, 0.99}
    assert set(explored([0.9, 0.95, 0.99], float(np.float32(0.99)), 0)) <= {
        0.95,
        0.99,
        0.9900000095367432,
    }
    assert set(explored(Lin(1, 11), 3, 0)) == {1, 5}
    assert all(isinstance(x, int) for x in explored(Lin(1, 11), 3, 0.5))


def test_resampled_values_are_spread_over_the_range():
    drawn = np.log10(explored(Log(1e-4, 1.0), 0.1, 1.0, draws=600))
    assert drawn.min() > -4
    assert drawn.max() < 0
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), [-3, -2, -1], atol=0.25)
    half = explored(Log(1e-4, 1.0), 0.1, 0.5, draws=400)
    assert 150 < sum(x in (0.1 * 1.2, 0.1 * 0.8) for x in half) < 250
    assert set(explored([1, 2, 3], 1, 1.0)) == {1, 2, 3}


# Training -----------------------------------------------------------------------------------------


def test_it_finds_the_best_value_where_its_first_settings_have_none():
    """No first rate is within a factor of 30 of the best; as they are, returns would fall."""
    start = [{"rate": rate} for rate in (1e-5, 3e-5, 1e-4, 2e-4, 0.4, 0.6, 0.8, 1.0)]
    agent = tuned(iterations=400)
    population = pbt(agent, start=start, random=None, share=0.25, every=16)
    rates = np.array([row["rate"] for row in population.table])
    assert sum(abs(np.log10(rates / BEST)) < 0.35) >= 4
    best = population.history.metrics["episode_return"][:, -1].max()
    kept = 400 * max(gain(row["rate"]) for row in start)
    assert best > 0.6 * 400 > kept + 200


def test_returns_follow_from_the_schedule(population):
    """A member's skill is the sum of the gains of all values that led to it: copied, not anew."""
    for i in range(6):
        schedule = population.schedule(i)
        bounds = [row["iteration"] for row in schedule] + [40]
        gains = [gain(row["rate"]) for row in schedule]
        expected = np.dot(np.diff(bounds), gains)
        np.testing.assert_allclose(float(population[i].state.skill), expected, rtol=1e-4, atol=1e-4)
        assert population.table[i]["rate"] == schedule[-1]["rate"]
        np.testing.assert_allclose(float(population[i].agent.rate), schedule[-1]["rate"], rtol=1e-6)


def test_exchanges_are_kept(population):
    exchanges = population.exchanges
    assert [e.iteration for e in exchanges] == list(range(0, 40, 4))  # none after the end
    assert exchanges[0].parents == list(range(6))
    returns = population.history.metrics["episode_return"]
    for before, exchange in itertools.pairwise(exchanges):
        window = returns[:, before.iteration : exchange.iteration]
        np.testing.assert_allclose(exchange.scores, window.mean(axis=1), rtol=1e-5)
        copied = np.flatnonzero(np.array(exchange.parents) != np.arange(6))
        assert len(copied) == 2
        order = np.argsort(exchange.scores)
        assert set(copied) == set(order[:2])
        for i, parent in enumerate(exchange.parents):
            old, new = before.values["rate"][parent], exchange.values["rate"][i]
            if parent == i:
                assert new == old
            else:
                assert parent in order[-2:]
                assert 1e-5 <= new <= 1.0


def test_copies_draw_random_numbers_of_their_own(population):
    noise = population.history.metrics["noise"]
    assert len(np.unique(noise)) == noise.size
    assert [row["seed"] for row in population.table] == list(range(6, 12))  # of seed 1


def test_one_program_whatever_the_values():
    Tuned.traces = 0
    pbt(tuned(iterations=44), seed=2)
    assert Tuned.traces == 1
    pbt(tuned(iterations=44), seed=3, share=0.2, every=8, resample=1.0)
    assert Tuned.traces == 1


def test_another_seed_is_another_population(population):
    assert_same(pbt().exchanges[-1].values, population.exchanges[-1].values)
    assert pbt(seed=5).exchanges[-1].values != population.exchanges[-1].values


def test_members_that_diverge_are_replaced_and_count_again():
    start = [{"rate": rate} for rate in (0.01, 2.0, 3.0, 4.0, 0.1)]
    with pytest.warns(UserWarning, match=r"not finite after iteration 0: the next exchange"):
        population = pbt(space={"rate": Log(1e-3, 5.0)}, start=start, random=None, share=0.2)
    first = population.exchanges[1]
    assert first.scores[1:4] == [-INF] * 3
    assert first.parents == [0, 0, 0, 0, 4]
    returns = population.history.metrics["episode_return"]
    assert np.isnan(returns[1:4, :4]).all()
    alive = np.isnan(population.history.diverged_at)
    assert alive.sum() >= 3
    assert np.isfinite(returns[alive, -1]).all()


def test_all_diverged_train_on_to_no_effect():
    start = [{"rate": 2.0}, {"rate": 3.0}]
    with pytest.warns(UserWarning, match="not finite"):
        population = pbt(space={"rate": Log(1.5, 5.0)}, start=start, random=None)
    assert all(e.parents == [0, 1] for e in population.exchanges)
    assert np.isnan(population.evaluate(2).returns).all()


def test_members_without_an_episode_take_no_part():
    population = pbt(tuned(late=41.0))
    assert all(e.parents == list(range(6)) for e in population.exchanges)
    assert all(np.isnan(e.scores).all() for e in population.exchanges)


@pytest.mark.slow
def test_parameters_of_the_environment():
    env_space = {"env.bonus": Lin(0.0, 4.0, 4), "env.max_steps_in_episode": [3, 6]}
    agent = Toy(tuned().env, tuned().env.default_params, total_steps=8 * 20)
    population = jaxrl.pbt(agent, env_space, every=32, seed=4)
    assert len(population) == 8
    assert all(row["env.max_steps_in_episode"] in (3, 6) for row in population.table)
    for i in (0, 7):
        params = population[i].agent.env_params
        np.testing.assert_allclose(params.bonus, population.table[i]["env.bonus"], rtol=1e-6)
        assert params.max_steps_in_episode == population.table[i]["env.max_steps_in_episode"]


def test_states_are_copied_whole():
    """Environments, parameters and all: only the key stays."""
    seen = []

    class Look(jaxrl.Callback):
        def due(self, progress):
            return True

        def __call__(self, progress, states):
            seen.append((progress, states))

    agent = Toy(tuned().env, tuned().env.default_params, total_steps=8 * 6)
    population = jaxrl.pbt(
        agent, {"rate": [0.0]}, random=4, every=8, seed=4, callbacks=[Look()], share=0.5
    )
    # A rate of 0 adds nothing to the weight: without the copies, weights would not be mixed.
    (progress, before), (_, after) = seen[2], seen[3]
    exchange = next(e for e in population.exchanges if e.iteration == progress.iteration)
    parents = np.array(exchange.parents)
    assert (parents != np.arange(4)).any()
    weights = 0.9 * before.weight[parents]
    if progress.iteration % 3 == 0:
        weights += np.sin(before.weight[parents])
    np.testing.assert_allclose(after.weight, weights, rtol=1e-5)
    times = before.actors.env_state.time
    assert times.shape[0] == 4


# Stopping and going on ----------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [[8, 13], pytest.param([5, 6, 39], marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(kills, tmp_path, population):
    checkpoints = Checkpoints(tmp_path, every=0)
    again = survive(lambda p: pbt(callbacks=[p], checkpoints=checkpoints), kills)
    assert_same(again.batches[0][1].state, population.batches[0][1].state)
    assert_same(again.history.metrics, population.history.metrics)
    assert_same(list(again.exchanges), list(population.exchanges))
    assert again.table == population.table


@pytest.mark.slow
def test_members_that_were_replaced_are_alive_after_a_resume(tmp_path):
    start = [{"rate": rate} for rate in (0.01, 2.0, 3.0, 0.1)]
    space = {"rate": Log(1e-3, 5.0)}

    def run(progress, **more):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "member .* not finite")
            return pbt(
                space=space, start=start, random=None, resample=0.0, callbacks=[progress], **more
            )

    whole = run(kill_at())
    again = survive(lambda p: run(p, checkpoints=Checkpoints(tmp_path, every=0)), [3, 21])
    assert_same(again.history.metrics, whole.history.metrics)
    assert_same(again.history.diverged_at, whole.history.diverged_at)


def test_another_search_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0)
    pbt(callbacks=[StopAt(6)], checkpoints=checkpoints)
    for changes in (
        {"share": 0.2},
        {"every": 20},
        {"resample": 0.1},
        {"space": {"rate": Log(1e-5, 0.9)}},
    ):
        with pytest.raises(ValueError, match=r"saved with another population-based|another rate"):
            pbt(checkpoints=checkpoints, **changes)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"space": {"width": [1, 2]}}, "width is static"),
        ({"space": {"total_steps": [160, 320]}}, "total_steps is static"),
        ({"space": {"rat": [1, 2]}}, "has no hyper-parameter 'rat'; did you mean rate"),
        ({"space": {"rate": Log(-1.0, 1.0)}}, r"rate=-1.0 is outside \(0, inf\)"),
        ({"space": {"rate": ["a", "b"]}}, "rate='a' is not a number"),
        ({"space": {}}, "there is no hyper-parameter to change"),
        ({"random": 1}, "at least 2 members"),
        ({"random": 0}, "random=0: must be at least 1"),
        ({"share": 0.6}, r"share=0.6 is outside \(0, 0.5\]"),
        ({"share": 0.0}, "share=0.0 is outside"),
        ({"resample": 2.0}, "resample=2.0 is outside"),
        ({"every": 0}, "every=0: must be at least 1"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"seed": 2**32}, "must be at most 715,827,881 for 6 members"),
        ({"space": {"offset": Log(0.0, 1.0)}}, "a log range needs ends above 0"),
        ({"space": {"rate": Lin(0.2, 0.1)}}, "must run from low to high"),
        ({"memory": 10}, "memory: one member needs"),
        ({"memory": 2000}, "all 6 members train at once, and"),
        ({"start": [{"rate": 0.1}, {"late": 0.1}], "random": None}, "does not name rate"),
        ({"on_nan": "no"}, "is not one of report, stop"),
    ],
)
def test_one_line_refuses(changes, line):
    with pytest.raises(ValueError, match=line) as error:
        pbt(**changes)
    assert "\n" not in str(error.value)


def test_ancestors_by_hand():
    exchanges = [
        Exchange(0, [], [0, 1, 2], {}),
        Exchange(1, [], [0, 0, 2], {}),
        Exchange(2, [], [0, 1, 1], {}),
    ]
    assert ancestors(exchanges, 2) == [0, 1, 2]
    assert ancestors(exchanges, 1) == [0, 1, 1]
    assert ancestors(exchanges, 0) == [0, 0, 0]
