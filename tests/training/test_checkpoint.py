"""Checkpoints: a run that was stopped goes on bit for bit; damaged ones are told apart."""

import resource
import shutil
import warnings

import jax
import numpy as np
import pytest

import jaxrl
from agents.off_policy.sac import SAC
from agents.offline.cql import CQL
from agents.on_policy.ppo import PPO
from agents.value_based.abs import ABS
from agents.value_based.pqn import PQN
from jaxrl import Checkpoints
from jaxrl.training import restore
from jaxrl.training.history import History
from jaxrl.training.identity import checksum
from tests.helpers import Toy, assert_same
from tests.probes import ActionChoice, Chain, Match
from tests.records import bandit, make

pytestmark = pytest.mark.usefixtures("compiled_quickly")


class Killed(Exception):
    """Stands for a kill: raised between two chunks, so that nothing is saved at the end."""


def kill_at(*iterations):
    """A callback that kills the run once at each of these iterations."""
    left = sorted(iterations)

    def progress(report):
        if left and report.iteration >= left[0]:
            del left[0]
            raise Killed

    return progress


def toy(iterations=20, **changes):
    env = ActionChoice()
    return Toy(env, env.default_params, total_steps=8 * iterations, **changes)


def survive(run, kills):
    """Call `run(progress)` again until no kill is left."""
    progress = kill_at(*kills)
    for _ in kills:
        with pytest.raises(Killed):
            run(progress)
    return run(progress)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.isdigit())


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0)
    whole = jaxrl.train(toy(), seed=3, evaluations=6, episodes=4)

    def run(progress):
        return jaxrl.train(
            toy(), 3, evaluations=6, episodes=4, callbacks=[progress], checkpoints=checkpoints
        )

    again = survive(run, [1, 7, 14])
    assert_same(again.state, whole.state)
    assert_same(again.history.metrics, whole.history.metrics)
    assert_same(again.history.env_steps, whole.history.env_steps)
    assert_same(again.history.evaluations, whole.history.evaluations)
    assert again.iteration == whole.iteration == 20
    # Once more: nothing is left to do, and the same comes back.
    assert_same(run(kill_at()).history.metrics, whole.history.metrics)


def test_arrays_of_no_elements_are_no_obstacle(tmp_path):
    """As the actuators' states of a MuJoCo model that has none: orbax saves no such array."""
    agent = toy()
    params = agent.env_params.replace(which=np.zeros((0,), np.int32))  # a part of its state
    agent = agent.replace(env_params=params)
    run = survive(
        lambda kill: jaxrl.train(
            agent, callbacks=[kill], checkpoints=Checkpoints(tmp_path, every=0)
        ),
        [7],
    )
    assert_same(run.state, jaxrl.train(agent).state)
    assert 0 in jax.tree.leaves(jax.tree.map(np.size, run.state.actors.env_state))


def test_what_is_kept(tmp_path):
    """The newest and the best."""
    jaxrl.train(toy(), checkpoints=Checkpoints(tmp_path, every=0, keep=3))
    kept = sorted(int(name) for name in files(tmp_path))
    assert kept[-3:] == [18, 19, 20]
    assert len(kept) in (3, 4)
    assert not list(tmp_path.glob("**/*.part"))


def test_the_best_is_kept_and_read_also_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(History, "score", lambda self: -abs(self.stop - 7))
    checkpoints = Checkpoints(tmp_path, every=0, keep=2)
    for iterations in (20, 22, 24):
        run = jaxrl.train(toy(iterations=iterations), checkpoints=checkpoints)
        assert {int(name) for name in files(tmp_path)} == {7, iterations - 1, iterations}
    like = jax.tree.map(lambda x: x[None], run.state)
    found = {name: restore.read(tmp_path, like, name).iteration for name in ("newest", "best", 23)}
    assert found == {"newest": 24, "best": 7, 23: 23}
    with pytest.raises(ValueError, match="no checkpoint 3: there are newest, best and 7, 23, 24"):
        restore.read(tmp_path, like, 3)


def test_saves_wait_for_their_time(tmp_path):
    jaxrl.train(toy(), checkpoints=Checkpoints(tmp_path, every=3600))
    assert files(tmp_path) == ["20"]


