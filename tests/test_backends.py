"""What is particular to a backend: start methods, what travels, and backends of others."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import pipekit
from pipekit import BackendUnavailable, OptionError, ProcessBackend, StartError, ThreadBackend, map_stage
from pipekit.backends import _registry

METHODS = ["forkserver", "spawn", "fork"]


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], input=textwrap.dedent(code), capture_output=True, text=True, timeout=50, **options
    )


MAIN = """
import sys, threading
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
from pipekit import ProcessBackend, map_stage, stage

Pair = namedtuple("Pair", "left right")
calls = 0

class Colour(Enum):
    RED = 1

@dataclass
class Point:
    x: int
    twin: "Point | None" = None

    def moved(self):
        return Point(self.x + offset, self)

offset = 10
backend = ProcessBackend(start_method="METHOD")

@map_stage(workers=2, backend=backend)
def move(point):
    global calls
    calls += 1
    return point.moved()

@stage(backend=backend)
def pairs(points):
    for point in points:
        yield Pair(point, Colour.RED)

method = Point.moved
for pair in ([Point(1), Point(2)] | move | map_stage(backend=backend)(lambda p: p) | pairs).results():
    assert type(pair) is Pair and pair.right is Colour.RED
    assert type(pair.left) is Point and type(pair.left.twin) is Point
    assert pair.left.x == pair.left.twin.x + offset
