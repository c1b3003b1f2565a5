"""Studies: figures, claims and comparisons, one file each, on one protocol (`study.py`)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.studies.study import Study

# Modules of this folder, in the order of the page of results; each has its study as `STUDY`.
STUDIES = (
    "recipes",
    "two_peaks",
    "brax_sac",
    "offline",
    "abs_lengths",
    "second_order",
    "active_sampling",
    "memory",
    "noisy_clip",
    "retry",
    "gate",
    "collapse",
    "xqc",
    "wasserstein",
    "disagreement",
    "chunks",
    "sequence_gradients",
    "vector_rewards",
    "state_distribution",
    "maestro",
    "guided_diffusion",
    "search",
    "speed",
)


def get(name: str) -> Study:
    """The study of one of STUDIES."""
    study: Study = importlib.import_module(f"experiments.studies.{name}").STUDY
    return study
