"""Docstrings as Markdown: examples (`>>>`) are fenced, indices in formulas are no emphasis."""

from __future__ import annotations

import re
from typing import Any

import griffe

# From the first prompt to the next empty line.
EXAMPLE = re.compile(r"^([ \t]*)(>>>.*(?:\n[ \t]*\S.*)*)", re.MULTILINE)
INDEX = re.compile(r"(?<=[')\]}])_(?=\w|\{)")  # as in V(s'_t)


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = EXAMPLE.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)
            obj.docstring.value = INDEX.sub(r"\\_", text)
