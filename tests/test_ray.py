"""The Ray backend on a Ray of this machine: the contract, and what Ray does that a backend must know."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import eventually, run_program, workers_alive

from pipekit import (
    BackendUnavailable,
    Doing,
    ItemNotPicklable,
    OptionError,
    Stage,
    Stalled,
    StartError,
    TaskException,
    WorkerDied,
    map_stage,
    merge,
    route,
    stage,
    tee,
)
from pipekit.backends._actor import LEAST_APART, own_version
from pipekit.backends.ray import RayBackend
from pipekit.testing import CHECKS, Check

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "pipekit-parallel[ray]"')

#: Seconds until a dead worker is told, by promise.
TOLD = 3.0
#: Seconds after which nothing of a killed program is left, by promise.
ORPHANED = 5.0


def plus_one(number: int) -> int:
    return number + 1


@pytest.fixture(scope="module", autouse=True)
def _ray_started() -> Iterator[None]:
    """As in a program: the first run starts a Ray that lives as long as the program."""
    assert ([1] | map_stage(backend="ray")(plus_one)).execute() == 2
    yield
    ray.shutdown()


def same(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


@pytest.mark.parametrize("check", CHECKS, ids=repr)
def test_the_contract_is_kept(check: Check) -> None:
    check("ray")


# -- beside other backends


@pytest.mark.parametrize("order", list(itertools.permutations(["thread", "process", "ray"])), ids="/".join)
def test_stages_of_all_backends_in_any_order(order: tuple[str, ...]) -> None:
    pipe: Any = range(1000)
    for backend in order:
        pipe = pipe | map_stage(backend=backend, workers=2)(plus_one)
    assert sorted(pipe.results()) == list(range(3, 1003))


def test_graphs_across_backends() -> None:
    here, there = map_stage(backend="thread")(plus_one), map_stage(backend="ray")(plus_one)
    split = route(lambda number: number % 3, {0: here, 1: there, 2: map_stage(backend="process")(plus_one)})
    pipe = merge(range(300) | there, range(300)) | there | split | tee(there, here)
    expected = 2 * ([number + 4 for number in range(300)] + [number + 3 for number in range(300)])
    assert sorted(pipe.results()) == sorted(expected)


@pytest.mark.parametrize("size", [10, LEAST_APART, 3_000_000])
@pytest.mark.parametrize("reader", ["ray", "thread", "process"])
def test_arrays_arrive_writable(size: int, reader: str) -> None:
    def doubled(array: Any) -> Any:
        array *= 2  # raises where the array is read-only
        return array

    arrays = [np.full(size, value, dtype=np.uint8) for value in (1, 2, 3)]
    results = list((arrays | map_stage(backend="ray")(doubled) | map_stage(backend=reader)(doubled)).results())
    assert [(len(array), int(array[0]), int(array[-1])) for array in results] == [(size, n, n) for n in (4, 8, 12)]
    assert all(array.flags.writeable for array in results)


def test_what_a_worker_has_not_read_of_frames_in_rays_store_is_for_the_others() -> None:
    def two_or_all(items: Iterable[bytes]) -> Iterator[int]:
        for item in items:
            yield item[0]
            if item[0] == 20:
                return

    pages = Stage(large_items, 60).setup(backend="ray") | stage(backend="ray", workers=2)(two_or_all)
    assert sorted(pages.results()) == list(range(60))


def large_items(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number]) * (LEAST_APART // 8)  # several in a frame


# -- failures


def test_a_killed_actor_is_told_with_its_node_and_items() -> None:
    def dies(number: int) -> int:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    pipe = range(10) | map_stage(backend="ray", qsize=1)(dies)
    with pytest.raises(WorkerDied, match=r'The worker "dies-0" died: its process \d+ on the node .* ended') as caught:
        list(pipe.results())
    failure = caught.value.failure
    assert failure.item is not None
    assert "3" in failure.item.split(", ")
    assert failure.node == ray.util.get_node_ip_address()
    assert "Worker exit type" in str(caught.value.__cause__)  # what Ray knows
    assert list(([1] | map_stage(backend="ray")(plus_one)).results()) == [2]  # and Ray is as it was


@pytest.mark.parametrize("busy", [False, True])
def test_a_kill_from_outside_is_told_in_time(busy: bool) -> None:
    def waits(items: Iterable[int]) -> Iterator[int]:
        yield os.getpid()
        while busy:
            pass
        yield from items

    with (Stage(itertools.count).setup(backend="ray") | stage(backend="ray")(waits)).results() as results:
        os.kill(next(results), signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(WorkerDied):
            for _ in results:
                pass
        assert time.monotonic() - killed < TOLD


def test_results_that_were_handed_on_before_a_death_are_delivered() -> None:
    """A dead actor's error is the last item of its generator: it must not pass for the end."""

    def gives_and_dies(items: Iterable[int]) -> Iterator[int]:
        for number in items:
            yield number
            if number == 50:
                time.sleep(0.5)  # what was finished goes on its way
                os._exit(0)

    delivered = []
    with pytest.raises(WorkerDied):
        for number in (range(1000) | stage(backend="ray")(gives_and_dies)).results():
            delivered.append(number)
    assert delivered[:51] == list(range(51))
    assert len(delivered) < 1000


