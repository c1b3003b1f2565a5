"""Words of the command line to values, ranges and options."""

import pytest

from experiments.command import options, parse
from jaxrl import Lin, Log


@pytest.mark.parametrize(
    ("text", "kind", "random", "expected"),
    [
        ("1e5", int, False, [100_000]),
        ("1_000,2e3", int, False, [1000, 2000]),
        ("64x64,32", tuple, False, [(64, 64), (32,)]),
        ("true,False", bool, False, [True, False]),
        ("tanh,relu", str, False, ["tanh", "relu"]),
        ("1,2", float, False, [1.0, 2.0]),
        ("lin:0:1:3", float, False, [0.0, 0.5, 1.0]),
        ("log:1:100:3", int, False, [1, 10, 100]),
        ("lin:1:2:3", int, False, [1, 2, 2]),
        ("log:1e-4:1e-2", float, True, Log(1e-4, 1e-2, 1)),
        ("lin:0:1:9", float, True, Lin(0.0, 1.0, 9)),
    ],
)
def test_axis(text, kind, random, expected):
    found = parse.axis("x", text, kind, None, random)
    assert list(map(type, found)) == list(map(type, expected))
    assert found == (pytest.approx(expected) if kind is float else expected)


@pytest.mark.parametrize(
    ("text", "expected"), [("500M", 500 * 2**20), ("8g", 8 * 2**30), ("1e3", 1000), ("1.5K", 1536)]
)
def test_bytes(text, expected):
    assert parse.size(text) == expected


def test_words_behind_options_are_settings():
    words = ["train", "ppo", "CartPole-v1", "gamma=0", "--steps", "1e3", "learning_rate=1"]
    args = options.parse([*words, "--record", "success,cost"])
    assert args.settings == ["gamma=0", "learning_rate=1"]
    assert args.steps == 1000
    assert args.record == ("success", "cost")
    assert args.line.startswith("jaxrl train ppo CartPole-v1 gamma=0 --steps 1e3")
