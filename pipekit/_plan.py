"""The compiler: from a laid out graph to a plan, stages bound to backends and edges to limits. Starts nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias

from pipekit._edge import Limits
from pipekit._errors import NotPicklable, short_repr
from pipekit._fusion import find_fusion
from pipekit._graph import Node, OneShot, Options, Part, check_closed
from pipekit._layout import Layout, Place, lay_out
from pipekit._outlet import Outlet, To, ToAll, ToChosen, key_text, to_all, to_keyed
from pipekit._pickling import decode, encode_by_value
from pipekit._public import public
from pipekit._task import Step, Task
from pipekit.backends._base import Backend
from pipekit.backends._registry import resolve_backend

#: Items that may wait on an edge whose qsize is None; elastic, so slow readers never see that many. Measured: frames of
#: some thousand items let identity stages on threads pass 1.7 times as many as frames of 500.
DEFAULT_QSIZE = 1 << 18
#: Items that a frame may hold on an edge without limit.
FRAME_LIMIT = 1 << 13
#: Frames that a process worker may have on their way into a queue without a size. Where Python code of the program
#: holds the GIL, the parent answers after some 10 ms, and a frame is 3 ms of work.
WINDOW = 8
#: A stage at one end of an edge, and the seconds of work that a frame to or from it holds.
_End: TypeAlias = tuple[Node, float]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of the declared graph.

    name: its own in the graph.
    inside: the branches that it is in, innermost first.
    readers: who reads its results, as text.
    fusion: with which stage it shares workers and why, or why not; "" where there is nothing to say.
    """

    name: str
    inside: tuple[str, ...]
    readers: str
    fusion: str


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """Stages that share workers, bound to their backend: one, or several that are fused.

    prepared: what the backend made of the task.
    inputs: the edge that each worker reads, indices into the plan's edges; empty for a stage without input.
    outboxes: what a worker puts into an outbox goes into each of its edges.
    outlet: the outboxes that a result goes to.
    """

    stages: tuple[PlannedStage, ...]
    workers: int
    backend: Backend
    prepared: Any
    inputs: tuple[int, ...]
    outboxes: tuple[tuple[int, ...], ...]
    outlet: Outlet

    def input_of(self, worker: int) -> int | None:
        """The edge that a worker reads, by the worker's index."""
        if not self.inputs:
            return None
        return self.inputs[worker] if len(self.inputs) > 1 else self.inputs[0]

    @property
    def outputs(self) -> set[int]:
        """All edges that its results may go to."""
        return {edge for edges in self.outboxes for edge in edges}


@dataclass(frozen=True, slots=True)
class PlannedEdge:
    """An edge with its limits, between `writers` workers and `readers`.

    qsize: what was asked for; the limits follow from it.
    """

    qsize: int | None
    limits: Limits
    writers: int
    readers: int


@public
@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs to know. Groups in the order of the data; the last edge is the consumer's."""

    groups: tuple[PlannedGroup, ...]
    edges: tuple[PlannedEdge, ...]
    one_shots: tuple[OneShot, ...]

    @property
    def stages(self) -> list[PlannedStage]:
        """All stages, in the order of the data."""
        return [stage for group in self.groups for stage in group.stages]

    def explain(self) -> str:
        """The plan as text, a line a stage: workers, backend, where its results go, the queue on the way; and with
        which stage it shares its workers."""
        return "\n".join(chain.from_iterable(map(self._lines, self.groups)))

    def _lines(self, group: PlannedGroup) -> Iterator[str]:
        queues = sorted({_queue(self.edges[edge].qsize) for edge in group.outputs})
        each = " each" if len(group.outputs) > 1 else ""
        for stage in group.stages:
            where = f"{group.workers} x {group.backend.name}{stage.fusion and f', {stage.fusion}'}"
            behind = f"{' or '.join(queues)}{each}" if stage is group.stages[-1] else "no queue"
            yield f"{stage.name}: {where} -> {stage.readers}, {behind}"


def _queue(qsize: int | None) -> str:
    if qsize is None:
        return f"queue as its reader needs it, at most {DEFAULT_QSIZE} items"
    return f"queue of {qsize} items" if qsize else "queue without limit"


