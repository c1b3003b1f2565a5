"""What is built can be installed and used from anywhere; what hides our packages is a line."""

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from jaxrl import __main__ as command

ROOT = Path(__file__).parents[1]


def test_nothing_hides_our_packages():
    assert command.hidden() == ""


def test_another_package_that_hides_ours_is_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "agents"]:
        monkeypatch.delitem(sys.modules, name)
    assert command.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'agents'} hides the package agents of jaxrl in {ROOT}" in line


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of all files that git knows, built from a copy of them."""
    pytest.importorskip("setuptools", minversion="77")
    if not (ROOT / ".git").exists():
        pytest.skip("which files there are is git's to say")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True)
    names = listing.stdout.decode().split("\n")[:-1]
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    build = "from setuptools import build_meta as b; b.build_{}({!r})"
    for kind in ("sdist", "wheel"):
        words = [sys.executable, "-c", build.format(kind, str(out))]
        subprocess.run(words, cwd=copy, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return names, wheel, sdist


@pytest.mark.slow
def test_the_sdist_is_whole_and_the_wheel_has_what_runs(built):
    names, wheel, sdist = built
    with tarfile.open(sdist) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    assert set(names) - packed == set()
    with zipfile.ZipFile(wheel) as file:
        wheeled = {name for name in file.namelist() if ".dist-info" not in name}
    packages = ("jaxrl/", "agents/", "envs_jax/", "experiments/")
    needed = {n for n in names if n.startswith(packages) and n.endswith((".py", ".toml", ".typed"))}
    assert wheeled == needed


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(built, tmp_path):
    _, wheel, _ = built
    venv.create(tmp_path / "env", with_pip=True)
    bin = tmp_path / "env" / "bin"
    subprocess.run(
        [bin / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(others or site.getsitepackages()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}

    def jaxrl(*words, status=0, **variables):
        given = {"cwd": elsewhere, "env": clean | variables, "capture_output": True, "text": True}
        done = subprocess.run([bin / "jaxrl", *words], **given)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    where = [bin / "python", "-c", "import jaxrl; print(jaxrl.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=clean, capture_output=True, text=True)
    assert found.stdout.startswith(str(packages))
    assert "Proximal Policy Optimization" in jaxrl("list", "agents")
    tiny = ["num_steps=16", "--steps", "256", "--episodes", "2", "--out", "run"]
    assert "recipe ppo/CartPole-v1" in jaxrl("train", "ppo", "CartPole-v1", *tiny)
    assert (elsewhere / "run" / "summary.json").exists()

    theirs = tmp_path / "theirs" / "experiments"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").touch()
    line = jaxrl("list", status=2, PYTHONPATH=str(theirs.parent))
    assert line.startswith(f"jaxrl: error: {theirs} hides the package experiments of jaxrl in")
    assert len(line.splitlines()) == 1
