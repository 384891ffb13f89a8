"""Where the results of a stage go: to one reader, to all of several, or to one that is chosen for each result.

An outlet is a tree whose leaves are numbers: of stages in a layout, of edges in a plan, of outboxes in a worker. Called
with a result, it gives the numbers that this result goes to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Number
from typing import Any, TypeAlias
from zlib import crc32

from pipekit._errors import Misdirected, short_repr

#: Keys that the message of a missing one shows.
KEYS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class To:
    """To all of these; to none if there are none."""

    numbers: tuple[int, ...]

    def __call__(self, result: object) -> tuple[int, ...]:
        return self.numbers

    def leaves(self) -> Iterator[int]:
        """All numbers that a result may go to."""
        yield from self.numbers

    def branch_keys(self) -> Iterator[Hashable]:
        """The keys of routes."""
        yield from ()

    def replaced(self, rule: Callable[[tuple[int, ...]], Outlet]) -> Outlet:
        """The same tree with other leaves."""
        return rule(self.numbers)

    def total(self, counts: Sequence[int]) -> int:
        """How many results have left, from how many have come to each number."""
        return max((counts[number] for number in self.numbers), default=0)


@dataclass(frozen=True, slots=True)
class ToAll:
    """To all of these outlets."""

    outlets: tuple[Outlet, ...]

    def __call__(self, result: object) -> tuple[int, ...]:
        return tuple(number for outlet in self.outlets for number in outlet(result))

    def leaves(self) -> Iterator[int]:
        for outlet in self.outlets:
            yield from outlet.leaves()

    def branch_keys(self) -> Iterator[Hashable]:
        for outlet in self.outlets:
            yield from outlet.branch_keys()

    def replaced(self, rule: Callable[[tuple[int, ...]], Outlet]) -> Outlet:
        return to_all([outlet.replaced(rule) for outlet in self.outlets])

    def total(self, counts: Sequence[int]) -> int:
        return max(outlet.total(counts) for outlet in self.outlets)


@dataclass(frozen=True, slots=True)
class ToChosen:
    """To the outlet whose key `choose` gives for the result.

    name: for pictures: "route(kind)".
    default: for other keys; None: they are a failure.
    """

    name: str
    choose: Callable[[Any], object]
    outlets: Mapping[Hashable, Outlet]
    default: Outlet | None = None

    def __call__(self, result: object) -> tuple[int, ...]:
        try:
            key: Any = self.choose(result)
            outlet = self.outlets.get(key, self.default)
            if outlet is None:
                raise self._no_branch(key)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Misdirected(f"could not {self._what} for {short_repr(result)}", result, error) from error
        return outlet(result)

    @property
    def _what(self) -> str:
        return f"{'find the key of' if isinstance(self.choose, _ByKey) else 'choose a branch of'} {self.name}"

    def _no_branch(self, key: object) -> LookupError:
        known = ", ".join(map(short_repr, list(self.outlets)[:KEYS_SHOWN]))
        if len(self.outlets) > KEYS_SHOWN:
            known += f" and {len(self.outlets) - KEYS_SHOWN} more"
        return LookupError(
            f"no branch has the key {short_repr(key)}, there are {known}: add it, or give default=, "
            "or default=DROP to leave such items out"
        )

    def leaves(self) -> Iterator[int]:
        for outlet in self._all():
            yield from outlet.leaves()

    def branch_keys(self) -> Iterator[Hashable]:
        """The keys of all branches, also of those behind other branches."""
        yield from self.outlets
        for outlet in self._all():
            yield from outlet.branch_keys()

    def replaced(self, rule: Callable[[tuple[int, ...]], Outlet]) -> Outlet:
        outlets = {key: outlet.replaced(rule) for key, outlet in self.outlets.items()}
        return ToChosen(self.name, self.choose, outlets, self.default and self.default.replaced(rule))

    def total(self, counts: Sequence[int]) -> int:
        return sum(outlet.total(counts) for outlet in self._all())

    def _all(self) -> list[Outlet]:
        return [*self.outlets.values(), *([] if self.default is None else [self.default])]


Outlet: TypeAlias = To | ToAll | ToChosen


def to_all(outlets: Sequence[Outlet]) -> Outlet:
    """To all of these; those that choose nothing become one."""
    plain = tuple(number for outlet in outlets if isinstance(outlet, To) for number in outlet.numbers)
    choosing = tuple(outlet for outlet in outlets if not isinstance(outlet, To))
    if not choosing:
        return To(plain)
    together = (To(plain), *choosing) if plain else choosing
    return together[0] if len(together) == 1 else ToAll(together)


def key_text(key: object) -> str:
    """A route's key in pictures and plans."""
    return key if isinstance(key, str) and key.isprintable() else short_repr(key)


def to_keyed(stage: str, key: Callable[[Any], object], numbers: Sequence[int]) -> Outlet:
    """To one of `numbers`, equal keys always to the same."""
    workers: dict[Hashable, Outlet] = {place: To((number,)) for place, number in enumerate(numbers)}
    return ToChosen(f"stage {stage!r}", _ByKey(key, len(numbers)), workers)


@dataclass(frozen=True, slots=True)
class _ByKey:
    key: Callable[[Any], object]
    places: int

    def __call__(self, result: object) -> int:
        return (_MIX * key_hash(self.key(result)) & _ALL_BITS) * self.places >> 64


#: 2**64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4: multiplicative hashing). The highest
#: bits of the product choose the place, so that keys which are all multiples of something are still spread.
_MIX = 0x9E3779B97F4A7C15
_ALL_BITS = (1 << 64) - 1


def key_hash(key: object) -> int:
    """A number that is the same for equal keys, in every process: `hash` of text is not.

    Raises:
        TypeError: the key is of a type for which that is not known.
    """
    if type(key) is int:  # before the question whether it is a Number, which takes longer than all the rest
        return hash(key)
    if isinstance(key, str):
        return crc32(key.encode("utf-8", "surrogatepass"))
    if isinstance(key, bytes):
        return crc32(key)
    if key is None:
        return 0
    if isinstance(key, tuple):
        return hash(tuple(map(key_hash, key)))
    if isinstance(key, frozenset):
        return hash(frozenset(map(key_hash, key)))
    if isinstance(key, Number):
        return hash(key) if key == key else 0  # the hash of a NaN is its address
    return key_hash(_in_plain_values(key))


def _in_plain_values(key: object) -> object:
    from datetime import UTC, date, datetime  # a pipeline without such keys does without their modules
    from pathlib import PurePath, PureWindowsPath
    from uuid import UUID

    if isinstance(key, datetime):
        key = key.replace(fold=0)  # as datetime's own hash does
        return (key if key.utcoffset() is None else key.astimezone(UTC)).isoformat()
    if isinstance(key, date):
        return key.isoformat()
    if isinstance(key, UUID):
        return key.int
    if isinstance(key, PureWindowsPath):
        return str(key).lower()
    if isinstance(key, PurePath):
        return str(key)
    if isinstance(key, Enum):  # after all types that it may be mixed with
        return type(key).__qualname__, key.name
    if type(key).__module__ == "numpy" and getattr(key, "ndim", None) == 0:  # bool_, the only one that is no Number
        return key.item()  # type: ignore[attr-defined]
    raise TypeError(
        f"{short_repr(key)} cannot be a key: it must be text, bytes, a number, None, a date, an Enum member, a UUID, "
        "a path, or a tuple or frozenset of these; give the values that make it, in a tuple"
    )
