"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_python_of_the_readme():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "longer" in names
