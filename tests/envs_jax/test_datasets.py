"""Recorded steps: D4RL's layout and rules, Minari, and one line for everything that is wrong."""

import json

import h5py
import jax
import numpy as np
import pytest

import envs_jax
from envs_jax import checks, datasets
from envs_jax.datasets import Recording
from envs_jax.recording import arrays_of
from experiments.command.cli import main

PENDULUM = envs_jax.make("Pendulum-v1")
CARTPOLE = envs_jax.make("CartPole-v1")
STEPS = 12


def arrays(**changes):
    """Two episodes of Pendulum: one that terminates after 5 steps, one that is cut after 4 more."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(STEPS + 1, 3)).astype(np.float32)
    made = {
        "observations": obs[:-1],
        "actions": rng.uniform(-2, 2, (STEPS, 1)).astype(np.float32),
        "rewards": rng.normal(size=STEPS).astype(np.float32),
        "terminals": np.arange(STEPS) == 4,
        "timeouts": np.arange(STEPS) == 8,
        "next_observations": obs[1:],
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


def file_of(path, **changes):
    with h5py.File(path, "w") as file:
        for key, value in arrays(**changes).items():
            file[key] = value
    return path


def read(path):
    return datasets.read(path, *PENDULUM)


def test_what_is_written_is_read(tmp_path):
    first = read(file_of(tmp_path / "a.hdf5"))
    first.info.update(env="Pendulum-v1", random_return=-1200.0, expert_return=-150.0, seeds=[0])
    datasets.write(tmp_path / "b.hdf5", first)
    second = read(tmp_path / "b.hdf5")
    assert arrays_of(first).keys() == arrays_of(second).keys()
    for field, values in arrays_of(first).items():
        np.testing.assert_array_equal(values, getattr(second, field))
    assert second.info == first.info
    assert not list(tmp_path.glob("*.part"))
    np.testing.assert_allclose(second.score([-1200.0, -675.0, -150.0]), [0, 50, 100])


def test_episodes_and_their_returns():
    recording = Recording(*arrays().values())
    np.testing.assert_array_equal(recording.episode, [0] * 5 + [1] * 4 + [2] * 3)
    reward = recording.reward
    expected = [reward[:5].sum(), reward[5:9].sum(), reward[9:].sum()]
    np.testing.assert_allclose(recording.episode_returns, expected, rtol=1e-6)
    data = recording.dataset(*PENDULUM)
    np.testing.assert_allclose(data.action, recording.action / 2, atol=1e-6)
    # The last episode has no end: whatever its return, it comes after the whole ones.
    np.testing.assert_array_equal(recording.whole, [True, True, False])
    better = int(np.argmax(expected[:2]))
    ranked = recording.episode[np.asarray(data.best_first)]
    lengths = [5, 4, 3]
    order = [better, 1 - better, 2]
    np.testing.assert_array_equal(ranked, np.repeat(order, [lengths[i] for i in order]))
    assert sorted(np.asarray(data.best_first)) == list(range(STEPS))
    np.testing.assert_allclose(data.return_range, np.sort(expected[:2]), rtol=1e-6)


def with_limit(path, limit, **changes):
    env, env_params = PENDULUM
    file_of(path, **changes)
    return datasets.read(path, env, env_params.replace(max_steps_in_episode=limit))


@pytest.mark.parametrize(
    ("limit", "changes", "whole"),
    [
        (4, {}, [True, True, False]),  # the second episode is cut at the limit
        (6, {}, [True, False, False]),  # before it
        (3, {"terminals": np.zeros(STEPS)}, [True, False]),  # after it; under way at the end
        (4, {"next_observations": None}, [True, True, False]),  # the step at the limit left out
        (6, {"next_observations": None}, [True, False, False]),
        (5, {"next_observations": None, "timeouts": None}, [True, True, False]),
        (6, {"stopped": np.arange(STEPS) == 11}, [True, True, False]),  # the file's own word
    ],
)
def test_an_episode_is_whole_if_it_ended_by_itself_or_at_the_limit(tmp_path, limit, changes, whole):
    recording = with_limit(tmp_path / "a.hdf5", limit, **changes)
    np.testing.assert_array_equal(recording.whole, whole)
    expected = recording.episode_returns[np.asarray(whole)]
    np.testing.assert_array_equal(recording.whole_returns, expected)
    datasets.write(tmp_path / "b.hdf5", recording)
    np.testing.assert_array_equal(datasets.read(tmp_path / "b.hdf5", *PENDULUM).whole, whole)


def test_where_no_episode_is_whole_all_count(tmp_path):
    recording = with_limit(tmp_path / "a.hdf5", 10, terminals=np.zeros(STEPS))
    assert not recording.whole.any()
    np.testing.assert_array_equal(recording.whole_returns, recording.episode_returns)


@pytest.mark.parametrize(("excess", "warns"), [(5e-5, False), (0.005, True)])
def test_actions_a_little_outside_are_clipped(tmp_path, excess, warns, recwarn):
    """In half-widths of the box, which is [-2, 2]: rounding without a word."""
    action = np.zeros((STEPS, 1), np.float32)
    action[3], action[7] = 2 + 2 * excess, -2 - 2 * excess
    recording = read(file_of(tmp_path / "a.hdf5", actions=action))
    np.testing.assert_array_equal(recording.action[[3, 7], 0], [2, -2])
    lines = [str(warning.message) for warning in recwarn]
    assert len(lines) == warns
    if warns:
        assert lines[0].endswith(
            "2 of 12 actions lie outside their box, by up to 0.5 % of a half-width: "
            "they are clipped to it"
        )


def test_without_successors_cut_steps_are_left_out(tmp_path):
    """D4RL's rule: the last step of an episode that was cut has no successor."""
    recording = read(file_of(tmp_path / "a.hdf5", next_observations=None))
    obs = arrays()["observations"]
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]  # not 8, which was cut, nor 11, the last
    np.testing.assert_array_equal(recording.obs, obs[kept])
    follows = [i for i, k in enumerate(kept) if k != 4]  # a terminal state's successor is not used
    np.testing.assert_array_equal(recording.next_obs[follows], obs[[k + 1 for k in kept if k != 4]])
    np.testing.assert_array_equal(recording.episode, [0] * 5 + [1] * 3 + [2] * 2)


