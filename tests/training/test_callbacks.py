"""Callbacks: asked, told and closed in order; none can end a run by failing to write."""

import signal

import jax
import numpy as np
import pytest

import jaxrl
from jaxrl.training.callbacks import Guarded, OnNaN, Saving, Signals, closing, guarded
from jaxrl.training.history import History
from tests.helpers import StopAt, arrays
from tests.training.test_sweep import toy


def progress(**changes):
    seen = jaxrl.Progress(5, 10, 40, 80, 1.0, {}, {}, [0], 0)
    return seen._replace(history=History.empty(1, 1), **changes)


class Recorder(jaxrl.Callback):
    """Writes down all that happens to it; wants the states after some iterations."""

    def __init__(self, due=(), stop=None):
        self.iterations, self.stop, self.calls = due, stop, []

    def stops(self, progress):
        self.calls.append(("stops", progress.iteration))
        return progress.iteration == self.stop

    def due(self, progress):
        self.calls.append(("due", progress.iteration, progress.over))
        return progress.iteration in self.iterations

    def __call__(self, progress, states):
        self.calls.append(("call", progress.iteration, states is not None))

    def close(self):
        self.calls.append("close")


def test_each_is_asked_then_told_then_closed():
    recorder, other = Recorder(due=[2], stop=3), Recorder()
    run = jaxrl.train(toy(iterations=5), callbacks=[recorder, other])
    assert run.interrupted
    assert run.iteration == 3
    assert recorder.calls == [
        *[("stops", 1), ("due", 1, False), ("call", 1, False)],
        *[("stops", 2), ("due", 2, False), ("call", 2, True)],
        *[("stops", 3), ("due", 3, True), ("call", 3, False)],
        "close",
    ]
    # The other one sees no states that it did not ask for.
    assert ("call", 2, False) in other.calls
    assert other.calls[-1] == "close"


def test_the_states_are_those_of_all_members_after_the_iteration():
    class Keeper(jaxrl.Callback):
        def due(self, progress):
            return progress.iteration == 2

        def __call__(self, progress, states):
            if states is not None:
                self.states = states

    keeper = Keeper()
    jaxrl.sweep(toy(iterations=5), seeds=3, callbacks=[keeper])
    assert isinstance(keeper.states.weight, np.ndarray)
    stopped = jaxrl.sweep(toy(iterations=5), seeds=3, callbacks=[StopAt(2)])
    ((_, run),) = stopped.batches
    for kept, expected in zip(arrays(keeper.states), arrays(run.state), strict=True):
        np.testing.assert_array_equal(kept, expected)
    assert jax.dtypes.issubdtype(keeper.states.key.dtype, jax.dtypes.prng_key)


def test_an_interruption_is_saved(tmp_path):
    checkpoints = jaxrl.Checkpoints(tmp_path, every=3600)
    jaxrl.train(toy(iterations=5), callbacks=[StopAt(3)], checkpoints=checkpoints)
    assert (tmp_path / "3").is_dir()


def test_all_are_closed_whatever_ends_the_run():
    def fail(progress):
        raise RuntimeError("no")

    recorder, handler = Recorder(), signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="no"):
        jaxrl.train(toy(iterations=5), callbacks=[recorder, fail])
    assert recorder.calls[-1] == "close"
    assert signal.getsignal(signal.SIGINT) is handler


def test_one_that_fails_to_close_leaves_none_open():
    class Broken(jaxrl.Callback):
        def close(self):
            raise RuntimeError("broken")

    first, last = Recorder(), Recorder()
    with pytest.raises(RuntimeError, match="broken"), closing([first, Broken(), last]):
        pass
    assert first.calls == last.calls == ["close"]


def test_a_sweep_closes_once_for_all_its_batches():
    recorder = Recorder()
    jaxrl.sweep(toy(iterations=5), seeds=4, batch_size=2, callbacks=[recorder])
    assert recorder.calls.count("close") == 1
    assert recorder.calls.count(("stops", 5)) == 2


def test_one_that_cannot_write_is_left_out():
    class Full(Recorder):
        def __call__(self, progress, states):
            raise OSError("no space left")

    full = Full()
    (callback,) = guarded([full])
    with pytest.warns(UserWarning, match="Full ends here: no space left"):
        callback(progress(), None)
    callback(progress(), None)
    callback.close()
    assert full.calls == ["close"]
    assert not callback.stops(progress())


def test_one_that_cannot_be_called_is_refused():
    with pytest.raises(ValueError, match=r"callbacks: 'log.jsonl' is not a function"):
        jaxrl.train(toy(), callbacks=["log.jsonl"])


def test_a_function_is_one():
    seen = []
    callback = Guarded(seen.append)
    assert not callback.stops(progress())
    assert not callback.due(progress())
    callback(progress(), None)
    assert [x.iteration for x in seen] == [5]


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_noticed_and_given_back(which):
    handler = signal.getsignal(which)
    with closing([signals := Signals()]):
        assert not signals.stops(progress())
        signal.raise_signal(which)
        assert signals.stops(progress())
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(which) is handler


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with closing([signals := Signals()]):
            signal.raise_signal(signal.SIGHUP)
            assert not signals.stops(progress())
    finally:
        signal.signal(signal.SIGHUP, handler)


@pytest.mark.parametrize("on_nan", ["report", "stop"])
def test_members_that_are_not_finite_are_named_once(on_nan):
    history = History.empty(2, 1)._replace(diverged_at=np.array([np.nan, 5.0]))
    seen = progress()._replace(history=history, members=[4, 6], seeds=[0, 9])
    line = r"member 6 \(seed 9\) has a loss, returns or parameters .* after iteration 5"
    with pytest.warns(UserWarning, match=line):
        assert OnNaN(on_nan).stops(seen._replace(first=4)) == (on_nan == "stop")
    assert not OnNaN(on_nan).stops(seen._replace(first=6))  # told before


def test_what_could_not_be_saved_is_saved_the_next_time():
    class Store:
        saves, works = (), False

        def due(self):
            return False

        def save(self, iteration, states, history, score, reached, has_ended):
            self.saves = (*self.saves, (iteration, history.first, history.stop, score))
            return self.works

    def after(n):
        rows = History.of_chunk(
            0, 8 * np.arange(1, n + 1)[None], {"episode_return": np.arange(n)[None]}, np.ones(1)
        )
        return progress(iteration=n)._replace(history=History.empty(1, 1).then(rows))

    saving = Saving(store := Store(), History.empty(1, 1))
    assert not saving.due(progress())
    assert saving.due(progress(over=True))
    saving(after(1), None)  # not due: no states
    saving(after(2), "states")
    store.works = True
    saving(after(3), "states")
    saving(after(5), "states")
    assert store.saves == ((2, 0, 2, 0.5), (3, 0, 3, 1.0), (5, 3, 5, 3.5))
