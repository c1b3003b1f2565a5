"""jaxrl: reinforcement learning whose whole training loop is one XLA program.

An agent is a frozen pytree of its hyper-parameters; its methods are pure functions; training is a
scan over one of them. So jit compiles a run, vmap over the agent sweeps hyper-parameters, vmap over
the key sweeps seeds, and a sharding spreads both over devices.
"""

from jaxrl import hosts, sinks
from jaxrl.agent import Agent, static, traced
from jaxrl.checkpoint import Checkpoints
from jaxrl.devices import use_all_cores, use_compilation_cache
from jaxrl.evaluate import Evaluation, evaluate
from jaxrl.population import Progress
from jaxrl.sweep import Lin, Log, Population, override, sweep
from jaxrl.train import Run, fused, train

__all__ = [
    "Agent",
    "Checkpoints",
    "Evaluation",
    "Lin",
    "Log",
    "Population",
    "Progress",
    "Run",
    "evaluate",
    "fused",
    "hosts",
    "override",
    "sinks",
    "static",
    "sweep",
    "traced",
    "train",
    "use_all_cores",
    "use_compilation_cache",
]
