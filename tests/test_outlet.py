"""Where a result goes: the trees that say it, and the hash that divides keys."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Hashable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from pipekit._errors import Misdirected
from pipekit._outlet import Outlet, To, ToAll, ToChosen, key_hash, to_all, to_keyed


def parity(number: int) -> str:
    return "odd" if number % 2 else "even"


def by_parity(even: Outlet, odd: Outlet, default: Outlet | None = None) -> ToChosen:
    return ToChosen("route(parity)", parity, {"even": even, "odd": odd}, default)


# -- trees


def test_a_leaf_sends_every_result_to_all_its_numbers() -> None:
    assert To((3, 5))("anything") == (3, 5)


def test_a_leaf_without_numbers_drops_the_result() -> None:
    assert To(())("anything") == ()


def test_a_choice_sends_a_result_to_the_chosen_outlet_alone() -> None:
    outlet = by_parity(To((0,)), To((1, 2)))
    assert [outlet(number) for number in range(3)] == [(0,), (1, 2), (0,)]


def test_a_choice_inside_a_choice_asks_both() -> None:
    size = ToChosen("route(size)", lambda number: number > 10, {True: To((0,)), False: To((1,))})
    outlet = by_parity(size, To((2,)))
    assert [outlet(number) for number in (20, 2, 3)] == [(0,), (1,), (2,)]


def test_to_all_asks_every_outlet() -> None:
    outlet = ToAll((To((7,)), by_parity(To((0,)), To((1,)))))
    assert [outlet(number) for number in range(2)] == [(7, 0), (7, 1)]


def test_another_key_goes_to_the_default() -> None:
    outlet = ToChosen("route(it)", lambda number: number, {1: To((1,))}, default=To((9,)))
    assert [outlet(number) for number in (1, 2)] == [(1,), (9,)]


def test_a_default_of_nothing_drops_the_others() -> None:
    outlet = ToChosen("route(it)", lambda number: number, {1: To((1,))}, default=To(()))
    assert [outlet(number) for number in (1, 2)] == [(1,), ()]


def test_another_key_without_a_default_is_an_error_that_names_the_keys() -> None:
    with pytest.raises(Misdirected, match="could not choose a branch of route.parity. for 'x'") as caught:
        ToChosen("route(parity)", lambda _: "none", {"even": To((0,)), "odd": To((1,))})("x")
    assert isinstance(caught.value.error, LookupError)
    assert "no branch has the key 'none', there are 'even', 'odd'" in str(caught.value.error)


@pytest.mark.parametrize("kind", [ValueError, SystemExit, StopIteration, GeneratorExit])
def test_whatever_choose_raises_is_the_cause_and_the_result_is_named(kind: type[BaseException]) -> None:
    def fails(_: object) -> object:
        raise kind("on purpose")

    with pytest.raises(Misdirected) as caught:
        ToChosen("route(it)", fails, {1: To((1,))})("x")
    assert type(caught.value.__cause__) is kind
    assert (caught.value.error, caught.value.result) == (caught.value.__cause__, "x")


def test_ctrl_c_in_a_choice_stays_what_it_is() -> None:
    def interrupted(_: object) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ToChosen("route(it)", interrupted, {1: To((1,))})("x")


def test_a_key_that_has_no_hash_is_an_error_of_that_result() -> None:
    with pytest.raises(Misdirected, match="could not choose a branch of route\\(it\\) for 'x'") as caught:
        ToChosen("route(it)", lambda _: [], {1: To((1,))})("x")
    assert isinstance(caught.value.error, TypeError)


TREES: dict[str, tuple[Outlet, list[int]]] = {
    "leaf": (To((1, 2)), [1, 2]),
    "nothing": (To(()), []),
    "all": (ToAll((To((1,)), by_parity(To((2,)), To((3,))))), [1, 2, 3]),
    "chosen": (by_parity(To((1,)), To((2, 3)), default=To((4,))), [1, 2, 3, 4]),
    "nested": (by_parity(by_parity(To((1,)), To((2,))), ToAll((To((3,)), To((4,))))), [1, 2, 3, 4]),
}


@pytest.mark.parametrize(("outlet", "leaves"), TREES.values(), ids=TREES)
def test_the_leaves_are_all_numbers_that_a_result_may_go_to(outlet: Outlet, leaves: list[int]) -> None:
    assert list(outlet.leaves()) == leaves


@pytest.mark.parametrize(("outlet", "leaves"), TREES.values(), ids=TREES)
def test_replacing_leaves_keeps_the_choices(outlet: Outlet, leaves: list[int]) -> None:
    replaced = outlet.replaced(lambda numbers: To(tuple(10 * number for number in numbers)))
    assert list(replaced.leaves()) == [10 * number for number in leaves]
    for number in (2, 3):
        assert replaced(number) == tuple(10 * leaf for leaf in outlet(number))


def test_results_of_all_are_counted_once_and_those_of_a_choice_added() -> None:
    counts = [5, 3, 2]
    assert To((0, 1)).total(counts) == 5
    assert To(()).total(counts) == 0
    assert by_parity(To((1,)), To((2,))).total(counts) == 5
    assert by_parity(To((1,)), To((2,)), default=To(())).total(counts) == 5
    assert ToAll((To((0,)), by_parity(To((1,)), To((2,))))).total(counts) == 5


# -- to_all


def test_outlets_that_choose_nothing_become_one_leaf() -> None:
    assert to_all([To((1,)), To((2, 3)), To(())]) == To((1, 2, 3))


def test_one_choice_alone_stays_as_it_is() -> None:
    choice = by_parity(To((0,)), To((1,)))
    assert to_all([choice]) is choice


def test_leaves_beside_choices_become_one() -> None:
    choice = by_parity(To((0,)), To((1,)))
    assert to_all([To((2,)), choice, To((3,))]) == ToAll((To((2, 3)), choice))


def test_a_result_goes_to_the_same_numbers_however_the_tree_is_flattened() -> None:
    parts: list[Outlet] = [To((0,)), by_parity(To((1,)), To((2,))), To((3,)), ToAll((To((4,)), To((5,))))]
    for number in range(2):
        assert sorted(to_all(parts)(number)) == sorted(leaf for part in parts for leaf in part(number))


# -- keys


class Color(Enum):
    RED = "red"
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    ONE = "one"


class Pair(NamedTuple):
    left: object
    right: object


class SummerTime(tzinfo):
    """Ends in the night to the 27th of October: what is 2:30 then comes twice."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=2 if when is not None and when.fold == 0 else 1)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "summer"