def compile_plan(part: Part) -> Plan:
    """Bind a graph that has its sources.

    Raises:
        SignatureError: a stage that stands first needs an input.
        PipelineError: an iterator is the source of two stages.
        BackendUnavailable, NotPicklable: a stage cannot run where it asks to.
    """
    check_closed(part)
    layout = lay_out(part)
    one_shots = tuple(layout.one_shots())
    backends = [resolve_backend(place.node.options.backend) for place in layout.places]
    fusion = find_fusion(layout, backends)
    inputs = _number_edges(layout, fusion.inner)
    outlets = [over_edges(place.outlet, layout, inputs) for place in layout.places]
    readers = {edge: backend for backend, edges in zip(backends, inputs[:-1], strict=True) for edge in edges}

    def planned(group: tuple[int, ...]) -> PlannedGroup:
        first, last = group[0], group[-1]
        backend = backends[first]
        outboxes = _Outboxes.of(outlets[last], backend, readers)
        read_by = [readers[edge] for edge in outlets[last].leaves() if edge in readers]
        stages = tuple(
            PlannedStage(place.name, place.inside, _readers(place.outlet, layout), fusion.reasons.get(number, ""))
            for number, place in ((number, layout.places[number]) for number in group)
        )
        frame_seconds = max(one.frame_seconds for one in (backend, *read_by))
        places = [layout.places[number] for number in group]
        return _group(places, stages, backend, inputs[first], outboxes, frame_seconds)

    return Plan(tuple(map(planned, fusion.groups)), tuple(_edges(layout, backends, inputs, outlets)), one_shots)


def _number_edges(layout: Layout, inner: set[int]) -> list[tuple[int, ...]]:
    """The edges that each stage reads, and at last the consumer: one, or with a key one for each worker.

    inner: the stages that read none, since they are fused with the one before.
    """
    readers = layout.readers() - inner
    inputs: list[tuple[int, ...]] = []
    first = 0
    for number, place in enumerate(layout.places):
        options = place.node.options
        size = 0 if number not in readers else 1 if options.key is None else options.workers
        inputs.append(tuple(range(first, first + size)))
        first += size
    return [*inputs, (first,)]


def over_edges(outlet: Outlet, layout: Layout, inputs: Sequence[tuple[int, ...]]) -> Outlet:
    """An outlet to stages as one to the edges that they read."""

    def to_stage(number: int) -> Outlet:
        key = None if number == layout.consumer else layout.places[number].node.options.key
        if key is None:
            return To(inputs[number])
        return to_keyed(layout.places[number].name, key, inputs[number])

    return outlet.replaced(lambda numbers: to_all([to_stage(number) for number in numbers]))


@dataclass(frozen=True, slots=True)
class _Outboxes:
    """The outboxes of a stage. One for all edges that get the same results in the same form.

    pickled, shared, stored: for each, as in a Task.
    """

    edges: list[tuple[int, ...]]
    pickled: list[bool]
    shared: list[bool]
    stored: list[bool]
    outlet: Outlet

    @classmethod
    def of(cls, outlet: Outlet, writer: Backend, readers: Mapping[int, Backend]) -> _Outboxes:
        """For a stage on `writer`; readers: the backends that read edges (the consumer's is not among them)."""
        boxes = cls([], [], [], [], outlet)
        away = {number for number in outlet.leaves() if writer.remote or _is_remote(readers.get(number))}

        def to_outboxes(numbers: tuple[int, ...]) -> Outlet:
            first = len(boxes.edges)
            for pickled in (False, True):
                group = tuple(number for number in numbers if (number in away) is pickled)
                if group:
                    sharing = {writer, *(readers[number] for number in group if number in readers)}
                    boxes.edges.append(group)
                    boxes.pickled.append(pickled)
                    boxes.shared.append(pickled and all(one.shares_memory for one in sharing if one.remote))
                    reached = {_store(readers.get(number)) for number in group}
                    boxes.stored.append(bool(writer.store) and reached == {writer.store})
            return To(tuple(range(first, len(boxes.edges))))

        return replace(boxes, outlet=outlet.replaced(to_outboxes))


def _is_remote(backend: Backend | None) -> bool:
    return backend is not None and backend.remote


def _store(backend: Backend | None) -> str:
    return "" if backend is None else backend.store


def _group(
    places: Sequence[Place],
    stages: tuple[PlannedStage, ...],
    backend: Backend,
    inputs: tuple[int, ...],
    outboxes: _Outboxes,
    frame_seconds: float,
) -> PlannedGroup:
    if backend.remote:
        _check_keys(places[-1], outboxes.outlet)
    task = Task(
        tuple(map(make_step, places)),
        has_input=bool(inputs),
        pickled=tuple(outboxes.pickled),
        shared=tuple(outboxes.shared),
        stored=tuple(outboxes.stored),
        outlet=None if outboxes.outlet == To((0,)) else outboxes.outlet,
        copied=backend.remote,
        frame_seconds=frame_seconds,
    )
    return PlannedGroup(
        stages,
        places[0].node.options.workers,
        backend,
        backend.prepare(task),
        inputs,
        tuple(outboxes.edges),
        outboxes.outlet,
    )


