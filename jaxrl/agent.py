"""The agent contract: a frozen pytree of hyper-parameters whose methods are pure functions.

A subclass of `Agent` declares each hyper-parameter once, with its default, the values it accepts
and its meaning, as `traced` (a number inside the compiled program: stacks under vmap and never
recompiles) or `static` (shapes, counts, choices: part of the program's identity).
"""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import jax

from jaxrl import environments, masks, spaces

LARGEST = 2**31 - 1  # that static numbers are counted to
OWN = "module:NAME"  # among accepted words: what the user's own code holds
TINY, HUGE = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of numbers in single precision

Interval = str
Valid = Interval | tuple[str, ...] | None


class Tag(enum.IntEnum):
    """What a key is for; see `derive`."""

    INIT = 0
    RESET = 1
    ROLLOUT = 2
    LEARN = 3
    EVALUATE = 4  # during training
    TEST = 5  # after it
    MEASURE = 6
    ADOPT = 7  # the root of a run that starts from what another has learnt
    REFILL = 8  # of a replay that was not kept


def derive(key: jax.Array, tag: Tag, t: int | jax.Array = 0) -> jax.Array:
    """The key of one purpose at one iteration, from the root key of a run.

    Every key of a run is derived from its root like this and none is carried along, so neither the
    cadence of evaluation nor chunking nor resuming can change what training draws.
    """
    return jax.random.fold_in(jax.random.fold_in(key, tag), t)


def traced(default: Any, valid: Valid, doc: str) -> Any:
    """Declare a hyper-parameter that is a number inside the program: vmaps, never recompiles.

    `valid` is an interval such as "[0, 1]" or "(0, inf)".
    """
    return dataclasses.field(
        default=default, metadata={"static": False, "valid": valid, "doc": doc}
    )


def static(default: Any, valid: Valid, doc: str) -> Any:
    """Declare a hyper-parameter that is part of the program's identity.

    `valid` is an interval for numbers and tuples of numbers, or a tuple of accepted strings; with
    `OWN` among them also module:NAME, and in Python what that means.
    """
    return dataclasses.field(default=default, metadata={"static": True, "valid": valid, "doc": doc})


def shared() -> Any:
    """Declare arrays that all members of a population read and none changes, such as a dataset.

    They are not a hyper-parameter: a population holds them once, without an axis of members.
    """
    return dataclasses.field(default=None, metadata={"static": False, "shared": True})


@dataclasses.dataclass(frozen=True)
class Policy:
    """How an agent acts, for one observation, in the environment's own units.

    A policy without memory is called: `policy(obs, key) -> action`. In general

        memory = policy.initial()                         # at the start of each episode
        memory, action = policy.step(memory, obs, key)

    and whoever runs it carries the memory, a pytree of arrays (() without one).
    """

    initial: Callable[[], Any]
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]

    def __call__(self, obs: jax.Array, key: jax.Array) -> jax.Array:
        """The action at one observation. Raises TypeError where the policy has a memory."""
        memory = self.initial()
        if jax.tree.leaves(memory):
            raise TypeError(
                "this policy has a memory: memory = policy.initial(), then "
                "memory, action = policy.step(memory, obs, key)"
            )
        return self.step(memory, obs, key)[1]


def memoryless(act: Callable[[jax.Array, jax.Array], jax.Array] | Policy) -> Policy:
    """`act(obs, key) -> action` as a policy; a policy is returned as it is. Use it to decorate."""
    if isinstance(act, Policy):
        return act
    return Policy(lambda: (), lambda memory, obs, key: (memory, act(obs, key)))


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """What an agent declares about one of its hyper-parameters."""

    name: str
    kind: str  # "traced" or "static"
    type: type
    default: Any
    valid: Valid
    doc: str

    def check(self, value: Any, owner: str) -> None:
        """Raise ValueError if a concrete `value` has the wrong type or is not accepted.

        Arrays and tracers pass: their values are not known before the program runs.
        """
        if not isinstance(value, bool | int | float | str | tuple | list | None):
            return
        items = value if self.type is tuple and isinstance(value, tuple) else (value,)
        wanted = int if self.type is tuple else self.type
        for item in items:
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            fits = is_number if wanted is float else type(item) is wanted
            if not fits or (self.type is tuple and items is not value):
                raise ValueError(f"{owner}: {self.name}={value!r} must be of type {self.type_name}")
            if wanted is int and abs(item) > LARGEST and not isinstance(self.valid, tuple):
                raise ValueError(
                    f"{owner}: {self.name}={value!r} is outside {self._bounded(str(LARGEST))}"
                )
            if wanted is float and not is_single(item):
                raise ValueError(
                    f"{owner}: {self.name}={value!r} is no number in single precision, which "
                    f"reaches from {TINY:.3g} to {HUGE:.3g}"
                )
            is_own = isinstance(item, str) and ":" in item and OWN in (self.valid or ())
            if isinstance(self.valid, tuple) and item not in self.valid and not is_own:
                choices = ", ".join(self.valid)
                raise ValueError(f"{owner}: {self.name}={value!r} is not one of {choices}")
            if isinstance(self.valid, str) and not _inside(item, self.valid):
                raise ValueError(f"{owner}: {self.name}={value!r} is outside {self.valid}")

    def _bounded(self, largest: str) -> str:
        """The accepted interval as far as it can be counted."""
        low = self.valid[1:].split(",")[0] if isinstance(self.valid, str) else f"-{largest}"
        return f"[{low}, {largest}]"

    @property
    def type_name(self) -> str:
        return "tuple of int" if self.type is tuple else self.type.__name__


