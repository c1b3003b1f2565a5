"""Recipes: each is a valid agent, and learns."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.command.assemble import Request, assemble
from experiments.runs import recipes

pytestmark = pytest.mark.usefixtures("compiled_quickly")

BRAX = "sac/brax/inverted_pendulum"


def recipe_id(path):
    return str(path.relative_to(recipes.FOLDER).with_suffix(""))


def recipe_files():
    return [Path(path) for path in sorted(recipes.FOLDER.rglob("*.toml"))]


@pytest.mark.parametrize("path", recipe_files(), ids=recipe_id)
def test_recipe_builds(path):
    """It lies where it is looked for, says what it compares with, and is a valid agent."""
    recipe = recipes.load(path)
    assert recipes.find(recipe.agent, recipe.env) == recipe
    assert path == recipes.FOLDER / f"{recipe.name}.toml"
    assert recipe.source
    experiment = assemble(Request(recipe.agent, recipe.env))
    assert experiment.agent.total_steps == recipe.steps
    assert experiment.recipe == recipe


def learning_files():
    """All but most of brax's, whose programs take minutes to compile: one stands for them."""
    paths = recipe_files()
    return [path for path in paths if "brax" not in path.parts or recipe_id(path) == BRAX]


@pytest.mark.slow
@pytest.mark.parametrize("path", learning_files(), ids=recipe_id)
def test_recipe_learns_for_one_iteration(path):
    """The first one that learns: agents wait for a replay, or for statistics to normalise by."""
    recipe = recipes.load(path)
    agent = assemble(Request(recipe.agent, recipe.env)).agent
    step, state = jax.jit(agent.step), agent.init(jax.random.key(0))
    warm_up = getattr(agent, "learning_starts", agent.steps_per_iteration)
    for t in range(warm_up // agent.steps_per_iteration + 1):
        state, metrics = step(state, jax.numpy.int32(t))
    losses = {name: float(value) for name, value in metrics.items() if "loss" in name}
    assert losses
    assert np.isfinite(list(losses.values())).all()


ENTRIES = [
    pytest.param(recipe.name, entry, id=f"{recipe.name} {i}")
    for recipe in recipes.everything()
    for i, entry in enumerate(recipe.published)
]


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_what_was_published_says_where_it_stands(name, entry):
    """And is one story: points in order of steps, within the budget, that end near the value."""
    assert all([entry.source, entry.protocol, entry.read])
    assert entry.steps > 0
    assert (entry.spread is None) == (not entry.over)
    steps = [x for x, _ in entry.points]
    assert steps == sorted(set(steps))
    if entry.points:
        returns = [y for _, y in entry.points]
        assert steps[-1] <= entry.steps
        assert abs(returns[-1] - entry.value) < 0.02 * (max(returns) - min(returns))


def test_the_first_published_number_is_the_aim(tmp_path):
    head = '[recipe]\nagent = "ppo"\nenv = "Acrobot-v1"\nsteps = 5\n'
    rest = 'steps = 4\nprotocol = "p"\nsource = "s"\nread = "r"\n'
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"{head}[[published]]\nvalue = 1\n{rest}points = [[2, 3]]\n[[published]]\nvalue = 2\n{rest}"
    )
    recipe = recipes.read(path, "ppo", "Acrobot-v1")
    assert [entry.value for entry in recipe.published] == [1, 2]
    assert recipe.aim == recipe.published[0]
    assert recipe.aim.points == ((2, 3.0),)
    assert recipe.source == "s"
    path.write_text(head)  # neither a source nor anything published
    with pytest.raises(ValueError, match="is no recipe: it needs"):
        recipes.read(path, "ppo", "Acrobot-v1")
    path.write_text(f"{head}[[published]]\nvalue = 1\n{rest}values = 2\n")
    with pytest.raises(ValueError, match="is no recipe: it needs"):
        recipes.read(path, "ppo", "Acrobot-v1")
