"""The systems that are compared: how each of them passes items through steps.

A runner gets a job, the items, how many they are, and an ExitStack for what must be closed; it gives the results one
by one. Peers are imported as they are needed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.pool import Pool, ThreadPool
from typing import Any, Literal, TypeAlias

import pipekit
from benchmarks.jobs import Job, Kind, Pace, Step

Items: TypeAlias = Iterable[Any]
Where: TypeAlias = Literal["thread", "process", "mixed"]
Runner: TypeAlias = Callable[[Job, Items, int, ExitStack], Iterable[Any]]


@dataclass(frozen=True)
class System:
    """One way to run a job.

    name: what it is called on the command line and in the tables.
    run: the runner.
    where: the kind of its workers; "mixed" lets each step say.
    package: what must be installed, by the name that pip knows, and the module.
    paces: of jobs where it needs fewer items than the fast ones.
    at_once: whether it reads all of its input before it gives a result; its time counts from the call.
    """

    name: str
    run: Runner
    where: Where | None = None
    package: str | None = None
    module: str | None = None
    paces: dict[str, Pace] = field(default_factory=dict)
    at_once: bool = False

    @property
    def installed(self) -> bool:
        return self.module is None or find_spec(self.module) is not None

    @property
    def is_peer(self) -> bool:
        return not self.name.startswith(("pipekit", "serial", "bare"))

    def size(self, name: str, job: Job) -> int:
        return job.sizes[self.paces.get(name, "fast")]


def _kind(step: Step, default: Kind) -> Kind:
    return step.on or default


def _stepwise(job: Job, items: Items, one: Callable[[Step, Items], Items]) -> Iterable[Any]:
    """Step after step, each on a pool of its own; a step that folds runs where the results are read."""
    for step in job.steps:
        items = step.function(items) if step.fold else one(step, items)
    return items


class Composed:
    """The steps as one function, as a user of a pool would write it by hand."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._functions = [step.function for step in steps]

    def __call__(self, item: Any) -> Any:
        for function in self._functions:
            item = function(item)
        return item


def _composed(job: Job) -> Job:
    return Job((Step(Composed(job.maps), job.steps[0].workers),), job.sizes, job.expected, chunk=job.chunk)


# pipekit and the floor


