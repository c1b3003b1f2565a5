"""Environments that are not in the catalogue: registered, installed with a package, module:NAME."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnax.environments.environment import Environment

from envs_jax.catalogue import REGISTERED, installed
from envs_jax.preprocessing import Flat
from envs_jax.wrappers import Typed, TypedStep, constructor_options, overrides_step
from jaxrl import environments, imports


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
    if hasattr(env.observation_space(env.default_params), "spaces"):
        env = Flat(env)
    typed = (TypedStep if overrides_step(env) else Typed)(env, id)
    environments.check(typed, typed.default_params, f"environment {id}")
    return typed


def _id(suite: str, name: str) -> str:
    return f"{suite}/{name}" if suite else name


def _maker(id: str) -> Callable[..., Any]:
    if id in REGISTERED:
        return REGISTERED[id]
    maker = imports.load(installed().get(id, id), "environment")
    if not callable(maker):
        raise ValueError(f"environment {id} is a {type(maker).__name__}: give a class or function")
    return maker
