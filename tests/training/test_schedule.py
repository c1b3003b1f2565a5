"""Schedules: where the host acts follows from the whole run. NumPy alone."""

import math

import pytest

from jaxrl.training import schedule as room
from jaxrl.training.schedule import CHUNKS, FEWEST, LONGEST, ROWS, Schedule

SHORTEST = 0.3


@pytest.fixture(autouse=True)
def _as_for_users(monkeypatch):
    monkeypatch.setattr(room, "SHORTEST", SHORTEST)  # which other tests' runs do without


def lengths(schedule, rate, t=0):
    """Of all chunks from iteration t on; the first is not timed."""
    result, known = [], math.inf
    while t < schedule.last:
        stop = schedule.stop(t, known)
        result.append(stop - t)
        t, known = stop, rate
    return result


@pytest.mark.parametrize("iterations", [1, 7, 97, 100, 12_345, 10**9])
def test_a_slow_run_is_cut_into_a_hundred_chunks(iterations):
    schedule = Schedule(iterations)
    share = math.ceil(iterations / CHUNKS)
    found = lengths(schedule, rate=share / (2 * SHORTEST))
    assert sum(found) == iterations
    assert max(found) == share <= schedule.length
    assert found.count(share) >= min(iterations, CHUNKS) - math.log2(share) - 2


def test_chunks_start_small_and_grow():
    found = lengths(Schedule(10_000), rate=1.0 * LONGEST)
    assert found[:8] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert set(found[7:-1]) == {100}
    again = lengths(Schedule(10_000), rate=1.0 * LONGEST, t=5_000)
    assert again[:2] == [1, 100]


def test_short_chunks_are_joined_to_a_tenth_of_the_run_at_most():
    for rate, expected in [(500 / SHORTEST, 500), (1e9, 10_000 // FEWEST)]:
        assert max(lengths(Schedule(10_000), rate)) == expected
    assert Schedule(10_000).length == 10_000 // FEWEST
    assert Schedule(10**6).length == 10**6 // CHUNKS
    assert Schedule(10**5).length == ROWS


def test_a_slow_chunk_is_cut_again():
    """At three iterations within the time, and one where even that one takes longer."""
    assert lengths(Schedule(1000), rate=3.5 / LONGEST)[:5] == [1, 2, 3, 3, 3]
    assert lengths(Schedule(20), rate=0.001) == [1] * 20


@pytest.mark.parametrize("rate", [0.1, 10, 1e5])
@pytest.mark.parametrize("iterations", [7, 10, 13, 250])
def test_every_evaluation_ends_a_chunk(iterations, rate):
    for evaluations in range(1, min(iterations, 20) + 1):
        schedule, t, evaluated = Schedule(iterations, evaluations), 0, []
        for length in lengths(schedule, rate):
            t += length
            evaluated += [t] if schedule.evaluates(t) else []
        assert len(evaluated) == evaluations
        assert evaluated[-1] == iterations
        spaces = [b - a for a, b in zip([0, *evaluated], evaluated, strict=False)]
        assert max(spaces) - min(spaces) <= 1


def test_none_are_made_where_none_are_asked_for():
    assert not any(Schedule(50).evaluates(t) for t in range(51))


def test_where_it_ends_changes_nothing_before():
    whole, cut = (lengths(Schedule(1000, 3, until=until), 20.0) for until in (None, 455))
    assert sum(cut) == 455
    assert cut[:-1] == whole[: len(cut) - 1]
    assert Schedule(1000, until=2000).last == 1000


@pytest.mark.parametrize("rate", [math.inf, 1.0, 1e6])
def test_members_copy_each_other_between_chunks(rate):
    schedule = Schedule(100, evaluations=3, every=7)
    t, ends = 0, []
    while t < schedule.last:
        t = schedule.stop(t, rate)
        ends.append(t)
    assert {7 * k for k in range(1, 15)} | {33, 67, 100} <= set(ends)
    assert [t for t in range(101) if schedule.exchanges(t)] == [7 * k for k in range(1, 15)]
    assert not any(Schedule(100).exchanges(t) for t in range(101))
