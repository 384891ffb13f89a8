"""Behaviour is tested once, over all backends; after each test nothing of pipekit may be left."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# So little that tests with big items meet an arena without room, too. Before pipekit and its fork server are there.
os.environ["PIPEKIT_SHARED_MEMORY"] = str(4 << 20)

import pipekit
from pipekit import _fusion
from pipekit._frame import FORCED_SIZE
from pipekit._gil import gil_is_on
from pipekit._stack import calls_of

FREE_THREADED = [] if gil_is_on() else ["free-threaded"]
#: Those that run on every machine with this interpreter; or what the environment says: `PIPEKIT_TEST_BACKENDS=ray`.
BACKENDS = os.environ.get("PIPEKIT_TEST_BACKENDS", "").split() or ["thread", "process", *FREE_THREADED]
#: Those whose workers are in other processes.
REMOTE = {"process", "ray"}

#: For what is said of slow items: they travel alone.
items_travel_alone = pytest.mark.skipif(FORCED_SIZE > 1, reason="frames are forced to hold several items")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(params=[f"{first}/{second}" for first in BACKENDS for second in BACKENDS])
def backend_pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each ordered pair of backends in turn."""
    first, second = str(request.param).split("/")
    return first, second


@pytest.fixture(scope="session", autouse=True)
def _helpers_started() -> None:
    """The fork server, the resource tracker, a Ray, and the pipe by which threads tell where they are, stay until the
    program ends: have them before leaks are counted."""
    for backend in BACKENDS:
        pipekit.Stage(range, 1).setup(backend=backend).execute()
    pipekit.Stage(range, 1).execute()
    calls_of(threading.get_ident(), ())


@pytest.fixture(scope="session", autouse=True)
def _fused_only_if_asked() -> Iterator[None]:
    """Stages share workers where a test asks for it, on machines with few CPUs and with many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fusion, "usable_cpus", lambda: 1000)
        patch.setattr(pipekit.RayBackend, "cpus", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind(_helpers_started: None) -> Iterator[None]:
    before = _belongings()
    yield
    if not _belongings() <= before:
        gc.collect()  # what an exception's traceback refers to
    eventually(lambda: _belongings() <= before, lambda: f"left: {_belongings() - before}")


def _belongings() -> set[str]:
    """Our threads, processes, descriptors and shared memory files, by name."""
    threads = {f"thread {thread.name}" for thread in threading.enumerate()}
    return threads | {f"process {name}" for name in workers_alive()} | _files()


def _files() -> set[str]:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():  # its connections, and the files of its store, come and go
        return set()
    shared = Path("/dev/shm")
    files = {f"file {path}" for path in shared.iterdir()} if shared.is_dir() else set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:  # the descriptor of the listing itself
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:", "/dev/shm", "/memfd:")):
            files.add(f"descriptor {descriptor} {target}")
    return files


def workers_alive() -> list[str]:
    """The processes that descend from this one, without the two helpers of multiprocessing, and Ray's own."""
    alive = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            is_helper = "resource_tracker" in command or ("forkserver" in command and process.ppid() == os.getpid())
            is_rays = "/ray/" in command or (command.startswith("ray::") and "PipekitWorker" not in command)
            if not is_helper and not is_rays and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(f"{process.pid} {command[:60]}")
        except psutil.NoSuchProcess:
            continue
    return alive


def eventually(holds: Callable[[], bool], message: Callable[[], str] = lambda: "", seconds: float = 5.0) -> None:
    """Wait until a state is reached; fails only where it is not reached at all."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, message() or "the state was not reached"
        time.sleep(0.005)


def run_program(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a program, with these changes in its environment; None: without it."""
    environ = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, env=environ)
