"""Discrete CQL: conservative Q-learning on DQN (Kumar et al. 2020, arXiv:2006.04779, section 4)."""

from __future__ import annotations

from typing import Any

import jax

from agents.value_based.dqn import DQN
from jaxrl.agent import static, traced
from jaxrl.parts.replay import Batch, valid_mean


class DiscreteCQL(DQN):
    """DQN that pushes log-sum-exp of Q down and Q of the recorded action up; for recorded data."""

    num_updates: int = static(100, "[1, inf)", "gradient steps per iteration")
    cql_alpha: float = traced(1.0, "[0, inf)", "weight of the conservative term")

    def regulariser(
        self, q: jax.Array, batch: Batch
    ) -> tuple[jax.Array | float, dict[str, jax.Array]]:
        gap = valid_mean(conservatism(q, batch.action), batch.valid)
        return self.cql_alpha * gap, {"gap": gap}


def conservatism(q: jax.Array, action: jax.Array) -> jax.Array:
    """log sum_a exp Q(s, a) - Q(s, a_data), shape (B,), of values (B, A).

    Its gradient with respect to Q is softmax(Q) minus the one-hot of the recorded action.
    """
    chosen: Any = jax.numpy.take_along_axis(q, action[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(q, axis=-1) - chosen
