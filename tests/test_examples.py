"""The programs of the documentation run, and print what they say."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
MAKER = runpy.run_path(str(DOCS / "pictures.py"))
PICTURES, drawn = MAKER["PICTURES"], MAKER["drawn"]
MARK = "# Output:\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_says(example: Path, tmp_path: Path) -> None:
    if example.stem.endswith("_on_ray"):
        pytest.importorskip("ray", reason='Ray is not installed: pip install "pipekit-parallel[ray]"')
    command = [sys.executable, str(example)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert ran.stderr == ""
    assert ran.stdout == expected_output(example)
    assert ran.returncode == 0


def test_there_are_examples() -> None:
    assert EXAMPLES


def expected_output(example: Path) -> str:
    """The comment that ends the program."""
    program, mark, comment = example.read_text(encoding="utf-8").partition(MARK)
    assert mark, f"{example.name} lacks its output"
    assert "if __name__" not in program  # the examples show that no guard is needed
    return "".join(line.removeprefix("# ") for line in comment.splitlines(keepends=True))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_the_pictures_show_the_examples(picture: Path) -> None:
    assert picture.read_text(encoding="utf-8") == drawn(picture), "run `python docs/pictures.py`"
