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
from time import monotonic

from pipekit._gil import gil_is_on

#: Seconds that a thread gets for it. One that has blocked the signal does not answer.
ANSWER_SECONDS = 0.2
_CALL = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


def calls_of(thread: int, outer: Sequence[str]) -> str:
    """The calls that this thread is in, the innermost last, as in a traceback; "" if that is not known.

    outer: files whose code has made the calls that are asked for; what is around them is left out.
    """
    calls = _from_interpreter(thread) if gil_is_on() else _from_thread(thread, outer)
    ours = [index for index, call in enumerate(calls) if call.filename in outer]
    return "".join(traceback.format_list(calls[ours[-1] + 1 :] if ours else calls))


def _from_interpreter(thread: int) -> list[traceback.FrameSummary]:
    frame = sys._current_frames().get(thread)
    return [] if frame is None else list(traceback.extract_stack(frame))


def _from_thread(thread: int, outer: Sequence[str]) -> list[traceback.FrameSummary]:
    with _asking:
        pipe = _Pipe.of_this_process()
        text = "" if pipe is None or not thread else pipe.ask(thread, [f'  File "{file}"' for file in outer])
    found = [traceback.FrameSummary(file, int(line), name) for file, line, name in _CALL.findall(text)]
    return found[::-1]


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
        faulthandler.register(number, self._writer, all_threads=False)

    @classmethod
    def of_this_process(cls) -> _Pipe | None:
        """None where there is no signal for it."""
        if cls._pid != os.getpid():  # a fork has its parent's
            number = _unused_signal()
            cls._made = None if number is None else cls(number)
            cls._pid = os.getpid()
        return cls._made

    def ask(self, thread: int, ends: Sequence[str]) -> str:
        """What `faulthandler` writes of a thread, innermost call first, down to a line that begins as one of `ends`."""
        self._read()  # what is left of an answer before
        try:
            signal.pthread_kill(thread, self._number)
        except OSError:  # it has ended
            return ""
        deadline = monotonic() + ANSWER_SECONDS
        text = ""
        while not any(end in text for end in ends) and monotonic() < deadline:
            select.select([self._reader], [], [], max(0.0, deadline - monotonic()))
            text += self._read()
        return text

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
