"""What the pages say is true: their Python runs and their files exist."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
READMES = ["README.md", "agents/README.md", "envs_jax/README.md"]
GUIDES = [p.relative_to(ROOT).as_posix() for p in sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", READMES + [page for page in GUIDES if PYTHON.search((ROOT / page).read_text())]
)
def test_python_of_the_pages(page):
    blocks = PYTHON.findall((ROOT / page).read_text())
    assert blocks
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if page == "README.md":  # its agents learn, and so does the one that is written out
        assert names["returns"].max() > 400
    if page == "agents/README.md":
        assert np.nanmean(names["returns"][-10:]) > 5 * names["returns"][0]
        assert names["evaluation"].returns.mean() > 300


def test_readme_is_short_and_starts_with_code():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert "```python" in lines[:15]


def test_links_and_files_of_the_pages_exist():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]  # `make docs` checks those of docs/
    missing, count = [], 0
    for page in pages:
        text = page.read_text()
        links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
        # Paths in backticks start at the top; what a reader is to fill in is in capitals.
        top = r"`((?:agents|envs_jax|experiments|jaxrl|notebooks|tests)/[a-z_/0-9]+\.[a-z]+)`"
        files = [ROOT / path for path in re.findall(top, text)]
        count += len(links) + len(files)
        missing += [f"{page}: {path}" for path in links + files if not path.exists()]
    assert count >= 20
    assert missing == []
