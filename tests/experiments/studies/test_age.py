"""Which kept results are older than their code, in a checkout of its own."""

import json
import subprocess

import pytest

from experiments.studies import age, study
from experiments.studies.reproduce import KEPT

AGENT = "agents/on_policy/mine.py"
LOOP = "jaxrl/loops/loop.py"
RECIPE = "experiments/recipes/mine/CartPole-v1.toml"
FILES = {
    AGENT: "from jaxrl.loops import loop\n",
    LOOP: "def run():\n    import jaxrl.parts.part\n",
    "jaxrl/parts/part.py": "import jaxrl.loops.loop\n",
    "jaxrl/parts/other.py": "",
    "jaxrl/training/programs.py": "",
    "jaxrl/training/sinks.py": "",
    "envs_jax/gymnax_envs.py": "",
    "envs_jax/brax_envs.py": "",
    RECIPE: "[hyperparameters]\ngamma = 0.9\n",
}


class Recipes(study.Study):
    name = "recipes"

    def cells(self, scale):
        return {"mine/CartPole-v1": {}}


def git(root, *words):
    command = ["git", "-C", root, "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one agent, whose recipe was run on its only commit."""
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    folder = tmp_path / "results" / "recipes" / "mine" / "CartPole-v1"
    folder.mkdir(parents=True)
    commit = git(tmp_path, "rev-parse", "HEAD")
    (folder / "config.json").write_text(json.dumps({"git_commit": f"{commit}-dirty"}))
    cell = {"settings": {}, "measures": {}, "date": "2026-01-01"}
    (folder.parents[1] / "result.json").write_text(
        json.dumps({"cells": {"mine/CartPole-v1": cell}})
    )
    monkeypatch.setattr(age, "ROOT", tmp_path)
    monkeypatch.setitem(age.agents.AGENTS, "mine", "on_policy.mine:Mine")
    return tmp_path


def of_recipe(project):
    (found,) = age.ages(Recipes(), project / "results")
    return found


def test_nothing_differs_at_first(project):
    found = of_recipe(project)
    assert (found.name, found.date, found.changed) == ("mine/CartPole-v1", "2026-01-01", [])
    assert git(project, "rev-parse", "HEAD").startswith(found.commit)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        (AGENT, True),
        (LOOP, True),
        ("jaxrl/parts/part.py", True),  # which the loop imports in a function
        ("jaxrl/parts/other.py", False),
        ("jaxrl/training/programs.py", True),
        ("jaxrl/training/sinks.py", False),
        ("envs_jax/gymnax_envs.py", True),
        ("envs_jax/brax_envs.py", False),
    ],
)
def test_what_makes_the_numbers_counts_committed_or_not(project, file, counts):
    (project / file).write_text("# another\n")
    assert of_recipe(project).changed == ([file] if counts else [])
    git(project, "commit", "-qam", "more")
    assert of_recipe(project).changed == ([file] if counts else [])


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("[hyperparameters]\ngamma = 0.99\n", True),
        ("[recipe]\nsteps = 5\n[hyperparameters]\ngamma = 0.9\n", True),
        ("# why\n[hyperparameters]\ngamma = 0.9\n[[published]]\nvalue = 3\n", False),
    ],
)
def test_of_a_recipe_what_training_reads_counts(project, text, counts):
    """What others published beside it does not."""
    (project / RECIPE).write_text(text)
    assert of_recipe(project).changed == ([RECIPE] if counts else [])
    git(project, "commit", "-qam", "more")
    assert of_recipe(project).changed == ([RECIPE] if counts else [])


def test_a_commit_that_is_not_there_tells_nothing(project):
    config = project / "results" / "recipes" / "mine" / "CartPole-v1" / "config.json"
    config.write_text(json.dumps({"git_commit": "0" * 40}))
    assert of_recipe(project).changed is None
    config.unlink()  # nothing was kept, nor is there a commit as old as the cell
    assert of_recipe(project)[2:] == ("unknown", None)


BRAX = {"brax_envs.py", "physics.py"}


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["trpo", "brax/hopper"], BRAX),
        (["a", "word", "sac", "and/or", "Pendulum"], set()),
        (["brax/"], BRAX),  # as in f"brax/{name}"
        (["Pendulum-v1"], {"gymnax_envs.py"}),
        (["sequences/sum"], {"sequences/arithmetic.py", "sequences/base.py"}),
        (["diffusion/ring"], {"diffusion.py"}),
    ],
)
def test_an_environment_is_its_file_and_what_that_imports(words, own):
    files = {x.removeprefix("envs_jax/") for x in age.code_of(words) if x.startswith("envs_jax/")}
    assert files == own | {"wrappers.py"}


@pytest.mark.parametrize(
    ("study", "counts", "not_at_all"),
    [
        ("collapse", "sequences/arithmetic.py", "gymnax_envs.py"),
        ("two_peaks", "bandits.py", "gymnax_envs.py"),
        ("brax_sac", "brax_envs.py", "gymnax_envs.py"),
        ("wasserstein", "brax_envs.py", "playground_envs.py"),  # by the study that it imports
        ("gate", "sequences/dsl.py", "sequences/router.py"),
    ],
)
def test_a_study_depends_on_the_environments_that_it_uses(study, counts, not_at_all):
    files = age.code_of_study(study)
    assert f"envs_jax/{counts}" in files
    assert f"envs_jax/{not_at_all}" not in files


def test_studies_name_their_agents_and_environments():
    words = age.words_of(age.ROOT / "experiments" / "studies" / "two_peaks.py")
    assert {"agents/off_policy/sac.py", "jaxrl/loops/learner.py"} <= age.code_of(words)
    from experiments import studies

    for found in age.ages(studies.get("two_peaks"), KEPT):
        assert found.name == "two_peaks"
