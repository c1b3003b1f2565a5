"""Tables, and the meter of a run."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.command import printing
from experiments.runs.collect import Written
from jaxrl import History, Progress
from jaxrl.report.formatting import (
    exact_text,
    interval_text,
    number,
    setting_text,
    single_text,
    words_of,
)
from jaxrl.training.meter import Meter


def report(batch, iteration, iterations, env_steps, seconds=1.0):
    metrics = {"episode_return": float("nan")}
    history = History(np.array([[env_steps]]), {}, {}, np.full(1, np.nan))
    members = [batch]
    return Progress(
        iteration, iterations, env_steps, 200, seconds, metrics, {}, members, batch, history=history
    )


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


def test_the_meter_counts_members_that_go_on_in_another_batch_once(capsys):
    """As those do that a successive halving keeps."""
    meter = Meter(total_steps=400)
    meter(report(0, 1, 2, 100))
    meter(report(1, 1, 2, 100)._replace(members=[0]))
    meter(report(1, 2, 2, 400)._replace(members=[0]))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["25%", "100%"]


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
    times = meter.bar.columns[-1]
    assert times.render(now).plain == "1:02:03"
    now.time_remaining = 67
    assert times.render(now).plain == "1:02:03, 1:07 left"


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


def test_values_of_tables_are_those_of_single_precision():
    values = [0.00021544346900318845, 1e-4, 0.1, 1e39, 1e-50, float("inf"), 3, True, (64, 32)]
    texts = ["0.00021544346", "0.0001", "0.1", "1e+39", "1e-50", "inf", "3", "true", "64x32"]
    assert [single_text(value) for value in values] == texts
    for value, text in list(zip(values, texts, strict=True))[:3]:
        assert np.float32(text) == np.float32(value)
    assert exact_text(0.00021544346900318845) == "0.00021544346900318845"


def summary(seeds):
    """Of two settings, the second the best."""
    interval = {"mean": 2.0, "ci95": [1.0, 3.0], "iqm": 2.5, "iqm_ci95": [1.5, 3.5]}
    settings = [
        {
            "hyperparameters": {"rate": rate},
            "members": list(range(i * seeds, (i + 1) * seeds)),
            "measures": {"return": interval},
            "recorded": {},
            "improvement": {"probability": chance, "ci95": [0.5, 1.0]},
        }
        for i, (rate, chance) in enumerate([(0.00021544346900318845, 0.75), (0.1, float("nan"))])
    ]
    return {
        **{"settings": settings, "best": settings[1], "episodes_per_member": 3},
        **{"members": [{"final_return": 1.0}] * 2 * seeds, "unfinished_episodes": 0},
        **{"unit": "environment steps", "env_steps": 8, "env_steps_per_second": 1.0},
        **{"compile_seconds": 1.0, "run_seconds": 1.0, "interrupted": False},
    }


def shown(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_the_best_setting_is_marked_and_named(capsys):
    printing.results(summary(seeds=8))
    _, header, _, first, second, best, _ = shown(capsys)
    assert " ".join(header) == "rate mean return 95% t IQM 95% bootstrap P(best higher)"
    assert first == ["0.00021544346", "2.00", "[1.00,", "3.00]", "2.50", "[1.50,", "3.50]", "0.75"]
    assert second[-2:] == ["-", "best"]
    assert best == ["best:", "rate=0.1"]


@pytest.mark.parametrize(
    ("search", "interrupted", "line"),
    [
        ({}, True, "best so far: rate=0.1"),
        ({"rungs": []}, False, "best of those trained to the end: rate=0.1"),
        ({"rungs": []}, True, "best so far of those trained longest: rate=0.1"),
    ],
)
def test_the_best_is_no_better_than_it_is(search, interrupted, line, capsys):
    printing.results(summary(seeds=8) | search | {"interrupted": interrupted})
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_without_any_return_no_setting_is_the_best(missing, capsys):
    content = summary(seeds=8)
    content["best"]["measures"]["return"]["mean"] = missing
    printing.results(content)
    text = capsys.readouterr().out
    assert "no setting is the best: none has a return" in text.splitlines()
    assert " best\n" not in text


def test_few_seeds_are_said_to_tell_little(capsys):
    printing.results(summary(seeds=2))
    assert "intervals of 2 seeds say little" in capsys.readouterr().out
    printing.results(summary(seeds=1))
    _, header, *_ = lines = shown(capsys)
    assert " ".join(header) == "rate mean return 95% t"  # one seed has no more to it
    assert not any("intervals" in line for line in lines)


def test_a_narrow_terminal_does_without_what_is_optional(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for width, last in (("55", "t"), ("110", "higher)")):
        monkeypatch.setenv("COLUMNS", width)
        printing.results(summary(seeds=8))
        text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        header, _, first, *_ = [line for line in text.splitlines()[1:] if line.strip()]
        assert header.split()[-1] == last
        assert first.split()[0] == "0.00021544346"
        assert "best" in text.splitlines()[5]
