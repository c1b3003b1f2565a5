"""`jaxrl sweep --halving` and `--pbt`, from words to results, stopped and resumed."""

import json

import jax
import numpy as np
import pytest

import jaxrl
from experiments.command import assemble, options
from experiments.command.cli import main
from experiments.runs import search
from experiments.runs.folder import RunFolder
from jaxrl import Lin, Log
from tests.helpers import StopAt, assert_same
from tests.training.tuned import tuned

SWEEP = ["sweep", "tests.training.tuned:Tuned", "tests.probes:ActionChoice"]
STEPS = ["--steps", "160", "--episodes", "2", "--checkpoint-every", "0"]
HALVING = [*SWEEP, "rate=log:1e-6:1e-1:11", "--halving", "3", *STEPS]
PBT = [*SWEEP, "rate=log:1e-5:1", "--random", "6", "--pbt", "0.34", "--pbt-every", "16", *STEPS]
PBT += ["--search-seed", "1"]


def request(words):
    return assemble.request_of(options.parse(words))


@pytest.fixture
def stop_at(monkeypatch):
    """A run of the command that is stopped once an iteration is done."""

    def run(words, iteration, method):
        real = getattr(jaxrl, method)

        def stopped(*args, callbacks, **kwargs):
            return real(*args, callbacks=[*callbacks, StopAt(iteration)], **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(jaxrl, method, stopped)
            assert main(words) == 130

    return run


@pytest.fixture(scope="module")
def halving(tmp_path_factory):
    out = tmp_path_factory.mktemp("halving") / "run"
    assert main([*HALVING, "--out", str(out)]) == 0
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def pbt(tmp_path_factory):
    out = tmp_path_factory.mktemp("pbt") / "run"
    assert main([*PBT, "--out", str(out)]) == 0
    return RunFolder.open(out)


def states(folder, checkpoint="newest"):
    return {
        m.number: jax.tree.map(np.asarray, m.state.skill) for m in folder.members(None, checkpoint)
    }


def test_a_halving_is_that_of_python(halving):
    population = jaxrl.halving(tuned(), {"rate": Log(1e-6, 1e-1, 11)})
    summary = halving.summary
    assert [r["members"] for r in summary["rungs"]] == [r.members for r in population.rungs]
    assert summary["checkpoints"] == [r.members for r in population.rungs]
    assert [r["steps"] for r in summary["rungs"]] == [16, 52, 160]
    assert summary["env_steps"] == 392
    assert summary["best"]["hyperparameters"]["rate"] == pytest.approx(0.01)
    np.testing.assert_array_equal(
        halving.metrics()["episode_return"], population.history.metrics["episode_return"]
    )
    assert states(halving) == {i: float(population[i].state.skill) for i in range(11)}
    assert not (halving.path / "sweep.png").exists()
    assert (halving.path / "curve.png").exists()


@pytest.mark.slow
def test_a_stopped_halving_can_be_read_and_goes_on(halving, tmp_path, stop_at, capsys):
    out = tmp_path / "run"
    stop_at([*HALVING, "--out", str(out)], 9, "halving")
    capsys.readouterr()
    (out / "summary.json").unlink()  # as if it had been killed
    folder = RunFolder.open(out)
    assert [len(members) for members in folder.listing["checkpoints"]] == [11, 3]
    skills = states(folder)
    kept = folder.listing["checkpoints"][1]
    assert {i for i in skills if skills[i] == states(halving)[i]} == set(range(11)) - set(kept)
    assert main(["eval", str(out), "--member", str(kept[-1])]) == 0
    assert main(["plot", str(out)]) == 0
    assert main(["sweep", "--resume", str(out)]) == 0
    assert "members 11 until 16, 3 until 52, 1 until 160" in capsys.readouterr().err
    assert states(RunFolder.open(out)) == states(halving)
    assert_same(RunFolder.open(out).metrics(), halving.metrics())
    assert main(["sweep", "--resume", str(out), "--steps", "320"]) == 2
    assert "the rungs of" in capsys.readouterr().err


def test_a_table_says_for_how_long_settings_were_trained(halving, capsys):
    from experiments.command import printing

    printing.results(halving.summary)
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.strip()]
    assert rows[1][:2] == ["rate", "steps"]
    assert {row[1] for row in rows[3:14]} == {"16", "52", "160"}
    assert "best of those trained to the end: rate=0.01" in shown


def test_pbt_is_that_of_python(pbt):
    space = {"rate": Log(1e-5, 1.0)}
    population = jaxrl.pbt(tuned(), space, random=6, share=0.34, every=16, seed=1)
    summary = pbt.summary
    assert [m["seed"] for m in summary["members"]] == list(range(6, 12))
    assert [e["parents"] for e in summary["exchanges"]] == [e.parents for e in population.exchanges]
    assert [e["values"] for e in summary["exchanges"]] == [e.values for e in population.exchanges]
    rates = [m["hyperparameters"]["rate"] for m in summary["members"]]
    assert rates == [row["rate"] for row in population.table]
    assert len(summary["settings"]) == 6
    assert states(pbt) == {i: float(population[i].state.skill) for i in range(6)}
    assert (pbt.path / "schedule.png").stat().st_size > 1000
    assert not (pbt.path / "sweep.png").exists()


