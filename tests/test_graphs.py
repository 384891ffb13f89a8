"""tee, route, merge and keys: what they promise, whatever the backends. (Random ones are in test_random_graphs.)"""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast
from uuid import UUID

import pytest
from conftest import REMOTE, eventually
from stage_functions import KEYS, Counting, Modulo, counted, doubled, plus_one

from pipekit import (
    DROP,
    NotPicklable,
    OptionError,
    Pipeline,
    PipelineError,
    SignatureError,
    Stage,
    TaskException,
    map_stage,
    merge,
    route,
    run_inline,
    stage,
    tee,
)
from pipekit._activity import Activity
from pipekit._outlet import To
from pipekit._output import Batch, Flusher, ManyOutputs


def same(backend: str, **options: Any) -> Stage[Any, Any]:
    return map_stage(backend=backend, **options)(lambda item: item)


def tagged(tag: str, backend: str, **options: Any) -> Stage[Any, Any]:
    """Gives each item with the tag of its branch."""
    return map_stage(backend=backend, **options)(lambda item: (tag, item))


def first_three(backend: str) -> Stage[Any, Any]:
    return stage(backend=backend)(lambda items: itertools.islice(iter(items), 3))


def recorded(path: Path, backend: str, workers: int = 1) -> Stage[Any, Any]:
    """Passes its items on, and adds a line for each to a file."""

    def record(item: object) -> object:
        with path.open("a") as file:
            file.write(f"{item}\n")
        return item

    return map_stage(backend=backend, workers=workers)(record)


def lines(path: Path) -> list[int]:
    return sorted(map(int, path.read_text().split()))


def parity(number: int) -> str:
    return "odd" if number % 2 else "even"