def test_more_steps_go_on_from_the_end(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    jaxrl.train(toy(), checkpoints=checkpoints)
    longer = jaxrl.train(toy(iterations=30), checkpoints=checkpoints)
    assert longer.iteration == 30
    assert_same(longer.state, jaxrl.train(toy(iterations=30)).state)


@pytest.mark.slow
def test_a_sweep_goes_on_with_each_of_its_programs(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0)
    space = {"rate": [0.1, 0.5], "num_envs": [2, 3]}
    whole = jaxrl.sweep(toy(), space, seeds=3)

    def run(progress):
        return jaxrl.sweep(toy(), space, seeds=3, callbacks=[progress], checkpoints=checkpoints)

    progress = kill_at(7)
    with pytest.raises(Killed):
        run(progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "batches.json"]
    again = run(kill_at())
    assert_same(again.history.metrics, whole.history.metrics)
    for i in range(len(whole)):
        assert_same(again[i].state, whole[i].state)


def agents(iterations=12):
    chain, pair, box = Chain(limit=3), Match(), ActionChoice(continuous=True)
    on_policy = {"num_envs": 4, "num_steps": 4, "num_minibatches": 2, "hidden_sizes": (8,)}
    replay = {"num_envs": 4, "learning_starts": 16, "buffer_size": 64, "hidden_sizes": (8,)}

    def of(cls, env, steps, **options):
        return cls(env, env.default_params, total_steps=steps, **options)

    return [
        of(
            PPO,
            chain,
            16 * iterations,
            normalize_observations=True,
            normalize_rewards=True,
            **on_policy,
        ),
        of(PQN, pair, 16 * iterations, **on_policy),
        of(SAC, box, 4 * iterations, batch_size=8, num_updates=2, **replay),
        make(CQL, box, bandit(box), steps=2 * iterations, num_updates=2),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("agent", agents(), ids=lambda agent: agent.name)
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_kind_of_agent_goes_on_bit_for_bit(agent, seeds, tmp_path):
    whole = jaxrl.sweep(agent, seeds=seeds)

    def run(progress):
        checkpoints = Checkpoints(tmp_path, every=0)
        return jaxrl.sweep(agent, seeds=seeds, callbacks=[progress], checkpoints=checkpoints)

    again = survive(run, [3, 8])
    assert_same(again.history.metrics, whole.history.metrics)
    for i in range(seeds):
        assert_same(again[i].state, whole[i].state)


@pytest.mark.slow
def test_iterations_of_varying_length_go_on(tmp_path):
    env = Chain(limit=3)
    options = {"num_envs": 4, "num_minibatches": 2, "hidden_sizes": (8,)}
    agent = ABS(env, env.default_params, total_steps=2000, **options)
    whole = jaxrl.sweep(agent, seeds=2)

    def run(progress):
        checkpoints = Checkpoints(tmp_path, every=0)
        return jaxrl.sweep(agent, seeds=2, callbacks=[progress], checkpoints=checkpoints)

    again = survive(run, [2])
    assert_same(again.history.env_steps, whole.history.env_steps)
    for i in range(2):
        assert_same(again[i].state, whole[i].state)
        assert again[i].iteration == whole[i].iteration


# What can be wrong with them --------------------------------------------------------------------


def stopped(folder, iteration=8):
    checkpoints = Checkpoints(folder, every=0, keep=5)
    with pytest.raises(Killed):
        jaxrl.train(toy(), callbacks=[kill_at(iteration)], checkpoints=checkpoints)
    return checkpoints


def newest(folder):
    return folder / str(max(int(name) for name in files(folder)))


def damage(path, how):
    """Cut a file in half, or flip a bit in its middle."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("how", [pytest.param("cut", marks=pytest.mark.slow), "flip"])
@pytest.mark.parametrize("which", ["states", "about"])
def test_a_damaged_one_falls_back_to_the_one_before(how, which, tmp_path):
    checkpoints = stopped(tmp_path)
    found = (newest(tmp_path) / which).rglob("*")
    damaged = [p for p in found if p.is_file() and p.stat().st_size > 20]
    assert damaged
    for path in damaged:
        damage(path, how)
    with pytest.warns(UserWarning, match="is damaged .* falling back"):
        again = jaxrl.train(toy(), checkpoints=checkpoints)
    assert_same(again.state, jaxrl.train(toy()).state)


@pytest.mark.parametrize(
    ("which", "how"), [("first", "cut"), ("middle", "remove"), ("last", "flip"), ("all", "cut")]
)
def test_a_damaged_part_of_the_history_costs_that_part(which, how, tmp_path):
    checkpoints = stopped(tmp_path)
    paths = sorted((tmp_path / "history").iterdir())
    last = len(paths) - 1
    lost = {"first": [0], "middle": [3], "last": [last], "all": range(last + 1)}[which]
    for i in lost:
        if how == "remove":
            paths[i].unlink()
        else:
            damage(paths[i], how)
    with pytest.warns(UserWarning, match="metrics of iterations .* are lost"):
        again = jaxrl.train(toy(), checkpoints=checkpoints)
    whole = jaxrl.train(toy())
    assert_same(again.state, whole.state)
    assert_same(again.history.env_steps, whole.history.env_steps)
    for name, values in whole.history.metrics.items():
        expected = values.copy()
        expected[list(lost)] = np.nan
        np.testing.assert_array_equal(again.history.metrics[name], expected)


@pytest.mark.slow
def test_any_damaged_file_costs_one_interval_at_most(tmp_path):
    """Each file of a folder in turn, every second one empty instead of cut."""
    kept, agent = tmp_path / "kept", toy(iterations=5)
    with pytest.raises(Killed):
        jaxrl.train(agent, callbacks=[kill_at(4)], checkpoints=Checkpoints(kept, every=0))
    whole, starts = jaxrl.train(agent), []
    names = [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file()]
    assert len(names) > 10
    for i, name in enumerate(names):
        folder = shutil.copytree(kept, tmp_path / "damaged")
        content = (kept / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2 * (i % 2)])
        reports = []
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            again = jaxrl.train(agent, callbacks=[reports.append], checkpoints=Checkpoints(folder))
        assert_same(again.state, whole.state)
        assert_same(again.history.env_steps, whole.history.env_steps)
        assert np.isnan(again.history.metrics["weight"]).sum() <= 1, name
        starts.append(reports[0].first)
        shutil.rmtree(folder)
    assert set(starts) == {2, 3}


def test_what_a_run_replaces_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    stopped(tmp_path)
    restore_one, calls = restore._restore, []

    def late(*args):
        calls.append(args)
        if len(calls) == 1:  # between the listing and the reading
            for step in files(tmp_path):
                shutil.rmtree(tmp_path / step)
            jaxrl.train(toy(iterations=9), checkpoints=Checkpoints(tmp_path, every=3600, keep=1))
        return restore_one(*args)

    monkeypatch.setattr(restore, "_restore", late)
    like = jax.tree.map(lambda x: x[None], jaxrl.train(toy(iterations=9)).state)
    assert restore.read(tmp_path, like).iteration == 9  # a warning would be an error
    assert len(calls) == 2


def test_none_that_can_be_read_is_an_error(tmp_path):
    checkpoints = stopped(tmp_path)
    for path in tmp_path.glob("*/states/d/*"):
        damage(path, "cut")
    with (
        pytest.warns(UserWarning, match="falling back"),
        pytest.raises(ValueError, match="none of its checkpoints can be read"),
    ):
        jaxrl.train(toy(), checkpoints=checkpoints)
    assert files(tmp_path)  # and nothing is lost


@pytest.mark.parametrize(
    ("agent", "seed", "line"),
    [
        (toy(rate=0.25), 0, "saved with another rate"),
        (toy(num_envs=4), 0, "saved with another num_envs"),
        (toy(), 1, "saved with another seeds"),
    ],
)
def test_those_of_another_run_are_refused(agent, seed, line, tmp_path):
    checkpoints = stopped(tmp_path)
    with pytest.raises(ValueError, match=line) as error:
        jaxrl.train(agent, seed, checkpoints=checkpoints)
    assert "\n" not in str(error.value)


def test_those_of_another_jax_are_told(tmp_path, monkeypatch):
    checkpoints = stopped(tmp_path)
    monkeypatch.setattr(jax, "__version__", "0.99.0")
    with pytest.warns(UserWarning, match=r"saved with jax .*, going on with 0\.99\.0"):
        jaxrl.train(toy(), checkpoints=checkpoints)


def test_a_folder_that_cannot_be_written_is_found_before_compiling(tmp_path):
    (tmp_path / "file").write_text("in the way")
    traces = Toy.traces
    with pytest.raises(ValueError, match="cannot write to"):
        jaxrl.train(toy(rate=0.11), checkpoints=Checkpoints(tmp_path / "file"))
    assert Toy.traces == traces


def test_a_full_disk_costs_nothing_that_is_there(tmp_path):
    """From one iteration to another no file can grow: training goes on, and so does saving."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def progress(report):
        if report.iteration in (8, 14):
            limit = 0 if report.iteration == 8 else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            kept.append(files(tmp_path))

    kept = []
    try:
        with pytest.warns(UserWarning, match=r"cannot save to .* what was saved before stays"):
            run = jaxrl.train(
                toy(), callbacks=[progress], checkpoints=Checkpoints(tmp_path, every=0)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert {"7", "6"} & set(kept[1]) <= set(kept[0])
    assert {"7", "6"} & set(kept[1])
    assert {"19", "20"} <= set(files(tmp_path))
    whole = jaxrl.train(toy())
    assert_same(run.history.metrics, whole.history.metrics)
    again = jaxrl.train(toy(iterations=25), checkpoints=Checkpoints(tmp_path))
    assert_same(again.state, jaxrl.train(toy(iterations=25)).state)
    assert_same(again.history.metrics, jaxrl.train(toy(iterations=25)).history.metrics)


@pytest.mark.parametrize(
    ("options", "line"), [({"every": -1.0}, "every=-1.0"), ({"keep": 0}, "keep=0")]
)
def test_bad_options(options, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        Checkpoints(tmp_path, **options)


def test_checksums_see_every_bit():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"a": values, "key": jax.random.key(1)}
    assert checksum(tree) == checksum(tree | {"a": jax.numpy.asarray(values)})
    flipped = values.copy()
    flipped.view(np.uint32)[1, 1] ^= 1
    assert checksum(tree) != checksum(tree | {"a": flipped})
    assert checksum(tree) != checksum(tree | {"key": jax.random.key(2)})
