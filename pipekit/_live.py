"""The runs of this process, so that they can be stopped together; and when none may start."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from pipekit._errors import PipelineError


class Stoppable(Protocol):
    def stop(self) -> None: ...


_live: set[Stoppable] = set()
_exiting = False
# The stage whose function a worker process is loading: to load it, modules of the user are imported.
_loading: list[str] = []


def remember(run: Stoppable) -> None:
    """Have `stop_all` stop the run.

    Raises:
        PipelineError: a module that a worker imports starts a run while it is imported. That run's workers would import
            it too, and so on without end.
    """
    if _loading:
        raise PipelineError(
            f"a module that a worker of stage {_loading[0]!r} imports runs a pipeline while it is imported, and so "
            'would each worker of that one: put the run into a function, or under `if __name__ == "__main__":`'
        )
    _live.add(run)


def forget(run: Stoppable) -> None:
    """The run has stopped."""
    _live.discard(run)


def stop_all() -> None:
    """Stop every run of this process."""
    for run in list(_live):
        run.stop()


def stop_all_at_exit() -> None:
    """Have `stop_all` called at exit, before everything that was registered so far.

    multiprocessing registers a handler that waits for all child processes, when it is first imported: ours must run
    before it, and handlers run in the reverse order of their registration.
    """
    atexit.unregister(_stop_all_at_exit)
    atexit.register(_stop_all_at_exit)


def _stop_all_at_exit() -> None:
    global _exiting
    _exiting = True
    stop_all()


def is_exiting() -> bool:
    """Whether the interpreter is exiting: threads that still run are daemons, and nobody wants to hear of them."""
    return _exiting


@contextmanager
def loading_functions(stage: str) -> Iterator[None]:
    """No run may start while this worker process loads its stage's function."""
    _loading.append(stage)
    try:
        yield
    finally:
        _loading.clear()
