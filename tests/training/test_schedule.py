"""Schedules: where the host acts follows from the whole run. NumPy alone."""

import math

import pytest

from jaxrl.training.schedule import CHUNK_SECONDS, CHUNKS, Schedule


def stops(schedule, rate=math.inf, t=0):
    """All ends of chunks from iteration t on."""
    result = []
    while t < schedule.last:
        t = schedule.stop(t, rate)
        result.append(t)
    return result


@pytest.mark.parametrize("iterations", [1, 7, 97, 100, 12_345])
def test_a_run_is_cut_into_chunks_of_like_length(iterations):
    schedule = Schedule(iterations)
    ends = stops(schedule)
    assert len(ends) == min(iterations, CHUNKS)
    assert ends[-1] == iterations
    lengths = {b - a for a, b in zip([0, *ends], ends, strict=False)}
    assert max(lengths) == schedule.length
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("iterations", [7, 10, 13, 250])
def test_every_evaluation_ends_a_chunk(iterations):
    for evaluations in range(1, min(iterations, 20) + 1):
        schedule = Schedule(iterations, evaluations)
        evaluated = [t for t in stops(schedule) if schedule.evaluates(t)]
        assert len(evaluated) == evaluations
        assert evaluated[-1] == iterations
        spaces = [b - a for a, b in zip([0, *evaluated], evaluated, strict=False)]
        assert max(spaces) - min(spaces) <= 1


def test_none_are_made_where_none_are_asked_for():
    assert not any(Schedule(50).evaluates(t) for t in range(51))


def test_where_it_begins_and_ends_changes_no_bounds():
    whole = stops(Schedule(1000, 3))
    assert stops(Schedule(1000, 3, until=455)) == [t for t in whole if t < 455] + [455]
    assert stops(Schedule(1000, 3), t=455) == [t for t in whole if t > 455]
    assert Schedule(1000, until=2000).last == 1000


def test_a_slow_chunk_is_cut_again():
    """At three iterations within the time, and one where even that one takes longer."""
    assert stops(Schedule(1000), rate=3.5 / CHUNK_SECONDS)[:5] == [3, 6, 9, 10, 13]
    assert stops(Schedule(20), rate=0.001) == list(range(1, 21))
