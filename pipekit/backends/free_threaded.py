"""Workers that are threads of an interpreter without a GIL: for Python code that computes, with nothing pickled."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from pipekit._channel import BlockingReader
from pipekit._errors import BackendUnavailable
from pipekit._frame import Frame
from pipekit._gil import gil_is_on
from pipekit._public import public
from pipekit._task import Task
from pipekit.backends._base import Inbox
from pipekit.backends.thread import ThreadBackend, ThreadExecutor

#: Seconds for which a run looks for the name of the module that has switched the GIL on: CPython tells it a moment
#: later, in the thread that imports it.
NAME_SECONDS = 1.0


@public
@dataclass(frozen=True, slots=True)
class FreeThreadedBackend(ThreadBackend):
    """Run each worker in a thread of this process, where threads run Python code at the same time.

    That takes a free-threaded build of Python: on any other, and where the GIL was switched on, the pipeline raises
    BackendUnavailable when it is compiled. Items are passed on as they are, not copied.
    """

    name = "free-threaded"

    def prepare(self, task: Task) -> Task:
        if gil_is_on():
            raise BackendUnavailable(
                f'the backend "free-threaded" needs a Python without the GIL, and this one {_why_the_gil_is_on()}; '
                'backend="process" runs here, and backend="auto" takes the one of the two that does'
            )
        return task

    def executor(self) -> ThreadExecutor:
        return _FreeThreadedExecutor()


class _FreeThreadedExecutor(ThreadExecutor):
    """Looks with each frame whether the GIL was switched on, and at the end of the run."""

    def __init__(self) -> None:
        super().__init__()
        self._since: float | None = None  # when it saw that the GIL was switched on
        self._told = False
        self._lock = threading.Lock()

    def reader(self, inbox: Inbox) -> BlockingReader:
        return _Watchful(inbox, self._look)

    def close(self) -> None:
        super().close()
        self._look(last=True)

    def _look(self, *, last: bool = False) -> None:
        if self._told or not gil_is_on():
            return
        with self._lock:
            if self._told:
                return
            self._since = self._since or monotonic()
            module = _module_that_needs_the_gil()
            if module is None and not last and monotonic() < self._since + NAME_SECONDS:
                return
            self._told = True
        with suppress(RuntimeWarning):  # where warnings are errors, the import has raised one, and the run goes on
            warnings.warn(_SWITCHED_ON.format(module or "an extension module"), RuntimeWarning, stacklevel=1)


class _Watchful(BlockingReader):
    def __init__(self, inbox: Inbox, look: Callable[[], None]) -> None:
        super().__init__(inbox)
        self._look = look

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        self._look()
        return super().get(before_waiting)


_SWITCHED_ON = (
    'the GIL was switched on by the import of {} while a pipeline ran: its stages with backend="free-threaded" go on, '
    'but no longer at the same time. Use a version of the module for free-threaded Python, or backend="process"'
)


def _why_the_gil_is_on() -> str:
    import sysconfig  # takes long to import, and only an error needs it

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return f"(CPython {version}) has it: run the program with a free-threaded build, such as python3.14t"
    module = _module_that_needs_the_gil()
    if module is not None:
        return (
            f"(free-threaded {version}) has switched it on to load {module}: "
            "use a version of that module for free-threaded Python"
        )
    return f"(free-threaded {version}) has it switched on: by PYTHON_GIL, by -X gil, or to load an extension module"


def _module_that_needs_the_gil() -> str | None:
    """The extension module whose import has switched the GIL on, quoted, as CPython has warned of it.

    A warning that is shown once, as by default, is kept by the module in which it was raised. None if it is not.
    """
    for module in list(sys.modules.values()):
        for key in _warnings_of(module):
            if isinstance(key, tuple) and str(key[0]).startswith(_CPYTHONS_WARNING):
                return repr(str(key[0]).removeprefix(_CPYTHONS_WARNING).partition("'")[0])
    return None


def _warnings_of(module: object) -> list[object]:
    try:  # without code of the module's own, which may import it, or raise
        return list(object.__getattribute__(module, "__dict__").get("__warningregistry__", ()))
    except Exception:
        return []


# Of Python/import.c, in CPython 3.13.
_CPYTHONS_WARNING = "The global interpreter lock (GIL) has been enabled to load module '"
