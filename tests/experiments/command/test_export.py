"""`jaxrl export`, and what chooses a member: --member, --best, --checkpoint."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxrl
from envs_jax.pictures import SIZE
from experiments.command.cli import main
from experiments.command.render import BAR, MARGIN, _steps
from experiments.runs.folder import RunFolder
from tests.helpers import assert_same

TINY = ["num_envs=4", "num_steps=16", "num_minibatches=2", "--steps", "256", "--episodes", "3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three seeds of PPO, of which the second is the best."""
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    assert main(["train", "ppo", "CartPole-v1", *TINY, "--seeds", "3", "--out", str(folder)]) == 0
    change(folder, lambda i, member: member | {"final_return": (0.0, 5.0, None)[i]})
    return folder


def change(folder, edit):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["members"] = [edit(i, member) for i, member in enumerate(summary["members"])]
    path.write_text(json.dumps(summary))


def shown(capsys, *words):
    status = main([*map(str, words)])
    out, err = capsys.readouterr()
    return status, out + err


def test_the_best_member_is_exported_as_the_run_has_it(finished, tmp_path, capsys):
    out = tmp_path / "policy"
    status, text = shown(capsys, "export", finished, out, "--best", "--episodes", "4")
    assert status == 0, text
    assert text.startswith("member 1 (seed=1) after iteration 4\nmean return ")
    (member,) = RunFolder.open(finished).members(1)
    obs = jax.random.normal(jax.random.key(0), (4,))
    for deterministic in (True, False):
        own = member.agent.policy(member.state, deterministic)
        policy = jaxrl.load(out, deterministic)
        assert_same(policy(obs, jax.random.key(1)), own(obs, jax.random.key(1)))
    about = policy.about["about"]
    assert (about["seed"], about["member"]) == (1, 1)
    assert about["command"].startswith("jaxrl train ppo CartPole-v1 num_envs=4")
    # It is what `jaxrl eval` says, too.
    _, table = shown(capsys, "eval", finished, "--best", "--episodes", "4")
    assert f"{policy.about['evaluation']['mean_return']:.2f}" in table.splitlines()[3].split()


def test_a_member_is_to_be_chosen(finished, tmp_path, capsys):
    out = tmp_path / "policy"

    def refused(*words):
        status, text = shown(capsys, "export", *words)
        assert (status, text.count("\n"), out.exists()) == (2, 1, False)
        return text

    assert "has 3 members: choose by --member I or --best" in refused(finished, out)
    assert "member 3 is outside 0..2" in refused(finished, out, "--member", "3")
    assert f"{finished} is there already" in refused(finished, finished, "--best")
    assert "is not a run" in refused(tmp_path, out)
    assert "holds no checkpoint 3" in refused(finished, out, "--best", "--checkpoint", "3")


def test_a_member_without_a_return_is_never_the_best(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    change(folder, lambda i, member: member | {"final_return": (0.0, -1.0, None)[i]})
    assert RunFolder.open(folder).chosen(None, best=True) == 0
    change(folder, lambda i, member: member | {"final_return": None})
    status, text = shown(capsys, "eval", folder, "--best")
    assert (status, text) == (2, f"jaxrl: error: {folder}: --best: no member has a return yet\n")


def test_of_a_run_that_was_killed_the_best_is_the_best_so_far(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "summary.json").unlink()
    killed = RunFolder.open(folder)
    returns = killed.metrics()["episode_return"]
    last = [row[np.isfinite(row)][-1] for row in returns]
    assert killed.chosen(None, best=True) == int(np.argmax(last))
    evaluations = np.array([[[9.0], [1.0]], [[0.0], [2.0]], [[8.0], [np.nan]]])
    seen = {"evaluation_returns": evaluations, "steps": returns}
    monkeypatch.setattr(RunFolder, "metrics", lambda self: seen)
    assert killed.chosen(None, best=True) == 2
    assert main(["export", str(folder), str(tmp_path / "out"), "--best", "--episodes", "2"]) == 0
    assert jaxrl.load(tmp_path / "out").about["about"]["member"] == 2


# Pictures of episodes ---------------------------------------------------------------------------


def test_members_are_drawn_side_by_side(finished, tmp_path, capsys):
    def image(name, *words):
        status, text = shown(capsys, "render", finished, "--out", tmp_path / name, *words)
        assert status == 0, text
        with Image.open(tmp_path / name) as picture:
            return text, picture.size, getattr(picture, "n_frames", 1)

    text, size, _ = image("a.png", "--steps", "7")
    assert [line.split(":")[0] for line in text.splitlines()[:3]] == [
        f"member {i} (seed={i})" for i in range(3)
    ]
    cell = (SIZE + MARGIN, SIZE + BAR + MARGIN)
    assert size == (6 * cell[0] + MARGIN, 3 * cell[1] + MARGIN)
    text, size, frames = image("a.gif", "--best", "--steps", "7")
    assert text.startswith("member 1 (seed=1): return 7.00 in 7 steps")
    assert (frames, size) == (7, (cell[0] + MARGIN, cell[1] + MARGIN))
    text, size, _ = image("c.gif", "--steps", "7", "--member", "2", "--member", "0")
    assert [line.split(":")[0] for line in text.splitlines()[:2]] == [
        f"member {i} (seed={i})" for i in (0, 2)
    ]
    assert size == (2 * cell[0] + MARGIN, cell[1] + MARGIN)
    _, size, _ = image("b.gif", "--steps", "7")
    assert size == (2 * cell[0] + MARGIN, 2 * cell[1] + MARGIN)


def test_what_cannot_be_drawn_is_one_line(finished, tmp_path, capsys):
    for words, line in (
        (["--out", tmp_path / "a.mp4"], "give a name that ends in .gif, .html, .png"),
        (["--out", tmp_path / "a.html"], "a page shows one member: choose by --member I or --best"),
        (["--out", tmp_path / "a.html", "--member", 0, "--member", 2], "a page shows one member"),
        (["--out", tmp_path / "a.html", "--best", "--steps", "3"], "a page is Brax's alone"),
        (
            ["--out", tmp_path / "a.gif", "--member", "0", "--member", "8"],
            "member 8 is outside 0..2",
        ),
    ):
        status, text = shown(capsys, "render", finished, *words)
        assert status == 2
        assert line in text.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_long_episodes_are_shown_in_strides_and_sheets_from_first_to_last():
    assert _steps(3, ".gif") == [0, 1, 2]
    assert _steps(250, ".gif") == list(range(250))
    assert _steps(501, ".gif") == list(range(0, 501, 3))
    assert _steps(101, ".png") == [0, 20, 40, 60, 80, 100]
    assert _steps(2, ".png") == [0, 1]
