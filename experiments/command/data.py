"""`jaxrl data`: what recorded data holds, before anything learns from it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

import envs_jax
from envs_jax import datasets
from envs_jax.datasets import Recording
from experiments.command.tables import table
from jaxrl import spaces
from jaxrl.report.formatting import number

AT_BOUND = 0.01  # of a half-width: how near to its bound an action counts as there
IN_FULL = ("25%", "50%", "75%", "least reward", "greatest reward")  # of a single file only
MOST_ROWS = 64  # of a table of dimensions


def data(args: argparse.Namespace) -> None:
    """Print a row per file; of a single one also its actions, observations and attributes.

    Raises: ValueError where a file cannot be read or its environment is not known.
    """
    recordings = []
    for source in args.files:
        env_id = args.env or datasets.env_of(source)
        if env_id is None:
            raise ValueError(f"{source} does not say which environment it is of: give --env ENV")
        env, env_params = envs_jax.make(env_id)
        recordings.append(datasets.read(source, env, env_params, args.reference))
    summaries = [summary(recording, args.gamma) for recording in recordings]
    if len(summaries) > 1:
        columns = [name for name in summaries[0] if name not in IN_FULL]
        rows = [[summary[name] for name in columns] for summary in summaries]
        rows = [[source, *row] for source, row in zip(args.files, rows, strict=True)]
        table(["file", *columns], rows, right=columns)
        return
    table([args.files[0], "value"], list(summaries[0].items()), right=["value"])
    (recording,) = recordings
    space = env.action_space(env_params)
    if spaces.is_discrete(space):
        table(["action", "share"], shares(recording, int(space.n)), right=["action", "share"])
    else:
        columns = ["action", "min", "mean", "max", "at the low bound", "at the high bound"]
        within = spaces.from_box(space, jnp.asarray(recording.action, jnp.float32))
        table(columns, coverage(np.asarray(within)), right=columns)
    columns = ["observation", "min", "mean", "std", "max"]
    table(columns, ranges(recording.obs), right=columns)
    if recording.info:
        table(["attribute", "value"], [[k, str(v)] for k, v in sorted(recording.info.items())])


def summary(recording: Recording, gamma: float) -> dict[str, str]:
    """What a recording's episodes are, in words. Returns and lengths are of whole episodes."""
    known = recording.known
    returns, lengths = recording.whole_returns, recording.episode_lengths[known]
    quartiles = np.percentile(returns, [25, 50, 75])
    score = recording.score(returns.mean())
    terminated = recording.terminated[recording.last]
    return {
        "steps": f"{len(recording):,}",
        "episodes": f"{len(recording.episode_lengths):,}",
        "terminated": f"{terminated.sum():,}",
        "cut by time": f"{(recording.whole & ~terminated).sum():,}",
        "fragments": f"{(~recording.whole).sum():,}",
        "mean return": number(float(returns.mean())),
        "std": number(float(returns.std())),
        "min": number(float(returns.min())),
        "25%": number(float(quartiles[0])),
        "50%": number(float(quartiles[1])),
        "75%": number(float(quartiles[2])),
        "max": number(float(returns.max())),
        "mean length": number(float(lengths.mean())),
        f"value at {gamma:g}": number(float(recording.discounted_returns(gamma)[known].mean())),
        "least reward": number(float(recording.reward.min())),
        "greatest reward": number(float(recording.reward.max())),
        "score": number(None if score is None else float(score)),
    }


def shares(recording: Recording, actions: int) -> list[list[str]]:
    """Each discrete action, and the share of steps that took it."""
    counts = np.bincount(recording.action.astype(int), minlength=actions)
    return [[str(a), f"{count / len(recording):.3f}"] for a, count in enumerate(counts)]


def coverage(action: np.ndarray) -> list[list[str]]:
    """Of each dimension of actions (M, D) within [-1, 1]: its range, and shares at its bounds."""
    return [
        [
            str(i),
            *(number(float(x)) for x in (values.min(), values.mean(), values.max())),
            f"{(values <= -1 + AT_BOUND).mean():.3f}",
            f"{(values >= 1 - AT_BOUND).mean():.3f}",
        ]
        for i, values in _dimensions(action)
    ]


def ranges(obs: np.ndarray) -> list[list[str]]:
    """Of each dimension of observations (M, ...): its range, its mean and its deviation."""
    return [
        [
            str(i),
            *(number(float(x)) for x in (values.min(), values.mean(), values.std(), values.max())),
        ]
        for i, values in _dimensions(obs)
    ]


def _dimensions(rows: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Number and values (M,) of the first dimensions of rows (M, ...), in double precision."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    yield from enumerate(flat.T[:MOST_ROWS])
