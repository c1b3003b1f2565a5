"""`jaxrl list`: agents, environments, recipes, and what each takes."""

import pytest

import agents
import envs_jax
from experiments.command.cli import main


@pytest.mark.parametrize("what", ["agents", "envs", "recipes", *agents.AGENTS])
def test_list(what, capsys):
    assert main(["list", what]) == 0
    expected = {"agents": agents.AGENTS, "envs": envs_jax.list_envs(), "recipes": ["CartPole-v1"]}
    shown = capsys.readouterr().out
    assert all(name in shown for name in expected.get(what, ["total_steps", "static", "traced"]))


def test_list_shows_what_an_environment_takes(capsys):
    assert main(["list", "CartPole-v1"]) == 0
    shown = capsys.readouterr().out
    assert "observation (4,), action Discrete(2), time limit 500" in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines()[2:] if line.strip()}
    assert rows["gravity"] == ["traced", "9.8"]
    assert rows["sticky"] == ["static", "0"]


def test_listings_show_brackets_as_they_are(capsys):
    """rich takes what stands in brackets for markup unless it is told not to."""
    assert main(["list", "softgac"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "input_norm" in x)
    assert "LayerNorm of [obs, z]" in line


def test_agents_are_listed_with_the_first_line_of_their_docstrings(capsys):
    assert main(["list", "agents"]) == 0
    shown = capsys.readouterr().out
    for name in agents.AGENTS:
        first = (agents.get(name).__doc__ or "").splitlines()[0]
        assert agents.describe(name) == first
        assert first in shown
