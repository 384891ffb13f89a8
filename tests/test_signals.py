"""Programs of their own, in sessions of their own: however they end, they end as programs do, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

import psutil
import pytest
from conftest import eventually

from pipekit import map_stage
from pipekit._signals import uninterrupted
from pipekit.backends import _launch

Situation: TypeAlias = Literal["idle", "compute", "full"]

#: Seconds that leaving may take, by promise; the interpreter ends after it, on a machine that may be busy.
PROMISED = 2.0
SLACK = 3.0
#: Less than the workers' time for `finally` blocks and the wait for threads together; most of it is the machine's. In
#: development mode an interpreter takes longer to end (1.8 s on a machine with four programs for each core).
AT_ONCE = 1.9 if sys.flags.dev_mode else 1.4
#: Seconds after which the workers of a killed program are gone, by promise.
ORPHANED = 5.0

#: Two processes, a thread, two processes; each says who it is once it is in the situation. What is said goes out in
#: one piece, since several processes speak.
PROGRAM = """
import itertools, os, signal, sys, threading, time
from pipekit import ProcessBackend, Stage, TaskException, map_stage

def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")

def loop():
    while True:
        pass

def work(items, busy_after=None, busy=None):
    '''Pass items on; be busy for ever after so many of them.'''
    if busy_after is None:
        say("worker", os.getpid())
    try:
        for number, item in enumerate(items):
            if number == busy_after:
                say("worker", os.getpid())
                busy()
            yield item
            if number + 1 == busy_after:
                say("worker", os.getpid())
                busy()
    finally:
        time.sleep(tidying)

def silent_after_one():
    yield 0
    threading.Event().wait()

def pipeline(situation, method):
    source = silent_after_one() if situation == "idle" else itertools.count()
    busy = [(1, sleep), (2, loop), (0, loop)] if situation == "compute" else [()] * 3
    options = [{"workers": 2, "backend": ProcessBackend(method)}, {"backend": "thread"}]
    for arguments, given in zip(busy, [*options, options[0]]):
        source |= Stage(work, *arguments).setup(qsize=1 if situation == "full" else None, **given)
    return source

def sleep():
    time.sleep(600)

def wait_until_full(results):
    '''Nothing moves any more, and the last queue, from which nobody reads, has something in it.'''
    last, since = results.stats(), time.monotonic()
    while not last.stages[-1].waiting or time.monotonic() - since < 0.1:
        now = results.stats()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.005)

def read(results, situation):
    '''Read until the situation is there, then say so and stay in it.'''
    for _ in results:
        if situation == "full":
            wait_until_full(results)
        say("consumer", os.getpid())
        if situation == "full":
            time.sleep(600)

def say_when_stopping(results):
    while results.stats().state == "running":
        time.sleep(0.002)
    say("stopping")

endless = Stage(itertools.count) | map_stage(workers=2)(lambda n: n) | map_stage(backend="thread")(lambda n: n)
situation, method = sys.argv[1:] or ("idle", "forkserver")
tidying = 0
"""


class Program:
    """A running program; what it said, and who belongs to it."""

    def __init__(self, popen: subprocess.Popen[str], directory: Path) -> None:
        self.popen = popen
        self.directory = directory
        self.pid = popen.pid

    def says(self, *words: str) -> list[str]:
        """Wait for a line that begins with each of these words, in any order; gives the lines."""
        assert self.popen.stdout is not None
        lines = [self.popen.stdout.readline().strip() for _ in words]
        if sorted(line.split(" ")[0] for line in lines) != sorted(words):
            self.kill()
            raise AssertionError(f"said {lines} and then {self.popen.communicate(timeout=30)}")
        return lines

    def kill(self) -> None:
        for process in _in_session(self.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def ends(self, within: float) -> tuple[int, str, str]:
        """Its status, and what it said and printed since; nothing of it is left."""
        began = time.monotonic()
        status = self.popen.wait(30)
        took = time.monotonic() - began
        assert took < within, f"it took {took:.1f} s"
        eventually(lambda: _alive(self.pid) == [], lambda: f"left: {_alive(self.pid)}", ORPHANED)
        out, err = self.popen.communicate(timeout=30)
        return status, out, err


@contextmanager
def program(body: str, *arguments: str) -> Iterator[Program]:
    """Start one in a session of its own, with a directory of its own for temporary files."""
    with tempfile.TemporaryDirectory() as directory:
        popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM + textwrap.dedent(body), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": directory},
        )
        with popen:
            running = Program(popen, Path(directory))
            try:
                yield running
            finally:
                running.kill()


def _in_session(leader: int) -> list[psutil.Process]:
    """All processes of a session: also those whose parent has died, also the helpers of multiprocessing."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader:
                found.append(psutil.Process(pid))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _alive(leader: int) -> list[str]:
    alive = []
    for process in _in_session(leader):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(f"{process.pid} {' '.join(process.cmdline())[:60]}")
        except psutil.NoSuchProcess:
            continue
    return alive


