"""One thread that moves the bytes of all process workers of a run, and sees them die."""

from __future__ import annotations

import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from pipekit._signals import start_thread

#: Seconds that the thread gets to finish what it is doing; nothing of it takes long.
CLOSE_SECONDS = 1.0


class Hub:
    """An event loop: calls back when a socket or process can be read or written, and runs what others ask for.

    Everything that a callback touches is touched by this thread alone; other threads use `call`.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()  # added under the lock
        self._afterwards: dict[Callable[[], None], None] = {}  # an ordered set
        self._signalled = False  # under the lock: a byte is on its way, so a pass of the hub is still to come
        self._lock = threading.Lock()
        self._closing = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._run, name="pipekit-hub", daemon=True)

    def start(self) -> None:
        start_thread(self._thread)

    def close(self) -> None:
        """End the thread, if it was started, and release everything."""
        if self._thread.ident is not None:
            self._closing = True
            self._wake()
            if self._thread is not threading.current_thread():  # a destructor that it ran may close the results
                self._thread.join(CLOSE_SECONDS)
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def call(self, function: Callable[[], None]) -> None:
        """Have `function` called by the hub's thread; from any thread, in the order of the calls."""
        with self._lock:
            self._calls.append(function)
            if not self._signalled and threading.get_ident() != self._thread.ident:
                self._wake()  # which waits for nothing; and before it is noted: who is interrupted here wakes twice
                self._signalled = True

    def call_afterwards(self, function: Callable[[], None]) -> None:
        """Call `function` once, when all that is ready now is done; for the hub's own thread."""
        self._afterwards[function] = None

    def watch(self, file: Any, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the ready events of `file` (a socket, or a process' sentinel) until `forget`."""
        if file in self._selector.get_map():
            self._selector.modify(file, events, callback)
        else:
            self._selector.register(file, events, callback)

    def forget(self, file: Any) -> None:
        if file in self._selector.get_map():
            self._selector.unregister(file)

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError as error:  # full: it will wake anyway; or closed: the run is over
            if error.errno is None:  # or a signal handler's TimeoutError
                raise

    def _woken(self, _: int) -> None:
        self._wake_reader.recv(4096)
        # Before the calls are run: a call is either seen by the pass that follows, or sends a byte of its own.
        with self._lock:
            self._signalled = False

    def _run(self) -> None:
        while not self._closing:
            for key, events in self._selector.select():
                self._guarded(partial(key.data, events))
            self._run_calls()
        self._run_calls()

    def _run_calls(self) -> None:
        while self._calls:
            self._guarded(self._calls.popleft())
        afterwards, self._afterwards = self._afterwards, {}
        for function in afterwards:
            self._guarded(function)

    def _guarded(self, function: Callable[[], None]) -> None:
        """A callback that raises must not end the thread that everybody relies on: whoever must know is told."""
        try:
            function()
        except BaseException as error:
            self._on_error(error)
