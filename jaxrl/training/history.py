"""What a run has shown: rows of metrics, evaluations, and since when a member is not finite.

The only room that joins and masks results. NumPy alone; NaN is "missing" everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STORED = {"env_steps": "evaluation_steps", "returns": "evaluation_returns"}  # names in a file


class History(NamedTuple):
    """Results over iterations; with several members, an axis of members in front of each array.

    Attributes:
        env_steps: steps taken by the end of each iteration (iterations,), NaN where a member did
            not run it, as it had taken all its steps.
        metrics: name -> (iterations,).
        evaluations: those during training: "env_steps" (k,), "returns" (k, episodes), and sums over
            each episode of what the agent records, name -> (k, episodes).
        diverged_at: the iteration after which loss, returns or parameters were not finite, NaN:
            they are.
            From there on metrics and evaluations are NaN.
        first: iterations done before those that it tells of.
    """

    env_steps: np.ndarray
    metrics: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    diverged_at: Any
    first: int = 0

    # Of several members -----------------------------------------------------------------------

    @classmethod
    def empty(cls, members: int, episodes: int, first: int = 0) -> History:
        """That of a run that begins after iteration `first`."""
        evaluations = {
            "env_steps": np.zeros((members, 0)),
            "returns": np.zeros((members, 0, episodes)),
        }
        return cls(np.zeros((members, 0)), {}, evaluations, np.full(members, np.nan), first)

    @classmethod
    def of_chunk(
        cls,
        first: int,
        env_steps: np.ndarray,
        metrics: dict[str, np.ndarray],
        finite: np.ndarray,
    ) -> History:
        """What a chunk of iterations returns: rows (members, n), and who is finite at its end.

        `env_steps` is negative where a member did not run an iteration.
        """
        diverged_at = first + diverged(metrics, finite, env_steps.shape[1])
        return cls(np.where(env_steps < 0, np.nan, env_steps), metrics, {}, diverged_at, first)

    @classmethod
    def missing(cls, members: int, first: int, stop: int) -> History:
        """Iterations of which nothing is known any more."""
        unknown = np.full((members, stop - first), np.nan)
        return cls(unknown, {}, {}, np.full(members, np.nan), first)

    def interpolated(self, lost: list[int], taken: Sequence[float] | None) -> History:
        """With the steps of iterations that are lost, of a history from iteration 0.

        They lie on a line between those before and behind, exactly where all iterations are equally
        long. `taken` (members,) are the steps of each member at the end; where they are None, they
        follow from the last that are known.
        """
        steps, after = self.env_steps.copy(), np.arange(1, self.stop + 1)
        for i, row in enumerate(steps):
            known = ~np.isnan(row)
            x, y = [0, *after[known]], [0.0, *row[known]]
            if not known[-1]:
                y.append(taken[i] if taken is not None else y[-1] * self.stop / max(x[-1], 1))
                x.append(self.stop)
            row[lost] = np.round(np.interp(after[lost], x, y))
        return self._replace(env_steps=steps)

    @property
    def stop(self) -> int:
        """The iteration after which it ends."""
        return self.first + self.env_steps.shape[-1]

    @property
    def steps_taken(self) -> np.ndarray:
        """Environment steps of each member (members,)."""
        steps = np.where(np.isnan(self.env_steps), 0, self.env_steps)
        return np.asarray(steps.max(axis=-1, initial=0).astype(int))

    def then(self, chunk: History) -> History:
        """Both, one after the other; of a member that has diverged, the later metrics are NaN."""
        diverged_at = np.fmin(self.diverged_at, chunk.diverged_at)
        missing = np.arange(chunk.first, chunk.stop) >= diverged_at[:, None]
        later = {name: np.where(missing, np.nan, x) for name, x in chunk.metrics.items()}
        return self.followed_by(chunk._replace(metrics=later, diverged_at=diverged_at))

    def followed_by(self, later: History) -> History:
        """Both, where the later part is masked already and knows who has diverged by its end."""
        if later.first != self.stop:
            raise ValueError(f"a history that ends at {self.stop} cannot go on from {later.first}")
        lengths = self.env_steps.shape[1], later.env_steps.shape[1]
        return History(
            np.concatenate([self.env_steps, later.env_steps], axis=1),
            _join(self.metrics, later.metrics, *lengths),
            _join(self.evaluations, later.evaluations, self.num_evaluations, later.num_evaluations),
            later.diverged_at,
            self.first,
        )

    @property
    def num_evaluations(self) -> int:
        """How many evaluations there were during training."""
        return self.evaluations["env_steps"].shape[-1] if self.evaluations else 0

    def evaluated(self, episodes: Mapping[str, Any]) -> History:
        """With one more evaluation, after the last iteration: arrays (members, episodes).

        A member has diverged by then where a return is not finite.
        """
        finite = np.isfinite(episodes["returns"]).all(axis=1)
        diverged_at = np.fmin(self.diverged_at, np.where(finite, np.nan, self.stop - 1))
        missing = ~np.isnan(diverged_at)[:, None]
        new = {name: np.where(missing, np.nan, x)[:, None] for name, x in episodes.items()}
        new["env_steps"] = self.steps_taken[:, None].astype(float)
        joined = _join(self.evaluations, new, self.num_evaluations, 1)
        return self._replace(evaluations=joined, diverged_at=diverged_at)

    def after(self, earlier: History) -> History:
        """What is new since an earlier state of it."""
        rows, evaluations = earlier.env_steps.shape[1], earlier.num_evaluations
        return History(
            self.env_steps[:, rows:],
            {name: x[:, rows:] for name, x in self.metrics.items()},
            {name: x[:, evaluations:] for name, x in self.evaluations.items()},
            self.diverged_at,
            earlier.stop,
        )

    def rows(self, rows: np.ndarray) -> History:
        """That of some of the members, in this order."""
        return History(
            self.env_steps[rows],
            {name: x[rows] for name, x in self.metrics.items()},
            {name: x[rows] for name, x in self.evaluations.items()},
            self.diverged_at[rows],
            self.first,
        )

    def mended(self, rows: np.ndarray) -> History:
        """Members `rows` go on with the states of others, which are finite."""
        diverged_at = self.diverged_at.copy()
        diverged_at[rows] = np.nan
        return self._replace(diverged_at=diverged_at)

    def trimmed(self) -> History:
        """Without the iterations that no member ran. It cannot be continued by `then`."""
        ran = ~np.isnan(self.env_steps).all(axis=0)
        metrics = {name: x[:, ran] for name, x in self.metrics.items()}
        return self._replace(env_steps=self.env_steps[:, ran], metrics=metrics)

    def member(self, i: int) -> History:
        """That of one member, without the iterations that it did not run."""
        ran = ~np.isnan(self.env_steps[i])
        return History(
            self.env_steps[i, ran],
            {name: x[i, ran] for name, x in self.metrics.items()},
            {name: x[i] for name, x in self.evaluations.items()},
            float(self.diverged_at[i]),
            self.first,
        )

    def as_batch(self) -> History:
        """That of a single member as one of several."""
        return History(
            self.env_steps[None],
            {name: x[None] for name, x in self.metrics.items()},
            {name: x[None] for name, x in self.evaluations.items()},
            np.asarray([self.diverged_at]),
            self.first,
        )

    def of_members(self, rows: list[int]) -> History:
        """That of some of its members."""
        return History(
            self.env_steps[rows],
            {name: x[rows] for name, x in self.metrics.items()},
            {name: x[rows] for name, x in self.evaluations.items()},
            self.diverged_at[rows],
            self.first,
        )

    @classmethod
    def gather(cls, members: list[list[int]], histories: list[History]) -> History:
        """Those of several batches as one, each with its members' numbers; NaN where it has none.

        Only batches of the whole run: all from iteration 0.
        """
        number = sum(map(len, members))

        def table(arrays: list[np.ndarray | None]) -> np.ndarray:
            present = [x for x in arrays if x is not None]
            shape = np.max([x.shape[1:] for x in present], axis=0)
            whole = np.full((number, *shape), np.nan, present[0].dtype)
            for rows, x in zip(members, arrays, strict=True):
                if x is not None:
                    place: Any = rows, *map(slice, x.shape[1:])
                    whole[place] = x
            return whole

        def tables(all_arrays: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
            names = {name: None for arrays in all_arrays for name in arrays}
            return {name: table([arrays.get(name) for arrays in all_arrays]) for name in names}

        return cls(
            table([h.env_steps for h in histories]),
            tables([h.metrics for h in histories]),
            tables([h.evaluations for h in histories]),
            table([h.diverged_at[:, None] for h in histories])[:, 0],
        )

    # Of one or several ------------------------------------------------------------------------

    def returns_since(self, first: int) -> np.ndarray:
        """Mean return of the training episodes that ended after iteration `first` (members,).

        Of agents without episodes of their own, mean return of the newest evaluation. NaN where
        there is none, minus infinity of a member that has diverged.
        """
        since = slice(max(first - self.first, 0), None)
        if "episode_return" in self.metrics:
            number = self.metrics["episodes"][:, since]
            returns = self.metrics["episode_return"][:, since]
            seen = np.isfinite(returns) & (number > 0)
            total = np.where(seen, returns * number, 0.0).sum(axis=1)
            count = np.where(seen, number, 0).sum(axis=1)
            scores = total / np.where(count > 0, count, np.nan)
        elif self.num_evaluations:
            scores = mean(self.evaluations["returns"][:, -1], axis=1)
        else:
            scores = np.full(len(self.env_steps), np.nan)
        return np.where(np.isnan(self.diverged_at), scores, -np.inf)

    def score(self) -> float:
        """Mean return of the newest evaluation; without one, of the training episodes it has."""
        if self.num_evaluations:
            newest = self.evaluations["returns"][..., -1, :]
            return float(mean(newest))
        return float(mean(self.metrics.get("episode_return", np.full(1, np.nan))))

    # In a file --------------------------------------------------------------------------------

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As a file holds it: arrays with an axis of members and one of iterations, or of one."""
        arrays = {
            "env_steps": np.where(np.isnan(self.env_steps), -1, self.env_steps).astype(np.int64),
            "diverged_at": np.asarray(self.diverged_at)[:, None],
        }
        arrays |= {f"metrics/{name}": x for name, x in self.metrics.items()}
        if self.num_evaluations:
            for name, x in self.evaluations.items():
                arrays[STORED.get(name, f"evaluation/{name}")] = x
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], stop: int) -> History:
        """`to_arrays` undone, of a history that ends at iteration `stop`."""
        steps = arrays["env_steps"]
        names = {stored: name for name, stored in STORED.items()}
        evaluations = {
            names.get(name, name.removeprefix("evaluation/")): x
            for name, x in arrays.items()
            if name.startswith("evaluation")
        }
        return cls(
            np.where(steps < 0, np.nan, steps),
            {n.removeprefix("metrics/"): x for n, x in arrays.items() if n.startswith("metrics/")},
            evaluations,
            arrays["diverged_at"][:, -1],
            stop - steps.shape[1],
        )