class Item:
    """Counts how often it is pickled, and comes out of its pickle as its number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.picklings = 0

    def __reduce__(self) -> tuple[Any, ...]:
        self.picklings += 1
        return int, (self.number,)


# -- tee


def test_a_tee_gives_each_item_to_every_branch(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    pipe = range(300) | same(one) | tee(tagged("a", one), tagged("b", other, workers=2), same(other) | tagged("c", one))
    assert Counter(pipe.results()) == Counter((tag, number) for tag in "abc" for number in range(300))


def test_what_stands_left_of_a_tee_runs_once_for_each_item(backend: str, tmp_path: Path) -> None:
    prefix = recorded(tmp_path / "calls", backend, workers=2)
    pipe = range(50) | prefix | tee(same("thread"), same("thread"), same("process"))
    assert len(list(pipe.results())) == 150
    assert lines(tmp_path / "calls") == list(range(50))


def test_an_iterator_in_front_of_a_tee_is_read_once() -> None:
    assert Counter((iter(range(9)) | tee(same("thread"), same("thread"))).results()) == Counter([*range(9)] * 2)


@pytest.mark.parametrize("beside", ["nothing", "process"])
def test_all_threads_behind_a_thread_see_the_very_object(beside: str) -> None:
    items = [Item(number) for number in range(100)]
    others = [] if beside == "nothing" else [same("process")]
    pipe = items | same("thread") | tee(tagged("a", "thread"), *others, tagged("b", "thread", workers=2))
    seen: defaultdict[str, list[Item]] = defaultdict(list)
    for result in pipe.results():
        if isinstance(result, tuple):
            seen[result[0]].append(result[1])
    for tag in "ab":
        assert sorted(map(id, seen[tag])) == sorted(map(id, items))


def test_a_branch_that_is_a_process_changes_a_copy() -> None:
    @map_stage(backend="process")
    def changed(item: list[int]) -> list[int]:
        item.append(2)
        return item

    item = [1]
    results = list(([item] | tee(changed, same("thread"))).results())
    assert sorted(results) == [[1], [1, 2]]
    assert item == [1]


BRANCHES_OF_PROCESSES: dict[str, Callable[[], list[Stage[Any, Any]]]] = {
    "two": lambda: [same("process"), same("process", workers=2)],
    "with-a-thread": lambda: [same("process"), same("thread"), same("process")],
    "keyed": lambda: [same("process"), same("process", workers=2, key=lambda item: item.number)],
    "nested": lambda: [same("process"), tee(same("process"), same("thread"))],
    "route": lambda: [same("process"), route(lambda item: item.number % 2, {0: same("process"), 1: same("process")})],
}


@pytest.mark.parametrize("branches", BRANCHES_OF_PROCESSES)
def test_an_item_is_pickled_once_for_all_branches_of_processes(branches: str) -> None:
    items = [Item(number) for number in range(20)]
    list((items | same("thread") | tee(*BRANCHES_OF_PROCESSES[branches]())).results())
    assert [item.picklings for item in items] == [1] * 20


def test_a_branch_that_stops_reading_leaves_all_items_to_the_others(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    stopping = first_three(one) | tagged("few", "thread")
    counts = Counter(tag for tag, _ in (range(500) | same(other) | tee(stopping, tagged("all", other))).results())
    assert counts == {"few": 3, "all": 500}


def test_when_all_branches_have_stopped_reading_an_endless_source_is_left(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    pipe = itertools.count() | same(one) | tee(first_three(one), first_three(other))
    assert Counter(pipe.results()) == Counter([0, 1, 2] * 2)


def test_a_blocked_branch_holds_up_the_source_and_not_for_ever(backend: str) -> None:
    gate = threading.Event()
    source = Counting()

    def blocked(number: int) -> int:
        gate.wait(60)
        return number

    free = same("thread", qsize=3) | tagged("free", "thread")
    pipe: Any = source | same(backend, qsize=3) | tee(map_stage(backend="thread", qsize=3)(blocked), free)
    with pipe.results() as results:
        assert [tag for tag, _ in itertools.islice(results, 2)] == ["free", "free"]
        settle(lambda: source.read)
        # The blocked item, a queue of 3, the prefix, a queue of 3 and the source; a process has one more.
        assert source.read <= 1 + 3 + 1 + 3 + 1 + (backend in REMOTE)
        gate.set()
        assert len(list(itertools.islice(results, 100))) == 100


def settle(value: Callable[[], int]) -> None:
    """Let a number go as far as it goes now. A machine so slow that it is cut short only makes a test see less."""
    seen, times = value(), 0
    while times < 10:
        time.sleep(0.005)
        seen, times = (seen, times + 1) if value() == seen else (value(), 0)


# -- route


def test_a_route_gives_each_item_to_the_branch_of_its_key(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    by_name = route(parity, odd=tagged("odd", one), even=tagged("even", other, workers=2))
    results = (range(300) | same(one, workers=2) | by_name).results()
    assert Counter(results) == Counter((parity(number), number) for number in range(300))


@pytest.mark.parametrize(
    "keys", [(0, 1), ("a key", "class"), ((1, "x"), (2, "x")), (None, True), (frozenset([1]), 1.5)], ids=str
)
def test_keys_that_are_no_names_are_given_in_a_mapping(backend: str, keys: tuple[Any, Any]) -> None:
    zero, one = keys
    branches = {zero: tagged("zero", "thread"), one: tagged("one", "thread")}
    results = (range(10) | same(backend) | route(lambda number: keys[number % 2], branches)).results()
    assert Counter(results) == Counter(("one" if number % 2 else "zero", number) for number in range(10))


def test_a_mapping_and_names_go_together() -> None:
    both = route(lambda number: "odd" if number % 2 else 0, {0: tagged("zero", "thread")}, odd=tagged("odd", "thread"))
    assert sorted(([1, 2] | both).results()) == [("odd", 1), ("zero", 2)]


def test_a_default_gets_all_items_of_other_keys(backend: str) -> None:
    by_rest = route(lambda number: number % 3, {0: tagged("none", backend)}, default=tagged("some", backend))
    results = (range(30) | same(backend) | by_rest).results()
    assert Counter(results) == Counter(("some" if number % 3 else "none", number) for number in range(30))


def test_a_route_may_have_a_default_alone(backend: str) -> None:
    assert sorted((range(5) | route(parity, default=same(backend))).results()) == [0, 1, 2, 3, 4]


def test_drop_leaves_out_items_of_other_keys(backend: str) -> None:
    odd = route(parity, odd=same(backend), default=DROP)
    assert sorted((range(9) | same(backend) | odd).results()) == [1, 3, 5, 7]


def failing_route(prefix: str, choose: Callable[[int], object], item: int = 7) -> TaskException:
    """The error of a route whose items come from an iterable, or from a stage `prefix` of that backend."""

    def first(number: int) -> int:
        return number

    head: Any = [item] if prefix == "iterable" else [item] | map_stage(backend=prefix)(first)
    with pytest.raises(TaskException) as caught:
        list((head | route(choose, odd=same("thread"), even=same("thread"))).results())
    assert caught.value.stage == ("source" if prefix == "iterable" else "first")
    assert caught.value.item == repr(item)
    return caught.value


PREFIXES = ["iterable", "thread", "process"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_item_without_a_branch_is_an_error_that_names_key_and_item(prefix: str) -> None:
    def choose(number: int) -> str:
        return f"neither {number}"

    error = failing_route(prefix, choose)
    assert "could not choose a branch of route(choose) for 7" in str(error)
    assert "no branch has the key 'neither 7', there are 'odd', 'even'" in str(error)
    assert "default=DROP" in str(error)
    assert type(error.__cause__) is LookupError


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_function_that_fails_to_choose_is_an_error_of_the_stage_where_it_runs(prefix: str) -> None:
    def choose(number: int) -> str:
        raise ZeroDivisionError(f"at {number}")

    error = failing_route(prefix, choose)
    assert "could not choose a branch of route(choose) for 7: ZeroDivisionError('at 7')" in str(error)
    assert type(error.__cause__) is ZeroDivisionError


@pytest.mark.parametrize("kind", [SystemExit, StopIteration, GeneratorExit])
def test_whatever_a_choosing_function_raises_is_an_error(backend: str, kind: type[BaseException]) -> None:
    def choose(number: int) -> str:
        raise kind("on purpose")

    assert type(failing_route(backend, choose).__cause__) is kind


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_key_that_cannot_be_one_is_an_error(prefix: str) -> None:
    error = failing_route(prefix, lambda number: [number])
    assert "could not choose a branch" in str(error)
    assert "unhashable type: 'list'" in str(error)


def test_a_choosing_function_that_cannot_be_pickled_is_an_error_at_the_start() -> None:
    lock = threading.Lock()

    def choose(number: int) -> bool:
        return lock.locked()

    def first(number: int) -> int:
        return number

    branches = {False: same("process"), True: same("thread")}
    with pytest.raises(NotPicklable, match="stage 'first'"):
        ([1] | map_stage(backend="process")(first) | route(choose, branches)).results()
    assert list(([1] | map_stage(backend="thread")(first) | route(choose, branches)).results()) == [1]


def test_the_choice_is_made_in_the_workers_left_of_it(backend: str) -> None:
    here = os.getpid()
    where = route(lambda _: os.getpid() == here, {True: tagged("here", "thread"), False: tagged("there", "thread")})
    assert list(([1] | same(backend) | where).results()) == [("there" if backend in REMOTE else "here", 1)]


def test_the_choice_is_made_once_for_each_item() -> None:
    asked: list[int] = []

    def choose(number: int) -> int:
        asked.append(number)
        return number % 3

    by_rest = route(choose, {0: same("thread"), 1: same("thread", workers=2)}, default=DROP)
    list((range(100) | same("thread") | by_rest).results())
    assert asked == list(range(100))


def test_only_items_that_go_to_processes_are_pickled() -> None:
    items = [Item(number) for number in range(30)]
    ways = {0: same("thread"), 1: map_stage(backend="process")(lambda number: number)}
    list((items | same("thread") | route(lambda item: item.number % 3, ways, default=DROP)).results())
    assert [item.picklings for item in items] == [0, 1, 0] * 10


def test_what_a_branch_no_longer_reads_is_left_out_and_the_others_get_theirs(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    branches = route(parity, odd=first_three(one) | tagged("few", "thread"), even=tagged("all", other))
    counts = Counter(tag for tag, _ in (range(1000) | same(other) | branches).results())
    assert counts == {"few": 3, "all": 500}


# -- merge


def test_merged_pipelines_and_iterables_flow_on_together(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    together = merge(range(100) | same(one), [100, 101], Stage(range, 200, 300).setup(backend=other, workers=1))
    assert sorted((together | same(other, workers=2)).results()) == [*range(102), *range(200, 300)]


def test_a_merge_needs_nothing_behind_it(backend: str) -> None:
    pipe = merge([1, 2], [3] | same(backend), "ab" | map_stage(backend=backend)(ord))
    assert sorted(pipe.results()) == [1, 2, 3, 97, 98]


def test_merges_nest() -> None:
    inner = merge([1], merge([2], [3] | same("thread")) | same("thread"))
    assert sorted(merge(inner, [4]).results()) == [1, 2, 3, 4]


def test_a_merge_ends_when_all_have_ended(backend: str) -> None:
    gate = threading.Event()

    def late() -> Iterator[int]:
        gate.wait(60)
        yield 99

    results = merge(range(3) | same(backend), late() | same(backend)).results()
    assert sorted(next(results) for _ in range(3)) == [0, 1, 2]
    eventually(lambda: [one.running for one in results.stats().stages] == [0, 0, 1, 1])
    gate.set()
    assert list(results) == [99]


def test_a_finite_source_gets_through_beside_one_without_end_that_is_left_early(backend: str) -> None:
    with (merge(itertools.count(1) | same(backend, qsize=2), [0]) | same(backend, qsize=2)).results() as results:
        assert 0 in results


def test_each_merged_pipeline_is_a_run_of_its_own(backend: str, tmp_path: Path) -> None:
    shared = range(20) | recorded(tmp_path / "calls", backend)
    results = merge(shared | tagged("a", "thread"), shared | tagged("b", "thread")).results()
    assert Counter(results) == Counter((tag, number) for tag in "ab" for number in range(20))
    assert lines(tmp_path / "calls") == sorted([*range(20)] * 2)


def test_an_iterator_that_stands_twice_is_an_error_that_names_tee() -> None:
    once = iter([1, 2]) | same("thread")
    twice = merge(once | same("thread"), once)
    for start in (twice.results, twice.plan, lambda: run_inline(twice)):
        with pytest.raises(PipelineError, match=r"stands twice in this graph: .*`source \| tee\(...\)`"):
            start()
    assert list(once.results()) == [1, 2]  # it was not claimed


def test_a_failure_in_one_of_the_merged_ends_the_run(backend: str) -> None:
    def fails(number: int) -> int:
        raise ValueError(number)

    together = merge(itertools.count() | same(backend), [5] | map_stage(backend=backend)(fails))
    with pytest.raises(TaskException, match=r"ValueError\(5\)"):
        list(together.results())


# -- keys


def worker_of(backend: str, workers: int, key: Callable[[Any], object]) -> Stage[Any, Any]:
    """Gives each item with a mark of the worker that had it."""

    def marked(items: Iterable[Any]) -> Iterator[tuple[Any, str]]:
        mark = os.urandom(8).hex()
        for item in items:
            yield item, mark

    return stage(backend=backend, workers=workers, key=key)(marked)


def workers_by_key(results: Iterable[tuple[Any, Any]], key: Callable[[Any], Any]) -> dict[Any, set[Any]]:
    found: defaultdict[Any, set[Any]] = defaultdict(set)
    for item, worker in results:
        found[key(item)].add(worker)
    return found


def test_items_with_equal_keys_go_to_the_same_worker(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    pipe = range(600) | same(one, workers=2) | worker_of(other, 3, lambda number: number % 20)
    found = workers_by_key(pipe.results(), lambda number: number % 20)
    assert {len(workers) for workers in found.values()} == {1}
    assert len(set.union(*found.values())) == 3


def test_items_of_a_key_keep_their_order(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    keyed = same(other, workers=3, key=lambda number: number % 7)
    of_key: defaultdict[int, list[int]] = defaultdict(list)
    for number in (range(5000) | same(one) | keyed).results():
        of_key[number % 7].append(number)
    assert of_key == {key: list(range(key, 5000, 7)) for key in range(7)}


def test_text_is_the_same_key_in_all_processes(backend: str) -> None:
    """Each has its own `hash` of text."""
    words = [f"word {number % 12}" for number in range(240)]
    sources = merge(words | same("process", workers=2), words | same("process"), words | same("thread"))
    found = workers_by_key((sources | worker_of(backend, 3, lambda word: word)).results(), lambda word: word)
    assert len(found) == 12
    assert {len(workers) for workers in found.values()} == {1}


class Color(Enum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    RED = "red"


NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)
EQUAL_KEYS: dict[str, list[Any]] = {
    "numbers": [1, 1.0, True, Fraction(1), Decimal(1), 1 + 0j, Number.ONE],
    "large numbers": [2**70, float(2**70), Fraction(2**71, 2)],
    "text": ["red", Word.RED, "re" + "d"],
    "bytes": [b"red", bytes([114, 101, 100])],
    "none": [None, None],
    "tuples": [(1, ("a", None)), (1.0, ("a", None)), (True, (Word("red").replace("red", "a"), None))],
    "frozensets": [frozenset(["a", "b"]), frozenset(["b", "a"])],
    "enum": [Color.RED, Color("red")],
    "dates": [date(2024, 5, 6), date.fromordinal(date(2024, 5, 6).toordinal())],
    "moments": [NOON, NOON.astimezone(timezone(timedelta(hours=5)))],
    "naive moments": [datetime(2024, 5, 6), datetime(2024, 5, 6, fold=1)],
    "uuid": [UUID(int=7), UUID("00000000-0000-0000-0000-000000000007")],
    "paths": [PurePosixPath("a/b"), PurePosixPath("a") / "b", PurePosixPath("a//b/")],
    "windows paths": [PureWindowsPath("a/b"), PureWindowsPath("A\\B")],
}


@pytest.mark.parametrize("kind", EQUAL_KEYS)
def test_equal_keys_of_whatever_type_go_to_the_same_worker(kind: str) -> None:
    keys = EQUAL_KEYS[kind]
    assert all(key == keys[0] for key in keys)
    pipe = range(len(keys)) | worker_of("thread", 16, lambda place: keys[place])
    assert len({worker for _, worker in pipe.results()}) == 1


def test_an_enum_member_is_the_same_key_in_all_processes() -> None:
    class Kind(Enum):
        FIRST = 1
        SECOND = 2

    kinds = list(Kind) * 20
    pipe = kinds | same("process", workers=2) | worker_of("thread", 8, lambda kind: (kind, "x"))
    assert {len(workers) for workers in workers_by_key(pipe.results(), lambda kind: kind.name).values()} == {1}


class Unknown:
    def __repr__(self) -> str:
        return "<of no known type>"


@pytest.mark.parametrize("key", [Unknown(), [1], (1, Unknown()), bytearray(b"x"), object], ids=lambda key: "key")
def test_a_key_of_an_unknown_type_is_an_error_that_names_it(backend: str, key: Any) -> None:
    text = repr(key[1] if isinstance(key, tuple) else key)

    def first(number: int) -> int:
        return number

    def keyed(number: int) -> int:
        return number

    pipe = [7] | map_stage(backend=backend)(first) | map_stage(backend="thread", workers=2, key=lambda _: key)(keyed)
    with pytest.raises(TaskException, match="could not find the key of stage 'keyed' for 7: TypeError") as caught:
        list(pipe.results())
    assert f"{text} cannot be a key" in str(caught.value.__cause__)
    assert (caught.value.stage, caught.value.item) == ("first", "7")


def test_a_key_that_raises_is_an_error_of_the_stage_where_it_runs(backend: str) -> None:
    def first(number: int) -> int:
        return number

    keyed = same("thread", workers=2, key=lambda number: 1 // number)
    with pytest.raises(TaskException, match="could not find the key of stage '<lambda>' for 0: ZeroDiv") as caught:
        list(([0] | map_stage(backend=backend)(first) | keyed).results())
    assert caught.value.stage == "first"


def other_keys(hot: int, workers: int) -> list[int]:
    """Keys that do not go to the worker of `hot`."""
    found = dict((range(50) | worker_of("thread", workers, lambda number: number)).results())
    return [number for number in range(50) if found[number] != found[hot]]


def test_a_blocked_worker_holds_up_no_other_key_as_long_as_its_own_queue_has_room(backend: str) -> None:
    others = other_keys(0, workers=3)
    gate = threading.Event()

    def wait(number: int) -> int:
        if number == 0:
            gate.wait(60)
        return number

    def items() -> Iterator[int]:
        for number in range(20):
            yield 0
            yield from itertools.islice(itertools.cycle(others), 50 * number, 50 * number + 50)

    keyed = map_stage(backend="thread", workers=3, key=lambda number: number)(wait)
    results = (items() | same(backend, qsize=100) | keyed).results()
    assert 0 not in [next(results) for _ in range(1000)]
    gate.set()
    assert list(results) == [0] * 20


def test_the_one_item_of_another_key_passes_those_of_a_hot_one(backend: str) -> None:
    other, *_ = other_keys(0, workers=2)
    gate = threading.Event()

    def wait(number: int) -> int:
        if number == 0:
            gate.wait(60)
        return number

    keyed = map_stage(backend="thread", workers=2, key=lambda number: number)(wait)
    results = ([*[0] * 10, other] | same(backend, qsize=20) | keyed).results()
    assert next(results) == other
    gate.set()
    assert list(results) == [0] * 10


def test_no_item_waits_behind_one_for_which_another_branch_has_no_room(backend: str, tmp_path: Path) -> None:
    """Nor with those that travel with it: what the prefix has given for the free branch arrives."""
    gate = threading.Event()
    given = tmp_path / "given"
    arrived: list[int] = []

    def numbers() -> Iterator[tuple[str, int]]:
        for _ in range(2000):
            yield from (("blocked", -1), ("free", -1))  # many fast ones, so that many travel together
        with given.open("a") as file:
            for number in range(2000):
                file.write(f"{number}\n")
                file.flush()
                yield ("free", "blocked")[number % 2], number

    def blocked(item: tuple[str, int]) -> None:
        if item[1] >= 0:
            gate.wait(60)

    def free(item: tuple[str, int]) -> None:
        if item[1] >= 0:
            arrived.append(item[1])

    branches = {
        "blocked": map_stage(backend="thread", qsize=0)(blocked),
        "free": map_stage(backend="thread", qsize=0)(free),
    }
    pipe: Any = Stage(numbers).setup(backend=backend, qsize=64) | route(lambda item: item[0], branches)
    with pipe.results():
        try:
            eventually(lambda: given.exists() and len(arrived) > 30, seconds=30)
            settle(lambda: given.stat().st_size)
            eventually(lambda: arrived == [number for number in lines(given) if number % 2 == 0])
        finally:
            gate.set()


class _Full:
    """A writing end without room until `gate` opens."""

    blocked = 0.0
    share = False
    frame_size = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waits = threading.Event()

    def put(self, parts: list[object], *, plain: bool) -> bool:
        self.waits.set()
        self.gate.wait(60)
        return True

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        return False


class _RoomSoon:
    """A writing end that has room as soon as `other` is waited for."""

    blocked = 0.0
    share = False
    frame_size = 1

    def __init__(self, other: _Full) -> None:
        self.parts: list[object] = []
        self._other = other

    def put(self, parts: list[object], *, plain: bool) -> bool:
        self.parts += parts
        return True

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        return self._other.waits.is_set() and self.put(parts, plain=plain)


def test_a_writer_that_waits_for_room_in_one_outbox_hands_on_what_is_for_the_others() -> None:
    full = _Full()
    other = _RoomSoon(full)
    flusher = Flusher()
    output = ManyOutputs([full, other], To((0, 1)), [False, False], flusher, Activity())
    worker = threading.Thread(target=lambda: output.pump(iter([Batch(iter(["item"]), 1, exact=True)])))
    worker.start()
    try:
        eventually(lambda: other.parts == ["item"])
    finally:
        full.gate.set()
        worker.join()
        flusher.stop()


class _Interrupted:
    """A writing end where a signal handler raises when a frame has been handed on."""

    blocked = 0.0
    share = False
    frame_size = 10

    def __init__(self) -> None:
        self.parts: list[object] = []

    def put(self, parts: list[object], *, plain: bool) -> bool:
        self.parts += parts
        return True

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        self.put(parts, plain=plain)
        raise ValueError("late")


def test_a_frame_after_which_a_signal_handler_raises_is_not_handed_on_twice() -> None:
    ends, flusher = [_Interrupted(), _Interrupted()], Flusher()
    output = ManyOutputs(ends, To((0, 1)), [False, False], flusher, Activity())
    batches = iter([Batch(iter(["a frame", "begins one"]), 2, exact=True)])
    with pytest.raises(ValueError, match="late"):
        while output.pump(batches):
            pass
    with pytest.raises(ValueError, match="late"):
        output.flush()
    output.flush()
    flusher.stop()
    assert [end.parts for end in ends] == 2 * [["a frame", "begins one"]]


def test_a_keyed_worker_that_stops_reading_leaves_out_its_own_keys_alone(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    hot, (cold, *_) = 0, other_keys(0, workers=2)
    numbers = [hot, cold] * 200
    few = stage(backend=other, workers=2, key=lambda number: number)(one_kind_leaves(hot))
    assert Counter((numbers | same(one) | few).results()) == {hot: 3, cold: 200}


def one_kind_leaves(hot: int) -> Callable[[Iterable[int]], Iterator[int]]:
    def leave(numbers: Iterable[int]) -> Iterator[int]:
        for place, number in enumerate(numbers, start=1):
            yield number
            if number == hot and place == 3:
                return

    return leave


def test_a_key_on_a_stage_that_stands_first_is_an_error_at_the_start() -> None:
    keyed = Stage(range, 3).setup(key=cast(Any, parity))
    for start in (keyed.results, keyed.execute, lambda: merge([1], keyed)):
        with pytest.raises(SignatureError, match="stage 'range' has a key=, but it stands first"):
            start()


def test_stages_in_branches_have_keys_of_their_own(backend: str) -> None:
    def counts_by(key: str) -> Stage[Any, Any]:
        return Stage(counted, key).setup(backend=backend, workers=2, key=KEYS[key])

    pipe = range(90) | tee(counts_by("mod_three"), route(Modulo(2), {0: counts_by("text"), 1: counts_by("pair")}))
    assert Counter(pipe.results()) == Counter(run_inline(pipe))


# -- graphs


def test_branches_nest(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    inner = tee(tagged("x", one), route(parity, odd=tagged("y", other), default=DROP) | tagged("z", one))
    pipe = range(60) | tee(route(lambda n: n % 3, {0: inner}, default=tagged("rest", other)), tagged("all", one))
    assert Counter(pipe.results()) == Counter(run_inline(pipe))


def graph(backend: str) -> Pipeline[Any, int]:
    branches = route(
        Modulo(2), {0: Stage(doubled).setup(backend=backend), 1: tee(map_stage(plus_one), map_stage(plus_one))}
    )
    one = map_stage(backend=backend)(plus_one)
    return tee(branches, one | one) | one


def test_a_graph_is_joined_and_used_again_like_any_pipeline(backend: str) -> None:
    part = graph(backend)
    meant = Counter(run_inline(range(20) | part))
    assert Counter((range(20) | part).results()) == meant
    both = merge(range(20) | part, range(20) | part)
    assert Counter(both.results()) == meant + meant
    again = range(20) | part | part
    assert Counter(again.results()) == Counter(run_inline(again))


def test_joining_a_tee_or_a_route_leaves_it_alone() -> None:
    one = tee(same("thread"))
    longer = one | same("thread")
    assert list(([1] | one).results()) == list(([1] | longer).results()) == [1]
    assert repr(one) == "<Stage tee(<lambda>)>"


def test_a_graph_runs_many_times_at_once(backend: str) -> None:
    pipe = range(50) | graph(backend)
    meant = Counter(run_inline(pipe))
    running = [pipe.results() for _ in range(5)]
    assert [Counter(results) for results in running] == [meant] * 5


def test_a_graph_is_pickled() -> None:
    pipe = merge(range(20) | graph("thread"), [1, 2] | route(Modulo(1), {0: Stage(doubled)}, default=DROP))
    copy = pickle.loads(pickle.dumps(pipe))
    assert Counter(copy.results()) == Counter(run_inline(pipe))
    assert repr(copy) == repr(pipe)


def test_a_graph_runs_inside_a_stage(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    part = tee(same(other), route(parity, odd=same("thread"), default=DROP))

    def inside(count: int) -> int:
        return sum((range(count) | part).results())

    meant = [sum(range(count)) + sum(range(1, count, 2)) for count in range(4)]
    assert sorted((range(4) | map_stage(backend=one)(inside)).results()) == sorted(meant)


def test_branches_may_be_sinks(backend: str, tmp_path: Path) -> None:
    def written(name: str) -> Stage[Any, Any]:
        def write(numbers: Iterable[int]) -> None:
            (tmp_path / name).write_text(str(sum(numbers)))

        return stage(backend=backend)(write)

    assert sorted((range(10) | tee(written("tee"), same("thread"))).results()) == list(range(10))
    assert list((range(10) | route(parity, odd=written("odd"), even=written("even"))).results()) == []
    assert [(tmp_path / name).read_text() for name in ("tee", "odd", "even")] == ["45", "25", "20"]


def test_stages_of_one_name_are_told_apart() -> None:
    pipe = range(4) | same("thread", name="parse") | tee(same("thread", name="parse"), same("thread", name="parse"))
    results = pipe.results()
    assert len(list(results)) == 8
    assert [one.name for one in results.stats().stages] == ["source", "parse", "parse#2", "parse#3"]


def test_an_error_says_in_which_branch_its_stage_is(backend: str) -> None:
    def parse(number: int) -> int:
        return 1 // number

    broken = map_stage(backend=backend)(parse)
    pipe = [0] | same("thread", name="parse") | tee(same("thread"), route(lambda _: "pdf", pdf=broken))
    with pytest.raises(TaskException, match='"parse#2-0" raised ZeroDivisionError') as caught:
        list(pipe.results())
    assert caught.value.stage == "parse#2"
    note = "stage \"parse#2\" is in branch 'pdf' of route(<lambda>), in branch 2 of tee(<lambda>, route(<lambda>))"
    assert note in caught.value.__notes__


def test_statistics_count_a_result_once_however_many_branches_get_it(backend: str) -> None:
    prefix = same(backend, name="prefix", workers=2)
    results = (
        range(60) | prefix | tee(same("thread"), same("process"), same("thread", workers=2, key=parity))
    ).results()
    assert len(list(results)) == 180
    source, counted, *branches = results.stats().stages
    assert (source.results, counted.received, counted.results, counted.waiting) == (60, 60, 60, 0)
    assert [(one.received, one.results) for one in branches] == [(60, 60)] * 3


def test_statistics_do_not_count_what_is_dropped(backend: str) -> None:
    odd = route(parity, odd=same("thread", name="odd"), default=DROP)
    results = (range(60) | same(backend, name="prefix") | odd).results()
    assert len(list(results)) == 30
    assert [(one.name, one.results) for one in results.stats().stages] == [("source", 60), ("prefix", 30), ("odd", 30)]


def test_statistics_of_a_queue_with_several_writers_count_for_each_its_own(backend: str) -> None:
    results = (merge(range(10), range(20) | same(backend)) | same("thread")).results()
    assert len(list(results)) == 30
    assert [(one.received, one.results) for one in results.stats().stages] == [(0, 10), (0, 20), (20, 20), (30, 30)]


# -- what is declared wrongly


ONE = same("thread")
WRONG: dict[str, tuple[Callable[[], object], type[PipelineError], str]] = {
    "tee-of-nothing": (tee, SignatureError, r"tee\(\) needs at least one branch"),
    "tee-of-function": (
        lambda: tee(cast(Any, print)),
        SignatureError,
        "cannot be a branch of tee: .*`stage` or `map_stage`",
    ),
    "tee-of-closed": (lambda: tee(cast(Any, [1] | ONE)), SignatureError, "has a source already"),
    "tee-of-merge": (lambda: tee(cast(Any, merge([1]))), SignatureError, "has its sources already"),
    "tee-of-producer": (lambda: tee(cast(Any, Stage(numbers_to, 3))), SignatureError, "stage 'numbers_to': too many"),
    "tee-of-needy": (lambda: tee(cast(Any, stage(doubled_by))), SignatureError, "missing a required argument: 'by'"),
    "route-of-nothing": (lambda: route(parity), SignatureError, r"route\(parity\) needs at least one branch"),
    "route-of-drop": (lambda: route(parity, default=DROP), SignatureError, "needs at least one branch"),
    "route-of-function": (
        lambda: route(parity, odd=cast(Any, print)),
        SignatureError,
        r"cannot be a branch of route\(parity\)",
    ),
    "route-default-function": (
        lambda: route(parity, odd=ONE, default=cast(Any, print)),
        SignatureError,
        r"cannot be a branch of route\(parity\)",
    ),
    "route-of-closed": (lambda: route(parity, odd=cast(Any, [1] | ONE)), SignatureError, "has a source already"),
    "route-of-list": (lambda: route(parity, cast(Any, [ONE])), SignatureError, "must be a mapping of keys to stages"),
    "route-of-stage": (lambda: route(parity, cast(Any, ONE)), SignatureError, "must be a mapping of keys to stages"),
    "route-key-twice": (lambda: route(parity, {"odd": ONE}, odd=ONE), SignatureError, "two branches for 'odd'"),
    "route-by-number": (lambda: route(cast(Any, 3), odd=ONE), SignatureError, "function of an item, not 3"),
    "route-by-name": (
        lambda: route(cast(Any, "kind"), odd=ONE),
        SignatureError,
        "function of an item, not 'kind'",
    ),
    "merge-of-a-list": (lambda: merge([[1] | ONE, [2] | ONE]), SignatureError, r"write merge\(\*pipelines\)"),
    "tee-with-arguments": (lambda: cast(Any, tee(ONE))(5), SignatureError, "takes no arguments"),
    "merge-of-nothing": (merge, SignatureError, r"merge\(\) needs at least one pipeline"),
    "merge-of-open": (lambda: merge(cast(Any, ONE | ONE)), SignatureError, "needs an input"),
    "merge-of-tee": (
        lambda: merge([1], cast(Any, tee(ONE))),
        SignatureError,
        r"'tee\(<lambda>\)', which needs an input",
    ),
    "merge-of-number": (lambda: merge(cast(Any, 5)), SignatureError, "5 cannot be merged"),
    "feeding-merge": (lambda: [1] | cast(Any, merge([1])), SignatureError, "has its sources already"),
    "running-tee": (lambda: cast(Any, tee(ONE)).results(), SignatureError, "needs an input"),
    "workers-of-tee": (
        lambda: tee(ONE).setup(workers=2),
        OptionError,
        "has no workers of its own.*set up the stages in",
    ),
    "key-of-route": (lambda: route(parity, odd=ONE).setup(key=parity), OptionError, "can only be given a name"),
    "options-of-tee": (lambda: tee(ONE).options, OptionError, "has no workers of its own"),
    "empty-name": (lambda: same("thread", name=""), OptionError, "name='' cannot work"),
    "blank-name": (lambda: ONE().setup(name=" "), OptionError, "name=' ' cannot work"),
    "name-of-lines": (lambda: tee(ONE).setup(name="a\nb"), OptionError, "must be text of one line"),
    "name-of-number": (lambda: ONE().setup(name=cast(Any, 5)), OptionError, "name=5 cannot work"),
    "key-of-text": (
        lambda: ONE().setup(key=cast(Any, "id")),
        OptionError,
        "key='id' cannot work: .*function of an item",
    ),
}


def numbers_to(count: int) -> Iterator[int]:
    yield from range(count)


def doubled_by(numbers: Iterable[int], by: int) -> Iterator[int]:
    return (by * number for number in numbers)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_declared_wrongly_is_an_error_at_once_that_says_what_to_do(case: str) -> None:
    declare, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        declare()


def test_a_tee_is_given_a_name() -> None:
    copies = tee(ONE).setup(name="copies")
    assert copies.name == "copies"
    assert repr([1] | copies) == "<Pipeline source | copies>"


# -- memory


Made = tuple[Pipeline[Any, Any], list[Stage[Any, Any]], int]


def tee_of_two(source: Iterable[int], make: Callable[[str], Stage[Any, Any]]) -> Made:
    first, one, other = make("first"), make("a"), make("b")
    return source | first | tee(one, other), [first, one, other], 4


def route_to_two(source: Iterable[int], make: Callable[[str], Stage[Any, Any]]) -> Made:
    first, one, other = make("first"), make("a"), make("b")
    return source | first | route(Modulo(2), {0: one, 1: other}), [first, one, other], 4


def merge_of_two(source: Iterable[int], make: Callable[[str], Stage[Any, Any]]) -> Made:
    one, other, last = make("a"), make("b"), make("last")
    return merge(source | one, source | other) | last, [one, other, last], 4


def keyed_by_two(source: Iterable[int], make: Callable[[str], Stage[Any, Any]]) -> Made:
    first, keyed = make("first"), make("keyed").setup(key=Modulo(5))
    return source | first | keyed, [first, keyed], 2 + keyed.options.workers


SHAPES = {"tee": tee_of_two, "route": route_to_two, "merge": merge_of_two, "keyed": keyed_by_two}


@pytest.mark.parametrize("qsize", [1, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_every_shape_the_source_is_read_no_further_ahead_than_documented(
    backend_pair: tuple[str, str], shape: str, qsize: int
) -> None:
    """`qsize` of each queue, the items in all workers' hands, and for each process worker one for each queue behind."""
    one, other = backend_pair
    kinds = {"first": one, "a": one if shape == "merge" else other, "b": other, "last": other, "keyed": other}
    workers = 2

    def make(name: str) -> Stage[Any, Any]:
        return stage(workers=workers, qsize=qsize, backend=kinds[name], name=name)(lambda items: items)

    source = Counting()
    pipe, stages, queues = SHAPES[shape](source, make)
    ahead = sum(2 if one.name == "first" else 1 for one in stages if one.options.backend in REMOTE)
    sources = 2 if shape == "merge" else 1
    bound = queues * qsize + sources + workers * (len(stages) + ahead)
    copies = 2 if shape == "tee" else 1
    with pipe.results() as results:
        for delivered, _ in zip(range(1, 300), results, strict=False):
            if delivered in (1, 20, 299):
                settle(lambda: source.read)
            assert source.read - delivered / copies <= bound


