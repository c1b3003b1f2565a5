"""Run folders read back in Python, and the table that they hold."""

import csv

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrl
from experiments.command.cli import main
from experiments.runs.folder import RunFolder
from tests.helpers import Toy, assert_same
from tests.probes import TimeLimit

WORDS = ["rate=0.30000000000000004,0.6", "nan_iteration=1,inf", "--seeds", "2", "--steps", "32"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Four settings of a toy, of which two diverge after an iteration."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    command = ["sweep", "tests.helpers:Toy", "tests.probes:TimeLimit", *WORDS]
    assert main([*command, "--evaluations", "2", "--episodes", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def trained():
    """The same in Python."""
    env = TimeLimit()
    agent = Toy(env, env.default_params, total_steps=32)
    space = {"rate": [0.30000000000000004, 0.6], "nan_iteration": [1.0, float("inf")]}
    with pytest.warns(UserWarning, match="not finite"):
        return jaxrl.sweep(agent, space, seeds=2, evaluations=2)


def test_it_is_the_population_that_was_trained(path, trained):
    opened = jaxrl.open_run(path)
    assert opened.table == trained.table
    assert_same(opened.history, trained.history)
    assert (opened.interrupted, len(opened)) == (False, 8)
    summary = RunFolder.open(path).summary
    assert opened.compile_seconds == pytest.approx(summary["compile_seconds"])
    assert opened.run_seconds == pytest.approx(summary["run_seconds"])
    for i in (0, 5):
        assert_same(opened[i].state, trained[i].state)
        assert opened[i].iteration == trained[i].iteration == 4
    assert opened[2].agent.rate == np.float32(0.3)
    np.testing.assert_array_equal(opened.evaluate(3).returns, trained.evaluate(3).returns)
    longer = jaxrl.train(opened[2].agent.replace(total_steps=48), start=opened[2])
    assert longer.iteration == 6


def test_final_returns_are_those_of_the_run_and_need_no_states(path, monkeypatch):
    def refuse(*_):
        raise AssertionError("states are read")

    monkeypatch.setattr(RunFolder, "states", refuse)
    monkeypatch.setattr("experiments.runs.folder.trained_agent", refuse)
    opened, summary = jaxrl.open_run(str(path)), RunFolder.open(path).summary
    returns = [member["final_return"] for member in summary["members"]]
    frame = opened.to_dataframe()
    np.testing.assert_array_equal(frame["final_return"], np.array(returns, dtype=float))
    assert frame["diverged_at"].tolist()[:2] == [1, 1]
    best = opened.summary().iloc[0]
    assert best["mean"] == summary["best"]["measures"]["return"]["mean"]
    assert best["rate"] == summary["best"]["hyperparameters"]["rate"]
    assert len(opened.curves()) == 4
    with pytest.raises(AssertionError, match="states are read"):
        _ = opened[0].state


def test_of_a_run_that_was_killed_it_is_what_was_saved(path, trained, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "config.json").write_text((path / "config.json").read_text())
    (folder / "checkpoints").symlink_to(path / "checkpoints")
    opened = jaxrl.open_run(folder)
    assert opened.interrupted
    assert opened.table == trained.table
    assert_same(opened.history.metrics, trained.history.metrics)
    assert_same(opened[3].state, trained[3].state)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_what_is_no_run(name, tmp_path):
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.json"):
        jaxrl.open_run(tmp_path / name)


def test_results_are_a_row_per_member_that_can_be_pasted_back(path):
    rows = list(csv.DictReader((path / "results.csv").read_text().splitlines()))
    summary, config = RunFolder.open(path).summary, RunFolder.open(path).config
    assert list(rows[0]) == [
        *["member", "rate", "nan_iteration", "seed"],
        *["final_return", "best_return", "final_length", "env_steps", "diverged_at"],
    ]
    assert [int(row["member"]) for row in rows] == list(range(8))
    for row, member in zip(rows, summary["members"], strict=True):
        expected = "" if member["final_return"] is None else repr(member["final_return"])
        assert row["final_return"] == expected
        assert row["seed"] == str(member["seed"])
        assert row["rate"] == repr(member["hyperparameters"]["rate"])
    assert rows[0]["rate"] == "0.30000000000000004"
    assert [row["diverged_at"] for row in rows] == ["1", "1", "", ""] * 2
    assert [row["nan_iteration"] for row in rows][::2] == ["1.0", "inf"] * 2
    words = [f"{name}={rows[2][name]}" for name in config["settings"][1]]
    assert words == ["rate=0.30000000000000004", "nan_iteration=inf"]
    frame = pd.read_csv(path / "results.csv")
    assert frame["final_return"].isna().sum() == 4


def test_settings_are_compared_in_the_summary(path):
    """Beside the mean and its interval; what has diverged has no part in it."""
    settings = RunFolder.open(path).summary["settings"]
    for setting in settings:
        measure = setting["measures"]["return"]
        assert set(measure) == {"mean", "ci95", "iqm", "iqm_ci95"}
        diverged = setting["hyperparameters"]["nan_iteration"] != "inf"
        assert (measure["iqm"] is None) == diverged
        if not diverged:  # of two seeds nothing is left out
            assert measure["iqm"] == measure["mean"]
    improvements = [setting["improvement"]["probability"] for setting in settings]
    best = settings.index(RunFolder.open(path).summary["best"])
    assert improvements[best] is None
    assert jax.tree.leaves(improvements)