def _check_keys(place: Place, outlet: Outlet) -> None:
    """The branches of a stage in another process are chosen there, by copies of their keys."""
    for key in outlet.branch_keys():
        try:
            same = decode(encode_by_value(key)) == key
        except Exception as error:
            raise NotPicklable(_BAD_KEY.format(short_repr(key), place.name, f"cannot be pickled ({error})")) from error
        if not same:
            raise NotPicklable(_BAD_KEY.format(short_repr(key), place.name, "is not equal to its own copy there"))


_BAD_KEY = "the key {} chooses a branch behind stage {!r}, in another process, but {}: use text, numbers, Enum members"


def _readers(outlet: Outlet, layout: Layout) -> str:
    """Who reads behind an outlet: `a`, `tee(a, b)`, `route(kind)(pdf: a, others: b)`."""
    if isinstance(outlet, ToChosen):
        branches = [f"{key_text(key)}: {_readers(one, layout)}" for key, one in outlet.outlets.items()]
        if outlet.default is not None:
            branches.append(f"others: {_readers(outlet.default, layout)}")
        return f"{outlet.name}({', '.join(branches)})"
    if isinstance(outlet, ToAll):
        together = [_readers(one, layout) for one in outlet.outlets]
    else:
        together = [_reader(number, layout) for number in outlet.numbers]
    return together[0] if len(together) == 1 else f"tee({', '.join(together)})" if together else "dropped"


def _reader(number: int, layout: Layout) -> str:
    if number == layout.consumer:
        return "results"
    place = layout.places[number]
    return place.name if place.node.options.key is None else f"{place.name} by key"


def make_step(place: Place) -> Step:
    """What the workers of a stage do with their items."""
    node = place.node
    return Step(place.name, node.kind, node.function, node.args, node.kwargs, node.skip_errors)


def _edges(
    layout: Layout, backends: Sequence[Backend], inputs: Sequence[tuple[int, ...]], outlets: Sequence[Outlet]
) -> Iterator[PlannedEdge]:
    ends = [(place.node, backend.frame_seconds) for place, backend in zip(layout.places, backends, strict=True)]
    writers: defaultdict[int, list[_End]] = defaultdict(list)
    for end, outlet in zip(ends, outlets, strict=True):
        for edge in set(outlet.leaves()):
            writers[edge].append(end)
    for reader, edges in zip([*ends, None], inputs, strict=True):
        for edge in edges:
            yield _edge(writers[edge], reader)


def _edge(writers: Sequence[_End], reader: _End | None) -> PlannedEdge:
    """The edge between these and a stage; None: the consumer."""
    options = None if reader is None else reader[0].options
    readers = 1 if options is None or options.key is not None else options.workers
    qsize = _smallest([_size(node, options) for node, _ in writers])
    planned = _sized(qsize, sum(node.options.workers for node, _ in writers), readers)
    ends = writers if reader is None else [*writers, reader]
    frame_seconds = max(seconds for _, seconds in ends)
    return replace(planned, limits=replace(planned.limits, frame_seconds=frame_seconds))


def _size(writer: Node, reader: Options | None) -> int | None:
    """A stage's qsize. An iterable has no options: its queue is sized as that of the stage which reads it."""
    if writer.is_source and reader is not None:
        return reader.qsize or None
    return writer.options.qsize


def _smallest(sizes: Sequence[int | None]) -> int | None:
    """The size of a queue that several stages write to, so that no stage has more results waiting than it asked for."""
    asked = [size for size in sizes if size]
    if asked:
        return min(asked)
    return None if None in sizes else 0


def _sized(qsize: int | None, writers: int, readers: int) -> PlannedEdge:
    """Size an edge so that all items between two functions keep to `qsize`.

    A writer holds up to a frame of finished items beyond the one that it may always hold (`workers` in the promise), a
    process writer those on their way, too: that share is taken off the queue's room. Frames of queued and lent items
    are in the room.
    """
    if qsize == 0:
        return PlannedEdge(qsize, Limits(None, FRAME_LIMIT, window=WINDOW), writers, readers)
    if qsize is None:
        items, window = DEFAULT_QSIZE, WINDOW
        frame = 1 + items // max(8 * (writers + readers), 2 * (window + 1) * writers)
    else:
        items, window = qsize, 1
        frame = 1 + items // (4 * (writers + readers))
    room = max(1, items - (window + 1) * writers * (frame - 1))
    return PlannedEdge(qsize, Limits(room, frame, elastic=qsize is None, window=window), writers, readers)
