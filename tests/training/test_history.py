"""Histories: joined, masked, cut and read back without anything being lost. NumPy alone."""

import numpy as np
import pytest

from jaxrl.training.history import History, diverged, mean

nan, inf = np.nan, np.inf


def chunk(first, steps, loss, finite=(True, True), **metrics):
    """Of two members."""
    metrics = {name: np.array(x, np.float32) for name, x in metrics.items()}
    metrics["loss"] = np.array(loss, np.float32)
    return History.of_chunk(first, np.array(steps, np.int32), metrics, np.array(finite))


def history():
    """Iterations 1-2 and 3-5; member 1 ends early, member 0 diverges after 3."""
    first = chunk(0, [[8, 16], [8, 16]], [[1, 2], [3, 4]], score=[[1, 1], [1, 1]])
    second = chunk(2, [[24, 32, 40], [24, -1, -1]], [[3, inf, 5], [5, nan, nan]])
    empty = History.empty(2, episodes=4)
    begun = empty.then(first).evaluated({"returns": np.ones((2, 4)), "cost": np.zeros((2, 4))})
    whole = begun.then(second)
    return begun, whole, whole.evaluated({"returns": np.full((2, 4), 2.0), "cost": np.ones((2, 4))})


def test_chunks_are_joined_and_what_diverged_is_masked():
    _, _, whole = history()
    np.testing.assert_array_equal(whole.env_steps, [[8, 16, 24, 32, 40], [8, 16, 24, nan, nan]])
    np.testing.assert_array_equal(whole.metrics["loss"], [[1, 2, 3, nan, nan], [3, 4, 5, nan, nan]])
    np.testing.assert_array_equal(whole.metrics["score"], [[1, 1, nan, nan, nan]] * 2)  # no longer
    assert whole.metrics["loss"].dtype == np.float32
    np.testing.assert_array_equal(whole.diverged_at, [3, nan])
    np.testing.assert_array_equal(whole.steps_taken, [40, 24])
    assert (whole.first, whole.stop) == (0, 5)


def test_evaluations_of_who_has_diverged_are_missing():
    _, _, whole = history()
    np.testing.assert_array_equal(whole.evaluations["env_steps"], [[16, 40], [16, 24]])
    np.testing.assert_array_equal(whole.evaluations["returns"][1], [[1] * 4, [2] * 4])
    np.testing.assert_array_equal(whole.evaluations["returns"][0], [[1] * 4, [nan] * 4])
    np.testing.assert_array_equal(whole.evaluations["cost"][1], [[0] * 4, [1] * 4])
    assert whole.num_evaluations == 2


def test_a_gap_is_an_error():
    begun, _, _ = history()
    with pytest.raises(ValueError, match="ends at 2 cannot go on from 3"):
        begun.then(chunk(3, [[8], [8]], [[1], [1]]))


def test_what_is_new_is_cut_off_and_joins_again():
    begun, whole, evaluated = history()
    new = evaluated.after(begun)
    assert (new.first, new.stop, new.num_evaluations) == (2, 5, 1)
    assert evaluated.after(whole).env_steps.shape == (2, 0)
    assert evaluated.after(whole).num_evaluations == 1
    equal(begun.then(new), evaluated)


def equal(a, b):
    np.testing.assert_array_equal(a.env_steps, b.env_steps)
    np.testing.assert_array_equal(a.diverged_at, b.diverged_at)
    for x, y in ((a.metrics, b.metrics), (a.evaluations, b.evaluations)):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])
    assert a.first == b.first


def test_a_file_holds_all_of_it():
    begun, _, evaluated = history()
    for cut in (begun, evaluated, evaluated.after(begun)):
        arrays = cut.to_arrays()
        assert all(x.shape[0] == 2 for x in arrays.values())
        equal(History.from_arrays(arrays, cut.stop), cut)
    # The names that files of before have too.
    names = {"env_steps", "diverged_at", "evaluation_steps", "evaluation_returns"}
    assert names <= evaluated.to_arrays().keys()


def test_a_member_has_the_iterations_that_it_ran():
    _, _, whole = history()
    member = whole.member(1)
    np.testing.assert_array_equal(member.env_steps, [8, 16, 24])
    np.testing.assert_array_equal(member.metrics["loss"], [3, 4, 5])
    assert member.evaluations["returns"].shape == (2, 4)
    assert np.isnan(member.diverged_at)
    assert whole.member(0).diverged_at == 3


def test_iterations_that_nobody_ran_are_trimmed():
    begun, _, _ = history()
    idle = begun.then(chunk(2, [[24, -1], [-1, -1]], [[1, nan], [nan, nan]]))
    assert idle.env_steps.shape == (2, 4)
    assert idle.trimmed().env_steps.shape == idle.trimmed().metrics["loss"].shape == (2, 3)


def test_batches_are_gathered():
    begun, _, whole = history()
    gathered = History.gather([[0, 3], [2, 1]], [begun, whole])
    assert gathered.env_steps.shape == (4, 5)
    np.testing.assert_array_equal(gathered.env_steps[3], [8, 16, nan, nan, nan])
    np.testing.assert_array_equal(gathered.metrics["loss"][2], [1, 2, 3, nan, nan])
    np.testing.assert_array_equal(gathered.diverged_at, [nan, nan, 3, nan])
    assert gathered.evaluations["returns"].shape == (4, 2, 4)
    assert np.isnan(gathered.evaluations["returns"][0, 1]).all()
    # A metric that only one of them has.
    one = chunk(0, [[8], [8]], [[1], [1]], extra=[[7], [7]])
    other = History.empty(2, 4).then(one)
    assert np.isnan(History.gather([[0, 1], [2, 3]], [begun, other]).metrics["extra"][:2]).all()


