"""The types that users' programs get: what mypy infers for `tests/typing/good.py`, and refuses in `must_fail.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_types_are_inferred_and_misuse_is_refused(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed: `tox -e typing` has it")
    config = TESTS.parent / "pyproject.toml"
    options = ["--config-file", str(config), "--cache-dir", str(tmp_path)]
    report, errors, status = api.run([*options, str(TESTS / "typing")])
    assert status == 0, report + errors
