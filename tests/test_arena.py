"""Big buffers in shared memory: what arrives, who may change it, and when its memory is used again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from pipekit import Pipeline, Stage, map_stage, route, stage, tee
from pipekit._arena import ARENA_SIZE, CAN_SHARE, LEAST_SHARED, PAGE, Space, Store, forget_own_store
from pipekit._frame import LEAST_SHARED_BODY, Pickled, to_part

pytestmark = pytest.mark.skipif(not CAN_SHARE, reason="this system has no memfd: big buffers travel in the frames")

BIG = LEAST_SHARED // 8  # numbers in the smallest array whose buffer is shared
LARGE = ARENA_SIZE // 64  # numbers in an array of which eight fill an arena
MANY = 12


@pytest.fixture(autouse=True)
def _own_store_is_let_go() -> Iterator[None]:
    yield
    forget_own_store()


class Arrays:
    """A source that can be read again: arrays of their own number."""

    def __init__(self, count: int, size: int = BIG) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        return (np.full(self.size, number, dtype=np.int64) for number in range(self.count))


def number_of(array: Any) -> int:
    """The number that the whole array is full of."""
    assert (array == array[0]).all()
    return int(array[0])


def add_one(array: Any) -> Any:
    array += 1
    return array


# -- which blocks are free


def test_blocks_do_not_overlap_and_are_used_again_lowest_first() -> None:
    space = Space(4 * PAGE)
    assert [space.take(size) for size in (PAGE, 1, PAGE + 1)] == [0, PAGE, 2 * PAGE]
    assert space.take(1) is None
    space.give(PAGE)
    space.give(0)
    assert space.take(2 * PAGE) == 0


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_neighbours_that_are_free_become_one(order: tuple[int, ...]) -> None:
    space = Space(4 * PAGE)
    taken = [space.take(PAGE) for _ in range(4)]
    for place in order:
        offset = taken[place]
        assert offset is not None
        space.give(offset)
    assert space.take(4 * PAGE) == 0


def test_a_full_store_says_so_and_keeps_nothing_of_what_did_not_fit() -> None:
    store = Store(4 * PAGE)
    half = memoryview(bytes(2 * PAGE + 1))
    assert store.store([half, half]) is None
    assert store.store([half]) is not None


def test_memory_is_free_when_the_last_object_that_is_made_over_it_dies() -> None:
    store = Store(4 * PAGE)
    [lease] = store.store([memoryview(bytes(4 * PAGE))]) or ()
    part = np.frombuffer(lease.view(), dtype=np.int64)[10:20]
    del lease
    gc.collect()
    assert store.store([memoryview(b"x")]) is None
    del part
    gc.collect()
    assert store.store([memoryview(b"x")]) is not None


def test_big_buffers_are_not_in_the_pickle_and_small_ones_are() -> None:
    big, small = (to_part(np.zeros(size, dtype=np.int64), share=True) for size in (BIG, BIG - 1))
    assert isinstance(big, tuple)
    assert isinstance(small, tuple)
    assert (len(big), len(small)) == (2, 1)
    assert len(big[0]) < LEAST_SHARED <= len(small[0]) + 8


def test_a_large_frame_is_shared_as_a_whole() -> None:
    items: list[object] = [b"%1000d" % number for number in range(LEAST_SHARED_BODY // 1000 + 1)]
    payload = Pickled.pack(items, share=True)
    assert (payload.body, len(payload.leases)) == (b"", 1)
    assert payload.open()[0] == items
    assert payload.rest(2).open()[0] == items[2:]


# -- what arrives


def count_up(backends: tuple[str, str], count: int, size: int = BIG) -> Pipeline[Any, Any]:
    first, second = (map_stage(backend=backend)(add_one) for backend in backends)
    return Arrays(count, size) | first | second


def test_arrays_arrive_whole_through_stages_of_any_kind(backend_pair: tuple[str, str]) -> None:
    arrived = sorted(map(number_of, count_up(backend_pair, 50).results()))
    assert arrived == list(range(2, 52))


def test_an_array_that_arrives_can_be_changed(backend: str) -> None:
    for array in (Arrays(3) | map_stage(backend=backend)(add_one)).results():
        array[:] = 0
        assert number_of(array) == 0


def test_a_consumer_that_keeps_all_arrays_has_them_unchanged() -> None:
    """More than fit into shared memory: the others are copied, nobody waits for a block."""
    kept = list((Arrays(MANY, LARGE) | map_stage(add_one)).results())
    assert sorted(map(number_of, kept)) == list(range(1, MANY + 1))


def keep(arrays: Iterable[Any]) -> Iterator[list[int]]:
    kept = list(arrays)
    yield sorted(map(number_of, kept))


def test_a_stage_that_keeps_all_arrays_has_them_unchanged() -> None:
    assert (Arrays(MANY, LARGE) | map_stage(add_one) | stage(keep)).execute() == list(range(1, MANY + 1))


def test_more_than_fits_at_once_passes_in_the_same_memory() -> None:
    arrived = [number_of(array) for array in count_up(("process", "process"), 2 * MANY, LARGE).results()]
    assert sorted(arrived) == list(range(2, 2 * MANY + 2))


def test_an_array_larger_than_all_shared_memory_is_copied() -> None:
    size = ARENA_SIZE // 8 + 1
    [array] = (Arrays(1, size) | map_stage(add_one)).results()
    assert (len(array), number_of(array)) == (size, 1)


def test_branches_do_not_see_each_others_changes(backend_pair: tuple[str, str]) -> None:
    first, second = (map_stage(backend=backend)(add_one) for backend in backend_pair)
    if {*backend_pair} != {"process"}:  # threads share the objects that a thread gave: a process gives copies
        first, second = (stage.setup(backend="process") for stage in (first, second))
    arrived = (Arrays(20) | map_stage(add_one) | tee(first, second)).results()
    assert sorted(map(number_of, arrived)) == sorted(2 * list(range(2, 22)))


def test_an_array_for_branches_of_several_kinds_is_not_shared_between_them() -> None:
    """A stage that gives to a route and beside it has an outbox for each."""
    to_itself = route(number_of, {number: map_stage(add_one) for number in range(1, 5)})
    arrived = (Arrays(4) | map_stage(add_one) | tee(to_itself, map_stage(add_one))).results()
    assert sorted(map(number_of, arrived)) == sorted(2 * list(range(2, 6)))


def reused(count: int) -> Iterator[Any]:
    array = np.zeros(BIG, dtype=np.int64)
    for number in range(count):
        array[:] = number
        yield array


def test_an_array_is_a_snapshot_that_its_producer_may_use_again() -> None:
    arrived = [number_of(array) for array in (Stage(reused, 50) | map_stage(add_one)).results()]
    assert sorted(arrived) == list(range(1, 51))


def test_a_read_only_array_arrives_read_only() -> None:
    source = np.zeros(BIG)
    source.flags.writeable = False
    [array] = ([source] | map_stage(same)).results()
    assert not array.flags.writeable


def same(item: Any) -> Any:
    return item


def several(number: int) -> dict[str, Any]:
    return {"a": np.full(BIG, number), "b": [np.full(2 * BIG, -number), "text"], "c": bytearray(b"x" * number)}


def test_an_item_may_have_several_buffers_and_other_things_between() -> None:
    for item in (range(20) | map_stage(several) | map_stage(fuse=False)(same)).results():
        number = number_of(item["a"])
        assert (number_of(item["b"][0]), item["b"][1], item["c"]) == (-number, "text", bytearray(b"x" * number))


def test_not_contiguous_arrays_arrive() -> None:
    square = np.arange(BIG * 4).reshape(-1, 4)
    [array] = ([square[:, ::2]] | map_stage(same)).results()
    assert (array == square[:, ::2]).all()


# -- what is left


def test_arrays_that_are_kept_outlive_their_run_and_nothing_else_does() -> None:
    before = memory_files()
    kept = list((Arrays(5) | map_stage(add_one)).results())
    assert sorted(map(number_of, kept)) == list(range(1, 6))
    del kept
    gc.collect()
    assert memory_files() == before


def test_a_program_that_keeps_arrays_to_its_end_ends_without_a_word() -> None:
    program = """
import numpy
from pipekit import map_stage
kept = list(([numpy.zeros(100_000)] * 3 | map_stage(abs)).results())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout + ended.stderr == ""


def die(array: Any) -> Any:
    if number_of(array) == 20:
        os._exit(1)
    return array


def test_a_worker_that_dies_with_arrays_in_hand_leaves_none_behind() -> None:
    before = memory_files()
    with pytest.raises(Exception, match="died"):
        list((Arrays(50) | map_stage(workers=2)(add_one) | map_stage(workers=2, fuse=False)(die)).results())
    gc.collect()
    assert memory_files() == before


def memory_files() -> int:
    """How many descriptors of shared memory this process has."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:")
        except OSError:  # the descriptor of the listing itself
            continue
    return count
