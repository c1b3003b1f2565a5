"""jaxrl: reinforcement learning whose whole training loop is one XLA program.

An agent is a frozen pytree of its hyper-parameters; its methods are pure functions; training is a
scan over one of them. So jit compiles a run, vmap over the agent sweeps hyper-parameters, vmap over
the key sweeps seeds, and a sharding spreads both over devices.
"""

import importlib.metadata

from jaxrl.agent import Agent, Tag, derive, shared, static, traced
from jaxrl.folders import open_run
from jaxrl.masks import Masked
from jaxrl.policies.export import export
from jaxrl.policies.load import load
from jaxrl.training import hosts, sinks
from jaxrl.training.callbacks import Callback, Progress
from jaxrl.training.checkpoint import Checkpoints
from jaxrl.training.devices import use_all_cores, use_compilation_cache
from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.training.halving import halving
from jaxrl.training.history import History
from jaxrl.training.pbt import pbt
from jaxrl.training.population import Population
from jaxrl.training.run import Run
from jaxrl.training.search import Lin, Log, override
from jaxrl.training.sweep import sweep
from jaxrl.training.train import fused, train
from jaxrl.training.trials import optuna_search

__version__ = importlib.metadata.version("jaxrl")

__all__ = [
    "Agent",
    "Callback",
    "Checkpoints",
    "Evaluation",
    "History",
    "Lin",
    "Log",
    "Masked",
    "Population",
    "Progress",
    "Run",
    "Tag",
    "derive",
    "evaluate",
    "export",
    "fused",
    "halving",
    "hosts",
    "load",
    "open_run",
    "optuna_search",
    "override",
    "pbt",
    "shared",
    "sinks",
    "static",
    "sweep",
    "traced",
    "train",
    "use_all_cores",
    "use_compilation_cache",
]
