"""What every study gets from the protocol, on one that trains nothing."""

import json
import math

import pytest
from matplotlib.figure import Figure

from experiments.studies import study
from experiments.studies.claims import FAILS, HOLDS, UNDECIDED, Claim, gain, mean_of


class Toy(study.Study):
    """Cells of two agents; `fails` names one that cannot be measured."""

    name = "toy"
    title = "A toy"
    paper = "Nobody 2026."
    question = "Which is larger?"
    budget = "none"
    digits = 1

    def __init__(self, steps=10, fails=None):
        self.steps, self.fails, self.runs = steps, fails, []

    def cells(self, scale):
        return {f"{name}/one": {"steps": self.steps, "sizes": [8, 8]} for name in ("big", "small")}

    def measure(self, cell, settings, context):
        if cell == self.fails:
            raise KeyboardInterrupt
        self.runs.append(cell)
        start = 100.0 if cell.startswith("big") else 1.0
        return {"measures": {"the_score": [start, start + 1, start + 2, math.nan]}, "more": "kept"}

    def claims(self):
        return [
            Claim("big is larger", gain("big/one", ["small/one"], "the_score"), low=0.0),
            Claim("small is above 50", mean_of("small/one", "the_score"), low=50.0),
            Claim("a third one is good", mean_of("third", "the_score"), low=0.0),
        ]

    def figures(self, cells):
        return {"scores": Figure()}


@pytest.fixture
def run(tmp_path):
    def run(toy, only=""):
        lines = []
        study.run(toy, "full", tmp_path, tmp_path / "work", only, lines.append)
        return lines

    return run


def test_a_killed_study_continues_and_repeats_nothing(run, tmp_path):
    """What had finished is kept in readable form; then only what is missing is run."""
    killed = Toy(fails="small/one")
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert list(study.read(killed, "full", tmp_path)) == ["big/one"]
    assert study.state(killed, tmp_path) == "partly, 1 of 2"
    toy = Toy()
    assert run(toy) == ["toy: small/one (1 of 1)"]
    assert toy.runs == ["small/one"]
    assert study.state(toy, tmp_path) == "done"
    again = Toy()
    assert run(again) == []
    assert again.runs == []


def test_other_settings_are_run_anew(run, tmp_path):
    run(Toy())
    longer = Toy(steps=20)
    assert study.state(longer, tmp_path) == "not run"
    run(longer)
    assert longer.runs == ["big/one", "small/one"]


def test_one_cell_alone(run):
    toy = Toy()
    run(toy, "small")
    run(toy, "big/one")
    assert toy.runs == ["small/one", "big/one"]
    with pytest.raises(ValueError, match="toy has no cell 'bi': big/one, small/one"):
        run(toy, "bi")


def test_results_are_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    """A process killed while it writes leaves the file as it was."""
    run(Toy(), "big")
    path = tmp_path / "toy" / "result.json"
    before = path.read_text()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            run(Toy())
    assert path.read_text() == before
    run(Toy())
    assert study.state(Toy(), tmp_path) == "done"


def test_what_another_process_has_written_stays(run, tmp_path):
    """Two processes may run different cells of one study."""

    class Slow(Toy):
        def measure(self, cell, settings, context):
            run(Toy(), "small")
            return super().measure(cell, settings, context)

    run(Slow(), "big")
    assert study.state(Toy(), tmp_path) == "done"


def test_result_is_standard_json_and_reads_back(run, tmp_path):
    run(Toy())

    def refuse(constant):
        raise AssertionError(constant)

    path = tmp_path / "toy" / "result.json"
    cells = json.loads(path.read_text(), parse_constant=refuse)["cells"]
    assert cells["big/one"]["measures"]["the_score"] == [100.0, 101.0, 102.0, None]
    assert cells["big/one"]["more"] == "kept"
    scores = study.read(Toy(), "full", tmp_path)["big/one"]["measures"]["the_score"]
    assert scores[:3] == [100.0, 101.0, 102.0]
    assert math.isnan(scores[3])
    path.write_text("{")
    with pytest.raises(ValueError, match=r"result\.json cannot be read"):
        run(Toy())


def test_table_and_verdicts(run, tmp_path):
    run(Toy())
    toy = Toy()
    cells = study.read(toy, "full", tmp_path)
    assert toy.tables(cells) == [
        (
            "",
            ["", "the score"],
            [["big/one", "101.0 [98.5, 103.5]"], ["small/one", "2.0 [-0.5, 4.5]"]],
        )
    ]
    assert [v.verdict for v in toy.verdicts(cells)] == [HOLDS, FAILS, UNDECIDED]


def test_tally_counts_claims_by_their_verdicts(run, tmp_path):
    assert study.tally(Toy(), tmp_path) == "-"
    run(Toy())
    assert study.tally(Toy(), tmp_path) == "1 hold, 1 do not, 1 undecided"


def test_page(run, tmp_path):
    run(Toy(), "big")
    (tmp_path / "toy" / "notes.md").write_text("A note.\n")
    curve = tmp_path / "toy" / "big" / "one"
    curve.mkdir(parents=True)
    (curve / "curve.png").touch()
    study.page([Toy()], "full", tmp_path)
    page = (tmp_path / "README.md").read_text()
    for text in (
        "## A toy\n",
        "Which is larger?",
        "*Nobody 2026.* Budget: none. `jaxrl reproduce toy`",
        "|  | the score |\n| --- | --- |\n| big/one | 101.0 [98.5, 103.5] |\n",
        "![A toy: scores](toy/scores.png)",
        "[big/one](toy/big/one/curve.png)",
        "| big is larger | no small/one yet | undecided |",
        "Not run: small/one.",
        "\nA note.\n",
    ):
        assert text in page
    study.page([Toy()], "quick", tmp_path)
    assert "Quick runs show" in (tmp_path / "README.md").read_text()
