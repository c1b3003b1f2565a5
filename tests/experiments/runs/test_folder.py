"""Run folders: what a sweep leaves, and what reads it."""

import json

import jax
import numpy as np
import pytest

import jaxrl
from experiments.command.cli import main
from experiments.runs.folder import RunFolder

TINY = ["num_envs=4", "num_steps=16", "num_minibatches=2", "--steps", "256", "--episodes", "3"]


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    """A sweep of a static and a traced hyper-parameter and an environment's: 8 settings."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    grid = ["learning_rate=log:1e-4:1e-2:2", "activation=tanh,relu", "env.gravity=5,9.8"]
    command = ["sweep", "ppo", "CartPole-v1", *grid, *TINY, "--seeds", "2", "--out", str(folder)]
    assert main(command) == 0
    return folder


def test_run_folder(sweep_folder):
    config = json.loads((sweep_folder / "config.json").read_text())
    summary = json.loads((sweep_folder / "summary.json").read_text())
    metrics = RunFolder.open(sweep_folder).metrics()
    assert config["format"] == 1
    assert config["agent"] == "ppo"
    assert config["env"] == "CartPole-v1"
    assert config["hyperparameters"]["num_envs"] == 4
    assert config["versions"]["jax"] == jax.__version__
    assert "sweep ppo CartPole-v1" in config["command"]
    members, settings = summary["members"], summary["settings"]
    assert len(settings) == 8
    assert [m["seed"] for m in members] == [0, 1] * 8
    assert [s["members"] for s in settings] == [[2 * i, 2 * i + 1] for i in range(8)]
    assert sorted(i for rows in summary["checkpoints"] for i in rows) == list(range(16))
    assert metrics["env_steps"].shape == (16, 4)
    assert (metrics["env_steps"] == [64, 128, 192, 256]).all()
    final = metrics["final_returns"]
    assert final.shape == (16, 3)
    np.testing.assert_allclose([m["final_return"] for m in members], final.mean(axis=1))
    assert summary["final_return_mean"] == pytest.approx(final.mean())
    low, high = summary["final_return_ci95"]
    assert low < summary["final_return_mean"] < high
    means = [s["measures"]["return"]["mean"] for s in settings]
    assert means == pytest.approx(final.reshape(8, 6).mean(axis=1))
    assert summary["best"]["measures"]["return"]["mean"] == max(means)
    assert summary["unit"] == config["unit"] == "environment steps"
    assert summary["env_steps"] == 16 * 256
    assert summary["env_steps_per_second"] == pytest.approx(16 * 256 / summary["run_seconds"])
    assert (sweep_folder / "curve.png").stat().st_size > 10_000
    lines = [json.loads(line) for line in (sweep_folder / "log.jsonl").read_text().splitlines()]
    assert [(x["batch"], x["iteration"]) for x in lines] == [
        (p, i) for p in (0, 1) for i in (1, 2, 3, 4)
    ]
    assert lines[-1]["env_steps"] == 8 * 256
    second = [i for i, m in enumerate(members) if m["hyperparameters"]["activation"] == "relu"]
    expected = metrics["policy_loss"][second, -1].mean()
    assert lines[-1]["policy_loss"] == pytest.approx(expected, 1e-3)


@pytest.mark.slow
def test_states_come_back_as_they_were(sweep_folder):
    """A member read from disk is the agent and the state that training it alone gives."""
    folder = RunFolder.open(sweep_folder)
    (number, agent, state), *others = folder.members(1)
    assert number == 1
    assert not others
    assert folder.summary["members"][1]["seed"] == 1
    assert folder.setting(1) == {
        "learning_rate": pytest.approx(1e-4),
        "activation": "tanh",
        "env.gravity": 5.0,
    }
    assert agent.activation == "tanh"
    assert float(agent.env_params.gravity) == 5.0
    alone = jaxrl.train(agent, seed=1).state
    assert jax.tree.structure(alone) == jax.tree.structure(state)
    assert jax.random.key_data(state.key).tolist() == jax.random.key_data(alone.key).tolist()
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("words", [["train", "--resume"], ["eval"]])
def test_a_folder_of_another_version_is_told(words, tmp_path, capsys):
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_text("{}")
    assert main([*words, str(tmp_path)]) == 2
    assert "was written by another version of jaxrl" in capsys.readouterr().err


def test_eval(sweep_folder, capsys):
    assert main(["eval", str(sweep_folder), "--member", "7", "--episodes", "2"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate=0.0001, activation=relu, env.gravity=9.8" in shown
    assert main(["eval", str(sweep_folder), "--member", "16"]) == 2
    assert "member 16 is outside 0..15" in capsys.readouterr().err


def test_plot_overlays_runs(sweep_folder, tmp_path, capsys):
    out = tmp_path / "both.png"
    assert main(["plot", str(sweep_folder), str(sweep_folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.stat().st_size > 10_000
    assert main(["plot", str(sweep_folder), "--out", str(tmp_path / "no" / "a.png")]) == 2
    assert main(["plot", str(sweep_folder), "--out", str(tmp_path / "a.xyz")]) == 2
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_a_newer_format_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": 2}')
    for words in (["train", "--resume"], ["eval"], ["plot"], ["watch"]):
        assert main([*words, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "written by a newer version of jaxrl (format 2, this version reads up to 1)" in error


def test_a_run_that_has_not_ended_is_told(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["eval", str(tmp_path)]) == 2
    assert f"{tmp_path} has not ended: it has no summary.json" in capsys.readouterr().err