class NeedsTwo(Exception):
    """Pickles, and fails when it is unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def test_an_exception_that_does_not_unpickle_keeps_its_type_and_text() -> None:
    def fails(number: int) -> int:
        raise NeedsTwo("this", "that")

    with pytest.raises(TaskException, match="NeedsTwo.*this and that") as caught:
        list(([1] | map_stage(backend="ray")(fails)).results())
    assert caught.value.failure.type_name == "NeedsTwo"
    assert "in fails" in str(caught.value.__cause__)


def test_an_error_has_its_type_traceback_stage_worker_and_node() -> None:
    def inverse(number: int) -> float:
        return 1 / number

    with pytest.raises(TaskException, match='The task "inverse-0" raised ZeroDivisionError') as caught:
        list(([0] | map_stage(backend="ray")(inverse)).results())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "return 1 / number" in str(caught.value.__cause__.__cause__)
    assert any(ray.util.get_node_ip_address() in note for note in caught.value.__notes__)


def test_an_error_without_an_item_names_its_node_too() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise OSError("on purpose")

    with pytest.raises(TaskException) as caught:
        list(Stage(fails).setup(backend="ray").results())
    assert any(ray.util.get_node_ip_address() in note for note in caught.value.__notes__)


def test_an_item_that_cannot_be_unpickled_in_the_actor_is_named() -> None:
    class Fails:
        def __reduce__(self) -> Any:
            return fails_to_load, ()

    with pytest.raises(ItemNotPicklable, match="could not unpickle"):
        list(([Fails()] | stage(backend="ray")(same)).results())


def fails_to_load() -> None:
    raise ValueError("on purpose")


# -- what Ray does with calls


def test_large_and_small_items_keep_their_order_before_the_end() -> None:
    items = [bytes([number % 250]) * (3_000_000 if number % 5 == 0 else 10) for number in range(60)]
    for _ in range(3):
        pipe = items | stage(backend="ray", qsize=4)(same) | stage(backend="ray")(same)
        assert list(pipe.results()) == items


def test_a_worker_that_does_not_read_holds_up_its_source() -> None:
    """Calls to an actor that wait are bounded: not by `max_pending_calls`, which raises."""
    read = 0

    def source() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    def holds(items: Iterable[int]) -> Iterator[int]:
        yield next(iter(items))
        while True:
            time.sleep(0.01)

    with (source() | stage(backend="ray", qsize=5)(holds)).results() as results:
        next(results)
        before = -1
        while before != read:
            before = read
            time.sleep(0.5)
        assert read <= 5 + 1 + 1 + 1 + 1  # the queue, the worker and what it has ahead, the source's own


def test_logs_arrive(caplog: pytest.LogCaptureFixture) -> None:
    def logs(number: int) -> int:
        logging.getLogger("mine").warning("item %d", number)
        return number

    with caplog.at_level("WARNING"):
        assert list(([7] | map_stage(backend="ray")(logs)).results()) == [7]
    (record,) = [record for record in caplog.records if record.name == "mine"]
    assert (record.getMessage(), vars(record)["stage"], vars(record)["worker"]) == ("item 7", "logs", "logs-0")


def test_a_worker_that_stands_still_says_where() -> None:
    def sleeps(number: int) -> int:
        time.sleep(100)
        return number

    with pytest.raises(Stalled) as caught:
        list(([1] | map_stage(backend="ray")(sleeps)).results(stall_timeout=1.5))
    state = caught.value.workers[-1]
    assert (state.doing, state.item) == (Doing.WORKING, "1")
    assert "time.sleep(100)" in state.traceback


def test_leaving_kills_a_worker_in_a_call_without_end() -> None:
    def computes(number: int) -> int:
        while number:
            pass
        return number

    results = (range(10) | map_stage(backend="ray", qsize=1)(computes)).results()
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 2
    assert workers_alive() == []


# -- where Ray is not, or has no room


def test_a_worker_that_cannot_be_placed_is_a_start_error() -> None:
    there_is_none = RayBackend(resources={"unobtainium": 1}, start_timeout=0.5)
    with pytest.raises(StartError, match=r"not placed 2 of 2 workers within 0.5 s: each needs .*'unobtainium': 1"):
        list((range(3) | map_stage(workers=2, backend=there_is_none)(plus_one)).results())


def test_a_node_with_another_pipekit_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipekit.backends.ray.own_version", lambda: "0.0.1")
    with pytest.raises(StartError, match=r"pipekit .* is on this node, 0.0.1 on the driver's"):
        ([1] | map_stage(backend="ray")(plus_one)).results()


def test_one_worker_that_cannot_begin_ends_the_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = itertools.chain([own_version()], itertools.repeat("0.0.1"))
    monkeypatch.setattr("pipekit.backends.ray.own_version", lambda: next(versions))
    started = time.monotonic()
    with pytest.raises(StartError, match=r"0.0.1 on the driver's"):
        ([1] | map_stage(backend="ray", workers=2)(plus_one)).results()
    assert time.monotonic() - started < RayBackend().start_timeout / 2


def test_options_that_ray_does_not_take_are_errors_when_the_pipeline_is_compiled() -> None:
    with pytest.raises(OptionError, match="Ray does not take the options"):
        ([1] | map_stage(backend=RayBackend(scheduling_strategy=5))(plus_one)).plan()


def test_a_call_that_does_not_reach_the_actor_ends_the_run() -> None:
    """Its messages are lost, and those behind them would wait for them."""

    class FailsToArrive:
        def __reduce__(self) -> Any:
            return fails_to_load, ()

    pipe = itertools.count() | stage(backend="ray")(same)
    with pipe.results() as results:
        next(results)
        worker = results_workers(results)[0]
        worker._watch(worker._hear.remote(-1, FailsToArrive()))  # as Ray would fail to bring it
        with pytest.raises(WorkerDied, match="the connection with it"):
            for _ in results:
                pass


def test_items_that_do_not_get_into_rays_store_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(_: object) -> Any:
        raise ray.exceptions.OutOfDiskError()

    monkeypatch.setattr(ray, "put", put)
    with pytest.raises(WorkerDied, match="the connection with it") as caught:
        list(([bytes(LEAST_APART)] | map_stage(backend="ray")(len)).results())
    assert "disk" in str(caught.value.__cause__)


def test_a_worker_that_ray_ends_for_want_of_memory_is_told_as_that() -> None:
    ran = run_program(
        """
        import itertools, os, time
        import psutil

        memory = psutil.virtual_memory()
        os.environ["RAY_memory_usage_threshold"] = str((memory.total - memory.available + (1 << 30)) / memory.total)
        os.environ["RAY_memory_monitor_refresh_ms"] = "100"
        from pipekit import WorkerDied, map_stage

        def grows(number):
            if number:
                kept = bytearray(os.urandom(1 << 20)) * 2048
                time.sleep(100)
            return number

        try:
            for result in (itertools.count() | map_stage(backend="ray")(grows)).results():
                print(result)
        except WorkerDied as error:
            print(error)
        """
    )
    told = r'0\nThe worker "grows-0" died: Ray has ended its process \d+: its node \S+ was short of memory'
    assert re.match(told, ran.stdout), ran.stdout + ran.stderr


def results_workers(results: Any) -> list[Any]:
    return [worker for worker in results._run._workers if hasattr(worker, "_hear")]


def test_pipelines_inside_workers_find_room_on_a_ray_of_the_programs_own() -> None:
    def total(count: int) -> int:
        return sum((range(count) | map_stage(backend="ray", workers=3)(plus_one)).results())

    assert list(([4] | map_stage(backend="ray")(total)).results()) == [10]


def test_a_program_uses_one_cluster() -> None:
    with pytest.raises(BackendUnavailable, match="is connected to"):
        ([1] | map_stage(backend=RayBackend(address="10.1.2.3:6379"))(plus_one)).plan()


def test_the_users_environment_is_as_it_was() -> None:
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


# -- programs of their own

PROGRAM = """
import itertools, os
from pipekit import stage

