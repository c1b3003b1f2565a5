"""Successive halving: the best settings are kept, and go on from the states that they have."""

import math
import warnings

import numpy as np
import pytest

import jaxrl
from jaxrl import Checkpoints, Log
from jaxrl.training.halving import line_of, plan_rungs, ranking
from jaxrl.training.history import History
from tests.helpers import StopAt, assert_same
from tests.training.test_checkpoint import kill_at, survive
from tests.training.tuned import Tuned, gain, tuned

INF, NAN = math.inf, math.nan
SPACE = {"rate": Log(1e-6, 1e-1, 11)}  # 1e-2 is the ninth


def halving(agent=None, **changes):
    arguments = {"space": SPACE} | changes
    return jaxrl.halving(agent or tuned(), arguments.pop("space"), **arguments)


@pytest.fixture(scope="module")
def population():
    return halving()


# Rungs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "eta", "iterations", "kept", "until"),
    [
        (27, 3, 81, [27, 9, 3, 1], [3, 9, 27, 81]),
        (11, 3, 40, [11, 3, 1], [4, 13, 40]),
        (16, 4, 100, [16, 4, 1], [6, 25, 100]),
        (6, 2, 5, [6, 3, 1], [1, 2, 5]),
        (80, 3, 7, [80, 26], [2, 7]),  # no rung has less than an iteration
        (3, 3, 3, [3, 1], [1, 3]),
    ],
)
def test_rungs_by_hand(settings, eta, iterations, kept, until):
    rungs = plan_rungs(tuned(iterations), settings, eta)
    assert (rungs.settings, rungs.until) == (kept, until)


def test_the_first_rung_can_be_longer():
    assert plan_rungs(tuned(81), 27, 3, 4 * 9).until == [9, 27, 81]
    assert plan_rungs(tuned(81), 27, 3, 4 * 9 + 1).until == [27, 81]


def test_the_budget_is_counted_by_hand_and_taken(population):
    """11 x 4 iterations, then 3 x 9 more, then 1 x 27 more, of 4 steps each."""
    lines = []
    again = halving(announce=lines.append)
    assert lines[0] == (
        "successive halving: members 11 until 16, 3 until 52, 1 until 160 environment steps; "
        "392 in all, where a sweep of them takes 1,760"
    )
    taken = np.nanmax(again.history.env_steps, axis=1)
    assert taken.sum() == 392 == 4 * (11 * 4 + 3 * 9 + 27)
    two = line_of(tuned(), plan_rungs(tuned(), 11, 3), 2)
    assert "members 22 until 16, 6 until 52, 2 until 160" in two
    assert "784 in all, where a sweep of them takes 3,520" in two


# Who is kept --------------------------------------------------------------------------------------


def test_the_best_setting_is_found(population):
    rates = np.array([row["rate"] for row in population.table])
    best = [np.argsort(-gain(rates))[:n].tolist() for n in (11, 3, 1)]
    assert [sorted(rung.members) for rung in population.rungs] == [sorted(b) for b in best]
    assert [rung.iteration for rung in population.rungs] == [4, 13, 40]
    assert rates[population.rungs[-1].members] == pytest.approx(0.01)
    assert [len(members) for members, _ in population.batches] == [8, 2, 1]
    assert sorted(i for members, _ in population.batches for i in members) == list(range(11))


def test_nothing_is_trained_anew(population):
    """All that remain are what they are in a sweep, as far as they came."""
    whole = jaxrl.sweep(tuned(), SPACE)
    for i in range(11):
        run, other = population[i], whole[i]
        length = int(run.iteration)
        assert length == next(r.iteration for r in reversed(population.rungs) if i in r.members)
        for name, x in run.history.metrics.items():
            np.testing.assert_array_equal(x, other.history.metrics[name][:length])
    (best,) = population.rungs[-1].members
    assert_same(population[best].state, whole[best].state)
    returns = population.evaluate(3).returns
    np.testing.assert_array_equal(returns[best], whole.evaluate(3).returns[best])


def test_scores_are_of_the_last_quarter(population):
    for rung in population.rungs:
        first = rung.iteration - math.ceil(rung.iteration / 4)
        rows = population.history.metrics["episode_return"][rung.members, first : rung.iteration]
        np.testing.assert_allclose(rung.scores, rows.mean(axis=1), rtol=1e-5)


def test_a_program_for_each_rung():
    Tuned.traces = 0
    halving(tuned(44))
    assert Tuned.traces == 3
    halving(tuned(44), space={"rate": Log(1e-5, 1e-2, 11)})
    assert Tuned.traces == 3


