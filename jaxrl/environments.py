"""What agents ask of an environment: gymnax 1.0's interface, traced before anything compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import masks, spaces

METHODS = ("reset", "step", "action_space", "observation_space")
STEP = "obs, state, reward, terminated, truncated, info"  # what gymnax 1.0's `step` returns
STEP_ENV = "obs, state, reward, terminated, info"  # and its `step_env`
GYMNAX_INFO = ("terminated", "truncated", "discount")  # in `info`, what belongs to the interface


class Interface(NamedTuple):
    """What is seen of an environment by tracing it.

    Attributes:
        masked: whether its observations say which actions may be taken (`Masked`).
        numbers: the entries of `info` that are one number per step.
    """

    masked: bool
    numbers: tuple[str, ...]


def check(env: Any, env_params: Any, who: str) -> Interface:
    """Raise ValueError (one line) unless an environment is as agents need it.

    Its methods and spaces are looked at, then a reset and a step are traced, once for environments
    that are equal and parameters of the same types: nothing is computed, nothing compiled. Warns,
    once for each environment, of actions that have no bounds.

    Args:
        who: what the line begins with, such as "ppo: Corridor".
    """
    try:
        seen = interface(env, env_params)
    except Unfit as unfit:
        raise ValueError(f"{who} {unfit}") from unfit.__cause__
    spaces.warn_of_bounds(env.action_space(env_params), spaces.name_of(env))
    return seen


def interface(env: Any, env_params: Any) -> Interface:
    """What `check` sees. Raises: Unfit, which says what is wrong but not with what."""
    _check_methods(env)
    action, observation = (
        _attempt(f"{kind}_space(params)", getattr(env, f"{kind}_space"), env_params)
        for kind in ("action", "observation")
    )
    _check_space("action", action)
    _check_space("observation", observation)
    leaves, tree = jax.tree.flatten(env_params)
    kinds = tuple((np.shape(x), _dtype(x)) for x in leaves)
    shape = tuple(getattr(observation, "shape", ()))
    num_actions = int(action.n) if spaces.is_discrete(action) else None
    return _trace(env, tree, kinds, shape, num_actions, jax.config.read("jax_enable_x64"))


class Unfit(ValueError):
    """What is wrong with an environment, to be read after its name."""


def require_info(names: tuple[str, ...], seen: Interface, env: Any, agent: str) -> None:
    """Raise ValueError unless the environment reports each name in `info`, a number per step."""
    for name in names:
        if name not in seen.numbers or name in ("return", "length"):
            numbers = ", ".join(sorted(seen.numbers))
            there = f"it has {numbers}" if numbers else "it has none"
            raise ValueError(
                f"{agent}: record={name!r} is not a number in the info of {spaces.name_of(env)}; "
                f"{there}"
            )


def is_taken_apart(cls: type) -> bool:
    """Whether `step` is gymnax's own, made of the class's own `step_env`."""

    def owner(name: str) -> type | None:
        return next((c for c in cls.__mro__ if name in vars(c)), None)

    step = owner("step")
    is_gymnax = step is not None and step.__module__ == "gymnax.environments.environment"
    return is_gymnax and owner("step_env") not in (None, step)


def _check_methods(env: Any) -> None:
    if isinstance(env, type):
        raise Unfit(f"is a class: pass what {env.__name__}(...) makes")
    if isinstance(env, str):
        raise Unfit("is a name: pass the environment itself, and its parameters")
    if isinstance(env, tuple):
        raise Unfit("of several things is no environment: pass it and its parameters apart")
    for method in METHODS:
        value = getattr(env, method, None)
        if value is None:
            raise Unfit(f"has no method {method}: it needs the interface of gymnax 1.0")
        if not callable(value):
            raise Unfit(
                f"has no method {method}, but a {type(value).__name__} of that name: gymnax 1.0 "
                f"has {method}(params)"
            )
    try:
        hash(env)
    except TypeError:
        raise Unfit(
            "has no hash, by which its compiled programs are found again: give its class a "
            "__hash__ that goes with its __eq__"
        ) from None


def _check_space(kind: str, space: Any) -> None:
    if spaces.is_discrete(space) or spaces.is_box(space):
        return
    does = "encode them as one Discrete in a wrapper"
    if kind == "observation":
        does = "flatten them in a wrapper, as `preprocessing.Flat` does"
    raise Unfit(
        f"has a {type(space).__name__} as its {kind} space; agents take Discrete and Box: {does}"
    )


def _dtype(x: Any) -> Any:
    try:
        return x.dtype if hasattr(x, "dtype") else jax.dtypes.result_type(x)
    except TypeError:
        raise Unfit(
            f"has a {type(x).__name__} among its parameters, which are numbers: what is none "
            "belongs into the environment's constructor"
        ) from None


@functools.lru_cache(maxsize=64)
def _trace(
    env: Any,
    tree: Any,
    kinds: tuple[Any, ...],
    shape: tuple[int, ...],
    num_actions: int | None,
    x64: bool,  # read while tracing
) -> Interface:
    """A reset and a step, traced from the types of the environment's parameters."""
    params = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    key = jax.eval_shape(lambda: jax.random.key(0))

    def act(key: jax.Array, params: Any) -> jax.Array:
        space = env.action_space(params)
        return spaces.to_env(space, spaces.random_action(space, key, 1))[0]

    action = _traced("action_space(params)", act, key, params)
    first = _traced("reset(key, params)", env.reset, key, params)
    obs, state = _values("reset", "obs, state", first)
    args = key, state, action, params
    if is_taken_apart(type(env)):
        stepped = _traced("step_env(key, state, action, params)", env.step_env, *args)
        after, next_state, reward, terminated, info = _values("step_env", STEP_ENV, stepped)
        truncated = _traced("is_truncated(state, params)", env.is_truncated, next_state, params)
        final = after
    else:
        stepped = _traced("step(key, state, action, params)", env.step, *args)
        after, next_state, reward, terminated, truncated, info = _values("step", STEP, stepped)
        final = info.get("final_observation") if isinstance(info, dict) else None
        if final is None:
            raise Unfit(
                "gives no info['final_observation'], the observation before any reset, which "
                "agents learn from where a time limit cuts an episode"
            )
    if not isinstance(info, dict):
        raise Unfit(f"gives a {type(info).__name__} as info by its step, not a dict")
    for what, seen in (("a reset", obs), ("a step", after), ("final_observation", final)):
        _check_observation(what, seen, shape, num_actions)
    _check_same("observation", obs, after)
    _check_same("observation", obs, final)
    _check_same("state", state, next_state)
    for name, x in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        if jnp.shape(x) != ():
            raise Unfit(f"gives a {name} of shape {jnp.shape(x)}: it is one number, of shape ()")
    numbers = [name for name, x in info.items() if hasattr(x, "shape") and not x.shape]
    return Interface(
        isinstance(obs, masks.Masked), tuple(x for x in numbers if x not in GYMNAX_INFO)
    )


