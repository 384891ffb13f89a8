"""A declared graph laid out: its stages in the order of the data, with names that tell them apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from pipekit._errors import PipelineError, TaskException, short_repr
from pipekit._graph import DROP, Merge, Node, OneShot, Part, Route, Series, Tee
from pipekit._outlet import Outlet, To, ToChosen, to_all


@dataclass(frozen=True, slots=True)
class Place:
    """A stage in a graph.

    name: its own in this graph, such as `parse#2`.
    inside: the branches that it is in, innermost first: "branch 'pdf' of route(kind)".
    outlet: where its results go, by the stages' indices; behind the last one is the consumer of the results.
    """

    node: Node
    name: str
    inside: tuple[str, ...]
    outlet: Outlet


@dataclass(frozen=True, slots=True)
class Layout:
    """All stages of a graph.

    entry: where items go that are fed to it, if it is open on its left; None if it cannot be.
    """

    places: tuple[Place, ...]
    entry: Outlet | None

    @property
    def consumer(self) -> int:
        """The number of the consumer of the results."""
        return len(self.places)

    def readers(self) -> set[int]:
        """The numbers of those who read what the stages give."""
        return {number for place in self.places for number in place.outlet.leaves()}

    def one_shots(self) -> list[OneShot]:
        """The iterators among the sources.

        Raises:
            PipelineError: one stands twice in the graph.
        """
        found: dict[int, OneShot] = {}
        for place in self.places:
            source = place.node.function
            if not isinstance(source, OneShot):
                continue
            if id(source.iterator) in found:
                raise PipelineError(
                    f"the source {short_repr(source.iterator)} is an iterator, which can be read once, and stands "
                    "twice in this graph: let several branches have its items with `source | tee(...)`"
                )
            found[id(source.iterator)] = source
        return list(found.values())


class Placed(Protocol):
    """A stage that knows its place: of a layout or a plan."""

    @property
    def name(self) -> str: ...
    @property
    def inside(self) -> tuple[str, ...]: ...


def add_place(error: TaskException, stages: Sequence[Placed]) -> None:
    """Note at the error in which branches of the graph its stage is."""
    inside = next((stage.inside for stage in stages if stage.name == error.stage), ())
    if inside:
        error.add_note(f'stage "{error.stage}" is in {", in ".join(inside)}')


def lay_out(part: Part) -> Layout:
    """The layout of a part."""
    work = _Work([], set())
    entry, ends = work.lay(part, ())
    work.connect(ends, To((len(work.places),)))
    return Layout(tuple(work.places), entry)


@dataclass(frozen=True, slots=True)
class _Work:
    """What has been laid out so far."""

    places: list[Place]
    names: set[str]

    def lay(self, part: Part, inside: tuple[str, ...]) -> tuple[Outlet | None, list[int]]:
        """Add a part; where its input goes, and the stages whose results flow on behind it."""
        if isinstance(part, Node):
            return self._lay_node(part, inside)
        if isinstance(part, Series):
            laid = [self.lay(one, inside) for one in part.parts]
            for (_, ends), (entry, _) in pairwise(laid):
                assert entry is not None  # checked when it was joined
                self.connect(ends, entry)
            return laid[0][0], laid[-1][1]
        if isinstance(part, Tee):
            return self._lay_tee(part, inside)
        if isinstance(part, Route):
            return self._lay_route(part, inside)
        return self._lay_merge(part, inside)

    def connect(self, ends: list[int], outlet: Outlet) -> None:
        for number in ends:
            self.places[number] = replace(self.places[number], outlet=outlet)

    def _lay_node(self, node: Node, inside: tuple[str, ...]) -> tuple[Outlet | None, list[int]]:
        number = len(self.places)
        self.places.append(Place(node, self._own_name(node.name), inside, To(())))
        return None if node.is_source else To((number,)), [number]

    def _own_name(self, name: str) -> str:
        own, number = name, 1
        while own in self.names:
            number += 1
            own = f"{name}#{number}"
        self.names.add(own)
        return own

    def _lay_tee(self, tee: Tee, inside: tuple[str, ...]) -> tuple[Outlet | None, list[int]]:
        entries, ends = [], []
        for number, branch in enumerate(tee.branches, start=1):
            entry, branch_ends = self._lay_branch(branch, (f"branch {number} of {tee.name}", *inside))
            entries.append(entry)
            ends += branch_ends
        return to_all(entries), ends

    def _lay_route(self, route: Route, inside: tuple[str, ...]) -> tuple[Outlet | None, list[int]]:
        entries: dict[Hashable, Outlet] = {}
        ends = []
        for key, branch in route.branches.items():
            entries[key], branch_ends = self._lay_branch(branch, (f"branch {key!r} of {route.name}", *inside))
            ends += branch_ends
        default: Outlet | None = None
        if route.default is DROP:
            default = To(())
        elif route.default is not None:
            default, branch_ends = self._lay_branch(route.default, (f"the default of {route.name}", *inside))
            ends += branch_ends
        return ToChosen(route.name, route.choose, entries, default), ends

    def _lay_branch(self, branch: Part, inside: tuple[str, ...]) -> tuple[Outlet, list[int]]:
        entry, ends = self.lay(branch, inside)
        assert entry is not None  # checked when it was made a branch
        return entry, ends

    def _lay_merge(self, merge: Merge, inside: tuple[str, ...]) -> tuple[Outlet | None, list[int]]:
        ends = []
        for number, part in enumerate(merge.parts, start=1):
            ends += self.lay(part, (f"pipeline {number} of merge", *inside))[1]
        return None, ends
