"""Which kept results are older than the code that their numbers come from.

That code is found by reading imports, without running any of it: the agents that are trained, with
the loops and parts that they import, the programs that train and evaluate them, their environments,
and the study itself. What only prints, draws or saves does not count.
"""

from __future__ import annotations

import ast
import json
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import agents
import envs_jax
from envs_jax import sequences
from experiments.studies import study

ROOT = Path(__file__).resolve().parents[2]
FOLLOWED = ("agents", "envs_jax", "jaxrl/loops", "jaxrl/parts")  # from what a study imports, too
ENGINE = ("episode", "evaluate", "loop", "members", "programs")
LISTS = ("envs_jax/catalogue.py", "envs_jax/suite_tables.py")  # of names: no number is from there


class Age(NamedTuple):
    """What is kept of a recipe or a study, by its oldest cell.

    Attributes:
        name: the recipe's or the study's.
        date: when it was measured.
        commit: that it ran on, in short; the last before its date ("about") where it was not kept.
        changed: files that differ by now, relative to the project; None where git cannot tell.
    """

    name: str
    date: str
    commit: str
    changed: list[str] | None


def ages(one: study.Study, results: Path) -> list[Age]:
    """Of every kept recipe, or of the study; none where nothing is kept."""
    cells = study.read(one, "full", results)
    if one.name != "recipes":
        files = code_of_study(one.name)
        oldest = sorted(cells.values(), key=lambda cell: str(cell["date"]))[:1]
        return [_age(one.name, cell, files) for cell in oldest]
    found = []
    for name, cell in cells.items():
        config = results / one.name / name / "config.json"
        commit = json.loads(config.read_text()).get("git_commit") if config.exists() else None
        age = _age(name, {**cell, "commit": commit}, code_of(name.split("/", 1)))
        recipe = f"experiments/recipes/{name}.toml"
        if age.changed is not None and not _trains_as_before(recipe, age.commit.split()[-1]):
            age = age._replace(changed=sorted([*age.changed, recipe]))
        found.append(age)
    return found


def _trains_as_before(recipe: str, commit: str) -> bool:
    """Whether all of a recipe that training reads is what it was: not what others published."""
    before = _git("show", f"{commit}:{recipe}")
    now = (ROOT / recipe).read_text()
    return before is not None and _of_training(before) == _of_training(now)


def _of_training(recipe: str) -> dict[str, Any]:
    content = tomllib.loads(recipe)
    content.pop("published", None)
    for name in ("published", "source"):
        content.get("recipe", {}).pop(name, None)
    return content


def _age(name: str, cell: Mapping[str, Any], files: set[str]) -> Age:
    kept, date = str(cell.get("commit") or ""), str(cell["date"])
    commit = kept.removesuffix("-dirty")
    commit = commit or _git("rev-list", "-1", f"--before={date}T00:00:00Z", "HEAD") or ""
    differ = _git("diff", "--name-only", commit, "--", *sorted(files)) if commit else None
    about = "" if kept else "about "
    changed = None if differ is None else differ.split()
    return Age(name, date, f"{about}{commit[:7]}" if commit else "unknown", changed)


def code_of_study(name: str) -> set[str]:
    """The files that a study's numbers come from: its own, and what it names and imports."""
    own = f"experiments/studies/{name}.py"
    files = code_of(words_of(ROOT / own)) | {own}
    for path in _imported(ROOT / own, FOLLOWED):
        files |= closure(path)
    for other in _imported(ROOT / own, ("experiments/studies",)):  # whose environments it may take
        files |= environments_of(words_of(ROOT / other))
    return files


def code_of(words: Iterable[str]) -> set[str]:
    """The files that numbers come from of the agents and environments among these words."""
    words = set(words)
    files = {f"jaxrl/training/{name}.py" for name in ENGINE} | {"envs_jax/wrappers.py"}
    for word in words & set(agents.AGENTS):
        module = agents.AGENTS[word].partition(":")[0].replace(".", "/")
        files |= closure(f"agents/{module}.py")
    return files | environments_of(words)


def environments_of(words: Iterable[str]) -> set[str]:
    """The files of the environments among these words, and of the suites, such as "brax/"."""
    files, known = set(), set(envs_jax.list_envs())
    for word in words:
        suite, name = envs_jax.catalogue.split(word)
        if suite == "sequences" and name in sequences.TASKS:
            files |= closure(f"{sequences.TASKS[name].__module__.replace('.', '/')}.py")
        elif word in known or (suite and not name and suite in envs_jax.MODULES):
            files |= closure(f"envs_jax/{envs_jax.MODULES[suite]}.py")
    return files


def closure(file: str) -> set[str]:
    """A file of the project, and those that it imports, and they, within FOLLOWED."""
    found, left = set(), [file]
    while left:
        found.add(file := left.pop())
        left += [path for path in _imported(ROOT / file, FOLLOWED) if path not in found]
    return found


def _imported(source: Path, within: tuple[str, ...]) -> Iterator[str]:
    """The modules within these folders that a file imports, wherever in it, but for LISTS."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            path = f"{name.replace('.', '/')}.py"
            if path.startswith(within) and path not in LISTS and (ROOT / path).exists():
                yield path


def words_of(source: Path) -> set[str]:
    """What the texts in a file name: a study calls its agents and environments by their names."""
    nodes = ast.walk(ast.parse(source.read_text()))
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {word for text in texts for word in text.split()}


def _git(*words: str) -> str | None:
    """What git prints; None where there is none, or it knows no such commit."""
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
