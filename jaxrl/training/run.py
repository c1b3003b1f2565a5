"""What training gives back: the run of one agent, or of a batch of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.training.exchange import Exchange
from jaxrl.training.history import History
from jaxrl.training.members import map_members

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained agent, or a batch of them with a leading axis of members on all arrays.

    Attributes:
        agent, state: what `agent.policy(state)`, `evaluate` and further training take.
        history: metrics and evaluations; see `History`.
        compile_seconds, run_seconds: time spent compiling, and all the rest.
        interrupted: the run was stopped early, by Ctrl-C, a callback, or as `on_nan` says.
        exchanges: of a batch that was trained by `jaxrl.pbt`.
    """

    agent: Any
    state: Any
    history: History
    compile_seconds: float
    run_seconds: float
    interrupted: bool
    exchanges: Sequence[Exchange] = ()

    @property
    def iteration(self) -> Any:
        """Iterations done; of a batch, those of each member (members,)."""
        ran = ~np.isnan(self.history.env_steps)
        return self.history.first + ran.sum(axis=-1)

    def rows(self, rows: np.ndarray) -> Run:
        """The run of some members of a batch."""
        agent, state = (
            map_members(lambda x: x[rows], self.agent),
            jax.tree.map(lambda x: x[rows], self.state),
        )
        return dataclasses.replace(self, agent=agent, state=state, history=self.history.rows(rows))

    def without_replay(self) -> Run:
        """The same with what its members need to act, not to train on."""
        return dataclasses.replace(self, state=self.agent.without_replay(self.state))

    def __len__(self) -> int:
        if np.ndim(self.history.diverged_at) == 0:
            raise TypeError("this is the run of a single agent, which has no members")
        return len(self.history.diverged_at)

    def __getitem__(self, i: int) -> Run:
        """Member `i` of a batch as the run of an agent that acts, evaluates and trains further."""
        if not 0 <= i < len(self):
            raise IndexError(f"member {i} of a batch of {len(self)}")
        agent = map_members(lambda x: jnp.asarray(x[i]), self.agent)
        state = jax.tree.map(lambda x: jnp.asarray(x[i]), self.state)
        seconds = self.compile_seconds, self.run_seconds
        return Run(agent, state, self.history.member(i), *seconds, self.interrupted)

    def plot(self) -> Figure:
        """Learning curve: returns of training episodes, else of evaluations during training.

        Of a batch the mean over its members, with its 95 % t interval.

        Raises: ValueError where there are neither.
        """
        from jaxrl.report import plots, results

        history = self.history if np.ndim(self.history.diverged_at) else self.history.as_batch()
        everyone = [results.Setting({}, list(range(len(history.env_steps))))]
        curves = results.curves_of(everyone, history.env_steps, *history[1:3])
        title = f"{self.agent.name} on {self.agent.env.name}"
        labels = plots.labels_of("episode_return" in history.metrics, self.agent.unit)
        return plots.shown(plots.learning_curves(curves, title=title, **labels))