def test_without_timeouts_episodes_are_cut_at_the_limit(tmp_path):
    env, env_params = PENDULUM
    path = file_of(tmp_path / "a.hdf5", timeouts=None)
    recording = datasets.read(path, env, env_params.replace(max_steps_in_episode=3))
    np.testing.assert_array_equal(np.flatnonzero(recording.truncated), [2, 7, 10])
    np.testing.assert_array_equal(np.flatnonzero(recording.terminated), [4])


def test_scores_follow_from_what_is_said_and_never_from_a_name(tmp_path):
    assert read(file_of(tmp_path / "hopper-medium-v2.hdf5")).score(3234.3) is None
    path = file_of(tmp_path / "own-medium.hdf5")
    said = datasets.read(path, *PENDULUM, reference=(-20, 3234.3))
    assert said.score(3234.3) == pytest.approx(100)


def bad(key, index, value):
    changed = arrays()[key].astype(np.float32)
    changed[index] = value
    return {key: changed}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rewards": None}, "has no 'rewards'"),
        ({"actions": None}, "has no 'actions'"),
        ({"rewards": np.zeros(STEPS - 1)}, "'observations' has 12 rows, 'rewards' has 11"),
        ({"rewards": np.array([b"a"] * STEPS)}, "'rewards' holds |S1, not numbers"),
        ({"rewards": np.float32(0.0)}, "'rewards' has no rows"),
        (bad("rewards", 7, np.nan), "'rewards' at index 7 is not finite"),
        (bad("observations", (3, 1), np.inf), "'observations' at index 3 is not finite"),
        (bad("next_observations", (2, 0), np.nan), "'next_observations' at index 2"),
        (bad("actions", 6, 2.5), "'actions' at index 6 are [2.5], outside the box"),
        ({"observations": np.zeros((STEPS, 4))}, "'observations' are of shape (4,)"),
        ({"actions": np.zeros((STEPS, 2))}, "'actions' are of shape (2,)"),
        ({k: v[:0] for k, v in arrays().items()}, "holds no steps"),
    ],
)
def test_a_bad_file_is_named_with_key_and_index(tmp_path, changes, line):
    path = file_of(tmp_path / "bad.hdf5", **changes)
    with pytest.raises(ValueError, match=r"bad\.hdf5") as error:
        read(path)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_discrete_actions_are_whole_numbers_of_the_space():
    obs, flag = np.zeros((3, 4), np.float32), np.zeros(3, bool)

    def check(action):
        recording = Recording(obs, np.asarray(action), np.zeros(3, np.float32), flag, flag, obs)
        checks.check("file", recording, *CARTPOLE)
        return recording.dataset(*CARTPOLE)

    assert check([0.0, 1.0, 1.0]).action.dtype == np.int32
    with pytest.raises(ValueError, match="not whole numbers"):
        check([0.5, 1.0, 1.0])
    with pytest.raises(ValueError, match="'actions' at index 1 are 2, outside 0 to 1"):
        check([0, 2, 1])


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("not a dataset")
    with pytest.raises(ValueError, match=r"text\.hdf5: not a readable HDF5 file"):
        read(tmp_path / "text.hdf5")
    whole = file_of(tmp_path / "whole.hdf5").read_bytes()
    for part in range(0, len(whole), len(whole) // 20):
        (tmp_path / "cut.hdf5").write_bytes(whole[:part])
        with pytest.raises(ValueError, match=r"cut\.hdf5") as error:
            read(tmp_path / "cut.hdf5")
        assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match="cannot write"):
        datasets.write(tmp_path / "folder" / "a.hdf5", Recording(*arrays().values()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of what the dataset does not say of itself
def test_minari(tmp_path, monkeypatch):
    """A dataset that Minari wrote, with an episode that terminates and one that is cut, is learnt
    from by name.
    """
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)

    def episode(length, terminated):
        last = np.arange(length) == length - 1
        return EpisodeBuffer(
            observations=list(rng.normal(size=(length + 1, 3)).astype(np.float32)),
            actions=list(rng.uniform(-2, 2, (length, 1)).astype(np.float32)),
            rewards=list(rng.normal(size=length)),
            terminations=list(last & terminated),
            truncations=list(last & (not terminated)),
        )

    box = gymnasium.spaces.Box
    minari.create_dataset_from_buffers(
        "jaxrl/test-v0",
        buffer=[episode(5, True), episode(4, False)],
        observation_space=box(-np.inf, np.inf, (3,), np.float32),
        action_space=box(-2.0, 2.0, (1,), np.float32),
    )
    recording = read("minari:jaxrl/test-v0")
    assert len(recording) == 9
    np.testing.assert_array_equal(np.flatnonzero(recording.terminated), [4])
    np.testing.assert_array_equal(np.flatnonzero(recording.truncated), [8])
    inside = [i for i in range(8) if i != 4]
    np.testing.assert_array_equal(
        recording.next_obs[inside], recording.obs[[i + 1 for i in inside]]
    )
    words = "train iql Pendulum-v1 --data minari:jaxrl/test-v0 --steps 200 --evaluations 1"
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--episodes", "2", "--out", "run"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert np.isfinite(summary["settings"][0]["measures"]["return"]["mean"])
    with pytest.raises(ValueError, match="minari:jaxrl/none-v0 cannot be loaded") as error:
        read("minari:jaxrl/none-v0")
    assert "\n" not in str(error.value)


def test_a_blank_recording_has_the_shapes_of_its_environment():
    for env, env_params in (PENDULUM, CARTPOLE):
        blank = datasets.blank(env, env_params)
        checks.check("blank", blank, env, env_params)
        arrays = jax.tree.leaves(blank.dataset(env, env_params))
        assert {len(x) for x in arrays} == {2}


def test_an_episode_that_ends_unmarked_ends_where_the_next_step_begins_elsewhere(tmp_path):
    """Without it two episodes are one, and a trace or a return runs from one into the other."""
    led_to = arrays()["next_observations"].copy()
    led_to[2] += 1.0
    read_back = read(file_of(tmp_path / "a.hdf5", next_observations=led_to))
    np.testing.assert_array_equal(np.flatnonzero(read_back.truncated), [2, 8])
    np.testing.assert_array_equal(read_back.episode, [0] * 3 + [1] * 2 + [2] * 4 + [3] * 3)


def test_attributes_that_are_not_numbers_are_named(tmp_path):
    path = file_of(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file.attrs["random_return"] = "low"
    with pytest.raises(ValueError, match="its attribute 'random_return' is 'low', not a number"):
        read(path)
