"""Makes the pictures of the documentation: of each example that has one, the graph that it calls `pipe`.

python docs/pictures.py
"""

from __future__ import annotations

import contextlib
import io
import runpy
from pathlib import Path

DOCS = Path(__file__).parent
PICTURES = sorted((DOCS / "pictures").glob("*.svg"))


def drawn(picture: Path) -> str:
    """The picture as it should be."""
    with contextlib.redirect_stdout(io.StringIO()):
        program = runpy.run_path(str(DOCS / "examples" / f"{picture.stem}.py"), run_name="__main__")
    return str(program["pipe"].to_svg())


if __name__ == "__main__":
    for picture in PICTURES:
        picture.write_text(drawn(picture), encoding="utf-8")
