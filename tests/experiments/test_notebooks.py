"""The notebooks run from top to bottom, and what their text says of their pictures is so."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]

# What is run after a notebook's own cells, with their names.
CLAIMS = {
    "colab": """
assert returns.mean() > 400
by_rate = population.final["final_return"].reshape(3, 4).mean(axis=1)
assert by_rate.max() > 400
assert int(policy(obs)) in (0, 1)
assert Path(archive).stat().st_size > 1000
""",
    "quickstart": """
metrics = run.history.metrics
assert metrics["episode_return"][0] < 40
assert np.nanmax(metrics["episode_return"]) == 500
assert metrics["entropy"][0] > 0.68  # log 2 is 0.69
assert metrics["entropy"][-1] < 0.6
assert np.nanmax(metrics["explained_variance"]) <= 1
final = population.final["final_return"].reshape(5, 4).mean(axis=1)
assert (final[3:] > 490).all()
assert np.nanmean(population.curves()[0].returns[:, -10:]) < 350
assert population.plot("curves").axes[0].get_title("right") == "bands: range of the runs"
assert np.abs(observations[:, 2]).max() < 0.21
assert np.abs(observations[:, 0]).max() < 2.4
""",
    "two_peaks": """
rows = {n: [measure(x, t) for x, t in zip(a, temperatures)] for n, a in actions.items()}
distances = {n: [row["total_variation_to_boltzmann"] for row in r] for n, r in rows.items()}
lesser = {n: [row["lesser_peak_share"] for row in r] for n, r in rows.items()}
assert min(lesser["sac"]) > 0.4  # it lies across both
assert min(distances["sac"]) > 0.3
assert max(distances["mixturesac"]) < 0.1  # it follows the density
assert lesser["softgac"][0] < 0.05  # one peak
assert 0.1 < lesser["softgac"][1] < 0.45  # it leans to one
assert distances["softgac"][1] > distances["mixturesac"][1] + 0.1  # it spreads further
""",
    "sequence_policies": """
ends = {name: curves[:, -10:].mean() for name, curves in accuracy.items()}
assert all(curves[:, :5].mean() < 0.5 for curves in accuracy.values())
assert 0.6 < ends["GRPO"] < 0.75
assert 0.75 < ends["POISE"] < 0.85
assert last["reward_gap"].min() > 0.5
assert last["valid_tasks"][:3].min() > 0.9
assert last["valid_tasks"][3].max() < 0.2
""",
    "own_environment": """
returns_seen = history.metrics["episode_return"][history.metrics["episodes"] > 0]
fuel = history.metrics["episode_fuel"][history.metrics["episodes"] > 0]
assert returns_seen[0] < 20
assert returns_seen[-10:].mean() > 85
assert fuel[-10:].mean() > fuel[0]
by_rate = population.final["final_return"].reshape(4, 3, 2).mean(axis=2)
assert (by_rate[3] > by_rate[0] + 20).all()
assert (by_rate[3] > 85).all()
assert np.abs(positions[:, 40:]).max() < 0.15
assert [int(policy(jnp.array([x, 0.0]))) for x in (0.5, -0.5)] == [0, 2]
""",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs_and_shows_what_it_says(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not installs(cell)]
    claims = f"from pathlib import Path\n{CLAIMS[path.stem]}"
    notebook.cells.append(nbformat.v4.new_code_cell(claims))
    where = {"metadata": {"path": str(tmp_path)}}  # what a notebook writes stays there
    NotebookClient(notebook, timeout=600, resources=where).execute()


def installs(cell):
    return "install" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", sorted(ROOT.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_valid(path):
    nbformat.validate(nbformat.read(path, as_version=4))


def test_colab_asks_for_the_address_in_a_line():
    notebook = nbformat.read(ROOT / "notebooks" / "colab.ipynb", as_version=4)
    (cell,) = filter(installs, notebook.cells)
    code = cell.source.partition("extra = ")[0]  # what follows is for notebooks alone
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    line = "REPOSITORY is empty: write the address that you clone jaxrl from above\n"
    assert run.stderr == line
    given = code.replace('REPOSITORY = ""', 'REPOSITORY = "https://host/jaxrl"')
    assert subprocess.run([sys.executable, "-c", given]).returncode == 0
