"""Environments that are not in the catalogue: registered, installed with a package, module:NAME."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from gymnax.environments.environment import Environment

from envs_jax.catalogue import REGISTERED, installed
from envs_jax.wrappers import Typed, TypedStep, constructor_options, overrides_step
from jaxrl import imports


def options(suite: str, name: str) -> dict[str, Any]:
    """{option: default}: every suite's, and those of the class or function itself."""
    own = constructor_options(_maker(_id(suite, name)))
    return {"resets": "fresh", "pool_size": 16, "end_broken": False} | own


def build(suite: str, name: str, **settings: Any) -> Typed:
    """The environment. ValueError (one line) where what is called does not give a sound one."""
    id = _id(suite, name)
    env = _maker(id)(**settings)
    if not isinstance(env, Environment):
        raise ValueError(
            f"environment {id} gives a {type(env).__name__}: it has to give an instance of a "
            "subclass of gymnax.environments.environment.Environment"
        )
    typed = (TypedStep if overrides_step(env) else Typed)(env, id)
    _check(typed, id)
    return typed


def _check(env: Typed, id: str) -> None:
    """Raise ValueError where a step does not fit a reset, or observations not their space.

    Both are found by tracing: nothing is computed, and later they would be errors of a scan.
    """
    params = env.default_params
    key = jax.random.key(0)
    step = env.step if isinstance(env, TypedStep) else env.step_env
    try:
        obs, state = jax.eval_shape(env.reset, key, params)
        action = jax.eval_shape(env.action_space(params).sample, key)
        seen_after, state_after, reward, terminated, *_ = jax.eval_shape(
            step, key, state, action, params
        )
    except (TypeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(f"environment {id} cannot take a step: {line}") from None
    space = env.observation_space(params)
    shape = getattr(space, "shape", ())
    for what, seen in (("a reset", obs), ("a step", seen_after)):
        if seen.shape != tuple(shape):
            raise ValueError(
                f"environment {id}: {what} gives observations of shape {seen.shape}, and its "
                f"observation_space says {tuple(shape)}"
            )
    paths = [jax.tree_util.tree_leaves_with_path(x) for x in (state, state_after)]
    if [path for path, _ in paths[0]] != [path for path, _ in paths[1]]:
        raise ValueError(f"environment {id}: a step gives a state of other fields than a reset")
    for (path, x), (_, y) in zip(*paths, strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError(
                f"environment {id}: state{jax.tree_util.keystr(path)} is {x.dtype}{list(x.shape)} "
                f"after a reset and {y.dtype}{list(y.shape)} after a step"
            )
    for name, value in (("reward", reward), ("terminated", terminated)):
        if value.shape != ():
            raise ValueError(f"environment {id}: {name} has shape {value.shape}, not ()")


def _id(suite: str, name: str) -> str:
    return f"{suite}/{name}" if suite else name


def _maker(id: str) -> Callable[..., Any]:
    if id in REGISTERED:
        return REGISTERED[id]
    maker = imports.load(installed().get(id, id), "environment")
    if not callable(maker):
        raise ValueError(f"environment {id} is a {type(maker).__name__}: give a class or function")
    return maker
