"""`jaxrl reproduce`, the studies there are, and what is kept of them."""

import shutil

import numpy as np
import pytest

from experiments import studies
from experiments.command import cli
from experiments.studies import reproduce, study
from experiments.studies.claims import HOLDS, UNDECIDED, Interval
from experiments.studies.recipes import standing
from jaxrl.training.engine import forget_programs

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_lists_the_studies(capsys):
    assert cli.main(["reproduce"]) == 0
    out = capsys.readouterr().out
    for name in studies.STUDIES:
        assert name in out
    assert "done" in out
    assert "undecided" in out  # of a study's claims
    (row,) = [line for line in out.splitlines() if line.strip().startswith("ppo/CartPole-v1 ")]
    words = "ppo/CartPole-v1 8 x 500,000 500.00 [500.00, 500.00] 490.04 +- 6.12 reached"
    assert " ".join(row.split()) == words


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        ([3.0, 3.0], "reached"),
        ([2.0, 2.0], "reached"),
        ([1.0, 3.0], "within the interval"),
        ([0.5, 1.0], "within the interval"),
        ([1.5, 1.5], "not reached, by 0.50"),
    ],
)
def test_where_a_published_number_lies(returns, words):
    assert standing(Interval.of(returns), 2.0) == words
    assert standing(Interval.of(returns), None) == "-"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("two_peeks", "did you mean 'two_peaks'?"),
        ("ppo/CartPole-v0", "did you mean 'ppo/CartPole-v1'?"),
        ("two_peaks/sac/0.4", "did you mean 'sac/"),
        ("@@@", "`jaxrl reproduce` lists the studies"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(name, hint, tmp_path, capsys):
    assert cli.main(["reproduce", "two_peaks", name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxrl: error: no study or cell of one is called {name!r}")
    assert hint in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_set_is_needed_before_what_learns_from_it(tmp_path, capsys):
    assert cli.main(["reproduce", "offline/CartPole-v1/medium/BC", "--out", str(tmp_path)]) == 2
    assert "CartPole-v1/medium/BC needs CartPole-v1/data" in capsys.readouterr().err


def test_names():
    assert reproduce.resolve("offline", "full") == ("offline", "")
    assert reproduce.resolve("offline/brax/hopper", "full") == ("offline", "brax/hopper")
    assert reproduce.resolve("ppo/CartPole-v1", "full") == ("recipes", "ppo/CartPole-v1")
    assert reproduce.resolve("recipes/ppo", "full") == ("recipes", "ppo")


def test_page_is_that_of_the_kept_results(tmp_path):
    """README.md is what its files give: nobody has edited it, and no number has changed."""
    shutil.copytree(reproduce.KEPT, tmp_path / "results")
    study.page(map(studies.get, studies.STUDIES), "full", tmp_path / "results")
    page = (tmp_path / "results" / "README.md").read_text()
    assert page == (reproduce.KEPT / "README.md").read_text()


LATER = {  # whose full scale has still to be run
    "wasserstein",
    "disagreement",
    "chunks",
    "xqc",
}


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_study_says_what_it_is_and_has_kept_cells(name):
    one = studies.get(name)
    assert one.name == name
    assert one.title
    assert one.paper
    assert one.question
    assert one.budget
    full, quick = one.cells("full"), one.cells("quick")
    assert bool(study.read(one, "full", reproduce.KEPT)) != (name in LATER)
    assert set(quick) <= set(full)
    assert one.claims()
    kept = study.read(one, "full", reproduce.KEPT)
    if set(kept) == set(full):  # claims name cells and measures that there are
        late = {"no last_rollout_length yet"}  # kept only since
        verdicts = one.verdicts(kept)
        assert {v.measured for v in verdicts if v.measured.startswith("no ")} <= late


def test_verdicts_of_kept_results():
    """Some that follow from the numbers at sight."""
    cells = study.read(studies.get("two_peaks"), "full", reproduce.KEPT)
    assert [v.verdict for v in studies.get("two_peaks").verdicts(cells)] == [
        HOLDS,
        HOLDS,
        HOLDS,
        HOLDS,
        "does not hold",
    ]
    brax = studies.get("brax_sac")
    cells = study.read(brax, "full", reproduce.KEPT)
    assert {v.verdict for v in brax.verdicts(cells)} == {UNDECIDED}
    np.testing.assert_allclose(
        np.mean(cells["hopper/brax"]["measures"]["final_return"]), 426.38, atol=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize(  # two trainers of brax take minutes to compile: run by hand
    "name", [name for name in studies.STUDIES if name != "brax_sac"]
)
def test_quick_scale_runs(name, tmp_path):
    """All cells, the tables, the figures and the page, from nothing."""
    assert cli.main(["reproduce", name, "--quick", "--out", str(tmp_path)]) == 0
    one = studies.get(name)
    cells = study.read(one, "quick", tmp_path)
    assert set(cells) == set(one.cells("quick"))
    for cell in cells.values():
        assert all(np.isfinite(v).all() for v in cell["measures"].values())
    assert one.title in (tmp_path / "README.md").read_text()
    assert list((tmp_path / name).rglob("*.png"))
    forget_programs()  # no study uses another's, and together they map more than a process may