def diverged(metrics: dict[str, np.ndarray], finite: np.ndarray, length: int) -> np.ndarray:
    """The iteration of a chunk, from 0, after which a member is not finite any more; NaN: it is.

    `finite` tells of the parameters at the chunk's end, losses and mean returns of episodes
    (members, n) tell since when.
    """
    result = np.where(finite, np.nan, length - 1)
    losses = [x for name, x in metrics.items() if name.endswith("loss")]
    returns = [metrics["episode_return"]] if "episode_return" in metrics else []
    for values in (*losses, *returns):
        infinite = np.isinf(values)
        first = np.where(infinite.any(axis=1), infinite.argmax(axis=1), np.nan)
        result = np.fmin(result, first)
    for values in losses:
        # NaN alone may be no value at all; up to the end of a member that diverged it is the loss.
        trailing = (~np.isfinite(values))[:, ::-1].cumprod(axis=1).sum(axis=1)
        result = np.fmin(result, np.where(finite, np.nan, length - trailing))
    return result


def mean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Mean of what is not NaN, NaN where all is."""
    valid = ~np.isnan(values)
    number = np.where(valid.any(axis), valid.sum(axis), np.nan)
    return np.asarray(np.where(valid, values, 0).sum(axis) / number)


def _join(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], length: int, more: int
) -> dict[str, np.ndarray]:
    """Arrays (members, n, ...) of the same names one after the other, NaN where one has none."""
    joined = {}
    for name in {**before, **after}:
        x, y = before.get(name), after.get(name)
        if x is None or (y is not None and length == 0):
            x = np.full((y.shape[0], length, *y.shape[2:]), np.nan, y.dtype)  # type: ignore[union-attr]
        if y is None:
            y = np.full((x.shape[0], more, *x.shape[2:]), np.nan, x.dtype)
        joined[name] = np.concatenate([x, y], axis=1)
    return joined
