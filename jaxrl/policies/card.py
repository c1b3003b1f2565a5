"""The model card of an exported policy: README.md, with the front matter that hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

USE = """```python
import jaxrl

policy = jaxrl.load("path/to/this/folder")  # deterministic=False: it samples
action = policy(obs)  # of one observation; jax.jit and jax.vmap as you like
```"""
WITH_MEMORY = """```python
import jax
import jaxrl

policy = jaxrl.load("path/to/this/folder")  # deterministic=False: it samples
memory = policy.initial()  # at the start of each episode
memory, action = policy.step(memory, obs, jax.random.key(0))
```"""
WITHOUT_JAXRL = """Without jaxrl, for observations (B, ...) and as many keys:

```python
from pathlib import Path
import jax
import jax.export

policy = jax.export.deserialize(Path("deterministic.jaxexport").read_bytes())  # or stochastic
keys = jax.random.split(jax.random.key(0), len(obs))
actions = policy.call(obs, jax.random.key_data(keys))
```"""


def card_of(content: Mapping[str, Any]) -> str:
    """A model card in Markdown. Its front matter is YAML, every string in it quoted as JSON is."""
    agent = content["agent"].partition(":")[2]
    env = content["environment"]["name"]
    lines = [*_front_matter(agent, env, content["evaluation"]), f"# {agent} on {env}", ""]
    text = f"A policy of the agent `{content['agent']}`, trained with jaxrl on `{env}`"
    lines += [f"{text} (iteration {content['iteration']:,}).", ""]
    lines += _evaluation(content["evaluation"])
    lines += ["## Use", "", WITH_MEMORY if content["memory"] else USE, ""]
    lines += [WITHOUT_JAXRL, ""] if "jax" in content["formats"] else []
    lines += [f"Observations: {_space(content['observation'])}.", ""]
    lines += [f"Actions: {_space(content['action'])}.", ""]
    for title, table in (
        ("Hyper-parameters", content["hyperparameters"]),
        ("Training", content["about"]),
        ("Versions", content["versions"]),
    ):
        if table:
            lines += [f"## {title}", "", "| name | value |", "|---|---|"]
            lines += [f"| {name} | {_cell(value)} |" for name, value in table.items()] + [""]
    return "\n".join(lines)


def _front_matter(agent: str, env: str, evaluation: Mapping[str, Any] | None) -> list[str]:
    quoted = json.dumps
    lines = ["---", "library_name: jaxrl", "pipeline_tag: reinforcement-learning", "tags:"]
    lines += [f"- {tag}" for tag in ("reinforcement-learning", "jax", "jaxrl")]
    lines += [f"- {quoted(tag)}" for tag in (agent, env)]
    if evaluation is not None:
        task = ["      type: reinforcement-learning", "      name: reinforcement-learning"]
        lines += ["model-index:", f"- name: {quoted(agent)}", "  results:", "  - task:", *task]
        lines += ["    dataset:", f"      name: {quoted(env)}", f"      type: {quoted(env)}"]
        lines += ["    metrics:", "    - type: mean_reward", "      name: mean_reward"]
        lines += [f"      value: {quoted(_return(evaluation))}", "      verified: false"]
    return [*lines, "---", ""]


def _return(evaluation: Mapping[str, Any]) -> str:
    mean, std = evaluation["mean_return"], evaluation["std_return"]
    return (
        "not finite" if mean is None or std is None else f"{float(mean):.2f} +/- {float(std):.2f}"
    )


def _evaluation(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return []
    text = f"Return {_return(evaluation)}: mean and standard deviation of "
    text += f"{evaluation['episodes']} fresh episodes with deterministic actions."
    return ["## Evaluation", "", text, ""]


def _space(space: Mapping[str, Any]) -> str:
    if "n" in space:
        return f"the integers 0 to {space['n'] - 1}"
    shape = tuple(space["shape"])
    bounds = f" from {space['low']} to {space['high']}" if type(space["low"]) is not list else ""
    return f"{space['dtype']} arrays of shape {shape}{bounds}"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")
