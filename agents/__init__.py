"""Agents by family: one algorithm, one file. `get(name)` imports only the one asked for."""

from __future__ import annotations

import difflib
import importlib

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
        near = difflib.get_close_matches(name.lower(), AGENTS, n=3, cutoff=0.3) or list(AGENTS)
        raise ValueError(f"unknown agent {name!r}; did you mean {' or '.join(near)}?")
    module, cls = AGENTS[name].split(":")
    return getattr(importlib.import_module(f"agents.{module}"), cls)


def describe(name: str) -> str:
    """What an agent is: the first line of its class's docstring."""
    return (get(name).__doc__ or "").splitlines()[0]
