"""From what is asked for to an experiment."""

import dataclasses
import json

import numpy as np
import pytest

from envs_jax import datasets
from experiments.command import options
from experiments.command.assemble import Request, as_in, assemble, request_of
from experiments.runs import config, recipes


def test_environment_options_and_parameters():
    words = ["env.gravity=5,20", "env.sticky=0.25", "num_envs=8,4", "env.masscart=2"]
    experiment = assemble(Request("ppo", "CartPole-v1", words, sweep=True))
    assert experiment.env_options == {"sticky": 0.25}
    assert float(experiment.agent.env_params.masscart) == 2
    assert experiment.settings == [
        {"env.gravity": g, "num_envs": n} for g in (5.0, 20.0) for n in (8, 4)
    ]


def test_random_search_has_no_setting_twice():
    words = ["activation=tanh,relu", "num_steps=log:16:17", "num_envs=4,4"]
    experiment = assemble(Request("ppo", "CartPole-v1", words, sweep=True, random=30))
    settings = [tuple(setting.values()) for setting in experiment.settings]
    assert len(set(settings)) == len(settings) == 4  # 2 activations x 2 whole numbers
    assert all(type(setting["num_steps"]) is int for setting in experiment.settings)


@pytest.mark.parametrize(
    ("words", "sweep", "expected"),
    [
        ([], False, "recipe ppo/CartPole-v1: {steps:,} environment steps; published: "),
        (["total_steps=1e5"], False, ": 100,000 (not {steps:,}) environment steps; published"),
        (["total_steps=1e5,2e5"], True, ": 100,000 to 200,000 (not {steps:,}) environment steps;"),
    ],
)
def test_the_recipes_line_says_how_many_steps_are_taken(words, sweep, expected):
    recipe = recipes.find("ppo", "CartPole-v1")
    experiment = assemble(Request("ppo", "CartPole-v1", words, sweep=sweep))
    assert expected.format(steps=recipe.steps) in experiment.recipe_line()


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ("train ppo CartPole-v1", [0]),
        ("train ppo CartPole-v1 --seed 7", [7]),
        ("train ppo CartPole-v1 --seeds 3", [0, 1, 2]),
        ("sweep ppo CartPole-v1 gamma=0,1", [0]),
        ("collect ppo CartPole-v1 --seed 4", [4]),
    ],
)
def test_seeds(words, seeds):
    experiment = assemble(request_of(options.parse(words.split())))
    assert experiment.seeds == seeds
    assert experiment.num_members == len(seeds) * len(experiment.settings)
    steps = experiment.agent.num_iterations * experiment.agent.steps_per_iteration
    assert experiment.total_steps == steps * experiment.num_members


def test_a_recipe_leaves_out_what_recorded_data_makes_useless(tmp_path):
    """CartPole's recipe of DQN says how to collect; learning from a file collects nothing."""
    path = tmp_path / "set.hdf5"
    obs, ended = np.zeros((8, 4), np.float32), np.arange(8) == 7
    rewards, cut = np.ones(8, np.float32), np.zeros(8, bool)
    datasets.write(path, datasets.Recording(obs, np.arange(8) % 2, rewards, ended, cut, obs))
    recipe = recipes.find("dqn", "CartPole-v1")
    assert recipe is not None
    assert "num_envs" in recipe.hyperparameters
    experiment = assemble(Request("dqn", "CartPole-v1", data=[str(path)], steps=1000))
    assert experiment.agent.unit == "gradient steps"
    assert experiment.agent.num_envs == type(experiment.agent).num_envs
    assert experiment.data == [str(path.resolve())]
    with pytest.raises(ValueError, match="dqn: num_envs=3 has no effect with recorded data alone"):
        assemble(Request("dqn", "CartPole-v1", ["num_envs=3"], data=[str(path)], steps=1000))


def test_several_files_and_a_part_of_them_are_kept_for_resuming(tmp_path):
    """A run's configuration reads the same steps again; one of a single word does, too."""
    obs, ended = np.zeros((8, 4), np.float32), np.arange(8) % 4 == 3
    for name, reward in (("a", 1.0), ("b", 2.0)):
        steps = obs, np.arange(8) % 2, np.full(8, reward, np.float32), ended, ~ended & False, obs
        datasets.write(tmp_path / f"{name}.hdf5", datasets.Recording(*steps))
    sources = [str(tmp_path / "a.hdf5"), str(tmp_path / "b.hdf5")]
    request = Request("bc", "CartPole-v1", data=sources, data_steps=10, steps=1000)
    recording = assemble(request).recording
    assert recording is not None
    assert len(recording) == 12
    kept = json.loads(json.dumps(config.of_experiment(assemble(request), "")))
    assert kept["data"] == sources
    assert kept["data_steps"] == 10
    again = config.experiment_of(config.filled(kept)).recording
    np.testing.assert_array_equal(again.reward, recording.reward)
    old = {k: v for k, v in kept.items() if k != "data_steps"} | {"data": sources[0]}
    again = config.experiment_of(config.filled(old)).recording
    np.testing.assert_array_equal(again.reward, np.ones(8))
    again = vars(options.parse(["train", "--from", "run", "--episodes", "3"]))
    taken = as_in(config.filled(kept), again)
    assert (taken["data"], taken["data_steps"], taken["episodes"]) == (tuple(sources), 10, 3)
    again = vars(options.parse(["train", "--from", "run", "--data", "c.hdf5"]))
    taken = as_in(config.filled(kept), again)
    assert (taken["data"], taken["data_steps"]) == (["c.hdf5"], None)
    assert (taken["evaluations"], taken["episodes"]) == (20, 64)
    with pytest.raises(ValueError, match="17 steps are asked for, but only 16 are recorded"):
        assemble(dataclasses.replace(request, data_steps=17))