def busy(items):
    for item in items:
        yield os.getpid()
        while True:
            pass

with (itertools.count() | stage(backend="ray", workers=2, qsize=1)(busy)).results() as results:
    try:
        print("workers", next(results), next(results), flush=True)
        next(results)
    finally:
        print("leaving", flush=True)
"""


@pytest.fixture
def program() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A program in a session of its own whose two workers are busy, and all its processes."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("workers ")
        processes = psutil.Process(running.pid).children(recursive=True)
        try:
            yield running, processes
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)


def test_ctrl_c(program: tuple[subprocess.Popen[str], list[psutil.Process]]) -> None:
    running, processes = program
    os.killpg(running.pid, signal.SIGINT)
    stdout, stderr = running.communicate(timeout=30)
    assert running.returncode != 0  # where Ray is connected Python ends with 1, else by the signal
    assert stdout == "leaving\n"
    assert stderr.count("Traceback") == 1
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    processes = without_agents(processes)
    eventually(lambda: not alive(processes), lambda: f"left: {alive(processes)}", seconds=ORPHANED)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_program_leaves_no_actor_and_no_ray(
    program: tuple[subprocess.Popen[str], list[psutil.Process]], how: signal.Signals
) -> None:
    running, processes = program
    processes = without_agents(processes)
    running.send_signal(how)
    running.wait()
    eventually(lambda: not alive(processes), lambda: f"left: {alive(processes)}", seconds=ORPHANED)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and not is_zombie(each)]


def without_agents(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Without Ray's own agents, which may take a minute to notice that the others have gone."""
    return [each for each in processes if name_of(each) not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "gone"


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_program_that_ends_stops_the_ray_that_it_started() -> None:
    ran = run_program(
        """
        import psutil
        from pipekit import map_stage
        print((range(3) | map_stage(backend="ray")(lambda number: number + 1)).execute())
        print(*[process.pid for process in psutil.Process().children(recursive=True)])
        """
    )
    assert ran.stderr == ""
    result, pids = ran.stdout.splitlines()
    assert result == "3"
    assert pids
    left = without_agents([psutil.Process(int(pid)) for pid in pids.split() if psutil.pid_exists(int(pid))])
    eventually(lambda: not alive(left), lambda: f"left: {alive(left)}", seconds=ORPHANED)


def test_a_ray_that_is_shut_down_under_a_run_is_an_error_and_no_other_is_started() -> None:
    """Where nothing moves at that moment: a call of Ray that is under way then may end the program, in Ray's code."""
    ran = run_program(
        """
        import time
        import ray
        from pipekit import WorkerDied, stage

        @stage(backend="ray")
        def one_and_waits(items):
            yield from items
            time.sleep(100)

        with ([1] | one_and_waits).results() as results:
            next(results)
            ray.shutdown()
            try:
                next(results)
            except WorkerDied as error:
                print("Ray was shut down while the pipeline ran" in str(error), ray.is_initialized())
        print(list(([1] | stage(backend="ray")(iter)).results()))
        """
    )
    assert ran.stdout == "True False\n[1]\n", ran.stderr


def test_a_ray_without_the_hook_that_starts_another_is_used_all_the_same() -> None:
    ran = run_program(
        """
        import sys, types
        import ray
        sys.modules["ray._private.auto_init_hook"] = ray._private.auto_init_hook = types.ModuleType("of a later Ray")
        from pipekit import map_stage
        print(list(([-1] | map_stage(backend="ray")(abs)).results()))
        """
    )
    assert ran.stdout == "[1]\n", ran.stderr


def test_a_program_that_ends_in_the_middle_of_a_run_says_nothing() -> None:
    ran = run_program(
        """
        import itertools
        from pipekit import map_stage
        results = (itertools.count() | map_stage(backend="ray")(abs)).results()
        print(next(results))
        """
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "0\n", "")


def test_a_user_who_has_set_nothing_needs_to_set_nothing(tmp_path: Path) -> None:
    code = """
        from pipekit import map_stage
        print(list(([1] | map_stage(backend="ray")(abs)).results()))
        """
    ran = run_program(code, RAY_AUTH_MODE=None, RAY_USAGE_STATS_ENABLED=None, HOME=str(tmp_path))
    assert (ran.stdout, ran.stderr) == ("[1]\n", "")


def test_what_a_worker_prints_is_with_ray_when_the_run_ends() -> None:
    """In the file from which Ray shows it in the program, somewhat later: an actor's end loses nothing of it."""

    def says(number: int) -> str:
        print("said", number)
        return os.readlink("/proc/self/fd/1")

    path = (range(10) | map_stage(backend="ray")(says)).execute()
    assert path is not None
    assert [line for line in Path(path).read_text().splitlines() if "said" in line] == [f"said {n}" for n in range(10)]


def test_modules_beside_the_program_are_found_by_its_workers(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def double(number):\n    return 2 * number\n")
    ran = run_program(
        f"""
        import sys
        from pipekit import map_stage
        print(([1] | map_stage(backend="ray")(abs)).execute())  # Ray is there before the path is set
        sys.path.insert(0, {str(tmp_path)!r})
        from beside import double
        print(([4] | map_stage(backend="ray")(double)).execute())
        """
    )
    assert ran.stdout == "1\n8\n", ran.stderr


PIPES: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
IS_UNAVAILABLE = """
    from pipekit import BackendUnavailable, RayBackend, map_stage
    try:
        ([1] | map_stage(backend=RayBackend(address={!r}))(abs)).plan()
    except BackendUnavailable as error:
        print(error)
    """


def test_an_address_that_nobody_answers_at_is_told_when_the_pipeline_is_compiled() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))  # and does not listen
        ran = run_program(IS_UNAVAILABLE.format(f"127.0.0.2:{taken.getsockname()[1]}"))
    assert "nobody answers at 127.0.0.2" in ran.stdout, ran.stderr
    assert "ray status" in ran.stdout


