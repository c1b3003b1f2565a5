"""`jaxrl train` and `jaxrl sweep`, from words to results."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gymnax.environments.classic_control.cartpole import CartPole

import envs_jax
from experiments.command import options, starts
from experiments.command.assemble import assemble, request_of
from experiments.command.cli import main
from experiments.command.train import logs_of
from experiments.runs.folder import RunFolder
from jaxrl.training import sinks

TINY = ["num_envs=4", "num_steps=16", "num_minibatches=2", "--steps", "256", "--episodes", "3"]


def test_one_seed_has_no_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ppo", "CartPole-v1", "--seed", "7", *TINY]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("ppo-CartPole-v1-")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["final_return_ci95"] == [None, None]
    assert [m["seed"] for m in summary["members"]] == [7]
    assert "recipe ppo/CartPole-v1" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["train", "ppo", "CartPole-v1", *TINY, "--out", str(folder)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["eval", str(folder), "--episodes", "2", "--stochastic"]) == 0


def test_logs_of_all_kinds_and_a_member_that_is_not_finite(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["sweep", "ppo", "CartPole-v1", "learning_rate=1e-3,1e38", *TINY, "--out", str(out)]
    assert main([*command, "--tensorboard", "--log-member", "0", "--on-nan", "stop"]) == 1
    shown = capsys.readouterr()
    assert "jaxrl: warning: member 1 (seed 0) has a loss, returns or" in shown.err
    assert f"go on without it: jaxrl sweep --resume {out}" in shown.err
    assert "without 1 of 2 members" in shown.out
    summary = json.loads((out / "summary.json").read_text())
    assert [m["diverged_at"] for m in summary["members"]] == [None, 0]
    assert summary["members"][1]["final_return"] is None
    assert list((out / "tensorboard").rglob("*tfevents*"))

    assert main(["sweep", "--resume", str(out)]) == 0
    assert "without 1 of 2 members" in capsys.readouterr().out
    (out / "curve.png").unlink()
    assert main(["watch", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "ended, batch 0, iteration 4, 512 environment steps" in shown
    assert "environment steps per member" in shown
    assert (out / "curve.png").stat().st_size > 1000


def test_weights_and_biases_go_on_with_the_runs_of_a_folder(monkeypatch):
    begun = []
    monkeypatch.setattr(sinks, "Wandb", lambda *args, **options: begun.append(options) or options)
    args = argparse.Namespace(tensorboard=False, wandb="project", log_member=None)
    experiment = SimpleNamespace(table=[{"gamma": 0.9, "seed": 0}])
    for created, path in [("now", "runs/a"), ("now", "moved/a"), ("later", "runs/a")]:
        config = {"agent": "ppo", "env": "E", "hyperparameters": {}, "created": created}
        logs_of(args, RunFolder(Path(path), config), experiment)
    assert {options["group"] for options in begun} == {"a"}
    assert all(options["table"] is experiment.table for options in begun)
    first, moved, other = [options["id"] for options in begun]
    assert first == moved != other


class CostlyCartPole(CartPole):
    """Reports a cost of 1/2 for every step."""

    def step_env(self, key, state, action, params):
        *stepped, info = super().step_env(key, state, action, params)
        return *stepped, {**info, "cost": 0.5}


@pytest.fixture
def costly(monkeypatch):
    env = CostlyCartPole()
    monkeypatch.setattr(envs_jax, "make", lambda id, **options: (env, env.default_params))


def test_what_an_environment_reports_is_summed_and_shown(costly, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["sweep", "ppo", "CartPole-v1", "gamma=0.9,0.99", "--seeds", "2", *TINY]
    assert main([*command, "--record", "cost", "--evaluations", "2", "--out", str(out)]) == 0
    assert "mean cost" in capsys.readouterr().out
    folder = RunFolder.open(out)
    assert folder.config["record"] == ["cost"]
    metrics, summary = folder.metrics(), folder.summary
    np.testing.assert_allclose(metrics["episode_cost"], metrics["episode_length"] / 2)
    np.testing.assert_allclose(metrics["final_cost"], metrics["final_lengths"] / 2)
    assert metrics["evaluation_cost"].shape == metrics["evaluation_returns"].shape == (4, 2, 64)
    np.testing.assert_allclose(metrics["evaluation_cost"], metrics["evaluation_returns"] / 2)
    by_member = metrics["final_cost"].mean(axis=1)
    assert [m["recorded"]["cost"] for m in summary["members"]] == pytest.approx(by_member)
    for setting in summary["settings"]:
        expected = by_member[setting["members"]]
        assert setting["recorded"]["cost"]["mean"] == pytest.approx(expected.mean())
        low, high = setting["recorded"]["cost"]["ci95"]
        assert low < expected.mean() < high

    args = options.parse(["train", "--from", str(out), "--best"])
    starts.settle(args)
    again = assemble(request_of(args))
    assert (again.agent.record, again.evaluations, again.episodes) == (("cost",), 2, 3)

    assert main(["eval", str(out), "--member", "1", "--episodes", "2"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()[1:4]
    assert header.split()[-4:] == ["mean", "length", "mean", "cost"]
    length, cost = map(float, row.split()[-2:])
    assert cost == pytest.approx(length / 2, abs=0.01)


def test_what_an_environment_does_not_report_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "ppo", "CartPole-v1", "--record", "cost"]) == 2
    error = capsys.readouterr().err
    assert "record='cost' is not a number in the info of CartPole-v1" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