def is_single(value: float) -> bool:
    """Whether single precision holds a number, and not infinity or 0 in its stead."""
    return value == 0 or not math.isfinite(value) or TINY <= abs(value) <= HUGE


def _inside(value: float, interval: Interval) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return not math.isnan(value) and above and below


@typing.dataclass_transform(frozen_default=True, field_specifiers=(traced, static, shared))
@dataclasses.dataclass(frozen=True)
class Agent:
    """Base of all agents. Subclasses become frozen dataclasses and pytrees by being declared.

    An agent implements `steps_per_iteration`, `init`, `step` and `policy`; all are pure.

    Raises (on construction): ValueError with one line that names field, value and what is accepted.
    """

    name: ClassVar[str] = "agent"
    takes_masks: ClassVar[bool] = False  # whether it heeds `jaxrl.Masked` observations

    env: Any = dataclasses.field(metadata={"static": True})
    env_params: Any = dataclasses.field(metadata={"static": False})
    total_steps: int = static(
        500_000,
        "[1, 2147483647]",
        "of the whole run: environment steps, gradient steps if it learns from recorded data, or "
        "answers to prompts",
    )
    # Entries of the environment's `info` that are summed over each episode and reported.
    record: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()
        dataclasses.dataclass(frozen=True)(cls)
        _register(cls)

    def __post_init__(self) -> None:
        for hyperparameter in self.hyperparameters():
            value = getattr(self, hyperparameter.name)
            if type(value).__module__ == "numpy" and not getattr(value, "ndim", 0):
                value = value.item()  # a NumPy number is as good as Python's
                object.__setattr__(self, hyperparameter.name, value)
            hyperparameter.check(value, self.name)
            if hyperparameter.type is float and isinstance(value, int):
                # 1 for 1.0 must not make an integer of a traced number: that is another program.
                object.__setattr__(self, hyperparameter.name, float(value))
        environment = f"{self.name}: {spaces.name_of(self.env)}"
        seen = environments.check(self.env, self.env_params, environment)
        if seen.masked and not self.takes_masks:
            raise ValueError(f"{environment} masks actions, and {self.name} would take any")
        environments.require_info(self.record, seen, self.env, self.name)
        self.check()
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Raise ValueError where a hyper-parameter that has no effect was changed."""
        why = self.unused()
        # All fields: also those that a subclass inherits and does not list.
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            is_concrete = isinstance(value, bool | int | float | str | tuple)
            if f.name in why and is_concrete and value != f.default:
                raise ValueError(
                    f"{self.name}: {f.name}={value!r} has no effect {why[f.name]}; leave it out"
                )

    @classmethod
    def hyperparameters(cls) -> list[Hyperparameter]:
        """All declared hyper-parameters, in order of declaration."""
        return [
            Hyperparameter(
                name=f.name,
                kind="static" if f.metadata["static"] else "traced",
                type=type(f.default),
                default=f.default,
                valid=f.metadata["valid"],
                doc=f.metadata["doc"],
            )
            for f in dataclasses.fields(cls)
            if "doc" in f.metadata
        ]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like a new agent."""
        return dataclasses.replace(self, **changes)

    def axes(self) -> Self:
        """`in_axes` of vmap for a stacked agent: None for what members share, 0 for the rest."""
        fields = [f for f in dataclasses.fields(self) if not f.metadata["static"]]
        axes = [None if f.metadata.get("shared") else 0 for f in fields]
        leaf = lambda x: x is not self  # noqa: E731
        return jax.tree.unflatten(jax.tree.structure(self, is_leaf=leaf), axes)

    # What a subclass provides -----------------------------------------------------------------

    def check(self) -> None:
        """Raise ValueError (one line) where fields do not fit together."""
        if self.total_steps < self.steps_per_iteration:
            raise ValueError(
                f"{self.name}: total_steps={self.total_steps} is smaller than one iteration of "
                f"{self.steps_per_iteration} {self.unit}"
            )

    @property
    def reported(self) -> tuple[str, ...]:
        """Entries of `info` summed over episodes: what the environment reports, and `record`."""
        reports = tuple(getattr(self.env, "reports", ()))
        return reports + tuple(name for name in self.record if name not in reports)

    def unused(self) -> dict[str, str]:
        """Hyper-parameters without effect as the others stand, and why ("with ...")."""
        return {}

    @property
    def unit(self) -> str:
        """What `total_steps` and `steps_per_iteration` count."""
        return "environment steps"

    @property
    def steps_per_iteration(self) -> int:
        """Steps of one `step`, in the agent's `unit`; where it varies, the fewest."""
        raise NotImplementedError

    @property
    def first_updates(self) -> int:
        """Gradient steps that `init` takes, at most."""
        return 0

    def init(self, key: jax.Array) -> Any:
        """The state at the start of training from a root key: a pytree of arrays."""
        raise NotImplementedError

    def step(self, state: Any, t: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Iteration `t` of training: collect, learn; returns the new state and scalar metrics."""
        raise NotImplementedError

    def policy(self, state: Any, deterministic: bool = True) -> Policy:
        """How the agent acts: by its mode, or by sampling if not deterministic."""
        raise NotImplementedError

    def log_prob(self, state: Any, obs: jax.Array, action: jax.Array) -> jax.Array | None:
        """Log-probability () of an action at one observation under the sampled policy.

        Actions are integers, or within [-1, 1] where continuous, whose density this is. None where
        the policy has none: it has a memory, or its samples are clipped to the box.
        """
        return None

    @property
    def action_space(self) -> Any:
        return self.env.action_space(self.env_params)

    @property
    def discrete(self) -> bool:
        """Whether actions are integers 0..n-1."""
        return spaces.is_discrete(self.action_space)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of one observation as networks see it: a discrete one is a one-hot vector."""
        return spaces.encoded_shape(self.obs_space)

    @property
    def obs_space(self) -> Any:
        return self.env.observation_space(self.env_params)

    @property
    def masked(self) -> bool:
        """Whether observations say which actions may be taken: whether they are `jaxrl.Masked`."""
        return environments.interface(self.env, self.env_params).masked

    def encode(self, obs: Any) -> Any:
        """Observations as numbers that networks take: one-hot where they are discrete."""
        return masks.map_obs(partial(spaces.encode, self.obs_space), obs)

    def env_action(self, action: jax.Array) -> jax.Array:
        """An action in the environment's own units: continuous ones clipped to [-1, 1], scaled."""
        return spaces.to_env(self.action_space, action)

    def env_steps(self, state: Any) -> jax.Array | None:
        """Environment steps taken so far where iterations vary in length, else None."""
        return None

    def learned(self, state: Any) -> Any:
        """What of a state must stay finite: its `params`, where it has a field of that name."""
        return getattr(state, "params", ())

    def actors(self, state: Any) -> Any:
        """The environments of a state (`parts.rollout.Actors`), None where there are none."""
        return getattr(state, "actors", None)

    def with_actors(self, state: Any, actors: Any) -> Any:
        """The state with other environments: what `actors` takes out, put back."""
        return state._replace(actors=actors)

    def without_replay(self, state: Any) -> Any:
        """A finished run's state without its replay memory, from which it can act, not train."""
        return state

    def refilled(self, state: Any, t: jax.Array) -> Any:
        """A state without its replay memory after iteration t, with one that is filled again.

        Raises: ValueError where the agent does not say how.
        """
        raise ValueError(f"{self.name}: its replay memory was not kept, so it cannot train on")

    def adopt(self, state: Any) -> Any:
        """A state at the start of training with what another agent's `state` has learnt.

        Raises: ValueError where that is of no use to this agent.
        """
        raise ValueError(f"{self.name}: start is a run of another agent, or of other sizes")

    def progress(self, state: Any, t: jax.Array) -> jax.Array:
        """The part of `total_steps` taken before iteration t, in [0, 1): what schedules follow."""
        taken = self.env_steps(state)
        return (t * self.steps_per_iteration if taken is None else taken) / self.total_steps

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run; where their length varies, the most it can take."""
        return self.total_steps // self.steps_per_iteration


def _register(cls: type) -> None:
    """Make a dataclass a pytree; rebuilding one skips the checks, whose fields may be anything."""
    fields = dataclasses.fields(cls)
    data = tuple(f.name for f in fields if not f.metadata["static"])
    meta = tuple(f.name for f in fields if f.metadata["static"])

    def flatten(agent: Any) -> tuple[Any, Any]:
        return tuple(getattr(agent, n) for n in data), tuple(getattr(agent, n) for n in meta)

    def flatten_with_keys(agent: Any) -> tuple[Any, Any]:
        children, aux = flatten(agent)
        keys = map(jax.tree_util.GetAttrKey, data)
        return tuple(zip(keys, children, strict=True)), aux

    def unflatten(aux: Any, children: Any) -> Any:
        agent: Any = object.__new__(cls)
        for name, value in zip(data + meta, (*children, *aux), strict=True):
            object.__setattr__(agent, name, value)
        return agent

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