def test_something_else_that_answers_there_is_told_from_a_cluster() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.2", 0))
        listening.listen()
        address = f"127.0.0.2:{listening.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(IS_UNAVAILABLE.format(address))], **PIPES
        ) as program:
            connection, _ = listening.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()
            stdout, stderr = program.communicate(timeout=50)
    assert f"what answers at {address} is no Ray cluster" in stdout, stderr


def test_an_address_that_stays_silent_is_told_in_seconds() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.2", 0))
        listening.listen()
        ran = run_program(IS_UNAVAILABLE.format(f"127.0.0.2:{listening.getsockname()[1]}"))
    assert "nobody answers at 127.0.0.2" in ran.stdout, ran.stderr


def test_for_127_0_0_1_ray_takes_the_machines_own_address() -> None:
    own = ray.util.get_node_ip_address()
    if own == "127.0.0.1":
        pytest.skip("this machine has no other address")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ran = run_program(IS_UNAVAILABLE.format(f"127.0.0.1:{listening.getsockname()[1]}"))
    assert f"nobody answers at {own}" in ran.stdout, ran.stderr


def test_where_no_cluster_runs_auto_is_unavailable(tmp_path: Path) -> None:
    ran = run_program(IS_UNAVAILABLE.format("auto"), RAY_ADDRESS=None, RAY_TMPDIR=str(tmp_path))
    assert "no cluster that answers was started on this machine" in ran.stdout, ran.stderr


def test_an_address_from_the_environment_is_used() -> None:
    ran = run_program(IS_UNAVAILABLE.format(None), RAY_ADDRESS="127.0.0.2:9")
    assert "nobody answers at 127.0.0.2:9" in ran.stdout, ran.stderr


def test_a_plan_starts_no_ray() -> None:
    ran = run_program(
        """
        import psutil
        from pipekit import map_stage
        print(([1] | map_stage(backend="ray")(abs)).explain())
        print(len(psutil.Process().children()))
        """
    )
    assert ran.stdout.splitlines()[-1] == "0", ran.stderr