def test_its_score_is_the_newest_mean_return():
    begun, _, evaluated = history()
    assert begun.score() == 1
    assert evaluated.score() == 2  # of member 1 alone
    training = History.empty(2, 4).then(
        chunk(0, [[8, 16]] * 2, [[1, 1]] * 2, episode_return=[[nan, 3], [5, nan]])
    )
    assert training.score() == 4
    assert np.isnan(History.empty(2, 4).score())


def test_since_when_a_member_is_not_finite():
    loss = [[1, nan, 2, 3], [nan, 1, nan, nan], [1, inf, 2, 2], [nan, nan, nan, nan], [1, 1, 1, 1]]
    metrics = {"critic_loss": np.array(loss), "return": np.full((5, 4), nan)}
    finite = np.array([True, False, True, True, False])
    np.testing.assert_array_equal(diverged(metrics, finite, 4), [nan, 2, 1, nan, 3])


def test_means_are_of_what_there_is():
    values = np.array([[1, nan, 3], [nan, nan, nan]])
    np.testing.assert_array_equal(mean(values, axis=1), [2, nan])
    assert mean(values) == 2


def test_steps_of_lost_iterations_lie_on_a_line():
    known = np.array([[2.0, 4, 6, 8, 10, 12], [2, 4, 9, 14, 15, 16]])
    for lost in ([0, 1], [2, 3], [5], [4, 5]):
        steps = known.copy()
        steps[:, lost] = np.nan
        history = History.missing(2, 0, 6)._replace(env_steps=steps)
        exact = history.interpolated(lost, [12, 16]).env_steps
        np.testing.assert_array_equal(exact[0], known[0])
        guessed = history.interpolated(lost, None).env_steps[0]
        np.testing.assert_array_equal(guessed, known[0])
    # Between 4 steps after iteration 2 and 16 after iteration 6; those that are known stay.
    np.testing.assert_array_equal(exact[1], [2, 4, 9, 14, 15, 16])
    steps = np.where(np.arange(6) < 2, known, np.nan)
    history = History.missing(2, 0, 6)._replace(env_steps=steps)
    np.testing.assert_array_equal(
        history.interpolated([2, 3, 4, 5], [12, 16]).env_steps[1], [2, 4, 7, 10, 13, 16]
    )


def scored(returns, episodes, evaluated=None):
    """Of two members."""
    returns = np.array(returns, np.float32)
    metrics = {"episode_return": returns, "episodes": np.array(episodes)}
    evaluations = {} if evaluated is None else {"returns": np.array(evaluated, float)}
    evaluations |= {} if evaluated is None else {"env_steps": np.ones(np.shape(evaluated)[:2])}
    return History(np.ones(returns.shape), metrics, evaluations, np.full(2, nan))


def test_returns_since_an_iteration_weigh_episodes_alike():
    there = scored([[1, 4, nan, 7], [nan, 2, nan, nan]], [[1, 3, 0, 1], [0, 5, 0, 0]])
    np.testing.assert_allclose(there.returns_since(0), [20 / 5, 2])
    np.testing.assert_allclose(there.returns_since(1), [19 / 4, 2])
    np.testing.assert_array_equal(there.returns_since(2), [7, nan])
    np.testing.assert_array_equal(there.returns_since(4), [nan, nan])
    lost = there._replace(diverged_at=np.array([nan, 1.0]))
    np.testing.assert_array_equal(lost.returns_since(0), [4, -inf])
    later = there._replace(first=10)  # one that does not begin with the run
    np.testing.assert_array_equal(later.returns_since(12), [7, nan])


def test_without_training_episodes_the_newest_evaluation_counts():
    there = scored([[1.0], [1.0]], [[1], [1]], [[[0, 2], [4, 8]], [[9, 9], [1, nan]]])
    np.testing.assert_array_equal(there._replace(metrics={}).returns_since(0), [6, 1])
    np.testing.assert_array_equal(there.returns_since(0), [1, 1])  # where there are, they do
    nothing = there._replace(metrics={}, evaluations={})
    np.testing.assert_array_equal(nothing.returns_since(0), [nan, nan])


def test_members_are_chosen_and_mended():
    _, _, whole = history()
    turned = whole.rows(np.array([1, 0]))
    np.testing.assert_array_equal(turned.env_steps, whole.env_steps[::-1])
    np.testing.assert_array_equal(turned.metrics["loss"], whole.metrics["loss"][::-1])
    np.testing.assert_array_equal(turned.evaluations["cost"], whole.evaluations["cost"][::-1])
    np.testing.assert_array_equal(turned.diverged_at, [nan, 3])
    mended = whole.mended(np.array([True, False]))
    np.testing.assert_array_equal(mended.diverged_at, [nan, nan])
    again = mended.then(chunk(5, [[48], [-1]], [[7], [nan]], score=[[1], [nan]]))
    assert again.metrics["loss"][0, -1] == 7  # it counts again
    assert np.isnan(again.metrics["loss"][0, 3:5]).all()  # but not for the time before


def test_pieces_of_a_file_know_who_is_finite():
    """A member that was mended in between stays so."""
    _, _, whole = history()
    mended = whole.mended(np.array([True, False]))
    later = mended.then(chunk(5, [[48], [-1]], [[7], [nan]], score=[[1], [nan]])).after(mended)
    joined = whole.followed_by(later)
    np.testing.assert_array_equal(joined.diverged_at, [nan, nan])
    assert joined.metrics["loss"][0, -1] == 7
    with pytest.raises(ValueError, match="cannot go on"):
        whole.followed_by(later._replace(first=9))