def _check_observation(
    what: str, obs: Any, shape: tuple[int, ...], num_actions: int | None
) -> None:
    obs, mask = masks.split(obs)
    if not hasattr(obs, "shape"):
        raise Unfit(f"gives a {type(obs).__name__} as observation by {what}, not one array")
    if obs.shape != shape:
        raise Unfit(
            f"gives observations of shape {obs.shape} by {what}, and its observation_space says "
            f"{shape}"
        )
    if mask is None:
        return
    if num_actions is None:
        raise Unfit("masks actions that are continuous: only discrete ones can be masked")
    if mask.shape != (num_actions,) or mask.dtype != bool:
        raise Unfit(
            f"gives an action_mask {_kind(mask)} by {what}: it is bool[{num_actions}], one for "
            "each action"
        )


def _check_same(what: str, first: Any, after: Any) -> None:
    """Raise Unfit unless what a reset and a step give is of the same fields and types."""
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in (first, after)]
    paths = [[path for path, _ in of_one] for of_one in leaves]
    if paths[0] != paths[1]:
        raise Unfit(f"gives a {what} of other fields by a step than by a reset")
    for (path, x), (_, y) in zip(*leaves, strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise Unfit(
                f"gives {what}{jax.tree_util.keystr(path)} as {_kind(x)} by a reset and as "
                f"{_kind(y)} by a step"
            )


def _kind(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _values(method: str, names: str, returned: Any) -> Any:
    """What a method returned, if it is as many values as gymnax 1.0 has."""
    number = len(names.split(", "))
    if isinstance(returned, tuple) and len(returned) == number:
        return returned
    given = f"{len(returned)} values" if isinstance(returned, tuple) else "one value"
    older = "" if method == "reset" else " (before 1.0 they were others)"
    raise Unfit(f"gives {given} by {method}; gymnax 1.0's{older} are {names}")


def _traced(what: str, function: Callable[..., Any], *args: Any) -> Any:
    return _attempt(what, jax.eval_shape, function, *args)


def _attempt(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, or what is wrong with it in a line, whose cause shows where."""
    try:
        return function(*args)
    except Exception as error:  # whatever the environment's own code does
        line = " ".join(str(error).split())[:200]
        raise Unfit(f"fails in {what}: {type(error).__name__}: {line}") from error
