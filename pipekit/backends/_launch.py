"""Starting processes by multiprocessing. Everything that relies on its inner workings stands here.

Undocumented means: tested on every Python version (tests/test_backends.py, tests/test_leaving.py).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import context as multiprocessing_context
from multiprocessing import get_context, resource_tracker, spawn, util
from multiprocessing import process as multiprocessing_process
from time import sleep
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

from pipekit._signals import start_thread, uninterrupted

if sys.platform != "win32":
    # Here and not by the first start: in the middle of an import Python may lose a Ctrl-C.
    from multiprocessing import forkserver, popen_fork, popen_forkserver, popen_spawn_posix  # noqa: F401

StartMethod: TypeAlias = Literal["forkserver", "spawn", "fork"]

#: How often, and after how many seconds, a start that the fork server refused is tried again.
RETRIES = 20
RETRY_SECONDS = 0.05
#: Descriptors that multiprocessing has open at once at most, while it starts a process, and the fork server before it.
DESCRIPTORS = 16
#: The exit status that multiprocessing gives when it cannot learn it.
FORK_SERVER_LOST = 255
#: Seconds that a process which was killed gets to end.
END_SECONDS = 1.0
#: Seconds that a flush of stdout and stderr may take.
FLUSH_SECONDS = 0.2
_PRELOADED = ["pipekit.backends._in_fork_server", "cloudpickle"]
_starting = threading.Lock()
_parent_ends: WeakSet[socket.socket] = WeakSet()


def default_start_method() -> StartMethod:
    """The one that is used unless another is asked for."""
    return "forkserver" if sys.platform == "linux" else "spawn"


def start_default_server() -> None:
    """Start what the default start method needs."""
    if default_start_method() == "forkserver":
        start_fork_server()


def start_fork_server() -> None:
    """Start the fork server if it does not run, and do not wait for it: it takes as long as all else before a run."""
    if sys.platform == "win32" or forkserver._forkserver._forkserver_pid is not None:  # type: ignore[attr-defined]
        return
    with uninterrupted(), suppress(OSError), _starting, _sigint_blocked(get_context("forkserver")):
        _check_descriptors()  # if it cannot be started now, who needs it tries again
        forkserver.ensure_running()


def start_process(context: Any, name: str, target: Callable[..., None], args: tuple[object, ...]) -> Any:
    """Start a process of a multiprocessing context that calls `target(*args)`, and is the caller's to wait for.

    It may not have been made yet: `wait_until_made` tells.
    """
    process = context.Process(target=target, args=args, name=name)
    try:
        with (
            uninterrupted(),
            _starting,
            _sigint_blocked(context),
            _without_main(),
            _without_flush(context),
            _without_wait(),
        ):
            _check_descriptors()
            _start(process)
            # multiprocessing polls its children whenever it starts another, in any thread; two that read the exit
            # status of a fork server's child at the same time may both get a wrong one. It also waits for them at
            # exit. They are ours.
            multiprocessing_process._children.discard(process)  # type: ignore[attr-defined]
    except BaseException:  # also of a handler that had to wait for the end of the start; nobody else knows the process
        _end(process)
        raise
    return process


def wait_until_made(process: Any) -> None:
    """Wait until the process is there; raises OSError if the fork server could not make it."""
    if process.pid is None:
        raise OSError(f'the fork server could not make a process for the worker "{process.name}"')


def _end(process: Any) -> None:
    if process.pid is not None:
        process.kill()
        process.join(END_SECONDS)
    if process.exitcode is not None:
        process.close()


def _start(process: Any) -> None:
    """Start it. A fork server that is about to end refuses; once it has ended, multiprocessing starts another."""
    for _ in range(RETRIES):
        try:
            process.start()
        except ConnectionRefusedError:
            sleep(RETRY_SECONDS)
        else:
            return
    process.start()


def exit_sentinel(process: Any) -> int:
    """What becomes readable when the process has ended.

    A child of this process has one end of a pipe for it, which a process that *it* forks inherits and keeps open: Linux
    has better. The fork server's children do not have it.
    """
    if hasattr(os, "pidfd_open") and not isinstance(process, multiprocessing_context.ForkServerProcess):
        with suppress(OSError):
            return os.pidfd_open(process.pid)
    return int(process.sentinel)


def flush_what_was_printed() -> None:
    """Have what the program has printed come before what its workers print. Returns soon in any case: a thread that is
    writing, and waits for whoever reads the other end of a pipe, keeps the stream's lock."""
    flusher = threading.Thread(target=util._flush_std_streams, name="pipekit-flush", daemon=True)  # type: ignore[attr-defined]
    with suppress(RuntimeError):  # no more threads to be had: then it comes later
        start_thread(flusher)
    if flusher.ident is not None:
        flusher.join(FLUSH_SECONDS)