SUMMER = SummerTime()
EAST = timezone(timedelta(hours=2))
#: Keys that are equal: they must have the same hash.
EQUAL: dict[str, tuple[Hashable, Hashable]] = {
    "number types": (1, 1.0),
    "bool and number": (True, 1),
    "exact numbers": (Decimal("0.5"), Fraction(1, 2)),
    "zeros": (0.0, -0.0),
    "complex": (complex(2, 0), 2),
    "large": (2**70, float(2**70)),
    "minus one": (-1, -1.0),
    "larger than a hash": (2**61, 2.0**61),
    "infinite": (math.inf, Decimal("inf")),
    "int enum": (Level.LOW, 1),
    "text enum": (Word.ONE, "one"),
    "enum": (Color.RED, Color("red")),
    "named tuple": (Pair("a", 1), ("a", 1.0)),
    "nested": (("a", (1, None)), ("a", (True, None))),
    "sets in another order": (frozenset(["a", "b", 1]), frozenset([1.0, "b", "a"])),
    "one time in two zones": (datetime(2024, 1, 1, 12, tzinfo=UTC), datetime(2024, 1, 1, 14, tzinfo=EAST)),
    "one local time twice": (datetime(2024, 10, 27, 2, 30), datetime(2024, 10, 27, 2, 30, fold=1)),
    "one time of a zone twice": (
        datetime(2024, 10, 27, 2, 30, tzinfo=SUMMER),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=SUMMER),
    ),
    "paths of Windows": (PureWindowsPath("A"), PureWindowsPath("a")),
    "id": (UUID(int=5), UUID(int=5)),
    "paths": (PurePosixPath("a//b"), PurePosixPath("a/b")),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_equal_keys_have_the_same_hash(one: Hashable, other: Hashable) -> None:
    assert one == other
    assert key_hash(one) == key_hash(other)


