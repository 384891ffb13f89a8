"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build`."""

import re
from importlib.metadata import version as installed_version
from typing import Any

project = "pipekit"
author = "the pipekit authors"
release = version = installed_version("pipekit-parallel")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pipekit {release}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


FIELD = re.compile(r"\w+: ")


def name_fields(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Records list their fields as `name: meaning`: make a section of them."""
    first = next((number for number, line in enumerate(lines) if FIELD.match(line)), None)
    if what == "class" and first is not None:
        lines[first:] = ["Attributes:", *(f"    {line}" for line in lines[first:])]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", name_fields, priority=100)  # before napoleon
