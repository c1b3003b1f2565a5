"""Exported policies, read back: they act without the run, its environment or its replay."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.agent import Agent, Policy, memoryless
from jaxrl.parts.trees import by_name
from jaxrl.policies import description
from jaxrl.policies.description import ARRAYS, DESCRIPTION
from jaxrl.policies.standin import Box, Discrete
from jaxrl.training.hosts import is_key
from jaxrl.training.identity import checksum


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedPolicy(Policy):
    """How an exported agent acts, for one observation, in the environment's own units.

    It is called, compiled and vmapped as any other `jaxrl.agent.Policy`:

        action = policy(obs, key)                  # of a deterministic one also policy(obs)
        act = jax.jit(jax.vmap(policy))            # for observations (B, ...) and keys (B,)

    Attributes:
        observation_space, action_space: `shape` and `dtype`, and `n`, or `low` and `high`.
        about: the content of its policy.json.
    """

    observation_space: Discrete | Box
    action_space: Discrete | Box
    deterministic: bool
    about: Mapping[str, Any]

    def __call__(self, obs: Any, key: jax.Array | None = None) -> jax.Array:
        """The action at one observation.

        Raises: TypeError where the policy has a memory, or samples and there is no key; ValueError
            where the observation is of another shape.
        """
        if key is None:
            if not self.deterministic:
                raise TypeError("this policy samples its actions: policy(obs, key)")
            key = jax.random.key(0)
        return super().__call__(obs, key)


def load(folder: Path | str, deterministic: bool = True) -> ExportedPolicy:
    """The policy in a folder that `jaxrl.export` or `jaxrl export` has written.

    It gives the actions that the run's own gives, bit for bit: the same function of the same
    numbers. Of an agent of your own the module is imported, from where it was or from the current
    folder; nothing else in the folder is executed.

    Args:
        deterministic: act by the mode; else by sampling.

    Raises: ValueError, one line, where there is no such policy, its files are damaged, or this
        Python finds no such agent.
    """
    folder = Path(folder)
    content = description.read(folder / DESCRIPTION)
    arrays = _arrays(folder / ARRAYS, content["checksum"])
    try:
        agent = description.agent_of(content)
        state = restored(agent, arrays)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    policy = policy_of(agent, state, deterministic)
    env = agent.env
    return ExportedPolicy(
        policy.initial, policy.step, env.observation, env.action, deterministic, content
    )


def policy_of(agent: Agent, state: Any, deterministic: bool) -> Policy:
    """The policy of an agent with a stand-in for its environment, for any array-like observation.

    Raises: ValueError, when it acts, where the observation is of another shape.
    """
    policy, space = memoryless(agent.policy(state, deterministic)), agent.env.observation

    def step(memory: Any, obs: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        obs = jnp.asarray(obs, space.dtype)
        if obs.shape != space.shape:
            raise ValueError(
                f"the observation has shape {obs.shape}, and the policy takes one of "
                f"{space.shape}; jax.vmap makes it take a batch"
            )
        return policy.step(memory, obs, key)

    return Policy(policy.initial, step)


def restored(agent: Agent, arrays: Mapping[str, np.ndarray]) -> Any:
    """A state with these arrays, by name; of all others it holds the shapes only.

    Raises: ValueError where there is no place for one of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of training, which is not to come
        like = agent.without_replay(jax.eval_shape(agent.init, jax.random.key(0)))
    left, leaves = dict(arrays), []
    for name, shape in by_name(like).items():
        array = left.pop(name, None)
        leaves.append(shape if array is None else _placed(name, array, shape))
    if left:
        raise ValueError(
            f"{agent.name} has no {next(iter(left))} in its state: it was exported by another "
            "version of the agent"
        )
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _placed(name: str, array: np.ndarray, shape: Any) -> jax.Array:
    if is_key(shape):
        return jax.random.wrap_key_data(jnp.asarray(array))
    if array.shape != shape.shape:
        raise ValueError(f"{name} has shape {array.shape} and should have {shape.shape}")
    return jnp.asarray(array)


def _arrays(path: Path, expected: int) -> dict[str, np.ndarray]:
    from safetensors.numpy import load as parse

    try:
        arrays = parse(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # whatever a damaged file makes its reader raise
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged: {line}") from None
    if checksum(arrays) != expected:
        raise ValueError(f"{path} is damaged: its checksum is another")
    return arrays
