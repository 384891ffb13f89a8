"""Running a pipeline without workers: what it means, said in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pipekit._activity import Activity
from pipekit._errors import Failure, Released, SignatureError, short_repr
from pipekit._frame import Frame
from pipekit._graph import OneShot
from pipekit._input import Input
from pipekit._pipeline import Joinable, NoInput, Pipeline
from pipekit._plan import check_chain, make_task
from pipekit._stage import Stage
from pipekit._task import Task
from pipekit._worker import call_function, check_nothing_hidden, close_generator, describe

T = TypeVar("T")


def run_inline(pipeline: Pipeline[NoInput, T] | Stage[NoInput, T]) -> Generator[T, None, None]:
    """Run a pipeline in this thread, an item at a time, each stage once: to debug it, or to compare.

    Options are not looked at: no worker is started, nothing is pickled, and an item passes through all stages before
    the next is read. Breakpoints, profilers and post-mortem debugging work as in any Python code.

    Args:
        pipeline: one that has its source.

    Returns:
        A generator of what `results()` gives with one worker for each stage.

    Raises:
        SignatureError: a stage cannot be called in its place.
        PipelineError: the source is an iterator that an earlier run has read.
        TaskException: from the iterator, when a stage failed, as from `results()`; but a KeyboardInterrupt comes as it
            is, whoever raised it.
    """
    if not isinstance(pipeline, Joinable):
        raise SignatureError(f"run_inline runs a pipeline or a stage, not {short_repr(pipeline)}")
    nodes = pipeline._nodes()
    check_chain(nodes)
    if isinstance(nodes[0].function, OneShot):
        nodes[0].function.claim()
    failures: list[Failure] = []
    stages: list[_InlineStage] = []
    for node in nodes:
        task = make_task(node, has_input=bool(stages), encode=False)
        stages.append(_InlineStage(task, stages[-1] if stages else None, failures))
    return _results(stages, failures)


def _results(stages: list[_InlineStage], failures: list[Failure]) -> Generator[Any, None, None]:
    try:
        while True:
            try:
                item = next(stages[-1])
            except StopIteration:
                break
            except Released:
                if not failures:  # of a run around this one, whose items this one reads
                    raise
                break
            if failures:  # of a stage before this one, which passes over it
                break
            yield item
    finally:
        for stage in reversed(stages):
            stage.close()
    if failures:
        raise failures[0].to_exception(failures[1:])


class _InlineStage:
    """The results of a stage. When one fails, its failure is kept, and those behind it are released as workers are."""

    def __init__(self, task: Task, before: _InlineStage | None, failures: list[Failure]) -> None:
        self._task = task
        self._failures = failures
        self._input = None if before is None else Input(_InlineReader(before), _NeverWaits(), Activity(), _nothing)
        self._results: Iterator[object] | None = None

    def __next__(self) -> object:
        if self._failures:
            raise Released
        if self._results is None:
            self._results = self._guarded(partial(call_function, self._task, self._input))
        result = self._guarded(partial(next, self._results, _END))
        if result is _END:
            self._guarded(partial(check_nothing_hidden, self._task, self._input))
            raise StopIteration
        return result

    def close(self) -> None:
        """Run the function's `finally` blocks if it has not ended."""
        if self._results is not None:
            with suppress(Released):
                self._guarded(partial(close_generator, self._results))

    def _guarded(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except (Released, KeyboardInterrupt):  # the latter is the user's, at the keyboard
            raise
        except BaseException as error:
            item = None if self._input is None else self._input.last_item()
            self._failures.append(describe(error, self._task.stage, f"{self._task.stage}-0", item))
            raise Released from None


_END = object()


class _InlineReader:
    """A `pipekit._input.Reader` of the results of the stage before."""

    def __init__(self, before: _InlineStage) -> None:
        self._before = before

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        try:
            return Frame(0, 1, [next(self._before)])
        except StopIteration:
            return None

    def finished(self, items: int, seconds: float) -> None:
        pass

    def leave(self, consumed: int) -> None:
        pass


class _NeverWaits:
    """A `pipekit._input.Waits`: results are taken one by one."""

    blocked = 0.0


def _nothing() -> None:
    pass