@pytest.mark.slow
def test_a_stopped_pbt_can_be_read_and_goes_on(pbt, tmp_path, stop_at, capsys):
    out = tmp_path / "run"
    stop_at([*PBT, "--out", str(out)], 13, "pbt")
    (out / "summary.json").unlink()
    folder = RunFolder.open(out)
    exchanges = [e for e in pbt.summary["exchanges"] if e["iteration"] < 13]
    for member in folder.members():
        expected = exchanges[-1]["values"]["rate"][member.number]
        assert member.agent.rate == expected == member.setting["rate"]
        assert member.seed == 6 + member.number
    assert main(["eval", str(out), "--member", "0"]) == 0
    assert main(["sweep", "--resume", str(out)]) == 0
    again = RunFolder.open(out)
    assert states(again) == states(pbt)
    assert again.summary["exchanges"] == pbt.summary["exchanges"]
    assert_same(again.metrics(), pbt.metrics())
    # Longer: the schedule that there is goes on.
    assert main(["sweep", "--resume", str(out), "--steps", "200"]) == 0
    longer = RunFolder.open(out).summary["exchanges"]
    assert longer[: len(exchanges)] == pbt.summary["exchanges"][: len(exchanges)]
    assert [e["iteration"] for e in longer[-2:]] == [44, 48]


def test_the_last_values_are_a_recipe(pbt, capsys):
    assert main(["recipe", str(pbt.path)]) == 0
    shown = capsys.readouterr().out
    assert "the last values of the best of 6 members that copied each other" in shown
    best = pbt.summary["best"]["hyperparameters"]["rate"]
    assert f"rate = {best!r}" in shown


def test_a_grid_begins_a_pbt_and_names_its_range():
    words = ["rate=log:1e-4:1e-2:3", "offset=0,1", "late=0", "--pbt", "0.5", "--steps", "400"]
    experiment = assemble.assemble(request([*SWEEP, *words]))
    assert len(experiment.settings) == 6
    assert experiment.search == search.PBT(
        0.5, 20, 0, {"rate": Log(1e-4, 1e-2, 3), "offset": [0.0, 1.0]}
    )


@pytest.mark.parametrize(
    "which",
    [
        None,
        search.Halving(3, 100),
        search.PBT(0.25, 4, 1, {"a": Lin(0.0, 1.0), "b": Log(0.1, 1.0), "c": [1, 2]}),
    ],
)
def test_a_search_is_written_down(which):
    assert search.from_json(json.loads(json.dumps(search.to_json(which)))) == which


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rate=0.1,0.2", "--halving", "3"], "2 settings are fewer than eta=3"),
        (["rate=0.1,0.2", "--halving", "1"], "eta=1: must be at least 2"),
        (["rate=0.1,0.2,0.3", "--halving", "3", "--steps", "8"], "total_steps=8 leave less than"),
        (["width=1,2,3", "--halving", "3", "--steps", "80"], "width is static"),
        (["width=1,2", "--pbt", "0.25"], "width is static"),
        (["rate=0.1", "--pbt", "0.25"], "there is no hyper-parameter to change"),
        (["rate=0.1,0.2", "--pbt", "0.6"], "0.6 is not a number above 0 up to 0.5"),
        (["rate=0.1,0.2", "--pbt", "x"], "x is not a number above 0 up to 0.5"),
        (["rate=log:0.1:1", "--pbt", "0.2"], "is not v1,v2,... log:low:high:n"),
        (["rate=0.1,0.2", "--pbt", "0.2", "--halving", "3"], "not allowed with argument"),
        (["rate=0.1,0.2", "--pbt", "0.2", "--seeds", "3"], "--seeds 3: with --pbt each setting"),
        (["rate=0.1,0.2", "--pbt", "0.2", "--data-parallel"], "members of --pbt train at once"),
        (["rate=0.1,0.2", "--pbt-every", "20"], "--pbt-every 20 has no effect without --pbt"),
        (["rate=0.1,0.2", "--halving-from", "9"], "--halving-from 9 has no effect without"),
    ],
)
def test_one_line_refuses_and_leaves_nothing(words, line, tmp_path, capsys):
    out = tmp_path / "run"
    try:
        status = main([*SWEEP, *words, "--out", str(out)])
    except SystemExit as ended:  # argparse
        status = ended.code
    assert status == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert line in error[-1]
    assert error[-1].startswith("jaxrl: error: ")
    assert not out.exists()


def test_options_of_a_search_do_not_go_with_resume(halving, capsys):
    assert main(["sweep", "--resume", str(halving.path), "--halving", "3"]) == 2
    assert "--halving: --resume goes on with the settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda s: s["exchanges"][1].update(parents=[0]), "exchanges should be of 6 members"),
        (lambda s: s["exchanges"][1]["parents"].__setitem__(0, 6), "exchanges should be of 6"),
        (lambda s: s["exchanges"][1].update(values=3), "exchanges.1.values=3 should be"),
    ],
)
def test_damaged_exchanges_are_one_line(damage, line, pbt, tmp_path, capsys):
    import shutil

    shutil.copytree(pbt.path, tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    assert main(["plot", str(tmp_path / "run")]) == 2
    assert line in capsys.readouterr().err
