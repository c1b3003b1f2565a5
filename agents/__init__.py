"""Agents by family: one algorithm, one file. `get(name)` imports only the one asked for."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

AGENTS = {
    "ppo": "on_policy.ppo:PPO",
    "pqn": "value_based.pqn:PQN",
    "abs": "value_based.abs:ABS",
    "dqn": "value_based.dqn:DQN",
    "sac": "off_policy.sac:SAC",
    "mixturesac": "off_policy.mixturesac:MixtureSAC",
    "softgac": "off_policy.softgac:SoftGAC",
    "cql": "offline.cql:CQL",
    "discretecql": "offline.discretecql:DiscreteCQL",
    "bc": "offline.bc:BC",
    "td3bc": "offline.td3bc:TD3BC",
    "iql": "offline.iql:IQL",
    "awac": "offline.awac:AWAC",
}


def get(name: str) -> type:
    """The agent class called `name`.

    Raises:
        ValueError: no agent has that name; the line names the nearest ones.
    """
    if name not in AGENTS:
        from jaxrl.words import did_you_mean  # imports JAX, which the listing does without

        hint = did_you_mean(name, AGENTS, "`jaxrl list agents` shows all")
        raise ValueError(f"unknown agent {name!r}; {hint}")
    module, cls = AGENTS[name].split(":")
    return getattr(importlib.import_module(f"agents.{module}"), cls)


def describe(name: str) -> str:
    """What an agent is: the first line of its class's docstring, read without importing JAX."""
    module, cls = AGENTS[name].split(":")
    path = Path(__file__).parent / f"{module.replace('.', '/')}.py"
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    docstring = next(ast.get_docstring(node) for node in classes if node.name == cls)
    return (docstring or "").partition("\n")[0]
