"""The compiler: from declared nodes to a plan, stages bound to backends and edges to limits. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipekit._edge import Limits
from pipekit._errors import SignatureError
from pipekit._graph import Node, OneShot
from pipekit._task import Kind, Task
from pipekit.backends._base import Backend
from pipekit.backends._registry import resolve_backend

#: Items that may wait on an edge whose qsize is None; elastic, so slow readers never see that many.
DEFAULT_QSIZE = 8192
#: Items that a frame may hold on an edge without limit.
FRAME_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage bound to its backend.

    input, output: indices into the plan's edges; the first stage has no input.
    prepared: what the backend made of the task.
    """

    name: str
    workers: int
    backend: Backend
    prepared: Any
    input: int | None
    output: int


@dataclass(frozen=True, slots=True)
class PlannedEdge:
    """An edge with its limits, between `writers` workers and `readers`.

    qsize: what was asked for; the limits follow from it.
    """

    qsize: int | None
    limits: Limits
    writers: int
    readers: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs to know. Stages in the order of the data; the last edge is the consumer's."""

    stages: tuple[PlannedStage, ...]
    edges: tuple[PlannedEdge, ...]
    one_shot: OneShot | None

    def explain(self) -> str:
        """The plan as text, a line a stage."""
        return "\n".join(
            f"{stage.name}: {stage.workers} x {stage.backend.name}, {_queue(self.edges[stage.output].qsize)}"
            for stage in self.stages
        )


def _queue(qsize: int | None) -> str:
    if qsize is None:
        return f"queue as its reader needs it, at most {DEFAULT_QSIZE} items"
    return f"queue of {qsize} items" if qsize else "queue without limit"


def compile_plan(nodes: Sequence[Node]) -> Plan:
    """Bind a closed chain of nodes.

    Raises:
        SignatureError: the first stage needs an input, or another cannot take one.
        BackendUnavailable, NotPicklable: a stage cannot run where it asks to.
    """
    check_chain(nodes)
    backends = [resolve_backend(node.options.backend) for node in nodes]
    leaves_pickled = [reader.remote and not writer.remote for writer, reader in pairwise(backends)]
    stages = []
    for index, (node, backend) in enumerate(zip(nodes, backends, strict=True)):
        encode = backend.remote or (index < len(leaves_pickled) and leaves_pickled[index])
        prepared = backend.prepare(make_task(node, has_input=index > 0, encode=encode))
        source = index - 1 if index > 0 else None
        stages.append(PlannedStage(node.name, node.options.workers, backend, prepared, source, index))
    writers = [node.options.workers for node in nodes]
    readers = [*writers[1:], 1]
    edges = [_edge(*edge) for edge in zip(_sizes(nodes), writers, readers, strict=True)]
    first = nodes[0].function
    return Plan(tuple(stages), tuple(edges), first if isinstance(first, OneShot) else None)


def check_chain(nodes: Sequence[Node]) -> None:
    """Raise SignatureError unless each stage can be called in its place."""
    _check_first(nodes[0])
    for node in nodes[1:]:
        node.check_arguments(inputs=1)


def _check_first(node: Node) -> None:
    problem = "it maps items" if node.kind is Kind.MAP else node.argument_problem(inputs=0)
    if problem is not None:
        raise SignatureError(
            f"the pipeline starts with stage {node.name!r}, which needs an input ({problem}): "
            f"give it one with `iterable | {node.name}`"
        )


def _sizes(nodes: Sequence[Node]) -> list[int | None]:
    """Each stage's qsize. An iterable has no options: its queue is sized as that of the stage which reads it."""
    sizes = [node.options.qsize for node in nodes]
    if nodes[0].is_source and len(nodes) > 1:
        sizes[0] = nodes[1].options.qsize or None
    return sizes


def make_task(node: Node, *, has_input: bool, encode: bool) -> Task:
    """What the workers of a node are asked to do."""
    return Task(node.name, node.kind, node.function, node.args, node.kwargs, has_input, encode, node.skip_errors)


def _edge(qsize: int | None, writers: int, readers: int) -> PlannedEdge:
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
