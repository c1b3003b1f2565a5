"""A page for each agent: what it is, its hyper-parameters, metrics and kept results, and its code.

Everything is read from what there is: docstrings, declarations, the metrics that a step returns and
the table that explains them, recipes, and the results of `jaxrl reproduce`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import agents
import envs_jax
from envs_jax import datasets
from experiments.runs import recipes
from jaxrl.report.formatting import value_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "recipes"


def families() -> dict[str, list[str]]:
    """The registered agents by family: its name as words -> their names."""
    found: dict[str, list[str]] = {}
    for name, place in agents.AGENTS.items():
        family = place.partition(".")[0].replace("_", " ").replace("on p", "on-p")
        found.setdefault(family.replace("off p", "off-p").capitalize(), []).append(name)
    return found


def pages() -> dict[str, str]:
    """The page of every registered agent, as Markdown."""
    return {name: page(name) for name in agents.AGENTS}


def page(name: str) -> str:
    cls: Any = agents.get(name)
    module = importlib.import_module(cls.__module__)
    title, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    env, data = first_accepted(name)[1:]
    command = f"jaxrl train {name} {env}" + (" --data FILE" if data else "")
    parts = [
        f"# {cls.__name__}",
        f"**{title}**" + (f"\n{rest}" if rest else ""),
        inspect.cleandoc(cls.__doc__ or ""),
        f"```\n{command}\n```",
        "## Hyper-parameters\n\nWhat is *traced* is a number inside the program: members of a "
        "sweep may differ in it, and a new value never recompiles. What is *static* (shapes, "
        "counts, choices) makes a program of its own for each value.",
        hyperparameter_table(cls),
        f"## Metrics\n\n{metrics_table(name)}",
        results(name),
        f"## Code\n\n`{cls.__module__.replace('.', '/')}.py`",
        f"::: {cls.__module__}.{cls.__name__}\n    options:\n      heading_level: 3\n"
        "      show_docstring_description: false\n      show_bases: true\n      members: []",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def hyperparameter_table(cls: Any) -> str:
    rows = []
    for h in cls.hyperparameters():
        accepted = ", ".join(h.valid) if isinstance(h.valid, tuple) else h.valid or h.type_name
        default = value_text(h.default)
        rows.append([f"`{h.name}`", f"`{default}`", f"`{accepted}`", h.kind, h.doc])
    return table(["name", "default", "accepted", "kind", "meaning"], rows)


def metrics_table(name: str) -> str:
    """The metrics that a step returns, as agents/README.md explains them."""
    agent = first_accepted(name)[0]
    state = jax.eval_shape(agent.init, jax.random.key(0))
    _, metrics = jax.eval_shape(agent.step, state, jnp.zeros((), jnp.int32))
    rows = [[f"`{metric}`", explained()[metric]] for metric in metrics]
    return table(["metric", "meaning"], rows)


@functools.cache
def explained() -> dict[str, str]:
    """Every metric's meaning: the last column of the table in agents/README.md."""
    text = (ROOT / "agents" / "README.md").read_text()
    lines = text[text.index("\n## Metrics") :].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {first.strip("`"): meaning for first, _, meaning in cells}


@functools.cache
def first_accepted(name: str) -> tuple[Any, str, bool]:
    """An agent on the first environment it accepts, its id, whether it learns from records."""
    tried = "CartPole-v1", "Pendulum-v1", "sequences/sum", "sequences/dsl", "sequences/router"
    tried += ("diffusion/ring",)
    for env_id in tried:
        env, env_params = envs_jax.make(env_id)
        data = datasets.blank(env, env_params).dataset(env, env_params)
        recorded: dict[str, Any] = {"data": data}
        for fields in [recorded] if agents.AGENTS[name].startswith("offline") else [{}, recorded]:
            with contextlib.suppress(ValueError, TypeError):
                return agents.get(name)(env, env_params, **fields), env_id, bool(fields)
    raise ValueError(f"{name} accepts none of the environments that its page tries")


def results(name: str) -> str:
    """The agent's recipes, and what has been kept of each: numbers, learning curve."""
    own = [recipe for recipe in recipes.everything() if recipe.agent == name]
    if not own:
        return ""
    rows, curves = [], []
    for recipe in own:
        folder = RESULTS / name / recipe.env
        reached = "not run"
        if (folder / "summary.json").exists():
            summary = json.loads((folder / "summary.json").read_text())
            low, high = summary["final_return_ci95"]
            reached = f"{summary['final_return_mean']:,.2f} [{low:,.2f}, {high:,.2f}]"
            reached += f", {len(summary['members'])} seeds"
            picture = f"../../experiments/results/recipes/{name}/{recipe.env}/curve.png"
            curves.append(f"![Learning curve on {recipe.env}]({picture}){{width=375}}")
        published = recipe.aim.text() if recipe.aim else "-"
        rows.append([recipe.env, f"{recipe.steps:,}", reached, published, recipe.source])
    head = "## Recipes and results\n\n`jaxrl train` starts from these hyper-parameters where there "
    head += "are any for its environment; `jaxrl reproduce AGENT/ENV` repeats what was kept."
    columns = ["environment", "steps", "final return", "published", "source"]
    files = [f'??? note "{r.name}.toml"\n    ```toml\n{indented(r.name)}\n    ```' for r in own]
    return "\n\n".join([head, table(columns, rows), "\n".join(curves), *files])


def indented(recipe: str) -> str:
    lines = (recipes.FOLDER / f"{recipe}.toml").read_text().splitlines()
    return "\n".join(f"    {line}".rstrip() for line in lines)


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
