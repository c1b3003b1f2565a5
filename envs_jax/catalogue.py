"""The environments that `make` knows, as a table that needs no environment library to read.

`jaxrl list envs` prints it; tests/envs_jax compare it with the real environments.
"""

from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any

from envs_jax import suite_tables

# id -> (observation, action, time limit in steps). Observations are float32, discrete ones int32.
_GYMNAX = {
    "CartPole-v1": ("(4,)", "Discrete(2)", "500"),
    "Pendulum-v1": ("(3,)", "Box(-2, 2, (1,))", "200"),
    "Acrobot-v1": ("(6,)", "Discrete(3)", "500"),
    "MountainCar-v0": ("(2,)", "Discrete(3)", "200"),
    "MountainCarContinuous-v0": ("(2,)", "Box(-1, 1, (1,))", "999"),
    "Asterix-MinAtar": ("(10, 10, 4)", "Discrete(5)", "1000"),
    "Breakout-MinAtar": ("(10, 10, 4)", "Discrete(3)", "1000"),
    "Freeway-MinAtar": ("(10, 10, 7)", "Discrete(3)", "2500"),
    "Seaquest-MinAtar": ("(10, 10, 10)", "Discrete(6)", "1000"),
    "SpaceInvaders-MinAtar": ("(10, 10, 6)", "Discrete(4)", "1000"),
    "Catch-bsuite": ("(10, 5)", "Discrete(3)", "1000"),
    "DeepSea-bsuite": ("(8, 8)", "Discrete(2)", "8"),
    "MemoryChain-bsuite": ("(3,)", "Discrete(2)", "1000"),
    "UmbrellaChain-bsuite": ("(3,)", "Discrete(2)", "100"),
    "DiscountingChain-bsuite": ("(2,)", "Discrete(5)", "100"),
    "SimpleBandit-bsuite": ("(1, 1)", "Discrete(11)", "100"),
    "FourRooms-misc": ("(4,)", "Discrete(4)", "500"),
    "MetaMaze-misc": ("(15,)", "Discrete(4)", "200"),
    "PointRobot-misc": ("(6,)", "Box(-0.1, 0.1, (2,))", "100"),
    "BernoulliBandit-misc": ("(4,)", "Discrete(2)", "100"),
    "GaussianBandit-misc": ("(4,)", "Discrete(2)", "100"),
    "Reacher-misc": ("(8,)", "Box(-1, 1, (2,))", "100"),
    "Swimmer-misc": ("(16,)", "Box(-1, 1, (2,))", "500"),
    "Pong-misc": ("(30, 40, 3)", "Discrete(3)", "1000"),
    "FrozenLake-misc": ("Discrete(16)", "Discrete(4)", "100"),
}

# name -> (size of the observation vector, size of the action vector in [-1, 1])
_BRAX = {
    "ant": (27, 8),
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "humanoid": (244, 17),
    "humanoidstandup": (244, 17),
    "inverted_double_pendulum": (8, 1),
    "inverted_pendulum": (4, 1),
    "pusher": (23, 7),
    "reacher": (11, 2),
    "walker2d": (17, 6),
}
_PLAYGROUND = {
    "AcrobotSwingup": (6, 1),
    "AcrobotSwingupSparse": (6, 1),
    "BallInCup": (8, 2),
    "CartpoleBalance": (5, 1),
    "CartpoleBalanceSparse": (5, 1),
    "CartpoleSwingup": (5, 1),
    "CartpoleSwingupSparse": (5, 1),
    "CheetahRun": (17, 6),
    "FingerSpin": (9, 2),
    "FingerTurnEasy": (12, 2),
    "FingerTurnHard": (12, 2),
    "FishSwim": (24, 5),
    "HopperHop": (15, 4),
    "HopperStand": (15, 4),
    "HumanoidRun": (67, 21),
    "HumanoidStand": (67, 21),
    "HumanoidWalk": (67, 21),
    "PendulumSwingup": (3, 1),
    "PointMass": (4, 2),
    "SwimmerSwimmer6": (25, 5),
    "WalkerRun": (24, 6),
    "WalkerStand": (24, 6),
    "WalkerWalk": (24, 6),
}


def _physics(suite: str, sizes: dict[str, tuple[int, int]]) -> dict[str, tuple[str, str, str]]:
    return {
        f"{suite}/{name}": (f"({observation},)", f"Box(-1, 1, ({action},))", "1000")
        for name, (observation, action) in sizes.items()
    }


