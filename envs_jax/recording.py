"""Recorded steps in memory: episodes, what they returned, and what is made of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

REFERENCES = ("random_return", "expert_return")  # between which scores are normalised


@dataclasses.dataclass(frozen=True)
class Recording:
    """Steps (M, ...) one after the other, episode after episode.

    Attributes:
        action: in the environment's own units; integers where discrete.
        terminated, truncated: the episode ended in a terminal state, or was cut there. The last
            step of an episode has one of them or both.
        next_obs: the observation the step led to, before any reset.
        info: what the file says about itself: "env", "kind", "policy", "seeds", and
            "random_return" and "expert_return", between which scores are normalised.
        stopped: cut there by the recording alone: the episode would have gone on. None: nowhere.
        log_prob: of the action under the policy that took it, as `Agent.log_prob` has it. None:
            not known.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: np.ndarray
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    stopped: np.ndarray | None = None
    log_prob: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.reward)

    # Episodes ---------------------------------------------------------------------------------

    @property
    def episode(self) -> np.ndarray:
        """The number of each step's episode (M,), from 0."""
        ended = self.terminated | self.truncated
        return np.concatenate([[0], np.cumsum(ended[:-1])]).astype(np.int64)

    @property
    def episode_lengths(self) -> np.ndarray:
        """Steps of each episode."""
        return np.bincount(self.episode)

    @property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted returns, one per episode."""
        return np.bincount(self.episode, self.reward.astype(np.float64))

    @property
    def last(self) -> np.ndarray:
        """The index of each episode's last step."""
        return np.cumsum(self.episode_lengths) - 1

    @property
    def first(self) -> np.ndarray:
        """The index of each episode's first step."""
        return np.concatenate([[0], self.last[:-1] + 1])

    @property
    def whole(self) -> np.ndarray:
        """Whether each episode was recorded to its end: terminated, or cut by its environment.

        Of the others, the fragments, nobody knows the return.
        """
        cut = self.truncated if self.stopped is None else self.truncated & ~self.stopped
        return (self.terminated | cut)[self.last]

    @property
    def known(self) -> np.ndarray:
        """The whole episodes, as `whole` has them; all, if none is whole."""
        whole = self.whole
        return whole if whole.any() else np.ones_like(whole)

    @property
    def whole_returns(self) -> np.ndarray:
        """Returns of the whole episodes; of all, if none is whole."""
        return self.episode_returns[self.known]

    def discounted_returns(self, gamma: float) -> np.ndarray:
        """sum_t gamma^t r_t of each episode."""
        age = np.arange(len(self)) - self.first[self.episode]
        return np.bincount(self.episode, gamma**age * self.reward.astype(np.float64))

    def score(self, returns: Any) -> np.ndarray | None:
        """100 (R - random) / (expert - random), or None if the reference returns are unknown."""
        low, high = (self.info.get(name) for name in REFERENCES)
        if low is None or high is None or high == low:
            return None
        return 100 * (np.asarray(returns) - low) / (high - low)

    # What is made of them ---------------------------------------------------------------------

    def take(self, steps: np.ndarray) -> Recording:
        """These steps, an index or a mask (M,)."""
        return dataclasses.replace(self, **{k: x[steps] for k, x in arrays_of(self).items()})

    def dataset(self, env: Any, env_params: Any) -> Any:
        """The steps on the device (`jaxrl.parts.replay.Dataset`), actions scaled to [-1, 1]."""
        import jax.numpy as jnp

        from jaxrl import spaces
        from jaxrl.parts.replay import Dataset

        space = env.action_space(env_params)
        discrete = spaces.is_discrete(space)
        action = self.action.astype(np.int32 if discrete else np.float32)
        # Whole episodes first, by their returns, then fragments, whose returns nobody knows.
        ranks = np.argsort(np.lexsort((-self.episode_returns, ~self.whole)))
        returns = self.whole_returns
        return Dataset(
            obs=jnp.asarray(self.obs),
            action=jnp.asarray(action) if discrete else spaces.from_box(space, jnp.asarray(action)),
            reward=jnp.asarray(self.reward),
            terminated=jnp.asarray(self.terminated),
            truncated=jnp.asarray(self.truncated),
            next_obs=jnp.asarray(self.next_obs),
            best_first=jnp.asarray(np.argsort(ranks[self.episode], kind="stable"), jnp.int32),
            return_range=jnp.asarray([returns.min(), returns.max()], jnp.float32),
        )

    def ope_arrays(self, log_prob: np.ndarray) -> OpeArrays:
        """What `jaxrl.parts.ope` takes, of the whole episodes (of all, if none is whole).

        Args:
            log_prob: of the recorded actions under the policy to evaluate (M,).

        Raises:
            ValueError: the recording has no log-probabilities, or as many others.
        """
        if self.log_prob is None:
            raise ValueError("the recording does not hold the log-probabilities of its actions")
        if log_prob.shape != self.log_prob.shape:
            raise ValueError(f"log_prob is of shape {log_prob.shape}, not {self.log_prob.shape}")
        lengths = self.episode_lengths[self.known]
        mask = np.arange(lengths.max()) < lengths[:, None]
        steps = self.known[self.episode]

        def padded(values: np.ndarray) -> np.ndarray:
            rows = np.zeros(mask.shape, np.float32)
            rows[mask] = values[steps]
            return rows

        return OpeArrays(padded(self.reward), padded(log_prob - self.log_prob), mask)


