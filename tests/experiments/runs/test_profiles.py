"""Performance profiles of run folders: what is compared, on which scale, and what is refused."""

import json

import numpy as np
import pytest

from experiments.command.cli import main
from experiments.runs.folder import RunFolder
from experiments.runs.profiles import compare
from jaxrl.report.stats import iqm_ci, probability_of_improvement

CARTPOLE, PENDULUM = "CartPole-v1", "Pendulum-v1"


@pytest.fixture
def write(tmp_path):
    """Writes what is read of a run that has ended: settings by name, returns of their members."""

    def folder(name, agent, env, finals, ended=True):
        settings, members = [], []
        for rate, returns in finals.items():
            numbers = list(range(len(members), len(members) + len(returns)))
            settings.append({"hyperparameters": {"rate": rate}, "members": numbers})
            members += [
                {"hyperparameters": {"rate": rate}, "seed": seed, "final_return": x}
                for seed, x in enumerate(returns)
            ]
        config = {
            **{"format": 1, "agent": agent, "env": env, "env_options": {}, "env_params": {}},
            **{"hyperparameters": {"total_steps": 8}, "settings": [{}], "seeds": [0]},
            **{"data": None, "evaluations": 0, "episodes": 1},
        }
        summary = {"members": members, "settings": settings, "interrupted": False}
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        if ended:
            (path / "summary.json").write_text(json.dumps(summary))
        return path

    return folder


def compared(*paths, **references):
    found = compare([RunFolder.open(path) for path in paths], references)
    return {scores.label: [x.tolist() for x in scores.strata] for scores in found.scores}, found


def test_settings_of_one_run(write):
    path = write("a", "ppo", CARTPOLE, {0.1: [1.0, 2.0], 0.2: [3.0, None]})
    scores, found = compared(path)
    assert scores["0.1"] == [[1.0, 2.0]]
    np.testing.assert_array_equal(scores["0.2"], [[3.0, np.nan]])  # which has diverged
    assert (found.names, found.scales) == ("rate", {})


def test_runs_of_one_agent_are_one_curve_over_environments(write):
    paths = [
        write("a", "ppo", CARTPOLE, {0.1: [20.0, 120.0]}),
        write("b", "sac", CARTPOLE, {0.1: [70.0, None], 0.2: [30.0, 40.0]}),
        write("c", "sac", PENDULUM, {0.1: [-100.0, -200.0]}),
        write("d", "ppo", PENDULUM, {0.1: [-300.0, -250.0]}),
    ]
    scores, found = compared(*paths)
    assert found.names == "agent"
    assert found.scales == {CARTPOLE: (20.0, 120.0), PENDULUM: (-300.0, -100.0)}
    assert scores["ppo"] == [[0.0, 1.0], [0.0, 0.25]]
    np.testing.assert_array_equal(scores["sac"], [[0.5, np.nan], [1.0, 0.5]])  # of its best setting
    scores, found = compared(*paths, **{PENDULUM: (-1000.0, 0.0)})
    assert scores["ppo"] == [[0.0, 1.0], [0.7, 0.75]]


def test_runs_of_one_agent_in_one_environment_are_compared_by_name(write):
    one, other = (write(name, "ppo", CARTPOLE, {0.1: [1.0, 2.0]}) for name in ("x", "y"))
    scores, found = compared(one, other)
    assert (list(scores), found.names, found.scales) == (["x", "y"], "run", {})
    again = write("z/x", "ppo", CARTPOLE, {0.1: [5.0]})
    assert list(compared(one, again)[0]) == [str(one), str(again)]


@pytest.mark.parametrize(
    ("runs", "words", "line"),
    [
        ([("ppo", CARTPOLE), ("sac", PENDULUM)], [], "ppo has no run in Pendulum-v1"),
        ([("ppo", CARTPOLE)], ["--reference", "Ant=0,1"], "--reference Ant=...: the runs are of"),
        (
            [("ppo", CARTPOLE)],
            ["--reference", f"{CARTPOLE}=0,1", "--reference", f"{CARTPOLE}=0,2"],
            "--reference: an environment is given twice",
        ),
        ([("ppo", CARTPOLE)], ["--reference", "0,1"], "0,1 is not ENV=LOW,HIGH"),
        ([("ppo", CARTPOLE)], ["--reference", f"{CARTPOLE}=1,1"], "is not two different numbers"),
    ],
)
def test_what_cannot_be_compared_is_one_line(runs, words, line, write, capsys):
    paths = [write(str(i), *run, {0.1: [1.0]}) for i, run in enumerate(runs)]
    try:
        status = main(["plot", *map(str, paths), "--profile", *words])
    except SystemExit as end:  # argparse's
        status = end.code
    assert status == 2
    (only,) = capsys.readouterr().err.splitlines()
    assert line in only


def test_a_run_that_has_not_ended_and_a_reference_without_a_profile(write, capsys):
    path = write("a", "ppo", CARTPOLE, {0.1: [1.0]}, ended=False)
    assert main(["plot", str(path), "--profile"]) == 2
    assert "has not ended" in capsys.readouterr().err
    assert main(["plot", str(path), "--reference", f"{CARTPOLE}=0,1"]) == 2
    assert "--reference has no effect without --profile" in capsys.readouterr().err


def test_the_command_prints_what_it_draws(write, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ppo, sac = [1.0, 2.0, 6.0, 9.0, 11.0], [3.0, 4.0, 7.0, 8.0, 30.0]
    paths = [
        write("a", "ppo", CARTPOLE, {0.1: ppo}),
        write("b", "sac", CARTPOLE, {0.1: sac, 0.2: [1.0] * 5}),
    ]
    assert main(["plot", *map(str, paths), "--profile"]) == 0
    header, _, one, other, *_, note, out = [
        line for line in capsys.readouterr().out.splitlines() if line.strip()
    ]
    assert header.split()[:2] == ["agent", "runs"]
    iqm, low, high = iqm_ci(ppo)
    chance, *ends = probability_of_improvement([sac], [ppo])
    assert one.split() == [
        *["ppo", "5", f"{iqm:.2f}", f"[{low:.2f},", f"{high:.2f}]"],
        *[f"{chance:.2f}", f"[{ends[0]:.2f},", f"{ends[1]:.2f}]"],
    ]
    assert other.split()[:3] == ["sac", "5", f"{iqm_ci(sac)[0]:.2f}"]
    assert other.split()[-1] == "best"
    assert (note, out) == ("of a run of several settings its best", "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000
