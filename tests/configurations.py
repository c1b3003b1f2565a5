"""Every agent of the registry in every kind of configuration that it accepts, in tiny sizes.

Kinds are discrete or continuous actions, images or sequences, environments or recorded data or
both. `TINY` gives sizes for the names that agents share; an agent with sizes of its own needs a
line in `OWN`.
"""

import dataclasses
import math
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

import agents
import jaxrl
from envs_jax.datasets import Recording
from envs_jax.diffusion import Ring
from envs_jax.sequences import Dsl, Router, Sum
from jaxrl import Agent
from jaxrl.agent import Hyperparameter
from jaxrl.loops.sequence import Sequence
from tests.probes import Probe, SignedLimit

TINY = {
    "num_envs": 2,
    "num_steps": 4,
    "num_epochs": 2,
    "num_minibatches": 2,
    "num_updates": 2,
    "batch_size": 8,
    "buffer_size": 64,
    "learning_starts": 16,
    "hidden_sizes": (4,),
    "normalize_observations": True,
    "normalize_rewards": True,
}
OWN: dict[str, dict[str, Any]] = {
    "abs": {"min_steps": 4, "max_steps": 8},
    "acsac": {"chunk_lengths": (1, 2), "num_samples": 2, "flow_steps": 2, "width": 4, "heads": 2},
    "gdpo": {"num_prompts": 2, "group_size": 2, "width": 4, "pretraining_steps": 1},
    "grpo": {"num_prompts": 2, "group_size": 2, "width": 4, "pretraining_steps": 1},
    "guidance": {"num_paths": 4, "measure_every": 2},
    "maestro": {"num_prompts": 2, "group_size": 2, "width": 4, "pretraining_steps": 1},
    "mixturesac": {"num_components": 2},
    "opd": {"num_prompts": 2, "group_size": 2, "width": 4},
    "poise": {"num_prompts": 2, "group_size": 2, "width": 4, "probe_batches": 2},
    "recurrentppo": {"core_size": 4},
    "selfplay": {
        "num_prompts": 4,
        "group_size": 2,
        "width": 4,
        "pretraining_steps": 1,
        "pool_size": 5,
        "seed_tasks": 3,
        "validation_tasks": 2,
    },
    "sft": {"num_prompts": 2, "group_size": 2, "width": 4},
    "softgac": {"bridge_width": 4, "bridge_steps": 2},
    "vpo": {"num_prompts": 2, "group_size": 2, "width": 4},
    "wpo": {"num_samples": 2, "num_components": 2},
    "xqc": {"actor_hidden_sizes": (4,)},
    "xqcfd": {"actor_hidden_sizes": (4,), "clone_steps": 3, "num_atoms": 5},
}
ITERATIONS = 6
BODY = "tests.configurations:doubled"  # a network of one's own
# What only says how long a run is.
LENGTH = ("total_steps",)


def doubled(obs):
    return 2 * obs


class Image(Probe):
    """One-step episodes, seen as an image."""

    def see(self, state):
        return state.sign * jnp.ones((4, 4, 2))

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (4, 4, 2))


ENVS = {
    "discrete actions": SignedLimit(limit=3),
    "continuous actions": SignedLimit(continuous=True, limit=3),
    "images": Image(),
    "sequences": Sum(digits=3),
    "expressions": Dsl(),
    "samplers": Ring(modes=2, steps=2),
    "experts": Router(experts=2, domains=2, choices=2, turns=2),
}
SOURCES = ("environments", "data", "both")
KINDS = [(env, source) for env in ENVS for source in SOURCES]
NAMES = tuple(agents.AGENTS)


def dataset(env):
    """Sixty random steps, of which some end an episode."""
    rng = np.random.default_rng(0)
    params = env.default_params
    obs = rng.normal(size=(2, 60, *env.observation_space(params).shape)).astype(np.float32)
    space = env.action_space(params)
    discrete = hasattr(space, "n")
    action = rng.integers(0, space.n, 60) if discrete else rng.uniform(-1.9, 1.9, (60, 1))
    flags = rng.random((2, 60)) < 0.1
    recording = Recording(
        obs[0],
        action.astype(np.int32 if discrete else np.float32),
        rng.normal(size=60).astype(np.float32),
        flags[0],
        flags[1] & ~flags[0],
        obs[1],
    )
    return recording.dataset(env, params)


def make(name: str, env: str, source: str) -> Agent:
    """The agent in one kind of configuration; ValueError where it does not accept that."""
    cls = agents.get(name)
    if env == "sequences" and not issubclass(cls, Sequence):
        raise ValueError("would do, but takes longer")
    takes_nothing_else = {"expressions": "selfplay", "experts": "maestro", "samplers": "guidance"}
    if name != takes_nothing_else.get(env, name):
        raise ValueError("would do, but takes longer")
    declared = {h.name for h in cls.hyperparameters()}
    fields = {k: v for k, v in (TINY | OWN.get(name, {})).items() if k in declared}
    if env == "images":
        if "network" not in declared:
            raise ValueError("no networks for images")
        fields["network"] = "cnn"
    if source != "environments":
        if "data" not in {f.name for f in dataclasses.fields(cls)}:
            raise ValueError("does not learn from data")
        if source == "both" and "data_share" not in declared:
            raise ValueError("does not collect")
        fields["data"] = dataset(ENVS[env])
        if source == "both":
            fields["data_share"] = 0.5
        else:  # what only collects has no effect
            unused = cls(ENVS[env], ENVS[env].default_params, data=fields["data"]).unused()
            fields = {k: v for k, v in fields.items() if k not in unused}
    agent = cls(ENVS[env], ENVS[env].default_params, **fields)
    return agent.replace(total_steps=agent.steps_per_iteration * ITERATIONS)


@cache
def configurations(name: str) -> dict[str, Agent]:
    """All kinds that an agent accepts."""
    accepted = {}
    for env, source in KINDS:
        try:
            accepted[f"{env}, {source}"] = make(name, env, source)
        except ValueError as error:
            refusal = str(error)
    assert accepted, refusal
    return accepted


def main_configuration(name: str) -> Agent:
    """The first kind that it accepts: with environments, if it collects."""
    return next(iter(configurations(name).values()))


def other_values(h: Hyperparameter, agent: Agent) -> list[Any]:
    """Values to try instead of an agent's own."""
    value = getattr(agent, h.name)
    if h.type is bool:
        return [not value]
    if h.type is tuple:
        return [(*value, 3), value[1:]]
    if h.type is str:
        if h.valid is None:
            return ["part"]
        assert isinstance(h.valid, tuple)
        words = [BODY if choice == jaxrl.agent.OWN else choice for choice in h.valid]
        return [word for word in words if word != value]
    if h.type is int:
        return [v for v in (2 * value, value + 1, value // 2, 1, 2) if v != value]
    finite = value if math.isfinite(value) else 10.0
    return [v for v in (0.9 * finite, 1.1 * finite, 0.5 * finite, 0.5, 0.05, 1.5) if v != value]


def changed(agent: Agent, h: Hyperparameter, value: Any) -> Agent | ValueError:
    """The agent with another value, or why it refused it."""
    try:
        return agent.replace(**{h.name: value})
    except ValueError as refusal:
        return refusal
