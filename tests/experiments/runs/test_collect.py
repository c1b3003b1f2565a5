"""`jaxrl collect`, and learning from what it made."""

import json
from pathlib import Path

import numpy as np
import pytest

import envs_jax
from envs_jax import datasets
from experiments.command import options, starts
from experiments.command.assemble import assemble, request_of
from experiments.command.cli import main
from experiments.runs import collect
from jaxrl.parts.ope import per_decision


@pytest.mark.slow
def test_collected_data_is_learnt_from(tmp_path, monkeypatch, capsys):
    """collect, then train on what it made, evaluate and draw that; each set is what it says."""
    monkeypatch.chdir(tmp_path)
    words = ["collect", "ppo", "CartPole-v1", "--steps", "60000", "--size", "5000", "--out", "data"]
    assert main(words) == 0
    assert main(words) == 2  # nothing is overwritten
    assert "already exists" in capsys.readouterr().err
    env, env_params = envs_jax.make("CartPole-v1")
    recordings = {}
    for kind in collect.KINDS:
        recording = datasets.read(f"data/CartPole-v1-{kind}.hdf5", env, env_params)
        assert recording.info["kind"] == kind
        assert recording.info["seeds"] == [0]
        recordings[kind] = recording
        whole = ~(recording.terminated | recording.truncated)
        np.testing.assert_array_equal(
            recording.next_obs[:-1][whole[:-1]], recording.obs[1:][whole[:-1]]
        )
    assert [len(r) for r in recordings.values()] == [
        5000,
        5000,
        len(recordings["medium-replay"]),
        10_000,
        5000,
    ]
    np.testing.assert_allclose(recordings["random"].log_prob, -np.log(2), rtol=1e-6)
    medium = recordings["medium"]
    assert medium.log_prob.max() <= 0
    assert medium.log_prob.min() < medium.log_prob.max()
    arrays = medium.ope_arrays(medium.log_prob)  # of itself: the mean return of whole episodes
    value = float(per_decision(*arrays, gamma=1.0))
    assert value == pytest.approx(medium.whole_returns.mean(), rel=1e-4)
    score = {k: float(np.mean(r.score(r.episode_returns))) for k, r in recordings.items()}
    assert abs(score["random"]) < 5
    assert score["random"] < score["medium"] < score["expert"]
    assert 15 < score["medium"] < 60

    data = "data/CartPole-v1-expert.hdf5"
    words = ["train", "bc", "CartPole-v1", "--data", data, "--steps", "2000", "--seeds", "2"]
    assert main([*words, "--evaluations", "2", "--episodes", "5", "--out", "run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    setting = summary["settings"][0]
    measures = {name: measure["mean"] for name, measure in setting["measures"].items()}
    assert measures["best_return"] >= measures["return"] > 100
    assert measures["score"] > 20
    assert summary["unit"] == "gradient steps"
    assert summary["gradient_steps"] == 2 * 2000
    assert "env_steps" not in summary
    assert Path("run/curve.png").exists()
    out, err = capsys.readouterr()
    assert "of recorded data" in err
    assert "best score" in out
    assert "gradient steps per second" in out
    args = options.parse(["train", "--from", "run"])
    starts.settle(args)
    again = assemble(request_of(args))
    assert (again.data, again.evaluations) == ([str(Path(data).resolve())], 2)
    assert again.agent.unit == "gradient steps"
    Path(data).unlink()  # a trained agent needs it no more
    assert main(["eval", "run", "--episodes", "3"]) == 0