#: One of each type, as source text: a program of its own makes them again.
KEYS = [
    "'text'",
    "''",
    "'\\ud800'",
    "b'bytes'",
    "0",
    "-1",
    "2**100",
    "1.5",
    "Decimal('1.1')",
    "Fraction(1, 3)",
    "complex(1, 2)",
    "None",
    "True",
    "('a', 1, None, b'x')",
    "()",
    "frozenset(['a', 'b', 'c', 1])",
    "date(2024, 2, 29)",
    "datetime(2024, 2, 29, 1, 2, 3)",
    "datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC)",
    "Enum('Kind', 'ONE TWO').TWO",
    "UUID(int=77)",
    "PurePosixPath('a/b')",
]
PROGRAM = f"""
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePosixPath
from uuid import UUID
from pipekit._outlet import key_hash
print(*map(key_hash, [{", ".join(KEYS)}]))
"""


def hashes(seed: str) -> list[str]:
    """The hashes of KEYS in an interpreter that hashes text with this seed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    return done.stdout.split()


def test_a_key_has_the_same_hash_in_every_interpreter() -> None:
    one, other = hashes("1"), hashes("2")
    assert len(one) == len(KEYS)
    assert one == other


class Unknown:
    pass


NO_KEYS: dict[str, object] = {
    "object": Unknown(),
    "list": [1],
    "dict": {"a": 1},
    "class": object,
    "in a tuple": ("a", Unknown()),
    "in a set": frozenset([Unknown]),
}


@pytest.mark.parametrize("key", NO_KEYS.values(), ids=NO_KEYS)
def test_a_key_whose_hash_is_not_known_elsewhere_is_an_error(key: object) -> None:
    with pytest.raises(TypeError, match="cannot be a key: it must be text, bytes, a number"):
        key_hash(key)


# -- keyed outlets


def identity(value: Any) -> Any:
    return value


def test_equal_keys_go_to_one_number_and_always_the_same() -> None:
    outlet = to_keyed("count", identity, [4, 5, 6])
    for one, other in EQUAL.values():
        (number,) = outlet(one)
        assert outlet(other) == (number,)
        assert number in (4, 5, 6)


def test_a_number_that_is_not_equal_to_itself_is_a_key_all_the_same() -> None:
    assert {key_hash(float("nan")) for _ in range(100)} == {key_hash(float("nan"))}


MANY: dict[str, Callable[[int], Hashable]] = {
    "numbers": lambda number: number,
    "multiples of the places": lambda number: 8 * number,
    "multiples of a power of two": lambda number: number << 40,
    "fractions": lambda number: number / 4096,
    "text": str,
    "days": lambda number: date(2000, 1, 1) + timedelta(days=number),
    "tuples": lambda number: ("a", number),
}


@pytest.mark.parametrize("make", MANY.values(), ids=MANY)
def test_keys_are_spread_over_all_numbers(make: Callable[[int], Hashable]) -> None:
    places, count = 8, 4000
    outlet = to_keyed("count", identity, range(places))
    load = Counter(outlet(make(number)) for number in range(count))
    assert len(load) == places
    assert max(load.values()) < 2 * count / places


def test_a_key_that_fails_names_the_stage() -> None:
    with pytest.raises(Misdirected, match="could not find the key of stage 'count#2' for 'x'"):
        to_keyed("count#2", lambda text: text.missing, [1, 2])("x")


def test_an_object_as_a_key_names_the_stage_and_says_what_can_be_one() -> None:
    with pytest.raises(Misdirected, match="could not find the key of stage 'count'") as caught:
        to_keyed("count", identity, [1, 2])(Unknown())
    assert "give the values that make it, in a tuple" in str(caught.value.error)


def test_the_order_in_which_keys_come_does_not_matter() -> None:
    outlet = to_keyed("count", identity, range(5))
    keys = [str(number) for number in range(200)]
    shuffled = random.Random(1).sample(keys, len(keys))
    assert {key: outlet(key) for key in keys} == {key: outlet(key) for key in shuffled}
