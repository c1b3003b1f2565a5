"""What a run meets around it: pipes, terminals, names, full disks, links, missing devices."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import agents
from experiments.command import assemble
from experiments.command.cli import main
from experiments.command.options import parse
from experiments.command.train import how_to_go_on
from experiments.runs.folder import RunFolder
from jaxrl import Checkpoints
from tests.test_files import full

JAXRL = [sys.executable, "-m", "experiments.command.cli"]
TINY = ["ppo", "CartPole-v1", "num_envs=4", "num_steps=16", "num_minibatches=2", "--episodes", "1"]
TRAIN = ["train", *TINY, "--steps", "128"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def command(*words, **environment):
    return subprocess.run(
        [*JAXRL, *words], env=os.environ | environment, capture_output=True, check=False
    )


# Output that is not read, or not understood -------------------------------------------------------


def test_results_that_nobody_reads_end_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    words = [*JAXRL, "list", "envs"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (1, 141)  # rich has a status of its own


def test_a_run_whose_messages_nobody_reads_goes_on(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr("sys.stderr", closed)
        assert main([*TRAIN, "--out", str(tmp_path / "run")]) == 0
        monkeypatch.undo()
        with pytest.raises(BrokenPipeError):
            closed.write("a line\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    assert RunFolder.open(tmp_path / "run").has_ended


def test_a_terminal_that_knows_ascii_only():
    done = command("list", "softgac", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.decode("ascii").count("\n") > 10


def test_a_folder_whose_name_is_not_utf8(tmp_path, capsys):
    """Neither JSON nor orbax can hold one."""
    path = tmp_path / "caf\udce9"
    assert main([*TRAIN, "--out", str(path)]) == 2
    assert "is no name in UTF-8: choose another --out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is no name in UTF-8"):
        assemble.absolute(str(path.with_suffix(".hdf5")))
    with pytest.raises(ValueError, match="is no name in UTF-8"):
        Checkpoints(path)


# Devices and folders that are not there -----------------------------------------------------------


def test_devices_that_are_not_there_are_one_line():
    done = command("list", "CartPole-v1", JAX_PLATFORMS="quantum")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"jaxrl: error: Unable to initialize backend 'quantum'")


CACHE = """
import os, pathlib, sys, warnings, jax, jaxrl
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jaxrl.use_compilation_cache(*sys.argv[1:])
said = [str(x.message) for x in caught if "compiled programs" in str(x.message)]
folder = jax.config.jax_compilation_cache_dir
print(said, folder, oct(pathlib.Path(folder).stat().st_mode & 0o777) if folder else None)
"""


def cached(*arguments, **environment):
    inherited = {"JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"}
    env = {k: v for k, v in os.environ.items() if k not in inherited} | environment
    words = [sys.executable, "-c", CACHE, *arguments]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout


def test_the_cache_of_programs_is_the_users_own(tmp_path):
    assert cached(HOME=str(tmp_path)) == f"[] {tmp_path / '.cache/jaxrl/programs'} 0o700\n"
    (tmp_path / "file").touch()
    said = cached(HOME=str(tmp_path / "file"))
    assert "compiled programs are not kept: [Errno 20] Not a directory" in said
    assert said.endswith("None None\n")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="gives a folder away")
def test_the_cache_of_another_user_is_not_used(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    assert "belongs to another user" in cached(str(tmp_path / "theirs"))


# Disks --------------------------------------------------------------------------------------------


def test_a_disk_that_fills_at_the_very_end_costs_no_results(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("experiments.runs.jsonfile.write", full_for(path / "summary.json"))
        assert main([*TRAIN, "--out", str(path)]) == 2
    shown = capsys.readouterr()
    assert "final return over 1 seed" in shown.out
    error = shown.err.splitlines()[-1]
    assert "No space left" in error
    assert error.endswith(f"once it can be, go on with: jaxrl train --resume {path}")
    assert not RunFolder.open(path).has_ended
    assert main(["train", "--resume", str(path)]) == 0
    assert RunFolder.open(path).has_ended
    again = capsys.readouterr().out
    assert shown.out.splitlines()[:4] == again.splitlines()[:4]  # the same returns


def full_for(path):
    """`jsonfile.write` on a disk that has space for all but one file."""
    from experiments.runs import jsonfile

    write = jsonfile.write

    def writing(target, *args, **options):
        if target == path:
            full()
        write(target, *args, **options)

    return writing


# Links that a stranger has laid -------------------------------------------------------------------


WRITTEN = ("config.json", "summary.json", "metrics.npz", "curve.png", "checkpoints/batches.json")
APPENDED = "log.jsonl"


def linked(path, theirs):
    """Put a link in the place of a file, to a copy of it that is somebody else's."""
    content = path.read_bytes() if path.exists() else b"{}"
    theirs.write_bytes(content)
    path.unlink(missing_ok=True)
    path.symlink_to(theirs)
    return content