def _is_one_interrupt(err: str) -> bool:
    """Whether this is one traceback of a KeyboardInterrupt, and nothing else."""
    first, *lines, last = err.splitlines() or ["", ""]
    return (
        first == "Traceback (most recent call last):"
        and all(line.startswith("  ") for line in lines)
        and last == "KeyboardInterrupt"
    )


READ = "read(pipeline(situation, method).results(), situation)"
SITUATIONS: list[Situation] = ["idle", "compute", "full"]
#: The cases with the default start method.
DEFAULT = [f"{situation}-forkserver" for situation in SITUATIONS]
#: What a program says before it is in its situation.
SAID = {situation: ["worker"] * 5 + ["consumer"] * (situation != "compute") for situation in SITUATIONS}


def _cases(*normally: str) -> list[object]:
    """Each situation with each start method; the normal suite has those named here."""
    return [
        pytest.param(situation, method, id=case, marks=() if case in normally else pytest.mark.nightly)
        for situation in SITUATIONS
        for method in ["forkserver", "spawn", "fork"]
        for case in [f"{situation}-{method}"]
    ]


@pytest.mark.parametrize(("situation", "method"), _cases(*DEFAULT, "full-spawn"))
def test_ctrl_c_in_a_terminal_ends_a_program_with_one_traceback(situation: Situation, method: str) -> None:
    with program(READ, situation, method) as running:
        running.says(*SAID[situation])
        os.killpg(running.pid, signal.SIGINT)
        status, out, err = running.ends(within=PROMISED + SLACK)
        assert (status, out) == (-signal.SIGINT, "")
        assert _is_one_interrupt(err), err
        assert os.listdir(running.directory) == []


@pytest.mark.parametrize(("situation", "method"), _cases("idle-forkserver", "full-forkserver"))
def test_an_interrupt_of_the_main_process_alone_ends_all_of_them(situation: Situation, method: str) -> None:
    with program(READ, situation, method) as running:
        running.says(*SAID[situation])
        os.kill(running.pid, signal.SIGINT)
        status, out, err = running.ends(within=PROMISED + SLACK)
        assert (status, out) == (-signal.SIGINT, "")
        assert _is_one_interrupt(err), err
        assert os.listdir(running.directory) == []


ELSEWHERE = """
def interrupt(main):
    while sys._current_frames()[main].f_code.co_name not in ("nap", "sleep"):
        time.sleep(0.002)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

pipe = silent_after_one() | Stage(work).setup(backend="thread")
results = pipe.results(stall_timeout=LIMIT)
next(results)
threading.Thread(target=interrupt, args=(threading.get_ident(),)).start()
next(results)
"""


@pytest.mark.parametrize("stall_timeout", ["None", "600"])
def test_an_interrupt_that_another_thread_gets_ends_the_wait_of_the_main_thread(stall_timeout: str) -> None:
    """The system may give it to any thread, and the main thread may get it just before it begins to wait."""
    with program(ELSEWHERE.replace("LIMIT", stall_timeout)) as running:
        running.says("worker")
        status, out, err = running.ends(within=PROMISED + SLACK)
        assert (status, out) == (-signal.SIGINT, "")
        assert _is_one_interrupt(err), err


