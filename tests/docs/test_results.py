"""The pages of results: each says what the kept cells say. `make docs` checks all links."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import agents
from experiments import studies
from experiments.studies import study

ROOT = Path(__file__).parents[2]
CELL = {"settings": {}, "measures": {"final_return": [1.0, 3.0]}, "date": "2026-01-01"}


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        path = ROOT / "docs" / "result_pages.py"
        spec = importlib.util.spec_from_file_location("result_pages", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.fixture(scope="module")
def kept():
    results = ROOT / "experiments" / "results"
    return {name: study.read(studies.get(name), "full", results) for name in studies.STUDIES}


def test_every_claim_of_what_was_run_stands_under_its_verdict(pages, kept):
    text = pages.claims(kept)
    sections = {part.partition(":")[0]: part for part in text.split("\n## ")[1:]}
    assert list(sections) == ["Holds", "Does not hold", "Undecided"]
    for name, cells in kept.items():
        for claim, _, verdict in studies.get(name).verdicts(cells) if cells else []:
            assert f"| {pages.clean(claim)} |" in sections[verdict.capitalize()]
    for title, section in sections.items():
        rows = len(re.findall(r"^\| ", section, re.MULTILINE)) - 2
        assert section.startswith(f"{title}: {rows}\n")


def test_what_was_not_run_is_said_to_be(pages, kept):
    text = pages.claims({**kept, "two_peaks": {}})
    (row,) = [line for line in text.splitlines() if line.startswith("| One peak or two |")]
    assert row.count(" - |") == 5  # claims by verdict, time, date


def test_every_recipe_with_a_figure_is_in_the_gallery(pages, kept):
    text = pages.curves(kept)
    for picture in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (ROOT / "docs" / "results" / picture).resolve().exists()
    for name in kept["recipes"]:
        assert text.count(f"**{name}**: ") == 1
        assert f"/recipes/{name}/curve.png" in text
    assert "published 490.04 +- 6.12: reached." in text


def test_every_agent_is_in_the_table_of_its_family(pages, kept):
    text = pages.families(kept)
    for name in agents.AGENTS:
        assert f"[{name}](../agents/{name}.md)" in text
    (row,) = [x for x in text.splitlines() if x.startswith("| [pqn](../agents/pqn.md) CartPole-v1")]
    assert " 495.13 +- 6.89 | reached | training episodes" in row
    without = text.partition("## Offline")[2].partition("\n## ")[0]
    assert "[iql](../agents/iql.md) (in: Offline agents on sets of different quality" in without


def test_times_and_dates(pages):
    cells = {"a": CELL | {"seconds": 1800.0}, "b": CELL | {"seconds": 2700.0, "date": "2026-02-01"}}
    assert pages.hours(cells) == "1.2 h"
    assert pages.hours({"a": CELL | {"seconds": 90.0}, "b": CELL}) == "1.5 min"
    assert pages.hours({"a": CELL | {"seconds": 9.4}}) == "9 s"
    assert pages.hours({"a": CELL}) == pages.hours({}) == "-"
    assert pages.dates(cells) == "2026-01-01 to 2026-02-01"
    assert pages.dates({"a": CELL}) == "2026-01-01"


def test_anchors_are_those_of_the_site(pages):
    assert pages.anchor("SAC beside Brax's own") == "sac-beside-braxs-own"
    assert pages.anchor("Well-conditioned critics: XQC, CrossQ and SAC") == (
        "well-conditioned-critics-xqc-crossq-and-sac"
    )