# -- what is not kept, not pickled, not read twice


class Counted:
    """Knows how many of its kind there are. They come and go in several threads: `+=` alone would lose some."""

    alive = 0
    lock = threading.RLock()

    def __init__(self) -> None:
        with Counted.lock:
            Counted.alive += 1

    def __del__(self) -> None:
        with Counted.lock:
            Counted.alive -= 1


@pytest.mark.parametrize("shape", ["route", "keyed"])
def test_what_has_been_handed_on_to_a_branch_is_not_kept(shape: str) -> None:
    most = 0

    def many() -> Iterator[object]:
        nonlocal most
        yield from itertools.repeat(None, 50_000)  # fast: much is collected before a look at the clock
        for _ in range(2000):
            yield Counted()
            most = max(most, Counted.alive)

    def is_counted(item: object) -> bool:
        return item is not None

    last = stage(backend="thread", qsize=1)(only_counts)
    ends = {
        "route": lambda: route(is_counted, {True: last}, default=DROP),
        "keyed": lambda: last.setup(workers=2, key=is_counted),
    }
    list((Stage(many).setup(backend="thread", qsize=1) | ends[shape]()).results())
    assert most <= 10


def only_counts(items: Iterable[object]) -> Iterator[int]:
    yield sum(1 for _ in items)


