"""How does the overhead compare with parallelpipe's? Three identity stages of two processes; the start is not counted.

Each library runs in a program of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.measure import SMOKE, Meter

pytest.importorskip("parallelpipe")

ITEMS = 300_000
PROGRAM = Path(__file__).with_name("peer.py")
#: Seconds after which a run counts as hanging.
LIMIT = 120

pytestmark = [
    pytest.mark.process,
    pytest.mark.benchmark(group="peers: three identity stages on processes"),
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="ends what hangs by its process group"),
]

#: Seconds per item, of the libraries measured so far.
_measured: dict[str, float] = {}


class Peer:
    """A library's run in a program of its own, which has its first result when this is made."""

    def __init__(self, library: str, items: int) -> None:
        command = [sys.executable, str(PROGRAM), library, str(items)]
        self._program = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._limit = threading.Timer(LIMIT, self._kill)
        self._limit.daemon = True
        self._limit.start()
        self._expect("ready")

    def finish(self, items: int) -> None:
        """Let it read all results."""
        assert self._program.stdin is not None
        self._program.stdin.write("go\n")
        self._program.stdin.flush()
        self._expect(str(items))

    def close(self) -> None:
        self._limit.cancel()
        self._kill()
        self._program.communicate()

    def _expect(self, text: str) -> None:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        if line.strip() != text:
            self.close()
            pytest.fail(f"expected {text!r}, got {line!r}: it failed, or took more than {LIMIT} s")

    def _kill(self) -> None:
        if self._program.returncode is None:
            os.killpg(self._program.pid, signal.SIGKILL)


@pytest.mark.parametrize("library", ["parallelpipe", "pipekit"])
def test_overhead(meter: Meter, library: str) -> None:
    items = SMOKE.size(ITEMS, 100)
    peers: list[Peer] = []

    def start() -> Peer:
        close()
        peers.append(Peer(library, items))
        return peers[-1]

    def close() -> None:
        while peers:
            peers.pop().close()

    try:
        took = meter.time(lambda peer: peer.finish(items), setup=start)
    finally:
        close()
    if took is None:
        return
    _measured[library] = took / items
    meter.note(us_per_item=took / items * 1e6)
    if library != "parallelpipe" and "parallelpipe" in _measured:
        meter.note(times_parallelpipes_throughput=_measured["parallelpipe"] / _measured[library])
