"""The stages that one worker runs, each on the results of the one before, and which of them is in a call.

    items ──> first stage's function ──> kept ──> second one's ──> kept ──> ... ──> results

Items pass one by one: the next is read when the one before has passed all stages. `kept` is what a stage was given of
the frame that is being read. So a stage is in a call if it was given more than the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import filterfalse
from typing import Any

from pipekit._arena import CAN_SHARE, LEAST_SHARED, own_store
from pipekit._errors import short_repr
from pipekit._frame import UNCHANGING, CannotTravel, part_repr
from pipekit._input import Input
from pipekit._output import Batch
from pipekit._pickling import decode, encode_apart
from pipekit._stats import Doing
from pipekit._task import Kind, Step, Task


class Steps:
    """The steps of a worker's task at work; `batches` is called once."""

    def __init__(self, task: Task, worker: str, source: Input | None) -> None:
        self.names = task.names(worker)
        self._steps = task.steps
        self._copied = task.copied
        self._source = source
        self._kept: list[list[Any]] = [[] for _ in task.steps[1:]]
        self._results: Iterator[object] = iter(())
        if source is not None and self._kept:
            source.frame_passed = self._forget

    def batches(self) -> Iterator[Batch]:
        """What the last step gives; for map stages frame by frame, so that nothing stands between `map` and items."""
        if self._steps[0].kind is Kind.MAP:
            assert self._source is not None  # the compiler lets no map stage come first
            return map(self._of_frame, self._source.frames)
        self._results = call_function(self._steps[0], self._source)
        return iter([Batch(self._results, sys.maxsize, exact=False)])

    def _of_frame(self, items: Iterator[object]) -> Batch:
        assert self._source is not None
        results = map_items(self._steps[0], items)
        for step, kept in zip(self._steps[1:], self._kept, strict=True):
            if self._copied:
                given: Iterator[object] = _copies(results, kept)
            else:
                given = filterfalse(kept.append, results)  # `append` returns None: every item passes, without a call
            results = map_items(step, given)
        return Batch(results, self._source.unread, exact=not self._steps[-1].skip_errors)

    def close(self) -> None:
        """Run the `finally` blocks of an iterator stage's function that was not read to its end."""
        results, self._results = self._results, iter(())
        close_generator(results)

    def _forget(self) -> None:
        """The frame has passed. Raises RuntimeError where a step has lost an item: `map` ends at a StopIteration."""
        assert self._source is not None
        given = self._given(self._source)
        for step, got, passed in zip(self._steps, given, given[1:], strict=False):
            if passed != got and not step.skip_errors:
                raise stopped_by(step)
        for kept in self._kept:
            kept.clear()

    @property
    def active(self) -> int:
        """The index of the step that is in a call, or was last; of the first while the input is waited for."""
        if self._source is None:
            return 0
        if self._source.ended:
            return len(self._kept)
        read, *given = self._given(self._source)
        return sum(items == read for items in given) if read else 0

    def _given(self, source: Input) -> list[int]:
        """How many items of the frame each step was given."""
        return [source.read_of_frame, *map(len, self._kept)]

    def last_item(self, step: int) -> str | None:
        """The shortened repr of the item that a step was given last."""
        if step == 0:
            return None if self._source is None else self._source.last_item()
        last = self._kept[step - 1][-1:]
        return part_repr(last[0], _received if self._copied else None) if last else None

    def read(self, doing: Doing) -> list[int]:
        """How many items each step has been given so far, in a worker that is doing this."""
        source = self._source
        if source is None:
            return [0]
        if doing is not Doing.WORKING or source.ended:  # all that was read has passed all steps
            return [source.read] * len(self._steps)
        earlier = source.read - source.read_of_frame
        return [earlier + items for items in self._given(source)]

    def check_nothing_hidden(self) -> None:
        """As the function of this name, for the step that is to blame."""
        check_nothing_hidden(self._steps[self.active], self._source)


def _copies(results: Iterator[object], kept: list[Any]) -> Iterator[object]:
    """Copies of the results, each made before the next is asked for: as if they had gone to another process.

    Kept is each as it was given, pickled unless it cannot change: who gets it may change it, and then fail. (Only its
    big buffers are those that it has: an array's numbers in a message are as they are now.)
    """

    def copy(result: object) -> object:
        if type(result) in UNCHANGING:
            kept.append(result)
            return result
        try:
            data, buffers = encode_apart(result, LEAST_SHARED)
            part = data, _copied(buffers)
        except BaseException as error:
            raise CannotTravel(f"could not pickle its result {short_repr(result)}", error) from error
        kept.append(part)
        try:
            return decode(*part)
        except BaseException as error:  # also StopIteration, which would end the items unseen
            raise CannotTravel("could not unpickle an item", error) from error

    return map(copy, results)


def _copied(buffers: list[memoryview]) -> Sequence[bytes | bytearray | memoryview]:
    """Copies of big buffers, in this process's arena if there is room: new memory takes longer to get than to fill.

    Measured, for two stages that pass on arrays of 8 MB: 10 ms an array with new memory, 6 ms so.
    """
    leases = own_store().store(buffers) if CAN_SHARE and buffers else None
    if leases is not None:
        return [lease.view() for lease in leases]
    return [bytes(buffer) if buffer.readonly else bytearray(buffer) for buffer in buffers]


def _received(part: Any) -> object:
    return decode(*part) if type(part) is tuple else part


def call_function(step: Step, source: Input | None) -> Iterator[object]:
    """The results of a stage's function, called with the items of `source`."""
    if step.kind is Kind.MAP:
        assert source is not None  # the compiler lets no map stage come first
        return map_items(step, source.items)
    given = () if source is None else (source.items,)
    results = step.function(*given, *step.args, **step.kwargs)
    if results is None and source is not None and source.ended:  # a sink: it has read everything and gives nothing
        return iter(())
    if not isinstance(results, Iterable):
        raise TypeError(
            f"a stage's function must give an iterable of results, {step.stage!r} gave {short_repr(results)}: "
            "write `yield`, or use map_stage for a function of one item"
        )
    return iter(results)


def map_items(step: Step, items: Iterator[object]) -> Iterator[object]:
    """The results of a map stage's function for these items."""
    if step.skip_errors:
        return _map_good(step, items)
    if not step.args and not step.kwargs:
        return map(step.function, items)
    return map(lambda item: step.function(item, *step.args, **step.kwargs), items)  # noqa: C417


def _map_good(step: Step, items: Iterator[object]) -> Iterator[object]:
    for item in items:
        try:
            result = step.function(item, *step.args, **step.kwargs)
        except Exception:
            continue
        yield result


def close_generator(results: Iterator[object]) -> None:
    """Run the `finally` blocks of a generator not read to its end. (A file has `close` too: it is the caller's.)"""
    if isinstance(results, Generator):
        results.close()


def check_nothing_hidden(step: Step, source: Input | None) -> None:
    """Raise what the function has hidden: it has given all its results, but an item was lost on the way."""
    if source is None:
        return
    if source.error is not None:  # the function caught it and went on: still an item lost
        raise source.error
    if step.kind is Kind.MAP and not source.ended:  # map() takes it for the end of the items
        raise stopped_by(step)


def stopped_by(step: Step) -> RuntimeError:
    """What is raised where a function would have ended the items."""
    return RuntimeError(f"the function of map_stage {step.stage!r} raised StopIteration")