@contextmanager
def _without_flush(context: Any) -> Iterator[None]:
    """Keep multiprocessing from flushing stdout and stderr before each start: it would wait without end.

    A forked process would have what is not flushed, too: there it stays as it is.
    """
    if context.get_start_method() == "fork":
        yield
        return
    original = util._flush_std_streams  # type: ignore[attr-defined]
    starter = threading.get_ident()
    util._flush_std_streams = lambda: None if threading.get_ident() == starter else original()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        util._flush_std_streams = original  # type: ignore[attr-defined]


def _check_descriptors() -> None:
    """Raise OSError unless there are as many descriptors left as a start needs at most.

    Where they run out in the middle of it, multiprocessing leaks those that it has, and its fork server ends.
    """
    spare: list[int] = []
    try:
        while len(spare) < DESCRIPTORS:
            spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for descriptor in spare:
            os.close(descriptor)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep processes started by this thread from importing the caller's `__main__`.

    So scripts need no `if __name__ == "__main__"` guard: what stages need of `__main__` travels with them.
    Undocumented, therefore tested on every Python version.
    """
    original = spawn.get_preparation_data
    starter = threading.get_ident()

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        if threading.get_ident() == starter:
            data.pop("init_main_from_path", None)
            data.pop("init_main_from_name", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original


if sys.platform != "win32":

    class _Asked(popen_forkserver.Popen):
        """A process that the fork server was asked for. To wait until it is made before the next one is asked for
        would take twice as long for four workers as to ask for all and wait then: who needs its pid waits.

        Its pipe gives the pid, and at its end the exit status; nothing else may read there before.
        """

        _pid: int | None = None
        #: The pid, as it comes: who is interrupted (Ctrl-C) before it is noted finds it here the next time.
        _answer: bytearray

        def _launch(self, process: Any) -> None:
            self._answer = bytearray(forkserver.SIGNED_STRUCT.size)
            starter = threading.get_ident()
            original = forkserver.read_signed
            forkserver.read_signed = lambda fd: None if threading.get_ident() == starter else original(fd)
            try:
                super()._launch(process)  # type: ignore[misc]
            finally:
                forkserver.read_signed = original

        @property  # type: ignore[override]
        def pid(self) -> int | None:
            """None if it could not be made."""
            if self._pid is None and self.returncode is None:
                if self._is_answered():
                    (self._pid,) = forkserver.SIGNED_STRUCT.unpack(self._answer)
                else:
                    self.returncode = FORK_SERVER_LOST
            return self._pid

        @pid.setter
        def pid(self, pid: int | None) -> None:
            self._pid = pid

        def _is_answered(self) -> bool:
            try:
                return any(self._answer) or os.readv(self.sentinel, [self._answer]) > 0
            except OSError:
                return False

        def poll(self, flag: int = os.WNOHANG) -> int | None:
            return self.returncode if self.pid is None else super().poll(flag)

        def wait(self, timeout: float | None = None) -> int | None:
            return self.returncode if self.pid is None else super().wait(timeout)


@contextmanager
def _without_wait() -> Iterator[None]:
    """Have multiprocessing ask the fork server for processes without waiting for each (`_Asked`)."""
    if sys.platform == "win32":
        yield
        return
    original = popen_forkserver.Popen
    starter = threading.get_ident()

    def ask(process: Any) -> Any:
        return _Asked(process) if threading.get_ident() == starter else original(process)

    popen_forkserver.Popen = ask  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        popen_forkserver.Popen = original  # type: ignore[misc]


@contextmanager
def _sigint_blocked(context: Any) -> Iterator[None]:
    """Start processes with SIGINT blocked, so that no Ctrl-C finds one that does not ignore it yet."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if context.get_start_method() == "forkserver":
        _choose_preload(context)
    resource_tracker.ensure_running()  # before: when it starts its process, it unblocks SIGINT in this thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _choose_preload(context: Any) -> None:
    """Have a fork server import what every worker needs, before what the user has chosen (not `__main__`, its default).

    It passes the blocked SIGINT on to children that are not ours, so it must be one that imports `_in_fork_server`.
    """
    chosen = forkserver._forkserver._preload_modules  # type: ignore[attr-defined]
    others = [] if chosen == ["__main__"] else [module for module in chosen if module not in _PRELOADED]
    context.set_forkserver_preload([*_PRELOADED, *others])


def close_in_forks(end: socket.socket) -> None:
    """Have `end` closed in every process that is forked from this one.

    A copy of the parent's end that stays open would keep a worker from seeing that its parent has died.
    """
    _parent_ends.add(end)


def _after_fork_in_child() -> None:
    """Also renews the lock, which another thread may have held at that moment."""
    global _starting
    _starting = threading.Lock()
    for end in list(_parent_ends):
        end.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
