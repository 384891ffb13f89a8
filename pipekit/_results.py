"""What the caller iterates over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from pipekit._one_reader import OneReader
from pipekit._public import public
from pipekit._run import PATIENCE, Run
from pipekit._signals import start_thread
from pipekit._stats import RunStats

T = TypeVar("T")

if TYPE_CHECKING:
    from typing import Generic

    class _Chain(Iterator[T], Generic[T]):
        """`itertools.chain` as a base class: its constructor's types are not ours."""

        def __next__(self) -> T: ...

else:
    _Chain = chain


_READ_TWICE = (
    "the same results are read twice at the same time, by two threads or by a signal handler: "
    "let one thread read and pass them on, or give each a run of its own by calling results() twice"
)


@public
class Results(_Chain[T]):
    """The results of a run: an iterator that is also a context manager.

    Leaving it in any way stops the run: reading to the end, `close()`, the end of a `with` block, an exception in it,
    or dropping the last reference. Made by `Pipeline.results()`.

    Iterating raises TaskException (or a subclass) after the last result if a stage failed.
    """

    # A chain of frames, so that items are delivered without Python code in between.
    _run: Run
    _reader: OneReader

    @classmethod
    def _of(cls, run: Run, stall_timeout: float | None) -> Self:
        reader = OneReader(run.frames(stall_timeout), _READ_TWICE, run.stop)
        results = cls.from_iterable(reader)  # type: ignore[attr-defined]  # see _Chain
        results._run = run
        results._reader = reader
        return results  # type: ignore[no-any-return]

    def close(self) -> None:
        """Stop the run; returns within two seconds, with no worker process left. Results not yet read are dropped."""
        if self._reader.is_interrupted():
            self._stop_elsewhere()
        else:
            self._run.stop()

    def stats(self) -> RunStats:
        """How the run is doing now: items received, handed on and waiting at each stage."""
        return self._run.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is None or run.is_stopped:
            return
        self._stop_elsewhere()  # the garbage collector may call this in any thread, in the middle of anything

    def _stop_elsewhere(self) -> None:
        """Stop the run where this thread may hold a lock of it: another does it, and the wait for that is bounded."""
        stopper = threading.Thread(target=self._run.stop, name="pipekit-stopper", daemon=True)
        try:
            start_thread(stopper)
        except RuntimeError:  # the interpreter is exiting and starts no threads
            self._run.stop()
        else:
            stopper.join(PATIENCE)