class Noisy:
    """Knows whether it was pickled."""

    pickled = False

    def __reduce__(self) -> tuple[type[Noisy], tuple[()]]:
        self.pickled = True
        return Noisy, ()


def test_for_a_process_branch_that_has_stopped_nothing_is_pickled_any_more() -> None:
    def until_one_is_not_pickled() -> Iterator[object]:
        yield from range(3)
        item = Noisy()
        yield item
        while item.pickled:
            item = Noisy()
            yield item

    thread, stops = stage(backend="thread")(only_counts), first_three("process")
    zero, one, two, count = sorted((until_one_is_not_pickled() | tee(thread, stops)).results())
    assert (zero, one, two) == (0, 1, 2)
    assert count >= 4


def test_one_iterator_cannot_be_the_source_of_two_pipelines_of_a_graph() -> None:
    numbers = iter([1, 2])
    twice = merge(numbers | ONE, numbers | ONE)
    with pytest.raises(PipelineError, match="stands twice in this graph.*tee"):
        twice.results()
    assert list((numbers | ONE).results()) == [1, 2]


def test_an_iterator_is_not_used_up_by_a_graph_whose_other_source_is() -> None:
    used, fresh = iter([1]) | ONE, iter([2]) | ONE
    list(used.results())
    with pytest.raises(PipelineError, match="an earlier run has read"):
        merge(fresh, used).results()
    with pytest.raises(PipelineError, match="an earlier run has read"):
        run_inline(merge(fresh, used))
    assert list(fresh.results()) == [2]


def test_a_key_that_raises_is_an_error_with_one_worker_and_inline_too() -> None:
    pipe = [0] | map_stage(backend="thread", key=lambda number: 1 // number)(int)
    for run in (pipe.results, lambda: run_inline(pipe)):
        with pytest.raises(TaskException, match="could not find the key of stage 'int' for 0"):
            list(run())


def test_run_inline_names_the_branch_of_a_failure() -> None:
    pipe = [0] | tee(ONE, map_stage(backend="thread")(lambda number: 1 // number))
    with pytest.raises(TaskException) as caught:
        list(run_inline(pipe))
    assert any("branch 2 of tee" in note for note in caught.value.__notes__)


def test_the_name_of_a_tee_can_be_taken_back() -> None:
    both = tee(ONE, ONE).setup(name="both")
    assert both.setup(name=None).name == tee(ONE, ONE).name
