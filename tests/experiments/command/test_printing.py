"""Tables, and the meter of a run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.command import printing
from experiments.command.meter import Meter, Times
from experiments.runs.collect import Written
from experiments.runs.formatting import interval_text, number, setting_text, words_of
from jaxrl import Progress


def report(batch, iteration, iterations, env_steps, seconds=1.0):
    metrics = {"episode_return": float("nan")}
    return Progress(iteration, iterations, env_steps, 200, seconds, metrics, {}, [0], batch)


def test_the_meter_adds_up_batches(capsys):
    meter = Meter(total_steps=400)
    for x in [(0, 1, 1, 100), (1, 1, 2, 100), (1, 2, 2, 200), (2, 3, 9, 120)]:
        meter(report(*x))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["25%", "50%", "75%", "100%"]


def test_the_meters_rate_is_that_of_all_batches(capsys):
    """A batch's figures replace those it reported before; another batch's are added to them."""
    meter = Meter(total_steps=400)
    meter(report(0, 1, 2, 100, seconds=1.0))
    meter(report(0, 2, 2, 200, seconds=2.0))
    meter(report(1, 2, 2, 200, seconds=6.0))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[-1] for line in lines] == ["100 steps/s", "100 steps/s", "50 steps/s"]


@pytest.fixture
def terminal(monkeypatch):
    """One of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("terminal")
def test_the_bar_says_what_goes_on_and_how_long():
    with Meter(total_steps=400) as meter:
        (task,) = meter.bar.tasks
        assert task.description == "starting"
        meter.announce("program 1 of 1: 2 members")
        assert task.description == "compiling"
        meter(report(0, 1, 2, 100))
        assert (task.description, task.fields["status"]) == ("training", "100 steps/s")
        assert task.completed == 100
    now = SimpleNamespace(elapsed=3723.4, time_remaining=None)
    assert Times().render(now).plain == "1:02:03"
    now.time_remaining = 67
    assert Times().render(now).plain == "1:02:03, 1:07 left"


@pytest.mark.usefixtures("terminal")
def test_names_and_numbers_are_whole_in_a_narrow_terminal(capsys):
    names = ["normalize_observations", "temperature_learning_rate", "a"]
    meaning = "by mean and std, clipped to +-10; with recorded data by std + 0.001"
    rows = [[name, "static", "(10, 10, 10)", "[1, 2147483647]", meaning] for name in names]
    printing.table(["name", "kind", "shape", "accepted", "meaning"], rows)
    shown = capsys.readouterr().out
    for cell in [*rows[0][:4], *names, "recorded", "0.001"]:
        assert cell in shown
    assert meaning not in shown  # which is what is broken


def test_paths_with_brackets_are_shown_as_they_are(capsys):
    path = Path("data [x]/a[bold]-expert.hdf5")
    printing.recordings([Written("expert", path, 4000, np.array([1.0, 3.0]), None)])
    row = capsys.readouterr().out.splitlines()[-2]
    assert str(path) in row
    assert row.split()[:5] == ["expert", "4,000", "2", "2.00", "-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (1234.5678, "1,234.57"), (-123456.0, "-1.235e+05")],
)
def test_number(value, text):
    assert number(value) == text
    assert interval_text([value, value]) == ("-" if text == "-" else f"[{text}, {text}]")


def test_setting():
    setting = {"a": 1, "b": 0.00012345, "c": (64, 32), "d": True, "env.g": 9.8}
    assert setting_text(setting) == "a=1, b=0.0001234, c=64x32, d=true, env.g=9.8"
    assert words_of(setting) == "a=1 b=0.00012345 c=64x32 d=true env.g=9.8"
