"""Running a pipeline without workers: what it means, said in plain Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pipekit._activity import Activity
from pipekit._errors import Failure, Released, SignatureError, short_repr
from pipekit._frame import Frame
from pipekit._graph import check_closed, claim_all
from pipekit._input import Input
from pipekit._layout import Layout, Place, add_place, lay_out
from pipekit._outlet import Outlet
from pipekit._pipeline import Joinable, NoInput, Pipeline
from pipekit._plan import make_step, over_edges
from pipekit._public import public
from pipekit._stage import Stage
from pipekit._steps import call_function, check_nothing_hidden, close_generator
from pipekit._worker import describe

T = TypeVar("T")


@public
def run_inline(pipeline: Pipeline[NoInput, T] | Stage[NoInput, T]) -> Generator[T, None, None]:
    """Run a pipeline in this thread, an item at a time, each stage once: to debug it, or to compare.

    Options are not looked at: no worker is started, nothing is pickled, and an item passes through all stages before
    the next is read. A branch that asks for a second item makes the stages before it go on until one comes, and what is
    for other branches waits meanwhile: with a source without end, that may be for ever.
    Breakpoints, profilers and post-mortem debugging work as in any Python code.

    Args:
        pipeline: one that has its source.

    Returns:
        A generator of what `results()` gives with one worker for each stage.

    Raises:
        SignatureError: a stage cannot be called in its place.
        PipelineError: the source is an iterator that an earlier run has read, or stands twice in the graph.
        TaskException: from the iterator, when a stage failed, as from `results()`; but a KeyboardInterrupt comes as it
            is, whoever raised it.
    """
    if not isinstance(pipeline, Joinable):
        raise SignatureError(f"run_inline runs a pipeline or a stage, not {short_repr(pipeline)}")
    check_closed(pipeline._part())
    layout = lay_out(pipeline._part())
    claim_all(layout.one_shots())
    return _results(_InlineRun(layout))


def _results(run: _InlineRun) -> Generator[Any, None, None]:
    try:
        while True:
            try:
                item = run.next_item(run.consumer)
            except StopIteration:
                break
            except Released:
                if not run.failures:  # of a run around this one, whose items this one reads
                    raise
                break
            if run.failures:  # of a stage before this one, which passes over it
                break
            yield item
    finally:
        for stage in reversed(run.stages):
            stage.close()
    if run.failures:
        error = run.failures[0].to_exception(run.failures[1:])
        add_place(error, [stage.place for stage in run.stages])
        raise error


class _InlineRun:
    """The stages of a graph, and what waits for each of them. Whoever needs an item makes others give theirs."""

    def __init__(self, layout: Layout) -> None:
        self.failures: list[Failure] = []
        self.consumer = layout.consumer
        readers = layout.readers()
        themselves = [(number,) for number in range(layout.consumer + 1)]
        self.stages = [
            _InlineStage(self, number, place, over_edges(place.outlet, layout, themselves), has_input=number in readers)
            for number, place in enumerate(layout.places)
        ]
        self._waiting: list[deque[object]] = [deque() for _ in range(layout.consumer + 1)]
        # Who gives to each, the one whose turn it is first.
        self._givers: list[deque[_InlineStage]] = [deque() for _ in range(layout.consumer + 1)]
        for stage in self.stages:
            for reader in stage.readers:
                self._givers[reader].append(stage)
        self._giving = [len(givers) for givers in self._givers]  # those that have not ended

    def next_item(self, reader: int) -> object:
        """The next item for a stage, or for the consumer; raises StopIteration at the end."""
        while not self._waiting[reader]:
            if not self._giving[reader]:
                raise StopIteration
            self._let_one_give(reader)
        return self._waiting[reader].popleft()

    def _let_one_give(self, reader: int) -> None:
        """One result more, from somebody before `reader`.

        First from those for whom an item waits: a branch that gets none must not read everything for the others.
        """
        giver = self._next_giver(self._givers[reader])
        if not self._is_ready(giver):
            self._let_one_give(giver.number)
        if self._is_ready(giver):
            self._take_result(giver)

    def _next_giver(self, givers: deque[_InlineStage]) -> _InlineStage:
        if len(givers) == 1:
            return givers[0]
        givers.rotate(-1)
        alive = [giver for giver in givers if not giver.ended]
        return next(filter(self._is_ready, alive), alive[0])

    def _is_ready(self, stage: _InlineStage) -> bool:
        return bool(self._waiting[stage.number]) or not self._giving[stage.number]

    def _take_result(self, giver: _InlineStage) -> None:
        try:
            result, numbers = giver.next_result()
        except StopIteration:
            for number in giver.readers:
                self._giving[number] -= 1
            return
        for number in numbers:
            if number == self.consumer or not self.stages[number].ended:
                self._waiting[number].append(result)


class _InlineStage:
    """A stage in a run. When one fails, its failure is kept, and those behind it are released as workers are."""

    def __init__(self, run: _InlineRun, number: int, place: Place, outlet: Outlet, *, has_input: bool) -> None:
        self.number = number
        self.place = place
        self.readers = set(outlet.leaves())
        self._outlet = outlet
        self.ended = False
        self._run = run
        self._step = make_step(place)
        reader = _InlineReader(partial(run.next_item, number))
        self._input = Input(reader, _NeverWaits(), Activity(), _nothing) if has_input else None
        self._results: Iterator[object] | None = None

    def next_result(self) -> tuple[object, tuple[int, ...]]:
        """The next result, and who is to read it; raises StopIteration at the end."""
        if self._run.failures:
            raise Released
        if self._results is None:
            self._results = self._guarded(partial(call_function, self._step, self._input))
        result = self._guarded(partial(next, self._results, _END))
        if self._run.failures:  # of a stage before it, and it has gone on
            raise Released
        if result is _END:
            self.ended = True
            self._guarded(partial(check_nothing_hidden, self._step, self._input))
            raise StopIteration
        return result, self._guarded(partial(self._outlet, result))

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
            self._run.failures.append(describe(error, self.place.name, f"{self.place.name}-0", item))
            raise Released from None


_END = object()


class _InlineReader:
    """A `pipekit._input.Reader` of items that are made when they are asked for."""

    def __init__(self, next_item: Callable[[], object]) -> None:
        self._next_item = next_item

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        try:
            return Frame(0, 1, [self._next_item()])
        except StopIteration:
            return None

    def finished(self, items: int, seconds: float, blocked: float) -> None:
        pass

    def leave(self, consumed: int) -> None:
        pass


class _NeverWaits:
    """A `pipekit._input.Waits`: results are taken one by one."""

    blocked = 0.0


def _nothing() -> None:
    pass
