"""The generated pages of the site say what the code says. `make docs` checks all links."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import agents
from jaxrl.agent import Agent, static, traced

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def agent_pages():
    return load("agent_pages")


class Small(Agent):
    """An agent of two hyper-parameters."""

    rate: float = traced(0.5, "(0, 1]", "how fast")
    mode: str = static("a", ("a", "b"), "which way")


def test_hyperparameters_are_listed_as_they_are_declared(agent_pages):
    rows = agent_pages.hyperparameter_table(Small).splitlines()
    assert rows[0] == "| name | default | accepted | kind | meaning |"
    assert rows[-2:] == [
        "| `rate` | `0.5` | `(0, 1]` | traced | how fast |",
        "| `mode` | `a` | `a, b` | static | which way |",
    ]


def test_every_agent_is_in_its_family(agent_pages):
    families = agent_pages.families()
    assert families["On-policy"][0] == "ppo"
    assert "Value based" in families
    assert [name for names in families.values() for name in names] == list(agents.AGENTS)


def test_the_page_of_an_agent(agent_pages):
    page = agent_pages.page("discretecql")  # it compiles nothing and collects nothing
    assert page.startswith("# DiscreteCQL\n\n**Discrete CQL: conservative Q-learning")
    assert "jaxrl train discretecql CartPole-v1 --data FILE" in page
    assert "| `gap` | soft maximum of Q over actions minus Q" in page
    assert "`agents/offline/discretecql.py`" in page


def test_kept_results_stand_beside_published_numbers(agent_pages):
    text = agent_pages.results("pqn")
    recipe = tomllib.loads((ROOT / "experiments/recipes/pqn/CartPole-v1.toml").read_text())
    assert f"| CartPole-v1 | {recipe['recipe']['steps']:,} | 500.00 [500.00, 500.00], 8" in text
    (aim,) = recipe["published"]
    assert f"| {aim['value']} +- {aim['spread']} | {aim['source']} |" in text
    assert "../../experiments/results/recipes/pqn/CartPole-v1/curve.png" in text
    assert agent_pages.results("bc") == ""


def test_examples_in_docstrings_become_code():
    pytest.importorskip("griffe")
    text = "One.\n\nV(s'_t) is x_t.\n\n>>> f(1)\n2\n\nMore.\n\n    >>> g()\n    3"
    found = SimpleNamespace(docstring=SimpleNamespace(value=text))
    load("docstrings").Docstrings().on_instance(obj=found)
    assert found.docstring.value == (
        "One.\n\nV(s'\\_t) is x_t.\n\n```pycon\n>>> f(1)\n2\n```\n\nMore.\n\n"
        "    ```pycon\n    >>> g()\n    3\n    ```"
    )


def test_every_extra_is_explained():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "docs" / "install.md").read_text().partition("## Extras")[2]
    first = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    explained = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(explained) == sorted(extras["optional-dependencies"])


def test_every_extra_that_a_page_installs_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["optional-dependencies"], "NAME"}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")]
    found = {}
    for page in [*pages, *ROOT.glob("notebooks/*.ipynb")]:
        for extras in re.findall(r"(?:\.|jaxrl)\[([\w,]+)\]", page.read_text()):
            found |= dict.fromkeys(extras.split(","), page.name)
        found |= dict.fromkeys(re.findall(r'extra = \\"\[(\w+)\]', page.read_text()), page.name)
    assert {"cuda12", "wandb", "optuna", "craftax"} <= set(found)
    assert {name: page for name, page in found.items() if name not in known} == {}


def test_the_transcript_and_the_picture_are_of_the_same_command():
    """That of `make demo`."""
    command = load("figures").DEMO
    assert f"$(BIN)/jaxrl {command} --out" in (ROOT / "Makefile").read_text()
    transcripts = (ROOT / "docs" / "transcripts.md").read_text()
    assert f"$ jaxrl {command} --out runs/demo\n" in transcripts
