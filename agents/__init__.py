"""Agents by family: one algorithm, one file. `get(name)` imports only the one asked for.

One of your own is found by where it is, `get("my_package.agents:MyAgent")`, or under the name that
its installed package declares as an entry point of the group "jaxrl.agents".
"""

from __future__ import annotations

import ast
import importlib
from importlib.metadata import entry_points
from pathlib import Path

AGENTS = {
    "ppo": "on_policy.ppo:PPO",
    "recurrentppo": "on_policy.recurrentppo:RecurrentPPO",
    "reppo": "on_policy.reppo:RePPO",
    "a2c": "on_policy.a2c:A2C",
    "aisac": "on_policy.aisac:AISAC",
    "trpo": "on_policy.trpo:TRPO",
    "secondorder": "on_policy.secondorder:SecondOrder",
    "pqn": "value_based.pqn:PQN",
    "abs": "value_based.abs:ABS",
    "dqn": "value_based.dqn:DQN",
    "sac": "off_policy.sac:SAC",
    "discretesac": "off_policy.discretesac:DiscreteSAC",
    "td3": "off_policy.td3:TD3",
    "mixturesac": "off_policy.mixturesac:MixtureSAC",
    "softgac": "off_policy.softgac:SoftGAC",
    "xqc": "off_policy.xqc:XQC",
    "xqcfd": "off_policy.xqcfd:XQCfD",
    "wpo": "off_policy.wpo:WPO",
    "qed": "off_policy.qed:QED",
    "acsac": "off_policy.acsac:ACSAC",
    "guidance": "diffusion.guidance:Guidance",
    "cql": "offline.cql:CQL",
    "discretecql": "offline.discretecql:DiscreteCQL",
    "bc": "offline.bc:BC",
    "td3bc": "offline.td3bc:TD3BC",
    "iql": "offline.iql:IQL",
    "awac": "offline.awac:AWAC",
    "sft": "sequences.sft:SFT",
    "opd": "sequences.opd:OPD",
    "grpo": "sequences.grpo:GRPO",
    "poise": "sequences.poise:POISE",
    "vpo": "sequences.vpo:VPO",
    "gdpo": "sequences.gdpo:GDPO",
    "maestro": "sequences.maestro:Maestro",
    "selfplay": "sequences.selfplay:SelfPlay",
}


def get(name: str) -> type:
    """The agent class called `name`, or that at `module:NAME`.

    Raises:
        ValueError: no agent has that name; the line names the nearest ones. What is there is none.
    """
    if name not in AGENTS:
        return _own(name)
    module, cls = AGENTS[name].split(":")
    return getattr(importlib.import_module(f"agents.{module}"), cls)


def _own(name: str) -> type:
    from jaxrl import Agent, imports  # which import JAX; the listing does without
    from jaxrl.words import did_you_mean

    if ":" not in name and name not in installed():
        hint = did_you_mean(name, [*AGENTS, *installed()], "`jaxrl list agents` shows all")
        raise ValueError(f"unknown agent {name!r}; {hint}")
    cls = imports.load(installed().get(name, name), "agent")
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"agent {name} is no subclass of jaxrl.Agent")
    return cls


def installed() -> dict[str, str]:
    """What installed packages declare as entry points of "jaxrl.agents": name -> module:CLASS."""
    return {point.name: point.value for point in entry_points(group="jaxrl.agents")}


def describe(name: str) -> str:
    """What an agent is: the first line of its class's docstring, read without importing JAX."""
    if name not in AGENTS:
        return (get(name).__doc__ or "").strip().partition("\n")[0]
    module, cls = AGENTS[name].split(":")
    path = Path(__file__).parent / f"{module.replace('.', '/')}.py"
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    docstring = next(ast.get_docstring(node) for node in classes if node.name == cls)
    return (docstring or "").partition("\n")[0]
