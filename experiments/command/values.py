"""`jaxrl eval --data`: what a run's policies are worth by what recorded data says."""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
import jaxrl
from agents.offline.fqe import FQE
from envs_jax import datasets
from envs_jax.datasets import Recording
from experiments.command.tables import table
from experiments.runs.folder import RunFolder, TrainedMember
from jaxrl import spaces
from jaxrl.parts import ope
from jaxrl.parts.replay import Dataset
from jaxrl.report.formatting import number, setting_text

ROWS = 4096  # steps whose log-probabilities are computed at once


def values(args: argparse.Namespace) -> None:
    """Print a row per member: the mean value of the states that recorded episodes begin in.

    By fitted Q evaluation; with --stochastic, where the data holds the log-probabilities of its
    actions and the policy knows its own, by importance sampling as well.

    Raises: ValueError where there is no such member, or the data does not fit the environment.
    """
    folder = RunFolder.open(args.run)
    env, env_params = envs_jax.make(folder.config["env"], **folder.config["env_options"])
    recording = datasets.read_all(args.data, env, env_params)
    data, rows = recording.dataset(env, env_params), []
    for member in folder.members(folder.chosen(args.member, args.best), args.checkpoint):
        fitted = fitted_value(member, data, args)
        sampled = sampled_values(member, recording, args.gamma) if args.stochastic else None
        cells = [None] * 3 if sampled is None else sampled
        rows.append(
            [
                str(member.number),
                setting_text(member.setting),
                str(member.seed),
                *(number(x) for x in (fitted, *cells)),
            ]
        )
    recorded = recording.discounted_returns(args.gamma)[recording.known].mean()
    print(
        f"value at gamma={args.gamma:g} of the states that recorded episodes begin in; "
        f"of the policy that was recorded: {number(float(recorded))}"
    )
    columns = ["member", "setting", "seed", "fitted Q", "per decision", "weighted"]
    columns += ["effective episodes"]
    table(columns, rows, right=[c for c in columns if c != "setting"])


def fitted_value(member: TrainedMember, data: Dataset, args: argparse.Namespace) -> float:
    """By fitted Q evaluation, in `args.steps` gradient steps."""
    policy = member.agent.policy(member.state, deterministic=not args.stochastic)
    cls: Any = FQE
    fqe = cls(
        member.agent.env,
        member.agent.env_params,
        target=policy,
        data=data,
        gamma=args.gamma,
        total_steps=args.steps,
    )
    run = jaxrl.train(fqe, args.seed)
    if run.interrupted:
        raise KeyboardInterrupt
    return float(fqe.value(run.state, jax.random.key(args.seed)))


def sampled_values(
    member: TrainedMember, recording: Recording, gamma: float
) -> tuple[float, float, float] | None:
    """Per decision, the same weighted, and how many episodes' worth the last weights are.

    None where the data or the policy has no log-probabilities.
    """
    if recording.log_prob is None:
        return None
    log_prob = log_probs(member, recording)
    if log_prob is None:
        return None
    reward, log_ratio, mask = map(jnp.asarray, recording.ope_arrays(log_prob))
    plain, weighted = (
        float(ope.per_decision(reward, log_ratio, mask, gamma, weighted=weighted))
        for weighted in (False, True)
    )
    size = float(ope.effective_sample_size(log_ratio.sum(axis=1)))
    return plain, weighted, size


def log_probs(member: TrainedMember, recording: Recording) -> np.ndarray | None:
    """Of the recorded actions under a member's sampled policy (M,); None where it has none."""
    agent = member.agent
    space = agent.action_space

    def of_step(obs: jax.Array, action: jax.Array) -> jax.Array | None:
        own = action if spaces.is_discrete(space) else spaces.from_box(space, action)
        return agent.log_prob(member.state, obs, own)

    of_steps = jax.jit(jax.vmap(of_step))
    pieces = []
    for first in range(0, len(recording), ROWS):
        rows = slice(first, first + ROWS)
        piece = of_steps(recording.obs[rows], recording.action[rows])
        if piece is None:
            return None
        pieces.append(np.asarray(piece))
    return np.concatenate(pieces)
