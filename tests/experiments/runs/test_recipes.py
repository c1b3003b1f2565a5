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