@pytest.mark.slow
def test_settings_survive_with_all_their_seeds():
    population = halving(seeds=2)
    numbers = [rung.members for rung in population.rungs]
    assert [len(n) for n in numbers] == [22, 6, 2]
    for members in numbers:
        assert {i // 2 for i in members} == {i // 2 for i in members if i % 2}
    assert [population.table[i]["rate"] for i in numbers[-1]] == [pytest.approx(0.01)] * 2


def ranked(returns, diverged=(), copies=1):
    """Places of settings whose members had these returns in their only iteration."""
    returns = np.asarray(returns, float)[:, None]
    lost = np.full(len(returns), np.nan)
    lost[list(diverged)] = 0
    metrics = {"episode_return": returns, "episodes": np.where(np.isnan(returns), 0, 1)}
    history = History(np.ones_like(returns), metrics, {}, lost)
    return ranking(history, copies)[1].tolist()


def test_ranks_by_hand():
    assert ranked([1, 3, 2]) == [1, 2, 0]
    assert ranked([1, 3, 2], diverged=[1]) == [2, 0, 1]
    assert ranked([NAN, -3, 2, 4], diverged=[3]) == [2, 1, 0, 3]
    assert ranked([1, 1, 1]) == [0, 1, 2]
    assert ranked([1, 5, 4, 4, 9, 0], copies=2) == [2, 1, 0]
    assert ranked([1, 5, 4, 4, 9, 0], diverged=[4], copies=2) == [1, 0, 2]
    assert ranked([NAN, 3, 1, 1], copies=2) == [0, 1]
    assert ranked([NAN, NAN], diverged=[0]) == [1, 0]


def test_diverged_members_rank_last():
    rates = [2.0, 3.0, 1e-5, 4.0, 1e-3, 5.0]
    with pytest.warns(UserWarning, match="not finite after iteration 0: it is left out"):
        population = halving(space={"rate": rates}, eta=3)
    assert [rung.members for rung in population.rungs] == [[0, 1, 2, 3, 4, 5], [2, 4]]
    assert np.isnan(population.evaluate(2).returns[[0, 1, 3, 5]]).all()


def test_where_all_have_diverged_it_ends():
    with pytest.warns(UserWarning, match="not finite"):
        population = halving(space={"rate": [2.0, 3.0, 4.0, 5.0]})
    assert len(population.rungs) == 1
    assert len(population) == 4
    assert not population.interrupted


def test_without_an_episode_in_the_last_quarter_older_ones_count():
    population = halving(tuned(late=41.0))
    assert all(np.isnan(rung.scores).all() for rung in population.rungs)
    assert population.rungs[-1].members == [0]  # of equal ones the first


# Stopping and going on ----------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [[2, 13], pytest.param([4, 6, 30], marks=pytest.mark.slow)])
def test_a_killed_halving_goes_on_bit_for_bit(kills, tmp_path, population):
    checkpoints = Checkpoints(tmp_path, every=0)
    again = survive(lambda p: halving(callbacks=[p], checkpoints=checkpoints), kills)
    assert again.rungs == population.rungs
    for (members, run), (others, other) in zip(again.batches, population.batches, strict=True):
        assert members == others
        assert_same(run.state, other.state)
    assert_same(again.history.metrics, population.history.metrics)
    assert_same(again.history.env_steps, population.history.env_steps)
    once_more = halving(callbacks=[kill_at()], checkpoints=checkpoints)
    assert_same(once_more.history.metrics, population.history.metrics)


def test_where_it_is_stopped_it_gives_what_there_is(tmp_path):
    population = halving(callbacks=[StopAt(6)])
    assert population.interrupted
    assert [len(rung.members) for rung in population.rungs] == [11, 3]
    assert len(population) == 11
    assert population.history.env_steps.shape[1] < 13


def test_another_halving_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0)
    halving(callbacks=[StopAt(6)], checkpoints=checkpoints)
    with pytest.raises(ValueError, match="saved with another successive halving"):
        halving(checkpoints=checkpoints, eta=2)
    with pytest.raises(ValueError, match="saved with another successive halving"):
        halving(tuned(80), checkpoints=checkpoints)
    with pytest.raises(ValueError, match="saved with another successive halving"):
        jaxrl.sweep(tuned(), SPACE, checkpoints=checkpoints)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"space": {"rate": [0.1, 0.2]}}, "2 settings are fewer than eta=3"),
        ({"eta": 12}, "11 settings are fewer than eta=12"),
        ({"eta": 1}, "eta=1: must be at least 2"),
        ({"space": {"width": [1, 2], "rate": [0.1, 0.2]}}, "width is static"),
        ({"agent": tuned(2)}, "total_steps=8 leave less than 1 steps, or one iteration of 4"),
        ({"fewest_steps": 100}, "leave less than 100 steps"),
        ({"seeds": 0}, "at least one"),
        ({"random": 0}, "random=0: must be at least 1"),
        ({"memory": 10}, "memory: one member needs"),
        ({"memory": 2500}, "all 11 members train at once, and"),
        ({"space": {"rat": [1, 2, 3]}}, "did you mean rate"),
        ({"on_nan": "no"}, "is not one of report, stop"),
    ],
)
def test_one_line_refuses(changes, line):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=line) as error:
        halving(**changes)
    assert "\n" not in str(error.value)
