"""Where another thread is: its calls, as text.

With a GIL, the interpreter tells. Without one, the frames of a thread that runs change under whoever looks at them
(CPython 3.13 may crash). So the thread itself is made to tell: by a signal to it, at which `faulthandler` writes its
stack into a pipe, in C, wherever it is. (Python's own handlers of signals run in the main thread only.)
"""

from __future__ import annotations

import faulthandler
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from time import monotonic, sleep

from pipekit._gil import gil_is_on

#: Seconds that a thread gets for it. One that has blocked the signal does not answer. (One that answers later than that
#: might be taken for the next one that is asked: nothing in an answer says whose it is.)
ANSWER_SECONDS = 0.3
#: Seconds before the next one is asked: `faulthandler` writes one stack at a time, and leaves out who comes too soon.
PAUSE_SECONDS = 0.001
_BEGIN = "Stack (most recent call first):\n"
_CALL = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
# The outermost call of a thread, of a program or module; or what stands for those beyond the hundredth.
_END = re.compile(r"( in _bootstrap| in <module>|^  \.\.\.)\n", re.MULTILINE)


def calls_of(thread: int, outer: Sequence[str]) -> str:
    """The calls that this thread is in, the innermost last, as in a traceback; "" if that is not known.

    outer: files whose code has made the calls that are asked for; what is around them is left out.
    """
    calls = _from_interpreter(thread) if gil_is_on() else _from_thread(thread)
    files = {*outer, *map(_as_written, outer)}
    ours = [index for index, call in enumerate(calls) if call.filename in files]
    return "".join(traceback.format_list(calls[ours[-1] + 1 :] if ours else calls))


def _from_interpreter(thread: int) -> list[traceback.FrameSummary]:
    frame = sys._current_frames().get(thread)
    return [] if frame is None else list(traceback.extract_stack(frame))


def _from_thread(thread: int) -> list[traceback.FrameSummary]:
    with _asking:
        pipe = _Pipe.of_this_process()
        text = "" if pipe is None or not thread else pipe.ask(thread)
    found = [traceback.FrameSummary(file, int(line), name) for file, line, name in _CALL.findall(text)]
    return found[::-1]


def _as_written(file: str) -> str:
    """A file's name as `faulthandler` writes it."""
    return file.encode("ascii", "backslashreplace").decode()


def _after_begin(text: str) -> str:
    """The last answer in a text; before it, there may be the end of one that came late."""
    return text.rpartition(_BEGIN)[2] if _BEGIN in text else ""


class _Pipe:
    """What threads write their stacks into, at a real-time signal that nobody uses.

    Once made, it stays: a thread that has blocked the signal may get it much later, and without a handler the signal
    would end the program.
    """

    _made: _Pipe | None = None
    _pid = 0

    def __init__(self, number: int) -> None:
        self._number = number
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)  # who writes there is in a signal handler
        faulthandler.register(number, self._writer, all_threads=False)

    @classmethod
    def of_this_process(cls) -> _Pipe | None:
        """None where there is no signal for it, or no descriptor."""
        if cls._pid != os.getpid():  # a fork has its parent's
            number = _unused_signal()
            try:
                cls._made = None if number is None else cls(number)
            except OSError:
                return None
            cls._pid = os.getpid()
        return cls._made

    def ask(self, thread: int) -> str:
        """What `faulthandler` writes of a thread, innermost call first."""
        sleep(PAUSE_SECONDS)
        self._read()  # what is left of an answer that came late
        try:
            signal.pthread_kill(thread, self._number)
        except OSError:  # it has ended
            return ""
        deadline = monotonic() + ANSWER_SECONDS
        text = ""
        while not _END.search(_after_begin(text)) and monotonic() < deadline:
            select.select([self._reader], [], [], max(0.0, deadline - monotonic()))
            text += self._read()
        return _after_begin(text)

    def _read(self) -> str:
        try:
            return os.read(self._reader, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return ""


def _unused_signal() -> int | None:
    if not hasattr(faulthandler, "register") or not hasattr(signal, "SIGRTMAX"):  # Windows; macOS
        return None
    numbers = range(signal.SIGRTMAX, signal.SIGRTMIN, -1)
    return next((number for number in numbers if signal.getsignal(number) is signal.SIG_DFL), None)


_asking = threading.Lock()


def _after_fork_in_child() -> None:
    global _asking
    _asking = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