def _discrete(suite: str, rows: dict[str, tuple[str, int, int]]) -> dict[str, tuple[str, str, str]]:
    return {
        f"{suite}/{name}": (observation, f"Discrete({actions})", str(limit))
        for name, (observation, actions, limit) in rows.items()
    }


GYMNASIUM = "gymnasium/"  # before any id that gymnasium knows
_TABLE = {
    **_GYMNAX,
    **_physics("brax", _BRAX),
    **_physics("mjx", _BRAX),
    **_physics("playground", _PLAYGROUND),
    **_discrete("craftax", suite_tables.CRAFTAX),
    **_discrete("pgx", suite_tables.PGX),
    **_discrete("jumanji", suite_tables.JUMANJI),
    **_discrete("xminigrid", suite_tables.XMINIGRID),
    **_discrete("navix", suite_tables.NAVIX),
    **_discrete("sequences", suite_tables.SEQUENCES),
    "diffusion/ring": ("(12,)", "Box(-1, 1, (4,))", "8"),
    **{
        GYMNASIUM + name: (observation, action, str(limit))
        for name, (observation, action, limit) in suite_tables.GYMNASIUM.items()
    },
}

_SWIMMER = "brax 0.14.2 calls jnp.clip with an argument that jax has removed"
_FIND_BODY = "playground 0.2.0 calls MjSpec.find_body, which mujoco has removed"
_LEFT_OUT = {
    "MNISTBandit-bsuite": "it downloads its data",
    "brax/swimmer": _SWIMMER,
    "mjx/swimmer": _SWIMMER,
    "playground/ReacherEasy": _FIND_BODY,
    "playground/ReacherHard": _FIND_BODY,
    **suite_tables.LEFT_OUT,
}


REGISTERED: dict[str, Callable[..., Any]] = {}  # by `envs_jax.register`


def installed() -> dict[str, str]:
    """What installed packages declare as entry points of "jaxrl.envs": id -> module:NAME."""
    return {point.name: point.value for point in entry_points(group="jaxrl.envs")}


def list_own() -> tuple[str, ...]:
    """Ids that are not in the catalogue: what was registered, or is installed with a package."""
    return tuple(x for x in {**REGISTERED, **installed()} if x not in _TABLE)


def list_envs() -> tuple[str, ...]:
    """The ids that `make` accepts, beside module:NAME and gymnasium/ID of any other ID there.

    Imports no environment library.
    """
    return (*_TABLE, *list_own())


def is_own(id: str) -> bool:
    """Whether an id is of an environment that was registered or installed, or is module:NAME."""
    return not id.startswith(GYMNASIUM) and (":" in id or id in list_own())


def split(id: str) -> tuple[str, str]:
    """(suite, name): ("", "CartPole-v1"), ("brax", "hopper"), ("gymnasium", "ALE/Pong-v5")."""
    suite, slash, name = id.partition("/")
    return (suite, name) if slash else ("", id)


def describe(id: str) -> dict[str, str]:
    """One row for a listing: id, observation shape, action space and time limit in steps.

    The row describes the environment with its default options; of one that is not in the catalogue
    it knows the id only. ValueError (one line) for an unknown id.
    """
    if id in list_own() or (id not in _TABLE and id.startswith(GYMNASIUM)):
        return {"id": id, "observation": "-", "action": "-", "time_limit": "-"}
    check_id(id)
    observation, action, time_limit = _TABLE[id]
    return {"id": id, "observation": observation, "action": action, "time_limit": time_limit}


def check_id(id: str) -> None:
    """ValueError (one line, with the nearest names) unless `make` knows the id."""
    if id in _LEFT_OUT:
        raise ValueError(f"environment {id} does not work here: {_LEFT_OUT[id]}")
    if id not in _TABLE and not id.startswith(GYMNASIUM):
        raise ValueError(unknown("environment", id, _TABLE))


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """A one-line message: what was not known, and what may have been meant."""
    from jaxrl.words import did_you_mean  # imports JAX, which the listing does without

    otherwise = "`jaxrl list envs` shows all" if what == "environment" else ""
    return f"unknown {what} {given!r}; {did_you_mean(str(given), sorted(known), otherwise)}"
