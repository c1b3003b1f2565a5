"""Environments: one `make(id)` for many suites, all with gymnax 1.0's interface.

    env, env_params = envs_jax.make("CartPole-v1")
    env, env_params = envs_jax.make("brax/hopper", backend="generalized")

An environment of your own, a subclass of gymnax's `Environment`, is made by the name of its class
or of a function that gives one, `make("my_package.envs:Walk")`, or by an id under which it was
registered. In Python agents take any `(env, env_params)`, which need nothing from here.
Importing this package imports no environment library; `make` imports the suite it needs.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

from envs_jax.catalogue import REGISTERED, check_id, describe, is_own, list_envs, split, unknown

__all__ = ["check", "describe", "list_envs", "make", "options", "register"]

MOST = 10_000  # of an option that is a size
_RESETS = ("fresh", "pool", "cached")
# Options of every suite that `envs_jax.preprocessing` carries out, and what changes nothing.
_CHANGES: dict[str, Any] = {"action_repeat": 1, "clip_reward": 0.0, "frame_stack": 1}


def make(id: str, **options: Any) -> tuple[Any, Any]:
    """An environment and its default parameters, a dataclass of traced arrays.

    Two calls with the same arguments return the same `env` object, so that a program compiled for
    one is reused for the other, and separate copies of its parameters.

    Options of every suite: `resets` ("fresh": a reset for every finished episode, gymnax's
    default; "pool": from `pool_size` (16) resets that every iteration draws anew, in whole or in
    part, the default of the physics suites, whose resets are slow; "cached": back to the
    environment's own first state); `end_broken`: a step to an observation or a reward that is not
    finite ends its episode, with reward 0 (the physics suites' default); `action_repeat` (1): take
    each action so many times, and add up the rewards; `clip_reward` (0: not at all): clip rewards
    to plus and minus that (`episode_unclipped_reward` then says what they were); `frame_stack` (1):
    observe so many frames at once, along the last axis.
    gymnax: `sticky` (0.0), the probability of repeating the last action (discrete actions only).
    brax: `backend` ("spring", "generalized", "positional" or "mjx"). playground: `impl` ("jax"
    or "warp"). pgx: `opponent`. navix: `observation`. xminigrid: `benchmark`. gymnax, brax and
    gymnasium also take the arguments of the environment's own constructor, and so does one of your
    own: those that have a default. README.md says more about each.

    Raises:
        ValueError, one line: unknown id, option or choice; a value out of range; a suite that is
            not installed.
    """
    module, defaults = _suite(id)
    for option in options:
        if option not in defaults:
            raise ValueError(f"{id}: {unknown('option', option, defaults)}")
        _check_kind(id, option, options[option], defaults[option])
    # Defaults are filled in, so that one passed by name gives the same environment as one omitted.
    filled = {option: _hashable(value) for option, value in (defaults | options).items()}
    if filled.get("resets", "fresh") not in _RESETS:
        raise ValueError(f"{id}: {unknown('resets', filled['resets'], _RESETS)}")
    if not isinstance(filled.get("end_broken", False), bool):
        raise ValueError(f"{id}: end_broken={filled['end_broken']} is not true or false")
    size = filled.get("pool_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**31:
        raise ValueError(f"{id}: pool_size={size} is not a whole number from 1 to {2**31 - 1:,}")
    changed = {name: x for name, x in options.items() if x != defaults[name]}
    try:
        env = _build(module, id, tuple(sorted(filled.items())), bool(changed))
    except ValueError:
        raise
    except Exception as error:  # whatever a constructor or a first reset makes of its options
        line = " ".join(str(error).split())[:150]
        raise ValueError(f"{id}: {changed} cannot be: {type(error).__name__}: {line}") from None
    return env, env.default_params


def check(env: Any, env_params: Any) -> None:
    """Whether agents can learn in an environment; the constructor of every agent asks the same.

    Its methods and spaces are looked at, and a reset and a step traced: nothing is computed.

    Raises:
        ValueError, one line: what is missing or does not fit, and what to do; its `__cause__` is
            what the environment's own code raised, if it did.
    """
    from jaxrl import environments, spaces

    environments.check(env, env_params, f"environment {spaces.name_of(env)}")


def register(id: str, make: Callable[..., Any]) -> None:
    """Let `make(id)` give the environment that a class or function of your own makes.

    Its arguments with a default are options. A package that is installed can declare the same as an
    entry point of the group "jaxrl.envs".

    Raises: ValueError where the id is taken, or `make` cannot be called.
    """
    if not callable(make):
        raise ValueError(f"environment {id} is a {type(make).__name__}: give a class or function")
    if id in list_envs() and REGISTERED.get(id) is not make:
        raise ValueError(f"environment {id} is there already: choose another id")
    REGISTERED[id] = make


def _check_kind(id: str, name: str, value: Any, default: Any) -> None:
    """Raise ValueError where an option is not of its default's kind, or of no size that can be."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits = is_number and value == int(value) and 0 <= value <= MOST if is_number else False
        kind = f"a whole number from 0 to {MOST:,}"
    elif isinstance(default, float):
        fits, kind = is_number and math.isfinite(value), "a number"
    else:
        fits, kind = not is_number or default is None, "a word"
    if not fits and name not in ("resets", "pool_size", "end_broken"):
        raise ValueError(f"{id}: {name}={value!r} is not {kind}")


def options(id: str) -> dict[str, Any]:
    """What `make` takes for an environment, and the defaults. ValueError for an unknown id."""
    defaults: dict[str, Any] = _suite(id)[1]
    return defaults


def _suite(id: str) -> tuple[Any, dict[str, Any]]:
    """The module of an environment's suite, and the options that it takes for it."""
    suite, name = split(id)
    if is_own(id):
        module = importlib.import_module("envs_jax.own_envs")
    else:
        check_id(id)
        module = importlib.import_module(f"envs_jax.{MODULES[suite]}")
    return module, _CHANGES | module.options(suite, name)


MODULES = {  # by suite
    "": "gymnax_envs",
    "brax": "brax_envs",
    "mjx": "brax_envs",
    "playground": "playground_envs",
    "craftax": "craftax_envs",
    "pgx": "pgx_envs",
    "jumanji": "jumanji_envs",
    "xminigrid": "xminigrid_envs",
    "navix": "navix_envs",
    "sequences": "sequences",
    "diffusion": "diffusion",
    "gymnasium": "gymnasium_envs",
}


@cache
def _build(module: Any, id: str, options: tuple[tuple[str, Any], ...], try_out: bool) -> Any:
    settings = dict(options)
    of_all = ("resets", "pool_size", "end_broken")
    own = {name: settings.pop(name) for name in of_all if name in settings}
    suite, name = split(id)
    changes = {
        option: settings.pop(option)
        for option in _CHANGES
        if option not in module.options(suite, name)  # else it is the environment's own
    }
    env = module.build(suite, name, **settings)
    for name_of_option, value in own.items():
        setattr(env, name_of_option, value)
    if any(value != _CHANGES[option] for option, value in changes.items()):
        from envs_jax.preprocessing import preprocessed

        env = preprocessed(env, **{**_CHANGES, **changes})
    if try_out:
        _try_out(env)
    return env


def _try_out(env: Any) -> None:
    """Trace a reset: what is wrong with options often shows there only."""
    import jax

    jax.eval_shape(env.reset, jax.random.key(0), env.default_params)


def _hashable(value: Any) -> Any:
    """Lists, as recipes hold them, become tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