def test_no_file_is_written_through_a_link(run, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    names = [*WRITTEN, APPENDED]
    names += [f"{name}.{os.getpid()}.part" for name in WRITTEN]
    theirs = {name: tmp_path / "theirs" / str(i) for i, name in enumerate(names)}
    content = {name: linked(run / name, path) for name, path in theirs.items()}
    assert main(["train", "--resume", str(run), "--steps", "256"]) == 0
    assert "JsonLines ends here: [Errno 40] Too many levels of symbolic" in capsys.readouterr().err
    assert main(["watch", str(run)]) == 0
    assert {name: path.read_bytes() for name, path in theirs.items()} == content
    assert not any((run / name).is_symlink() for name in WRITTEN[:4])  # the fifth has not changed


def test_no_lock_is_taken_through_a_link(run, tmp_path, capsys):
    content = linked(run / "checkpoints" / "0" / ".lock", tmp_path / "theirs")
    assert main(["train", "--resume", str(run), "--steps", "256"]) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert (tmp_path / "theirs").read_bytes() == content


def test_names_are_not_paths_of_recipes(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("not TOML [")
    for agent in agents.AGENTS:
        assert main(["train", agent, str(tmp_path / "mine")]) == 2
    assert "unknown environment" in capsys.readouterr().err


# A run that goes on -------------------------------------------------------------------------------


def test_a_resumed_run_has_not_ended_until_it_does(run, monkeypatch, capsys):
    assert RunFolder.open(run).has_ended
    watched = []

    def watch(self, progress, states):
        self.folder.write_config()
        watched.append(RunFolder.open(run).has_ended)
        assert main(["watch", str(run)]) == 0

    monkeypatch.setattr("experiments.command.train.WriteDown.__call__", watch)
    assert main(["train", "--resume", str(run), "--steps", "256"]) == 0
    assert watched
    assert not any(watched)
    assert f"{run}: running, batch 0" in capsys.readouterr().out
    assert RunFolder.open(run).has_ended


@pytest.mark.parametrize("options", [[], ["--data-parallel"]])
def test_how_to_go_on_says_how_devices_are_used(options, run, capsys):
    args = parse(["train", "--resume", str(run), *options])
    words = ["jaxrl", "train", "--resume", str(run), *options]
    assert how_to_go_on(args, RunFolder.open(run)) == " ".join(words)


def test_a_run_that_was_extended_and_killed_goes_on(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("experiments.runs.folder.RunFolder.save", full)
        assert main(["train", "--resume", str(run), "--steps", "256"]) == 2
    assert main(["train", "--resume", str(run)]) == 0
    assert RunFolder.open(run).summary["members"][0]["hyperparameters"]["total_steps"] == 256
    capsys.readouterr()


def busy(run):
    """Somebody else trains it."""
    import fcntl

    lock = (run / "checkpoints" / "0" / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def unreadable(run):
    for path in (run / "checkpoints" / "0").glob("*/states/d/*"):
        path.write_bytes(b"")


def other_settings(run):
    config = json.loads((run / "config.json").read_text())
    config["hyperparameters"]["gamma"] = 0.5
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (busy, ["--steps", "256"], "is in use by another process"),
        (unreadable, ["--steps", "256"], "none of its checkpoints can be read"),
        (other_settings, ["--steps", "256"], "saved with another gamma"),
        (None, ["--steps", "256", "--log-member", "3"], "--log-member 3 is outside 0..0"),
        (None, ["--steps", "128"], "already has 128"),
        (None, [], "is finished: give --steps N"),
    ],
)
def test_a_resume_that_is_refused_leaves_the_run_alone(change, options, line, run, capsys):
    held = change(run) if change else None
    names = ("config.json", "summary.json", "log.jsonl", "metrics.npz")
    before = {name: (run / name).read_bytes() for name in names}
    assert main(["train", "--resume", str(run), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("jaxrl: error: ")
    assert line in error
    assert {name: (run / name).read_bytes() for name in names} == before
    if held:
        held.close()


def test_a_resume_is_written_down_and_other_devices_are_told(run, capsys):
    config = json.loads((run / "config.json").read_text())
    here, config["device"] = config["device"], "7 x quantum"
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", "--resume", str(run), "--steps", "256"]) == 0
    line = f"{run}: it ran on 7 x quantum and goes on on {here}: what follows is right, but not"
    assert line in capsys.readouterr().err
    (resumed,) = json.loads((run / "config.json").read_text())["resumed"]
    assert resumed["command"] == f"jaxrl train --resume {run} --steps 256"
    assert set(resumed) == {"command", "created", "versions", "device", "git_commit"}
    assert main(["train", "--resume", str(run), "--steps", "384"]) == 0
    assert "it ran on" not in capsys.readouterr().err


# Numbers that are not finite ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_parameter_that_is_infinite_is_read_back(tmp_path, capsys):
    path = tmp_path / "run"
    assert main([*TRAIN, "env.x_threshold=inf", "--out", str(path)]) == 0
    assert main(["eval", str(path), "--episodes", "1"]) == 0
    assert main(["train", "--resume", str(path), "--steps", "256"]) == 0
    swept = tmp_path / "swept"
    sweep = ["sweep", *TINY, "--steps", "128", "env.x_threshold=2.4,inf", "--out", str(swept)]
    assert main(sweep) == 0
    assert main(["eval", str(swept), "--episodes", "1"]) == 0
    assert "x_threshold=inf" in capsys.readouterr().out


def test_an_expert_that_diverged_is_not_recorded(tmp_path, capsys):
    words = [*TINY[:-2], "learning_rate=1e38", "--steps", "512", "--size", "40"]
    assert main(["collect", *words, "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "are not finite after iteration" in error
    assert error.endswith("there is no expert to record")
    assert list((tmp_path / "data").iterdir()) == []