def _serial(job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    return _stepwise(job, items, lambda step, given: map(step.function, given))


def _bare(job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    """A process for each part of the items, which gives all its results at the end: nothing spreads better."""
    step, given = job.steps[0], list(items)
    context = multiprocessing.get_context("fork")
    readers = []
    for part in range(step.workers):
        reader, writer = context.Pipe(duplex=False)
        share = given[part :: step.workers]
        context.Process(target=_all_at_once, args=(step.function, share, writer), daemon=True).start()
        readers.append(reader)
    return [result for reader in readers for result in reader.recv()]


def _all_at_once(function: Callable[[Any], Any], items: Sequence[Any], writer: Connection) -> None:
    writer.send(list(map(function, items)))


for _module in ("pipekit._run", "pipekit._results", "pipekit.backends.process", "pipekit.backends.thread"):
    import_module(_module)  # as those of the peers: imports are not counted, but for what importing costs


def _pipekit(backend: Kind, fuse: bool, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    graph: Any = items
    for step in job.steps:
        decorate: Any = pipekit.stage if step.fold else pipekit.map_stage
        stage: Any = decorate(workers=step.workers, backend=_kind(step, backend))(step.function)
        if not fuse:
            stage.setup(fuse=False)
        graph = graph | stage
    return stack.enter_context(graph.results())


# The standard library's


def _pool(kind: Kind, step: Step, method: str | None, stack: ExitStack) -> Pool:
    if kind == "thread":
        return stack.enter_context(ThreadPool(step.workers))
    context: Any = multiprocessing.get_context(method)
    return stack.enter_context(context.Pool(step.workers))  # type: ignore[no-any-return]


def _pools(
    kind: Kind, tuned: bool, method: str | None, job: Job, items: Items, size: int, stack: ExitStack
) -> Iterable[Any]:
    # All are started first: a fork after the handler threads of the others have begun to work could copy a held lock.
    pools = iter([_pool(_kind(step, kind), step, method, stack) for step in job.maps])
    chunk = job.chunk if tuned else 1
    return _stepwise(job, items, lambda step, given: next(pools).imap_unordered(step.function, given, chunk))


def _composed_pool(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    return _pools(kind, True, None, _composed(job), items, size, stack)


def _executor(kind: Kind, step: Step, stack: ExitStack) -> Executor:
    made = ThreadPoolExecutor(step.workers) if kind == "thread" else ProcessPoolExecutor(step.workers)
    stack.callback(made.shutdown, cancel_futures=True)
    return made


def _executor_map(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    (step,) = _composed(job).steps
    return _executor(kind, step, stack).map(step.function, items, chunksize=job.chunk)


def _submit(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    def one(step: Step, given: Items) -> Items:
        executor = _executor(_kind(step, kind), step, stack)
        return _as_completed(lambda item: executor.submit(step.function, item), given, 4 * step.workers)

    return _stepwise(job, items, one)


def _as_completed(submit: Callable[[Any], Future[Any]], items: Items, window: int) -> Iterator[Any]:
    """A bounded window of futures, as one writes it by hand."""
    running: set[Future[Any]] = set()
    for item in items:
        running.add(submit(item))
        if len(running) >= window:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


# Peers


def _parallelpipe(job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    parallelpipe: Any = import_module("parallelpipe")

    graph: Any = items
    for step in job.steps:
        decorate = parallelpipe.stage if step.fold else parallelpipe.map_stage
        graph = graph | decorate(workers=step.workers)(step.function)
    return graph.results()  # type: ignore[no-any-return]


def _pypeln(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    pypeln: Any = import_module("pypeln")

    modules: dict[Kind, Any] = {"thread": pypeln.thread, "process": pypeln.process}
    return _stepwise(
        job, items, lambda step, given: modules[_kind(step, kind)].map(step.function, given, workers=step.workers)
    )


def _pyper(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    task: Any = import_module("pyper").task

    graph: Any = task(lambda: items, branch=True)
    for step in job.steps:
        many = {"join": True, "branch": True} if step.fold else {}
        processes = _kind(step, kind) == "process"
        graph = graph | task(step.function, workers=step.workers, multiprocess=processes, **many)
    return graph()  # type: ignore[no-any-return]


def _mpire(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    mpire: Any = import_module("mpire")

    (step,) = _composed(job).steps
    method = "threading" if kind == "thread" else "fork"
    pool = stack.enter_context(mpire.WorkerPool(step.workers, start_method=method))
    arguments = ((item,) for item in items)  # it would unpack an array
    chunk = job.chunk if job.chunk > 1 else None
    results: Items = pool.imap_unordered(step.function, arguments, iterable_len=size, chunk_size=chunk)
    return results


def _joblib(kind: Kind, job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    joblib: Any = import_module("joblib")

    (step,) = _composed(job).steps
    backend = "threading" if kind == "thread" else "loky"
    parallel = joblib.Parallel(n_jobs=step.workers, backend=backend, return_as="generator_unordered")
    call = joblib.delayed(step.function)
    return parallel(call(item) for item in items)  # type: ignore[no-any-return]


def _stagepipe(job: Job, items: Items, size: int, stack: ExitStack) -> Items:
    """Gives its results together, as a list: nothing can be read from it before."""
    stagepipe: Any = import_module("stagepipe")

    def adapted(function: Callable[[Any], Any]) -> Callable[[Any, int], Any]:
        return lambda item, index: function(item)

    stages = [
        stagepipe.Stage(f"{place}", adapted(step.function), workers=step.workers) for place, step in enumerate(job.maps)
    ]
    window = 4 * sum(step.workers for step in job.maps)
    results: Items = stagepipe.run(items, stages, max_in_flight=window) or []
    for step in job.steps:
        results = step.function(results) if step.fold else results
    return results


KINDS: tuple[Kind, ...] = ("thread", "process")

_MANY_ITEMS = ("overhead", "in_turn", "small_cpu", "medium_payload")
_MEDIUM: dict[str, Pace] = dict.fromkeys(_MANY_ITEMS, "medium")
_SLOW: dict[str, Pace] = dict.fromkeys(_MANY_ITEMS, "slow")


def _pipekit_systems() -> Iterator[System]:
    for kind in KINDS:
        yield System(f"pipekit-{kind}", partial(_pipekit, kind, True), kind)
    yield System("pipekit-process-unfused", partial(_pipekit, "process", False), "process")
    yield System("pipekit-mixed", partial(_pipekit, "process", True), "mixed")


def _pool_systems() -> Iterator[System]:
    for kind in KINDS:
        yield System(f"pool-{kind}", partial(_pools, kind, False, None), kind, paces=_MEDIUM)
        yield System(f"pool-{kind}-tuned", partial(_pools, kind, True, None), kind)
        yield System(f"pool-{kind}-composed", partial(_composed_pool, kind), kind)
    yield System("pool-forkserver", partial(_pools, "process", False, "forkserver"), "process")
    yield System("pool-mixed", partial(_pools, "process", False, None), "mixed", paces=_MEDIUM)


def _executor_systems() -> Iterator[System]:
    for kind in KINDS:
        yield System(f"submit-{kind}", partial(_submit, kind), kind, paces=_MEDIUM if kind == "thread" else _SLOW)
        paces = _MEDIUM if kind == "thread" else {}  # threads have no chunks
        yield System(f"executor-map-{kind}", partial(_executor_map, kind), kind, paces=paces, at_once=True)
    yield System("submit-mixed", partial(_submit, "process"), "mixed", paces=_SLOW)


def _peer_systems() -> Iterator[System]:
    yield System("parallelpipe-process", _parallelpipe, "process", "parallelpipe", "parallelpipe", _MEDIUM)
    yield System("parallelpipe-mixed", _parallelpipe, "mixed", "parallelpipe", "parallelpipe", _MEDIUM)
    for where, kind in (("thread", "thread"), ("process", "process"), ("mixed", "process")):
        pace = _MEDIUM if where == "thread" else _SLOW
        yield System(f"pypeln-{where}", partial(_pypeln, kind), where, "pypeln", "pypeln", pace)  # type: ignore[arg-type]
        yield System(f"pyper-{where}", partial(_pyper, kind), where, "python-pyper", "pyper", pace)  # type: ignore[arg-type]
    for kind in KINDS:
        yield System(f"mpire-{kind}", partial(_mpire, kind), kind, "mpire", "mpire", _MEDIUM)
        yield System(f"joblib-{kind}", partial(_joblib, kind), kind, "joblib", "joblib", _MEDIUM)
    yield System("stagepipe-thread", _stagepipe, "thread", "stagepipe", "stagepipe", _MEDIUM, at_once=True)


SYSTEMS = {
    system.name: system
    for system in (
        System("serial", _serial),
        System("bare", _bare, at_once=True),
        *_pipekit_systems(),
        *_pool_systems(),
        *_executor_systems(),
        *_peer_systems(),
    )
}
