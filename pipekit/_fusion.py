"""Which neighbouring stages run in the same workers, and why: an item goes from one to the next without a hop."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipekit._layout import Layout, Place
from pipekit._outlet import To
from pipekit._task import Kind
from pipekit.backends._base import Backend


@dataclass(frozen=True, slots=True)
class Fusion:
    """What is fused in a layout.

    groups: the stages that share workers, by their indices; most are alone.
    reasons: for explain, why a stage runs in the workers of the one before it; or why it does not, if it asks for that.
    """

    groups: tuple[tuple[int, ...], ...]
    reasons: dict[int, str]

    @property
    def inner(self) -> set[int]:
        """The stages that get their items from one in the same worker."""
        return {number for group in self.groups for number in group[1:]}


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_fusion(layout: Layout, backends: Sequence[Backend]) -> Fusion:
    """Fuse what should be: where that is asked for, or costs no parallelism, and nobody could tell but by the speed."""
    return _Finding(layout, backends).fusion()


class _Finding:
    def __init__(self, layout: Layout, backends: Sequence[Backend]) -> None:
        self._places = layout.places
        self._consumer = layout.consumer
        self._backends = backends
        self._cpus: dict[Backend, int] = {}
        self._writers = Counter(reader for place in layout.places for reader in set(place.outlet.leaves()))

    def fusion(self) -> Fusion:
        groups: list[list[int]] = []
        reasons: dict[int, str] = {}
        for number in range(len(self._places)):
            # The only writer of a stage stands right before it: branches are laid out one after the other.
            why = self._why(number - 1, number) if number else None
            if why is None:
                groups.append([number])
            else:
                groups[-1].append(number)
                with_whom = self._places[groups[-1][0]].name
                reasons[number] = f"in the workers of {with_whom} (fused: both map items, {why})"
        for group in groups:
            number = group[0]
            if len(group) == 1 and self._places[number].node.options.fuse:
                reasons[number] = f"not fused ({'; '.join(self._obstacles(number)) or 'no stage is beside it'})"
        return Fusion(tuple(map(tuple, groups)), reasons)

    def _why(self, first: int, second: int) -> str | None:
        """Why two stages are fused, None if they are not."""
        if self._obstacle(first, second) is not None:
            return None
        options = [self._places[number].node.options for number in (first, second)]
        if any(one.fuse for one in options):
            return "fuse=True"
        if not self._backends[first].fuses:
            return None
        cpus = self._cpus_of(self._backends[first])
        if options[0].workers < cpus:
            return None
        return f"{_counted(options[0].workers, 'worker')} for {_counted(cpus, 'CPU')}"

    def _cpus_of(self, backend: Backend) -> int:
        """Those that its workers share; each backend is asked once."""
        if backend not in self._cpus:
            self._cpus[backend] = backend.cpus() or usable_cpus()
        return self._cpus[backend]

    def _obstacle(self, first: int, second: int) -> str | None:
        """What forbids to fuse a stage with the one that reads its results, None if nothing does."""
        before, behind = self._places[first], self._places[second]
        return next(self._obstacles_between(before, behind, first, second), None)

    def _obstacles_between(self, before: Place, behind: Place, first: int, second: int) -> Iterator[str]:
        if before.outlet != To((second,)):
            yield f"a tee or route is behind {before.name}"
        for place in (before, behind):
            if place.node.kind is not Kind.MAP:
                yield f"{place.name} is no map stage"
        if self._writers[second] != 1:
            yield f"{behind.name} has several stages before it"
        if self._backends[first] != self._backends[second]:
            yield f"{before.name} and {behind.name} have different backends"
        workers = before.node.options.workers, behind.node.options.workers
        if workers[0] != workers[1]:
            yield f"{before.name} has {_counted(workers[0], 'worker')}, {behind.name} {workers[1]}"
        if behind.node.options.key is not None:
            yield f"{behind.name} has a key"
        if before.node.skip_errors:
            yield f"{before.name} has filter_errors"
        for place in (before, behind):
            if place.node.options.fuse is False:
                yield f"{place.name} has fuse=False"

    def _obstacles(self, number: int) -> list[str]:
        """What keeps a stage apart from each of its neighbours."""
        places = enumerate(self._places)
        before = [one for one, place in places if number in place.outlet.leaves() and not place.node.is_source]
        behind = sorted(set(self._places[number].outlet.leaves()) - {self._consumer})
        pairs = [*((one, number) for one in before), *((number, one) for one in behind)]
        return list(dict.fromkeys(self._obstacle(*pair) or "" for pair in pairs))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
