"""Whether threads of this interpreter run Python code at the same time."""

from __future__ import annotations

import sys


def gil_is_on() -> bool:
    """Whether only one thread at a time runs Python code.

    Where there is no GIL, the import of an extension module that needs it can switch it on at any time. Nothing
    switches it off again.
    """
    if sys.version_info >= (3, 13):
        return sys._is_gil_enabled()
    return True
