"""The contract of backends, executable: small checks, each a promise that a backend must keep."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipekit import (
    DROP,
    BackendUnavailable,
    Doing,
    ItemNotPicklable,
    NotPicklable,
    Pipeline,
    Results,
    Stage,
    Stalled,
    StartError,
    TaskException,
    WorkerState,
    map_stage,
    merge,
    route,
    stage,
    tee,
)
from pipekit._stack import calls_of
from pipekit.backends import Backend
from pipekit.backends._registry import resolve_backend
from pipekit.testing._faults import Faults, FaultyBackend
from pipekit.testing._recorder import Recorder

#: Seconds that leaving the results may take, by promise.
LEAVING_SECONDS = 2.0
#: Seconds after which a state that must come is missed.
STATE_SECONDS = 10.0


class CheckFailed(AssertionError):
    """A backend does not keep a promise."""


@dataclass(frozen=True, slots=True)
class Check:
    """A promise and the function that tests it; call it with a backend.

    name: for test ids.
    promise: what the backend must do, a sentence.
    """

    name: str
    promise: str
    function: Callable[[Backend], None]

    def __call__(self, backend: str | Backend, *, timeout: float = 60.0) -> None:
        """Run the check.

        Args:
            backend: the name of a backend, or one.
            timeout: seconds after which it counts as a hang, default 60.

        Raises:
            CheckFailed: the promise is not kept.
            BackendUnavailable: the backend cannot run here.
        """
        outcome: list[BaseException | None] = []
        arguments = (resolve_backend(backend), outcome)
        thread = threading.Thread(target=self._run, args=arguments, name=f"check {self.name}", daemon=True)
        thread.start()
        thread.join(timeout)
        if not outcome:
            raise CheckFailed(f"{self.name}: it hangs; after {timeout:g} s the threads are here:\n{_all_stacks()}")
        if isinstance(outcome[0], BackendUnavailable):
            raise outcome[0]
        if outcome[0] is not None:
            raise CheckFailed(f"{self.name}: {self.promise} ({outcome[0]!r})") from outcome[0]

    def _run(self, backend: Backend, outcome: list[BaseException | None]) -> None:
        try:
            self.function(backend)
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    def __repr__(self) -> str:
        return self.name


def check_backend(backend: str | Backend, *, timeout: float = 60.0) -> None:
    """Run all checks of the contract on a backend.

    Args:
        backend: the name of a backend, or one.
        timeout: seconds that a check may take before it counts as a hang, default 60.

    Raises:
        ExceptionGroup: of CheckFailed, one for each promise that is not kept.
        BackendUnavailable: the backend cannot run here.
    """
    failed = []
    for check in CHECKS:
        try:
            check(backend, timeout=timeout)
        except CheckFailed as error:
            failed.append(error)
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(CHECKS)} promises are not kept by the backend {backend!r}", failed)


# -- tools


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def _expect_equal(given: object, right: object) -> None:
    _expect(given == right, f"{given!r:.500} instead of {right!r:.500}")


def _expect_items(results: Iterable[int], right: Iterable[int]) -> None:
    given, expected = Counter(results), Counter(right)
    missing, extra = expected - given, given - expected
    _expect(given == expected, f"{missing.total()} missing: {missing!r:.200}; {extra.total()} too many: {extra!r:.200}")


def _eventually(state: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + STATE_SECONDS
    while not state():
        _expect(time.monotonic() < deadline, message)
        time.sleep(0.005)


def _failure_of(pipeline: Pipeline[Any, Any]) -> TaskException:
    try:
        results = list(pipeline.results())
    except TaskException as error:
        return error
    raise CheckFailed(f"no TaskException, but {results!r:.500}")


def _all_stacks() -> str:
    return "\n".join(f"{thread.name}\n{calls_of(thread.ident or 0, ())}" for thread in threading.enumerate())


def _same(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


def _total(numbers: list[int]) -> int:
    return sum(numbers)


def _plus_one(number: int) -> int:
    return number + 1


# -- items


def _every_item_once(backend: Backend) -> None:
    pipe = range(5000) | map_stage(workers=3, backend=backend)(_plus_one)
    _expect_items(pipe.results(), range(1, 5001))


def _one_worker_keeps_order(backend: Backend) -> None:
    pipe = range(5000) | map_stage(backend=backend)(_plus_one)
    _expect_equal(list(pipe.results()), list(range(1, 5001)))


def _few_items(backend: Backend) -> None:
    for count in (0, 1, 2):
        pipe = range(count) | map_stage(workers=4, backend=backend)(_plus_one)
        _expect_items(pipe.results(), range(1, count + 1))


def _any_value(backend: Backend) -> None:
    items = [None, ValueError("an item"), StopIteration(), StopIteration, ..., (), b"", "", False, 1.5]
    results = list((items | stage(backend=backend)(_same)).results())
    _expect_equal([type(result) for result in results], [type(item) for item in items])


def _large_items(backend: Backend) -> None:
    items = [bytes([number]) * 1_000_000 for number in range(5)]
    results = list((items | stage(backend=backend)(_same)).results())
    _expect(results == items, "an item of 1 MB was changed, lost or doubled")


def _large_items_between(backend: Backend) -> None:
    items = [bytes([number]) * 500_000 for number in range(20)]
    here, stops = stage(backend=backend)(_same), stage(workers=2, backend=backend)(_until_the_tenth)
    _expect(list((items | here | here).results()) == items, "an item of 500 KB was changed, lost or doubled")
    _expect(sorted((items | here | stops).results()) == items, "an item was lost where a worker stopped reading")
    together = items | here | tee(here, stage(backend="thread")(_same))
    _expect(sorted(together.results()) == sorted([*items, *items]), "an item was changed, lost or doubled behind a tee")


def _until_the_tenth(items: Iterable[bytes]) -> Iterator[bytes]:
    for item in items:
        yield item
        if item[0] == 10:
            return


def _producer(backend: Backend) -> None:
    _expect_equal(list(Stage(range, 100).setup(backend=backend).results()), list(range(100)))


def _neighbours(backend: Backend) -> None:
    here = map_stage(workers=2, backend=backend)(_plus_one)
    thread = map_stage(workers=2, backend="thread")(_plus_one)
    for first, second, third in itertools.product((here, thread), repeat=3):
        pipe = range(300) | first | second | third
        _expect_items(pipe.results(), range(3, 303))


def _beside_processes(backend: Backend) -> None:
    one, other = map_stage(backend=backend)(_plus_one), map_stage(backend="process")(_plus_one)
    _expect_equal(list((range(300) | one | other | one | other).results()), list(range(4, 304)))


def _snapshots(backend: Backend) -> None:
    def growing() -> Iterator[list[int]]:
        numbers: list[int] = []
        for number in range(50):
            numbers.append(number)
            yield numbers

    if not backend.remote:  # then the object itself is passed on
        return
    sums = growing() | map_stage(backend=backend)(_total)
    _expect_equal(list(sums.results()), [sum(range(count + 1)) for count in range(50)])


def _queue_sizes(backend: Backend) -> None:
    for qsize in (0, 1, 2, 7, None):
        one = map_stage(workers=2, qsize=qsize, backend=backend)(_plus_one)
        _expect_items((range(200) | one | one).results(), range(2, 202))


def _backpressure(backend: Backend) -> None:
    qsize, workers = 3, 2
    bound = 2 * (qsize + workers) + workers + 1  # both queues, and for remote workers one item each; the source's own
    produced = 0

    def source() -> Iterator[int]:
        nonlocal produced
        for number in range(200):
            produced += 1
            yield number

    results = (source() | map_stage(workers=workers, qsize=qsize, backend=backend)(_plus_one)).results()
    most = max(produced - delivered for delivered, _ in enumerate(results, start=1))
    _expect(most <= bound, f"{most} items of the source were read ahead of the consumer, more than {bound}")


def _stops_early(backend: Backend) -> None:
    def one_or_all(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            yield number
            if number == 400:
                return

    pipe = range(1000) | stage(workers=2, backend=backend)(one_or_all)
    _expect_items(pipe.results(), range(1000))


def _never_reads(backend: Backend) -> None:
    def greets(items: Iterable[int]) -> list[str]:
        return ["done"]

    _expect_equal(list((itertools.count() | stage(backend=backend)(greets)).results()), ["done"])


# -- graphs


def _is_odd(number: int) -> bool:
    return number % 2 == 1


def _negative(number: int) -> int:
    return -number


def _first_three(numbers: Iterable[int]) -> Iterator[int]:
    yield from itertools.islice(numbers, 3)


def _routes(backend: Backend) -> None:
    one = map_stage(workers=2, backend=backend)(_plus_one)
    here, thread = map_stage(backend=backend)(_negative), stage(backend="thread")(_same)
    pipe = range(2000) | one | route(_is_odd, {True: here, False: thread})
    _expect_items(pipe.results(), [-number if number % 2 else number for number in range(1, 2001)])


def _tees(backend: Backend) -> None:
    one = map_stage(workers=2, backend=backend)(_plus_one)
    # A thread and a process: where workers pass on objects, their results leave in two forms.
    branches = [stage(backend=reader)(_same) for reader in ("thread", backend, "process")]
    _expect_items((range(1000) | one | tee(*branches)).results(), [*range(1, 1001)] * 3)


def _one_outbox_closes(backend: Backend) -> None:
    same, stops = stage(backend=backend)(_same), stage(backend="thread")(_first_three)
    for qsize in (1, None):
        pipe = range(1000) | same.setup(qsize=qsize) | route(_is_odd, {True: same, False: stops})
        _expect_items(pipe.results(), [0, 2, 4, *range(1, 1000, 2)])


def _all_outboxes_close(backend: Backend) -> None:
    running: list[Results[int]] = []

    def until_it_has_stopped() -> Iterator[int]:
        _eventually(lambda: bool(running) and running[0].stats().stages[0].running == 0, "it goes on")
        yield -1

    stops = stage(backend="thread")(_first_three)
    endless = Stage(itertools.count).setup(backend=backend) | route(_is_odd, {True: stops, False: stops})
    running.append(merge(endless, until_it_has_stopped()).results())
    try:
        _expect_items(running[0], [0, 2, 4, 1, 3, 5, -1])
    finally:
        running.pop().close()


def _nothing_handed_on(backend: Backend) -> None:
    def endless(path: str) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            Path(path).touch()

    few = route(_is_below_five, {True: stage(backend="thread")(_same)}, default=DROP)
    with tempfile.TemporaryDirectory() as name:
        done = Path(name) / "done"
        with (Stage(endless, str(done)).setup(backend=backend) | few).results() as results:
            _expect_equal([next(results) for _ in range(5)], list(range(5)))
        _eventually(done.exists, "its `finally` block was not run")


def _is_below_five(number: int) -> bool:
    return number < 5


def _order_in_each_outbox(backend: Backend) -> None:
    keyed = stage(workers=3, key=lambda number: number % 10)(_same)
    for reader in (backend, "thread"):
        pipe = range(3000) | map_stage(backend=backend)(_plus_one) | keyed.setup(backend=reader)
        results = list(pipe.results())
        for key in range(10):
            _expect_equal([number for number in results if number % 10 == key], list(range(key or 10, 3001, 10)))


# -- failures


def _named_error(backend: Backend) -> None:
    def inverse(number: int) -> float:
        return 1 / (number - 3)

    error = _failure_of(range(10) | map_stage(backend=backend)(inverse))
    _expect_equal((error.stage, error.worker, error.item), ("inverse", "inverse-0", "3"))
    _expect(isinstance(error.__cause__, ZeroDivisionError), f"the cause is {error.__cause__!r}")
    _expect_equal(str(error), "The task \"inverse-0\" raised ZeroDivisionError('division by zero')")


def _steps(backend: Backend) -> None:
    def inverse(number: int) -> int:
        return 1 // (number - 3)

    one = map_stage(workers=2, backend=backend, fuse=True)(_plus_one)
    _expect_items((range(500) | one | one | one).results(), range(3, 503))
    error = _failure_of(range(10) | one | map_stage(workers=2, backend=backend, fuse=True)(inverse) | one)
    _expect_equal((error.stage, error.item), ("inverse", "3"))


def _any_exception(backend: Backend) -> None:
    for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, MemoryError):

        def fails(numbers: Iterable[int], kind: type[BaseException]) -> list[int]:
            raise kind("on purpose")

        error = _failure_of([1] | stage(backend=backend)(fails)(kind))
        _expect(type(error.__cause__) is kind, f"{kind.__name__} arrived as {error.__cause__!r}")


def _failure_releases_neighbours(backend: Backend) -> None:
    def fails(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            if number == 20:
                raise ValueError("on purpose")
            yield number

    same = stage(workers=2, qsize=1, backend=backend)(_same)
    for place in range(3):
        pipe: Any = itertools.count()
        for number in range(3):
            pipe = pipe | (stage(qsize=1, backend=backend)(fails) if number == place else same)
        _expect_equal(_failure_of(pipe).stage, "fails")


def _unpicklable_function(backend: Backend) -> None:
    if not backend.remote:
        return
    lock = threading.Lock()
    try:
        ([1] | map_stage(backend=backend)(lambda number: (lock, number))).results().close()
    except NotPicklable:
        return
    raise CheckFailed("no NotPicklable")


def _unpicklable_result(backend: Backend) -> None:
    if not backend.remote:
        return
    error = _failure_of([1] | map_stage(backend=backend)(lambda number: threading.Lock()))
    _expect(isinstance(error, ItemNotPicklable), f"{error!r} instead of an ItemNotPicklable")


def _start_fails(backend: Backend) -> None:
    for index in range(3):
        faulty = FaultyBackend(backend, Faults(fail_start=index))
        try:
            (range(10) | map_stage(workers=3, backend=faulty)(_plus_one)).results().close()
        except StartError:
            continue
        raise CheckFailed("no StartError")
    _expect_equal(list(([1] | map_stage(backend=backend)(_plus_one)).results()), [2])


# -- leaving


def _leaves_quickly(backend: Backend) -> None:
    results = (itertools.count() | map_stage(workers=2, backend=backend)(_plus_one)).results()
    next(results)
    started = time.monotonic()
    results.close()
    _expect(time.monotonic() - started < LEAVING_SECONDS, "close() took too long")
    _expect_equal(results.stats().state, "stopped")


def _leaves_waiting_workers(backend: Backend) -> None:
    release = threading.Event()

    def one_item() -> Iterator[int]:
        yield 1
        release.wait(STATE_SECONDS)

    results = (one_item() | stage(workers=2, backend=backend)(_same)).results()
    next(results)
    started = time.monotonic()
    results.close()
    took = time.monotonic() - started
    release.set()
    _expect(took < LEAVING_SECONDS, "close() took too long")


def _runs_finally_blocks(backend: Backend) -> None:
    with tempfile.TemporaryDirectory() as name:
        done = Path(name) / "done"

        def tidy(numbers: Iterable[int], path: str) -> Iterator[int]:
            try:
                yield from numbers
            finally:
                Path(path).touch()

        results = (itertools.count() | stage(backend=backend)(tidy)(str(done))).results()
        next(results)
        results.close()
        _eventually(done.exists, "the `finally` block of the stage was not run")


def _leaves_nothing(backend: Backend) -> None:
    def belongings() -> tuple[int, int]:
        descriptors = Path("/proc/self/fd")
        return threading.active_count(), len(list(descriptors.iterdir())) if descriptors.is_dir() else 0

    def runs() -> None:
        list((range(3) | map_stage(workers=2, backend=backend)(_plus_one)).results())
        with (itertools.count() | map_stage(backend=backend)(_plus_one)).results() as results:
            next(results)

    runs()  # what a backend starts once and keeps
    before = belongings()
    for _ in range(10):
        runs()
    _eventually(
        lambda: all(now <= then for now, then in zip(belongings(), before, strict=True)),
        f"threads and descriptors: {before} before, now {belongings()}",
    )


# -- pipelines as values


def _runs_again(backend: Backend) -> None:
    pipe = range(20) | map_stage(backend=backend)(_plus_one)
    _expect_equal([sorted(pipe.results()) for _ in range(3)], [list(range(1, 21))] * 3)


def _runs_at_once(backend: Backend) -> None:
    pipe = range(500) | map_stage(workers=2, backend=backend)(_plus_one)
    running = [pipe.results() for _ in range(5)]
    _expect_equal([sum(results) for results in running], [sum(range(501))] * 5)


def _runs_inside_itself(backend: Backend) -> None:
    def total(count: int) -> int:
        return sum((range(count) | map_stage(backend="thread")(_plus_one)).results())

    _expect_equal(sorted((range(1, 4) | map_stage(workers=2, backend=backend)(total)).results()), [1, 3, 6])


# -- the rules between a run and its workers


def _keeps_the_rules(backend: Backend) -> None:
    recorder = Recorder(backend)
    same = stage(workers=3, qsize=5, backend=recorder)(_same)
    results = list((range(500) | same | same).results())
    _expect_equal(recorder.broken, [])
    _expect_items(results, range(500))
    _stops_early(recorder)
    _expect_equal(recorder.broken, [])


def _late_starts(backend: Backend) -> None:
    _every_item_once(FaultyBackend(backend, Faults(at_start=0.1)))


def _late_results(backend: Backend) -> None:
    late = FaultyBackend(backend, Faults(before_put=0.002))
    one = map_stage(workers=2, qsize=3, backend=late, fuse=False)(_plus_one)
    _expect_items((range(100) | one | one).results(), range(2, 102))


def _late_ends(backend: Backend) -> None:
    late = FaultyBackend(backend, Faults(before_end=0.1))
    one = map_stage(workers=2, backend=late, fuse=False)(_plus_one)
    _expect_items((range(100) | one | one).results(), range(2, 102))


def _says_what_it_does(backend: Backend) -> None:
    source, worker = _stalled(backend, 0.2)
    if worker.doing is Doing.STARTING:  # which a busy machine may let take as long
        source, worker = _stalled(backend, 5.0)
    _expect_equal([source.worker, worker.worker], ["source-0", "_plus_one-0"])
    _expect(worker.doing in (Doing.READING, Doing.UNKNOWN), f"it says {worker.doing}")


def _stalled(backend: Backend, seconds: float) -> Sequence[WorkerState]:
    """What the workers say when their source gives nothing more."""
    release = threading.Event()

    def one_item() -> Iterator[int]:
        yield 1
        release.wait(STATE_SECONDS)

    try:
        list((one_item() | map_stage(backend=backend)(_plus_one)).results(stall_timeout=seconds))
    except Stalled as error:
        return error.workers
    finally:
        release.set()
    raise CheckFailed("no Stalled")


def _check(promise: str, function: Callable[[Backend], None]) -> Check:
    return Check(function.__name__.strip("_"), promise, function)


#: All checks; run them in your tests with `@pytest.mark.parametrize("check", CHECKS, ids=repr)`.
CHECKS: tuple[Check, ...] = (
    _check("every item comes out exactly once", _every_item_once),
    _check("one worker keeps the order", _one_worker_keeps_order),
    _check("there may be fewer items than workers, or none", _few_items),
    _check("any value is an item", _any_value),
    _check("items may be larger than any buffer", _large_items),
    _check("large items pass from stage to stage, wherever they are kept on the way", _large_items_between),
    _check("a stage may be the first, without input", _producer),
    _check("it works beside itself and threads, in any order", _neighbours),
    _check("it works beside processes", _beside_processes),
    _check("remote workers get items as they were when the source gave them", _snapshots),
    _check("every qsize works", _queue_sizes),
    _check("the source is not read further ahead than queues and workers allow", _backpressure),
    _check("what a worker that stops early has not read is read by the others", _stops_early),
    _check("a stage need not read its input", _never_reads),
    _check("each result goes to the outbox that its task's outlet names", _routes),
    _check("every branch of a tee gets every item", _tees),
    _check("an outbox where nobody reads any more keeps nothing from the others", _one_outbox_closes),
    _check("a worker stops when nobody reads at any of its outboxes", _all_outboxes_close),
    _check("a worker that hands on nothing any more stops when it is left", _nothing_handed_on),
    _check("the results of one worker stay in order in each outbox", _order_in_each_outbox),
    _check("an exception arrives with stage, worker, item and cause", _named_error),
    _check("a task may have several steps, and the one that fails is named", _steps),
    _check("any BaseException of a stage is an error", _any_exception),
    _check("a failure ends the stages before and behind it", _failure_releases_neighbours),
    _check("a function that cannot get there is a NotPicklable at the start", _unpicklable_function),
    _check("a result that cannot travel is an ItemNotPicklable", _unpicklable_result),
    _check("when a worker cannot be started, the others are stopped", _start_fails),
    _check("close() returns within two seconds", _leaves_quickly),
    _check("workers that wait for input stop when they are left", _leaves_waiting_workers),
    _check("`finally` blocks run when the results are left", _runs_finally_blocks),
    _check("runs leave no thread and no descriptor", _leaves_nothing),
    _check("a pipeline can be run again", _runs_again),
    _check("pipelines can run at the same time", _runs_at_once),
    _check("a pipeline can run inside a worker", _runs_inside_itself),
    _check("workers report once, put nothing after it, and account for every item", _keeps_the_rules),
    _check("workers may start late", _late_starts),
    _check("results may be late", _late_results),
    _check("the report of a worker's end may be late", _late_ends),
    _check("a run that stands still says who its workers are", _says_what_it_does),
)