WHILE_IT_STARTS = """
import pathlib, psutil

def run():
    ([1] | map_stage(backend=ProcessBackend(method))(abs)).execute()

def interrupt():
    until = time.monotonic() + 5  # where the system does not tell
    while "pipe" not in waits_in.read_text() and time.monotonic() < until:
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    server.resume()

run()
server, = (child for child in psutil.Process().children() if "multiprocessing.forkserver" in " ".join(child.cmdline()))
server.suspend()  # so the main thread waits for it to make the worker
waits_in = pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/wchan")
threading.Thread(target=interrupt).start()
run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells in which call a thread waits")
def test_an_interrupt_that_another_thread_gets_while_a_worker_starts_ends_the_start() -> None:
    with program(WHILE_IT_STARTS) as running:
        status, out, err = running.ends(within=10)
        assert (status, out) == (-signal.SIGINT, "")
        assert _is_one_interrupt(err), err


class Handled(BaseException):
    """What a handler raises."""


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal whose handler raises Handled."""

    def handle(*_: object) -> None:
        raise Handled

    before = signal.signal(request.param, handle)
    yield request.param
    signal.signal(request.param, before)


def signal_by_another_thread(number: signal.Signals) -> None:
    def send() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})  # a thread has the mask of the one that starts it
        signal.pthread_kill(threading.get_ident(), number)

    other = threading.Thread(target=send, name="other")
    other.start()
    other.join()


def test_a_handler_waits_for_the_end_of_a_step(number: signal.Signals) -> None:
    happened = []
    with pytest.raises(Handled), uninterrupted():
        signal_by_another_thread(number)
        happened.append("done")
    assert happened == ["done"]
    with pytest.raises(Handled):  # it is there again
        signal.raise_signal(number)


def test_a_handler_waits_for_the_end_of_the_outer_of_two_steps(number: signal.Signals) -> None:
    happened = []
    with pytest.raises(Handled), uninterrupted():
        with uninterrupted():
            signal_by_another_thread(number)
        happened.append("done")
    assert happened == ["done"]


def test_a_handler_that_raises_when_a_step_ends_does_not_disable_another(number: signal.Signals) -> None:
    other = signal.SIGTERM if number == signal.SIGINT else signal.SIGINT
    handled: list[int] = []
    before = signal.signal(other, lambda number, _: handled.append(number))
    try:
        with pytest.raises(Handled), uninterrupted():
            signal_by_another_thread(number)
            signal_by_another_thread(other)
        assert handled == [other]
        signal.raise_signal(other)
        assert handled == [other, other]
    finally:
        signal.signal(other, before)


