"""Runs of systems as programs of their own, ended at a limit with all that they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from benchmarks.jobs import FILES, LOOPS, PORT, WAIT_SECONDS, make_files, measure_loops_per_ms
from benchmarks.probes import Figures
from benchmarks.questions import Question
from benchmarks.systems import System

HERE = Path(__file__).parent
#: Seconds after which a run counts as hanging.
LIMIT = 40
#: Seconds that helpers of a run (fork servers, trackers of semaphores) have to end by themselves.
GRACE = 0.5


def _environment() -> dict[str, str]:
    """Programs may keep compiled modules: else each of them, and its workers, would compile all that they import."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class RunFailedError(Exception):
    """A run gave no figures; says why."""


class Run:
    """A run of a system for a question: a program that waits to be told to begin."""

    def __init__(self, system: System, question: Question, items: int, *options: str, limit: float = LIMIT) -> None:
        self._limit = limit
        self._hung = False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, str(HERE / "program.py"), system.name, question.name, str(items), *options]
        self._program = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env=_environment(),
        )
        self._timer = threading.Timer(limit, self._end_hung)
        self._timer.daemon = True
        self._timer.start()
        try:
            self._line()
        except RunFailedError:
            self.close()
            raise

    def figures(self) -> Figures:
        """Let it run. Raises RunFailedError if it fails, gives a wrong result, or takes longer than the limit."""
        assert self._program.stdin is not None
        self._program.stdin.write("go\n")
        self._program.stdin.flush()
        figures: Figures = json.loads(self._line())
        return figures

    def close(self) -> None:
        """End it, and all processes of its session."""
        self._timer.cancel()
        if self._program.poll() is None and not self._hung:
            try:
                self._program.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
        until = monotonic() + GRACE
        while self._group_lives() and monotonic() < until and not self._hung:
            sleep(0.01)
        self._kill()
        self._program.communicate()
        self._errors.close()

    def _line(self) -> str:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            if line.startswith(("ready", "{")):
                return line
        hung = self._hung
        raise RunFailedError(f"hung: no end after {self._limit:g} s" if hung else f"failed: {self._last_error()}")

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1][:300] if lines else f"ended with status {self._program.wait()}"

    def _end_hung(self) -> None:
        self._hung = True
        self._kill()

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._program.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _kill(self) -> None:
        try:
            os.killpg(self._program.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def run(system: System, question: Question, items: int, *options: str, limit: float = LIMIT) -> Figures:
    """The figures of one run; see `Run`."""
    started = Run(system, question, items, *options, limit=limit)
    try:
        return started.figures()
    finally:
        started.close()


@contextmanager
def environment(file_count: int) -> Iterator[None]:
    """What programs find in their environment: how fast this machine is, a server, files to read."""
    with tempfile.TemporaryDirectory() as directory, _server() as port:
        make_files(Path(directory), file_count)
        given = {LOOPS: str(measure_loops_per_ms()), PORT: port, FILES: directory}
        os.environ.update(given)
        try:
            yield
        finally:
            for name in given:
                os.environ.pop(name, None)


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, str(HERE / "server.py"), str(WAIT_SECONDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()  # it ends then
