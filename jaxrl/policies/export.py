"""Trained policies as folders that need neither the run nor its environment.

policy.json          agent, hyper-parameters, spaces, evaluation, versions
policy.safetensors   the arrays that the policy reads: parameters, statistics of observations
README.md            a model card, as hubs show it
*.jaxexport          with format "jax": the policy as StableHLO, which runs without jaxrl
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxrl import files
from jaxrl.agent import Agent, memoryless
from jaxrl.parts.trees import by_name
from jaxrl.policies import description
from jaxrl.policies.card import card_of
from jaxrl.policies.description import ARRAYS, CARD, DESCRIPTION, FORMAT
from jaxrl.policies.load import policy_of, restored
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.hosts import to_numpy
from jaxrl.training.identity import checksum

FORMATS = ("jax",)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Trained(Protocol):
    """One trained agent, such as `jaxrl.train` and `population[i]` give."""

    @property
    def agent(self) -> Agent: ...

    @property
    def state(self) -> Any: ...

    @property
    def iteration(self) -> Any: ...


def export(
    run: Trained,
    folder: Path | str,
    *,
    evaluation: Evaluation | None = None,
    formats: Collection[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write how a trained agent acts into a folder, from which `jaxrl.load` reads it.

    What the policy does not read (optimisers, critics, environments, replay) is left out.

    Args:
        run: of one agent: what `jaxrl.train` gives, or a member of a population.
        folder: a new one, or an empty one.
        evaluation: of this run, for the description and the model card.
        formats: ("jax",): also as StableHLO; see `_stablehlo`.
        about: JSON values by name that are written down with the rest, such as a seed.

    Raises: ValueError, one line, where there are several members, the agent has what cannot be
        written down or found again, the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"format {unknown[0]!r} is not one of {', '.join(FORMATS)}")
    agent, state = _single(run)
    content = {"format": FORMAT} | description.of_agent(agent)
    arrays = _read_arrays(agent, state)
    content |= {
        "memory": bool(jax.tree.leaves(memoryless(agent.policy(state)).initial())),
        "formats": list(formats),
        "checksum": checksum(arrays),
        "iteration": int(run.iteration),
        "evaluation": None if evaluation is None else _summary(evaluation),
        "about": description.plain(dict(about or {})),
        "versions": description.versions(),
    }
    _require_acting(agent, content, arrays)
    exported = {name: _stablehlo(agent, state) for name in formats}
    try:
        _write(folder, content, arrays, exported.get("jax", {}))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    return folder


def _single(run: Trained) -> tuple[Agent, Any]:
    """Agent and state of a run of one agent."""
    agent, state = getattr(run, "agent", None), getattr(run, "state", None)
    if not isinstance(agent, Agent) or np.ndim(run.iteration):
        raise ValueError(
            f"a {type(run).__name__} of several members cannot be exported: give one, population[i]"
        )
    if type(agent).__module__ == "__main__":
        warnings.warn(
            f"{type(agent).__name__} is defined in the script or notebook itself: what is exported "
            "can be loaded only there; move the class to a module",
            stacklevel=3,
        )
    return agent, state


def _read_arrays(agent: Agent, state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state that its policy reads, deterministic or not, by name."""
    leaves, structure = jax.tree.flatten(state)
    obs, _ = jax.eval_shape(agent.env.reset, jax.random.key(0), agent.env_params)

    def act(leaves: list[Any], obs: Any, key: Any, deterministic: bool) -> Any:
        policy = memoryless(agent.policy(jax.tree.unflatten(structure, leaves), deterministic))
        return policy.step(policy.initial(), obs, key)

    read: set[int] = set()
    for deterministic in (True, False):
        traced = jax.make_jaxpr(act, static_argnums=3)(
            leaves, obs, jax.random.key(0), deterministic
        ).jaxpr
        used = {id(v) for equation in traced.eqns for v in equation.invars}
        used |= {id(v) for v in traced.outvars}
        read |= {i for i, v in enumerate(traced.invars[: len(leaves)]) if id(v) in used}
    named = enumerate(by_name(state).items())
    return {name: to_numpy(x).copy("C") for i, (name, x) in named if i in read}


def _require_acting(agent: Agent, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError where the policy could not be loaded again: found out now, not there."""
    try:
        again = description.agent_of(json.loads(json.dumps(content)))
        policy = policy_of(again, restored(again, arrays), deterministic=True)
        obs = jax.ShapeDtypeStruct(again.env.observation.shape, again.env.observation.dtype)
        jax.eval_shape(policy.step, policy.initial(), obs, jax.random.key(0))
    except Exception as error:  # whatever an agent of a user's own makes of an environment
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{agent.name} does not act without its environment, so it cannot be exported: {line}"
        ) from None


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    returns, lengths = np.asarray(evaluation.returns), np.asarray(evaluation.lengths)
    if returns.ndim != 1:
        raise ValueError(f"evaluation is of shape {returns.shape}: it should be of one member")
    return {
        "episodes": len(returns),
        "mean_return": description.plain(float(returns.mean())),
        "std_return": description.plain(float(returns.std())),
        "mean_length": float(lengths.mean()),
        **{
            f"mean_{name}": description.plain(float(np.mean(x)))
            for name, x in evaluation.info.items()
        },
    }


def _write(
    folder: Path, content: dict[str, Any], arrays: dict[str, np.ndarray], exported: dict[str, bytes]
) -> None:
    """The description comes last: without it the folder is no policy."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    parts = {ARRAYS: save(arrays), **exported, CARD: card_of(content).encode()}
    for name, part in {**parts, DESCRIPTION: text.encode()}.items():
        with files.replacing(folder / name) as file:
            file.write(part)


def _stablehlo(agent: Agent, state: Any) -> dict[str, bytes]:
    """The policy, deterministic and stochastic, as what `jax.export.deserialize` reads.

    Its `call(obs, key_data)` takes any number B of observations (B, ...) and the words of as many
    keys, `jax.random.key_data(jax.random.split(key, B))` (B, 2), and gives B actions.

    Raises: ValueError where the policy has a memory.
    """
    from jax import export as jax_export

    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("format 'jax' needs the extra: pip install -e '.[export]'")
    obs, _ = jax.eval_shape(agent.env.reset, jax.random.key(0), agent.env_params)
    (size,) = jax_export.symbolic_shape("batch")
    words = jax.eval_shape(jax.random.key_data, jax.random.key(0))
    shapes = [jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in (obs, words)]
    files_of = {}
    for name, deterministic in (("deterministic", True), ("stochastic", False)):
        policy = memoryless(agent.policy(state, deterministic))
        if jax.tree.leaves(policy.initial()):
            raise ValueError(f'{agent.name} has a memory: format "jax" takes policies without one')

        def act(obs: jax.Array, key_data: jax.Array, policy: Any = policy) -> jax.Array:
            return jax.vmap(policy)(obs, jax.random.wrap_key_data(key_data))

        exported = jax_export.export(jax.jit(act), platforms=PLATFORMS)(*shapes)
        files_of[f"{name}.jaxexport"] = bytes(exported.serialize())
    return files_of