def test_a_handler_may_replace_another_when_a_step_ends() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
        signal.signal(signal.SIGTERM, lambda *_: None)
        with uninterrupted():
            signal_by_another_thread(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_no_handler_runs_in_the_middle_of_the_start_of_a_worker(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, happened = _launch._start, []

    def interrupted_start(process: object) -> None:
        signal_by_another_thread(number)
        start(process)
        happened.append("started")

    monkeypatch.setattr(_launch, "_start", interrupted_start)
    with pytest.raises(Handled):
        ([1] | map_stage(backend="process")(str)).execute()
    assert happened == ["started"]


def test_no_handler_runs_in_the_middle_of_the_start_of_threads(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, happened = threading.Thread.start, []

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("str-"):
            signal_by_another_thread(number)
            happened.append("started")

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(Handled):
        ([1] | map_stage(backend="thread", workers=3)(str)).execute()
    assert happened == ["started"] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_forked_in_the_middle_of_a_step_has_the_programs_handler() -> None:
    body = """
        from pipekit._signals import uninterrupted

        signal.signal(signal.SIGTERM, lambda *_: say("handled"))
        with uninterrupted():
            if child := os.fork():
                os.waitpid(child, 0)
            else:
                signal.raise_signal(signal.SIGTERM)
                os._exit(0)
        """
    with program(body) as running:
        assert running.ends(within=10) == (0, "handled\n", "")


TWICE = """
tidying = 600
results = pipeline(situation, method).results()
threading.Thread(target=say_when_stopping, args=(results,), daemon=True).start()
read(results, situation)
"""
#: A second KeyboardInterrupt may meet the handling of the first, or the exit that comes of it.
TWO_INTERRUPTS = ["Traceback", "KeyboardInterrupt", "During handling", "Exception ignored in atexit callback"]


@pytest.mark.parametrize(("situation", "method"), _cases(*DEFAULT))
def test_ctrl_c_again_ends_a_program_that_is_ending(situation: Situation, method: str) -> None:
    with program(TWICE, situation, method) as running:
        running.says(*SAID[situation])
        os.killpg(running.pid, signal.SIGINT)
        running.says("stopping")
        os.killpg(running.pid, signal.SIGINT)
        status, out, err = running.ends(within=AT_ONCE)
        assert (status, out) == (-signal.SIGINT, "")
        said = [line for line in err.splitlines() if line and not line.startswith("  ")]
        assert [line for line in said if not line.startswith(tuple(TWO_INTERRUPTS))] == []
        assert err.count("Traceback") == 2
        assert os.listdir(running.directory) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("situation", "method"), _cases(*DEFAULT, "full-fork"))
def test_workers_do_not_outlive_a_parent_that_is_killed(
    situation: Situation, method: str, number: signal.Signals
) -> None:
    with program(READ, situation, method) as running:
        running.says(*SAID[situation])
        os.kill(running.pid, number)
        assert running.ends(within=AT_ONCE) == (-number, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell a process that its parent has died")
@pytest.mark.parametrize("stuck", ["ctypes.PyDLL(None).sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_workers_that_cannot_notice_it_do_not_outlive_a_parent_that_is_killed(stuck: str) -> None:
    """One keeps the GIL in native code, one is stopped."""
    body = f"""
        import ctypes

        def get_stuck(_):
            say("worker", os.getpid())
            {stuck}

        ([1] | map_stage(get_stuck)).execute()
        """
    with program(body) as running:
        running.says("worker")
        os.kill(running.pid, signal.SIGKILL)
        assert running.ends(within=AT_ONCE) == (-signal.SIGKILL, "", "")


def test_ctrl_c_reaches_the_programs_that_a_stage_has_started() -> None:
    body = """
        import subprocess

        def convert(_):
            with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as started:
                say("started", started.pid)

        ([1] | map_stage(convert)).execute()
        """
    with program(body) as running:
        running.says("started")
        os.killpg(running.pid, signal.SIGINT)
        assert running.ends(within=PROMISED + SLACK)[0] == -signal.SIGINT


@pytest.mark.parametrize(("situation", "method"), _cases("compute-forkserver", "full-forkserver"))
def test_a_program_that_catches_ctrl_c_goes_on_with_another_pipeline(situation: Situation, method: str) -> None:
    body = """
        results = pipeline(situation, method).results()
        try:
            read(results, situation)
        except KeyboardInterrupt:
            results.close()
        assert results.stats().state == "stopped"
        double = map_stage(workers=2, backend=ProcessBackend(method))(lambda number: 2 * number)
        say("sum", sum((range(10) | double).results()))
        """
    with program(body, situation, method) as running:
        running.says(*SAID[situation])
        os.killpg(running.pid, signal.SIGINT)
        assert running.ends(within=PROMISED + SLACK) == (0, "sum 90\n", "")
        assert os.listdir(running.directory) == []


@pytest.mark.parametrize(("situation", "method"), _cases("full-forkserver"))
def test_a_handler_of_sigterm_that_calls_sys_exit_leaves_cleanly(situation: Situation, method: str) -> None:
    with program("signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n" + READ, situation, method) as running:
        running.says(*SAID[situation])
        os.kill(running.pid, signal.SIGTERM)
        assert running.ends(within=PROMISED + SLACK) == (3, "", "")
        assert os.listdir(running.directory) == []


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_a_worker_does_not_have_the_programs_handler_of_sigterm(method: str) -> None:
    body = """
        def terminate(_):
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, lambda *_: say("handled"))
        try:
            ([1] | map_stage(backend=ProcessBackend(method))(terminate)).execute()
        except TaskException as error:
            say(type(error).__name__, "SIGTERM" in str(error))
        """
    with program(body, "idle", method) as running:
        assert running.ends(within=10) == (0, "WorkerDied True\n", "")


def test_a_program_that_is_suspended_and_resumed_has_all_its_results() -> None:
    body = """
        total = 0
        for n in (range(2000) | map_stage(workers=2)(lambda n: n) | map_stage(backend="thread")(lambda n: n)).results():
            total += n
            if n == 0:
                say("reading")
                time.sleep(0.1)
        say("total", total)
        """
    with program(body) as running:
        running.says("reading")
        os.killpg(running.pid, signal.SIGSTOP)
        stopped = psutil.STATUS_STOPPED
        eventually(lambda: all(process.status() == stopped for process in _in_session(running.pid)))
        os.killpg(running.pid, signal.SIGCONT)
        assert running.ends(within=PROMISED + SLACK) == (0, f"total {sum(range(2000))}\n", "")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGKILL])
def test_workers_inside_of_workers_do_not_outlive_the_program(number: signal.Signals) -> None:
    body = """
        def busy(_):
            say("inner", os.getpid())
            loop()

        def outer(_):
            say("outer", os.getpid())
            return ([1] | map_stage(busy)).execute()

        ([1] | map_stage(outer)).execute()
        """
    with program(body) as running:
        running.says("outer", "inner")
        os.kill(running.pid, number)
        assert running.ends(within=PROMISED + SLACK)[:2] == (-number, "")


# Name: the body of a program, and its exit status.
ENDINGS = {
    "results that nobody reads": ("results = endless.results()", 0),
    "results read in part": ("results = endless.results()\nnext(results)", 0),
    "results of several runs": ("both = [endless.results(), endless.results()]\nnext(both[0])", 0),
    "results in a reference cycle": ("cycle = [endless.results()]\ncycle.append(cycle)", 0),
    "a suspended generator": ("reading = (n for n in endless.results())\nnext(reading)", 0),
    "sys.exit in the loop": ("for _ in endless.results(): sys.exit(7)", 7),
    "sys.exit in a with block": ("with endless.results() as results:\n    next(results)\n    sys.exit(7)", 7),
    # Not made in the thread: Python 3.12.0 and 3.12.1 start no thread once the main one has ended.
    "a thread that reads on and leaves": (
        """
        def read(results):
            for _ in results:
                break

        threading.Thread(target=read, args=(endless.results(),)).start()
        """,
        0,
    ),
    "a daemon thread that reads": (
        """
        def read(results):
            for _ in results:
                reading.set()

        reading = threading.Event()
        threading.Thread(target=read, args=(endless.results(),), daemon=True).start()
        reading.wait()
        """,
        0,
    ),
    "a failure that nobody reads": (
        """
        results = (range(3) | map_stage(lambda n: 1 // 0)).results()
        while results.stats().state == "running":
            time.sleep(0.01)
        """,
        0,
    ),
}


@pytest.mark.parametrize(("body", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_a_program_that_ends_with_a_run_ends_cleanly(body: str, expected: int) -> None:
    with program(body) as running:
        status, out, err = running.ends(within=10)
        assert (status, out, err) == (expected, "", "")
        assert os.listdir(running.directory) == []


def test_an_exception_in_the_loop_that_nobody_catches_is_one_traceback() -> None:
    with program("for _ in endless.results(): raise KeyError(1)") as running:
        status, out, err = running.ends(within=10)
        assert (status, out) == (1, "")
        assert (err.count("Traceback"), err.splitlines()[-1]) == (1, "KeyError: 1")


def test_os_exit_in_the_loop_leaves_no_process() -> None:
    with program("for _ in endless.results(): os._exit(5)") as running:
        assert running.ends(within=10) == (5, "", "")


def test_a_run_that_succeeds_or_whose_error_is_handled_prints_nothing() -> None:
    body = """
        assert sorted((range(5) | map_stage(workers=2)(lambda n: n)).results()) == [0, 1, 2, 3, 4]
        for bad in (lambda n: 1 // 0, lambda n: os._exit(3), lambda n: sys.exit(1)):
            try:
                list((range(5) | map_stage(workers=2)(bad)).results())
            except TaskException:
                continue
            raise AssertionError
        """
    with program(body) as running:
        assert running.ends(within=10) == (0, "", "")
