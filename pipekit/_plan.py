"""The compiler: from a laid out graph to a plan, stages bound to backends and edges to limits. Starts nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipekit._edge import Limits
from pipekit._errors import NotPicklable, short_repr
from pipekit._graph import Node, OneShot, Options, Part, check_closed
from pipekit._layout import Layout, Place, lay_out
from pipekit._outlet import Outlet, To, ToAll, ToChosen, key_text, to_all, to_keyed
from pipekit._pickling import decode, encode_by_value
from pipekit._public import public
from pipekit._task import Task
from pipekit.backends._base import Backend
from pipekit.backends._registry import resolve_backend

#: Items that may wait on an edge whose qsize is None; elastic, so slow readers never see that many.
DEFAULT_QSIZE = 8192
#: Items that a frame may hold on an edge without limit.
FRAME_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage bound to its backend.

    name: its own in the graph.
    inside: the branches that it is in, innermost first.
    readers: who reads its results, as text.
    prepared: what the backend made of the task.
    inputs: the edge that each worker reads, indices into the plan's edges; empty for a stage without input.
    outboxes: what a worker puts into an outbox goes into each of its edges.
    outlet: the outboxes that a result goes to.
    """

    name: str
    inside: tuple[str, ...]
    readers: str
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
    """What a run needs to know. Stages in the order of the data; the last edge is the consumer's."""

    stages: tuple[PlannedStage, ...]
    edges: tuple[PlannedEdge, ...]
    one_shots: tuple[OneShot, ...]

    def explain(self) -> str:
        """The plan as text, a line a stage: workers, backend, where its results go, the queue on the way."""
        return "\n".join(map(self._line, self.stages))

    def _line(self, stage: PlannedStage) -> str:
        queues = sorted({_queue(self.edges[edge].qsize) for edge in stage.outputs})
        each = " each" if len(stage.outputs) > 1 else ""
        return f"{stage.name}: {stage.workers} x {stage.backend.name} -> {stage.readers}, {' or '.join(queues)}{each}"


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
    inputs = _number_edges(layout)
    outlets = [over_edges(place.outlet, layout, inputs) for place in layout.places]
    remotely = [edges for backend, edges in zip(backends, inputs[:-1], strict=True) if backend.remote]
    read_remotely = {edge for edges in remotely for edge in edges}
    stages = [
        _stage(place, backend, edges, _Outboxes.of(outlet, read_remotely, from_remote=backend.remote), layout)
        for place, backend, edges, outlet in zip(layout.places, backends, inputs[:-1], outlets, strict=True)
    ]
    return Plan(tuple(stages), tuple(_edges(layout, inputs, outlets)), one_shots)


def _number_edges(layout: Layout) -> list[tuple[int, ...]]:
    """The edges that each stage reads, and at last the consumer: one, or with a key one for each worker."""
    readers = layout.readers()
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

    pickled: for each, whether its results are.
    """

    edges: list[tuple[int, ...]]
    pickled: list[bool]
    outlet: Outlet

    @classmethod
    def of(cls, outlet: Outlet, read_remotely: set[int], *, from_remote: bool) -> _Outboxes:
        edges: list[tuple[int, ...]] = []
        pickled: list[bool] = []

        def to_outboxes(numbers: tuple[int, ...]) -> Outlet:
            remote = tuple(number for number in numbers if from_remote or number in read_remotely)
            here = tuple(number for number in numbers if number not in remote)
            first = len(edges)
            edges.extend(group for group in (here, remote) if group)
            pickled.extend(form for form, group in ((False, here), (True, remote)) if group)
            return To(tuple(range(first, len(edges))))

        return cls(edges, pickled, outlet.replaced(to_outboxes))


def _stage(
    place: Place, backend: Backend, inputs: tuple[int, ...], outboxes: _Outboxes, layout: Layout
) -> PlannedStage:
    if backend.remote:
        _check_keys(place, outboxes.outlet)
    simple = outboxes.outlet == To((0,))
    task = make_task(
        place,
        has_input=bool(inputs),
        pickled=tuple(outboxes.pickled),
        outlet=None if simple else outboxes.outlet,
    )
    return PlannedStage(
        place.name,
        place.inside,
        _readers(place.outlet, layout),
        place.node.options.workers,
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


def make_task(place: Place, *, has_input: bool, pickled: tuple[bool, ...], outlet: Outlet | None) -> Task:
    """What the workers of a stage are asked to do."""
    node = place.node
    return Task(
        place.name, node.kind, node.function, node.args, node.kwargs, has_input, pickled, outlet, node.skip_errors
    )


def _edges(layout: Layout, inputs: Sequence[tuple[int, ...]], outlets: Sequence[Outlet]) -> Iterator[PlannedEdge]:
    nodes = [place.node for place in layout.places]
    writers: defaultdict[int, list[Node]] = defaultdict(list)
    for node, outlet in zip(nodes, outlets, strict=True):
        for edge in set(outlet.leaves()):
            writers[edge].append(node)
    for reader, edges in zip([*nodes, None], inputs, strict=True):
        for edge in edges:
            yield _edge(writers[edge], None if reader is None else reader.options)


def _edge(writers: Sequence[Node], reader: Options | None) -> PlannedEdge:
    """The edge between these and a stage with these options; None: the consumer."""
    readers = 1 if reader is None or reader.key is not None else reader.workers
    qsize = _smallest([_size(node, reader) for node in writers])
    return _sized(qsize, sum(node.options.workers for node in writers), readers)


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
    process writer two: that share is taken off the queue's room. Frames of queued and lent items are in the room.
    """
    if qsize == 0:
        return PlannedEdge(qsize, Limits(None, FRAME_LIMIT), writers, readers)
    items = DEFAULT_QSIZE if qsize is None else qsize
    frame = 1 + items // (4 * (writers + readers))
    room = max(1, items - 2 * writers * (frame - 1))
    return PlannedEdge(qsize, Limits(room, frame, elastic=qsize is None), writers, readers)
