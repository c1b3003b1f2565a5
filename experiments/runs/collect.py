"""D4RL-style datasets from an agent that is trained for them (Fu et al. 2020, arXiv:2004.07219).

    random          uniform actions
    medium          a policy about a third of the way from random to the expert
    medium-replay   what training went through until then: equal parts from every snapshot before
    medium-expert   halves of medium and expert
    expert          the best policy of the run

Policies act with the noise they train with. A snapshot of the policy is taken SNAPSHOTS times
during training. The sets are in D4RL's layout, but not D4RL's: scores on them are not D4RL scores.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxrl
from envs_jax import datasets
from envs_jax.datasets import Recording, join
from experiments.runs.experiment import Experiment
from jaxrl import spaces
from jaxrl.agent import Tag, derive
from jaxrl.parts.rollout import reset, rollout

KINDS = ("random", "medium", "medium-replay", "medium-expert", "expert")
SNAPSHOTS = 80  # fine enough to find a third of the way where learning is sudden
EPISODES = 32  # to measure a snapshot by
NUM_ENVS = 20  # at most; fewer where each would see few steps
STEPS_PER_ENV = 2_500  # at least
ROLLOUT = 25  # steps between two draws of the pool of resets


class Written(NamedTuple):
    """A dataset that was written: its file, and the returns of its whole episodes."""

    kind: str
    path: Path
    steps: int
    returns: np.ndarray
    score: float | None  # of their mean, where reference returns are known


def collect(
    experiment: Experiment, size: int, progress: Callable[[jaxrl.Progress], None]
) -> dict[str, Recording]:
    """Train the experiment's agent with its first seed and record `size` steps of each kind."""
    agent, seed = experiment.agent, experiment.seeds[0]
    if agent.masked:
        raise ValueError(f"{experiment.env_id} masks actions, of which datasets say nothing")
    key = derive(jax.random.key(seed), Tag.TEST)
    states, returns = snapshots(agent, seed, key, progress)
    best = int(np.argmax(returns))

    def steps_of(state: Any, size: int, number: int) -> Recording:
        return record(agent, state, jax.random.fold_in(key, number), size)

    random = steps_of(None, size, 1000)
    expert = steps_of(states[best], size, 1001)
    low, high = (x.whole_returns.mean() for x in (random, expert))
    if high <= low:
        warnings.warn(
            f"the best policy of the run returns {high:,.2f}, no more than {low:,.2f} at random: "
            "it is no expert, train for longer",
            stacklevel=2,
        )
    middle = int(np.argmin(np.abs(returns[: best + 1] - (low + (high - low) / 3))))
    medium = steps_of(states[middle], size, 1002)
    past = [None, *states[: middle + 1]]
    replay = [steps_of(s, -(-size // len(past)), 2000 + i) for i, s in enumerate(past)]
    recordings = {
        "random": random,
        "medium": medium,
        "medium-replay": join(replay),
        "medium-expert": join([medium, expert]),
        "expert": expert,
    }
    share = (middle + 1) / SNAPSHOTS
    common = {
        "env": experiment.env_id,
        "env_options": str(experiment.env_options),
        "seeds": [seed],
        "agent": experiment.agent_name,
        "random_return": float(low),
        "expert_return": float(high),
        "medium_at": f"{share:.3f} of {agent.total_steps} steps",
        "expert_at": f"{(best + 1) / SNAPSHOTS:.3f} of {agent.total_steps} steps",
    }
    for kind, recording in recordings.items():
        policy = "uniform" if kind == "random" else f"{experiment.agent_name}, seed {seed}"
        recording.info.update(common, kind=kind, policy=policy)
    return recordings


def snapshots(
    agent: Any, seed: int, key: jax.Array, progress: Callable[[jaxrl.Progress], None]
) -> tuple[list[Any], np.ndarray]:
    """States at SNAPSHOTS even times of training, and their mean returns with noise."""
    bounds = np.unique(np.linspace(0, agent.num_iterations, SNAPSHOTS + 1).astype(int))[1:]
    run, states, returns, seconds = None, [], [], 0.0

    def of_whole_run(chunk: jaxrl.Progress) -> None:
        progress(chunk._replace(seconds=seconds + chunk.seconds))

    for i, until in enumerate(bounds):
        run = jaxrl.train(agent, seed, start=run, until=int(until), callbacks=[of_whole_run])
        seconds += run.run_seconds
        if run.interrupted:
            raise KeyboardInterrupt  # datasets of a half-trained agent are of no use
        if not np.isnan(run.history.diverged_at):
            raise ValueError(
                f"{agent.name} has a loss, returns or parameters that are not finite after "
                f"iteration {run.history.diverged_at:.0f}: there is no expert to record"
            )
        state = agent.without_replay(run.state)  # which is large, and not needed to act
        states.append(jax.tree.map(jnp.copy, state))
        evaluation = jaxrl.evaluate(
            agent, state, jax.random.fold_in(key, i), EPISODES, deterministic=False
        )
        returns.append(float(np.mean(evaluation.returns)))
    return states, np.asarray(returns)


def record(agent: Any, state: Any, key: jax.Array, size: int) -> Recording:
    """`size` steps of a policy (None: of uniform actions), one environment's after the other's."""
    num_envs = max(1, min(NUM_ENVS, size // STEPS_PER_ENV))
    pieces = max(1, -(-size // (num_envs * ROLLOUT)))
    steps = jax.device_get(_record(agent, state, key, pieces=pieces, num_envs=num_envs))
    flat = {  # (pieces, T, N, ...) -> (N * pieces * T, ...)
        name: np.moveaxis(x.reshape(-1, *x.shape[2:]), 1, 0).reshape(-1, *x.shape[3:])
        for name, x in steps._asdict().items()
        if name != "info" and x is not None
    }
    last = np.arange(pieces * ROLLOUT - 1, num_envs * pieces * ROLLOUT, pieces * ROLLOUT)
    stopped = np.zeros(size, bool)
    stopped[last[last < size]] = True
    stopped[size - 1] = True
    names = ("obs", "action", "reward", "terminated", "truncated", "final_obs")
    obs, action, reward, terminated, truncated, next_obs = (flat[name][:size] for name in names)
    stopped &= ~(terminated | truncated)
    return Recording(
        obs,
        action,
        reward,
        terminated,
        (truncated | stopped) & ~terminated,
        next_obs,
        stopped=stopped,
        log_prob=flat["extras"][:size] if "extras" in flat else None,
    )


@partial(jax.jit, static_argnames=("pieces", "num_envs"))
def _record(agent: Any, state: Any, key: jax.Array, *, pieces: int, num_envs: int) -> Any:
    env, env_params = agent.env, agent.env_params
    space = env.action_space(env_params)
    reset_key, key = jax.random.split(key)

    def act(obs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        if state is None:
            action = uniform(space, key, num_envs)
            return action, action, jnp.full(num_envs, uniform_log_prob(space))
        policy: Callable[..., Any] = agent.policy(state, deterministic=False)
        action = jax.vmap(policy)(obs, jax.random.split(key, num_envs))
        own = action if spaces.is_discrete(space) else spaces.from_box(space, action)
        log_prob = jax.vmap(partial(agent.log_prob, state))(obs, own)
        return action, action, log_prob

    def piece(actors: Any, key: jax.Array) -> Any:
        actors, steps, _ = rollout(key, env, env_params, actors, act, ROLLOUT)
        return actors, steps

    actors = reset(reset_key, env, env_params, num_envs)
    return lax.scan(piece, actors, jax.random.split(key, pieces))[1]


def uniform(space: Any, key: jax.Array, num: int) -> jax.Array:
    """`num` uniform actions, in the environment's own units."""
    size = spaces.action_size(space)
    if spaces.is_discrete(space):
        return jax.random.randint(key, (num,), 0, size)
    return spaces.to_box(space, jax.random.uniform(key, (num, size), minval=-1, maxval=1))


def uniform_log_prob(space: Any) -> float:
    """Log-probability of each of them; where continuous, their density within [-1, 1]."""
    size = spaces.action_size(space)
    return -math.log(size) if spaces.is_discrete(space) else -size * math.log(2)


def check_folder(out: Path, env_id: str) -> None:
    """Raise ValueError where `write` would overwrite something or cannot write."""
    for kind in KINDS:
        if path_of(out, env_id, kind).exists():
            raise ValueError(f"{path_of(out, env_id, kind)} already exists: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".write-test").touch()
        (out / ".write-test").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}") from None


def write(recordings: dict[str, Recording], out: Path, experiment: Experiment) -> list[Written]:
    """Write a file for each kind of recording."""
    files = []
    for kind, recording in recordings.items():
        path = path_of(out, experiment.env_id, kind)
        datasets.write(path, recording)
        returns = recording.whole_returns
        score = recording.score(returns.mean())
        shown = None if score is None else float(score)
        files.append(Written(kind, path, len(recording), returns, shown))
    return files


def path_of(out: Path, env_id: str, kind: str) -> Path:
    return out / f"{env_id.replace('/', '-')}-{kind}.hdf5"