assert Point.moved is method, "the caller's class was changed by an item that came back"
assert calls == 0
print("once")
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["script", "command", "stdin"])
def test_functions_and_classes_of_main_work_without_a_guard(method: str, how: str, tmp_path: Path) -> None:
    code = MAIN.replace("METHOD", method)
    script = tmp_path / "script.py"
    script.write_text(code)
    arguments = {"script": [str(script)], "command": ["-c", code], "stdin": ["-"]}[how]
    done = run(code, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


@pytest.mark.parametrize("method", METHODS)
def test_a_module_run_with_dash_m_works_without_a_guard(method: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(MAIN.replace("METHOD", method))
    done = run("", "-m", "program", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


def test_a_module_that_runs_a_pipeline_while_a_worker_imports_it_is_an_error_not_an_endless_chain(
    tmp_path: Path,
) -> None:
    (tmp_path / "endless.py").write_text(
        "from pipekit import map_stage\n\n@map_stage\ndef same(n):\n    return n\n\nlist((range(3) | same).results())\n"
    )
    done = run("import endless", cwd=tmp_path)
    assert done.returncode == 1
    assert "runs a pipeline while it is imported" in done.stderr


def test_a_run_succeeds_although_the_exit_of_its_workers_cannot_be_learned() -> None:
    done = run(
        """
        import signal
        from pipekit import ProcessBackend, map_stage
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(5):
            same = map_stage(workers=3, backend=ProcessBackend("spawn"))(lambda n: n)
            assert len(list((range(9) | same).results())) == 9
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Python 3.13.4 waits for its resource tracker at exit
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interactive_session_works() -> None:
    code = "import pipekit\n@pipekit.map_stage\ndef double(n):\n    return 2 * n\n\nlist(([4] | double).results())\n"
    done = subprocess.run([sys.executable, "-i", "-q"], input=code, capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "[8]"


def test_the_users_own_processes_still_import_main(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing
            from pipekit import map_stage

            def target():
                print("target")

            if __name__ == "__main__":
                assert list(([1] | map_stage(lambda n: n)).results()) == [1]
                process = multiprocessing.get_context("spawn").Process(target=target)
                process.start()
                process.join()
                assert process.exitcode == 0
            """
        )
    )
    done = run("", str(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "target\n", "")


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_every_start_method_runs_a_pipeline(method: Any) -> None:
    add = map_stage(workers=2, backend=ProcessBackend(start_method=method))(lambda number: number + 1)
    assert sorted((range(1000) | add | add).results()) == list(range(2, 1002))


def test_a_worker_is_a_process_or_a_thread_as_asked() -> None:
    where = map_stage(lambda _: (os.getpid(), threading.get_native_id()))
    pid, _ = (range(1) | where).execute() or (0, 0)
    assert pid not in (0, os.getpid())
    pid, thread = (range(1) | where.setup(backend="thread")).execute() or (0, 0)
    assert pid == os.getpid()
    assert thread != threading.get_native_id()


def test_a_forked_copy_of_the_program_does_not_disturb_the_run() -> None:
    results = (range(1000) | map_stage(workers=2)(lambda number: number)).results()
    next(results)
    done = run(
        """
        import os, itertools
        from pipekit import PipekitError, map_stage
        results = (itertools.count() | map_stage(workers=2)(lambda n: n)).results()
        first = [next(results) for _ in range(10)]
        child = os.fork()
        if child == 0:
            try:
                list(results)
            except PipekitError as error:
                assert "belong to the process that started the run" in str(error)
            else:
                os._exit(1)
            results.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert len([next(results) for _ in range(10_000)]) == 10_000
        print("undisturbed")
        """,
        "-W",
        "ignore::DeprecationWarning",
        "-",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "undisturbed\n", "")
    results.close()


def test_a_worker_that_cannot_be_started_is_an_error_and_the_others_are_stopped() -> None:
    code = """
        import resource
        from pipekit import StartError, map_stage
        assert list(([1] | map_stage(lambda n: n)).results()) == [1]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, hard))
        try:
            (range(10) | map_stage(workers=100)(lambda n: n)).results()
        except StartError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert list(([2] | map_stage(lambda n: n)).results()) == [2]
        """
    done = run(code, "-")
    assert done.returncode == 0, done.stderr
    assert "could not be started" in done.stdout
    assert "use fewer workers" in done.stdout
    assert issubclass(StartError, pipekit.PipekitError)


def test_modules_that_the_program_has_chosen_for_the_fork_server_are_there_when_workers_start() -> None:
    code = """
        import multiprocessing, sys
        from pipekit import map_stage
        multiprocessing.set_forkserver_preload(["this"])  # prints when it is imported

        def loaded(_):
            return {"this", "pipekit.backends._in_fork_server"} <= set(sys.modules)

        print(list((range(4) | map_stage(workers=2)(loaded)).results()))
        """
    done = run(code, "-")
    assert done.stderr == ""
    assert done.stdout.count("Beautiful is better than ugly") == 1
    assert "[True, True, True, True]" in done.stdout


def test_a_thousand_thread_workers() -> None:
    assert sorted((range(5000) | map_stage(workers=1000, backend="thread")(lambda n: n)).results()) == list(range(5000))


# -- backends by name


def _announce(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    announced = EntryPoints([EntryPoint("own", value, _registry.GROUP)])
    monkeypatch.setattr(_registry, "_announced", lambda: announced)


def test_an_installed_package_can_announce_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, "pipekit.backends.thread:ThreadBackend")
    assert (range(3) | map_stage(backend="own")(lambda n: n)).execute() == 2


def test_an_announced_backend_that_cannot_be_imported_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, "no_such_package:Backend")
    with pytest.raises(BackendUnavailable, match="no_such_package"):
        (range(3) | map_stage(backend="own")(lambda n: n)).results()


def test_an_announced_object_that_is_no_backend_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, "os:sep")
    with pytest.raises(BackendUnavailable, match="not a Backend"):
        (range(3) | map_stage(backend="own")(lambda n: n)).results()


def test_known_names_are_listed_when_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    _announce(monkeypatch, "os:sep")
    with pytest.raises(OptionError, match="'auto', 'free-threaded', 'own', 'process', 'ray', 'thread'"):
        map_stage(backend="other")


def test_backends_are_values() -> None:
    assert ProcessBackend() == ProcessBackend(start_method=None)
    assert ProcessBackend("spawn") != ProcessBackend("fork")
    assert len({ThreadBackend(), ThreadBackend()}) == 1
