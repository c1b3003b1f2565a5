"""Agents: one algorithm, one file. `get(name)` imports only the one asked for."""

from __future__ import annotations

import difflib
import importlib

AGENTS = {
    "ppo": "Proximal Policy Optimization; discrete and continuous actions",
    "pqn": "Parallelised Q-Network, Q(lambda) without replay or target network; discrete actions",
    "abs": "PQN with adaptive batch scaling by behavioural divergence; discrete actions",
    "dqn": "Deep Q-Network with replay and target network, optionally Double; discrete actions",
    "sac": "Soft Actor-Critic with twin critics and learnt temperature; continuous actions",
    "mixturesac": "SAC with a mixture of Gaussians by marginalised reparameterisation; continuous",
    "softgac": "SAC with a stochastic bridge as policy, CrossQ critic; continuous actions",
    "cql": "Conservative Q-Learning on SAC, from recorded data; continuous actions",
    "discretecql": "Conservative Q-Learning on DQN, from recorded data; discrete actions",
    "bc": "behaviour cloning of recorded data, or of its best part; all actions",
    "td3bc": "TD3 near recorded actions; continuous actions",
    "iql": "Implicit Q-Learning, from recorded data; all actions",
    "awac": "advantage-weighted actor-critic, from recorded data; all actions",
}


def get(name: str) -> type:
    """The agent class called `name`.

    Raises:
        ValueError: no agent has that name; the line names the nearest ones.
    """
    if name not in AGENTS:
        near = difflib.get_close_matches(name.lower(), AGENTS, n=3, cutoff=0.3) or list(AGENTS)
        raise ValueError(f"unknown agent {name!r}; did you mean {' or '.join(near)}?")
    module = importlib.import_module(f"agents.{name}")
    return next(thing for key, thing in vars(module).items() if key.lower() == name)