class OpeArrays(NamedTuple):
    """Episodes (n, H) padded to the longest: arguments of the estimators in `jaxrl.parts.ope`."""

    reward: np.ndarray
    log_ratio: np.ndarray
    mask: np.ndarray


def arrays_of(recording: Recording) -> dict[str, np.ndarray]:
    """The arrays (M, ...) that a recording has, by their names."""
    fields = {f.name: getattr(recording, f.name) for f in dataclasses.fields(recording)}
    return {name: x for name, x in fields.items() if isinstance(x, np.ndarray)}


def join(recordings: Sequence[Recording]) -> Recording:
    """Recordings of one environment, one after the other.

    What they say about themselves is kept where they all say the same. Log-probabilities are kept
    where all have them.

    Raises:
        ValueError: they are of different shapes.
    Warns where their reference returns differ: scores are then not normalised.
    """
    if len(recordings) == 1:
        return recordings[0]
    for name in ("obs", "action"):
        shapes = {getattr(recording, name).shape[1:] for recording in recordings}
        if len(shapes) > 1:
            raise ValueError(f"recordings cannot be joined: {name} is of shapes {sorted(shapes)}")
    parts = [arrays_of(_ended(recording)) for recording in recordings]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
    first, *others = [recording.info for recording in recordings]
    same = {k: v for k, v in first.items() if all(k in x and x[k] == v for x in others)}
    lost = [k for k in REFERENCES if k not in same and any(k in x for x in (first, *others))]
    if lost:
        same = {k: v for k, v in same.items() if k not in REFERENCES}
        warnings.warn(
            "the joined recordings name different reference returns: scores are not normalised "
            "(--reference gives those to take)",
            stacklevel=2,
        )
    return Recording(**arrays, info=same)


def _ended(recording: Recording) -> Recording:
    """The recording with its last episode marked as cut, if it has no end, and all stops known."""
    under_way = not (recording.terminated[-1] or recording.truncated[-1])
    truncated = recording.truncated.copy()
    stopped = recording.stopped
    stopped = np.zeros_like(truncated) if stopped is None else stopped.copy()
    truncated[-1] |= under_way
    stopped[-1] |= under_way
    return dataclasses.replace(recording, truncated=truncated, stopped=stopped)


def subsample(recording: Recording, steps: int, seed: int = 0) -> Recording:
    """Episodes drawn at random, each with all its steps, until they hold at least `steps`.

    The order of the recording is kept. Raises ValueError where it holds fewer steps.
    """
    if steps > len(recording):
        raise ValueError(f"{steps} steps are asked for, but only {len(recording)} are recorded")
    lengths = recording.episode_lengths
    order = np.random.default_rng(seed).permutation(len(lengths))
    drawn = int(np.searchsorted(np.cumsum(lengths[order]), steps)) + 1
    return _ended(recording).take(np.isin(recording.episode, order[:drawn]))
