"""Imported by the fork server alone, which pipekit starts with SIGINT blocked; so its children start with it blocked.

A terminal sends Ctrl-C to every process. The fork server restores the handler of SIGINT in its children, long before a
worker gets to say that it ignores it: blocked, the signal finds it ignored. A child that is no worker of pipekit (the
program may use the same fork server for its own) gets the signal let in here, before its own code runs.

The fork server also outlives the program by a moment, if it has children: a worker sees the end of the program on its
socket, and gets a second for its `finally` blocks. One that cannot see it, since native code keeps the GIL or a signal
has stopped it, is killed by the kernel when the fork server ends (Linux; elsewhere it ends when it can).
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import logging.handlers  # noqa: F401  # each worker needs it
import os
import signal
import sys
from multiprocessing import current_process, forkserver, util
from time import monotonic, sleep
from typing import Any

gc.disable()  # until the first fork: collections take a third of the time that the imports do

from pipekit.backends import _child  # noqa: E402

#: Seconds that workers get, longer than `_child.ORPHAN_GRACE`.
LINGER = 1.5
#: From <linux/prctl.h>: send me this signal when my parent dies.
PR_SET_PDEATHSIG = 1
_server = os.getpid()
_fork = os.fork


def _after_fork(_: object) -> None:
    if getattr(current_process(), "_target", None) is not _child.main:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    elif sys.platform == "linux":
        _end_with_fork_server()


def _end_with_fork_server() -> None:
    server: Any = forkserver._forkserver
    os.close(server._forkserver_alive_fd)  # children are given a copy, which keeps the fork server alive
    server._forkserver_alive_fd = None
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != _server:  # it has ended already
        os._exit(1)


def _fork_or_refuse() -> int:
    """Fork. Where the system has no more processes, refuse the request: else the server, and all workers, would end.

    Undocumented, therefore tested on every Python version: the descriptors of the request are local variables of the
    server's main loop, and ECONNABORTED is the error after which it goes on.
    """
    if not gc.isenabled():  # the first one: all that is imported is here to stay, and need not be looked at in workers
        gc.freeze()
        gc.enable()
        util._flush_std_streams()  # type: ignore[attr-defined]  # what an import has printed; workers would print it, too
    try:
        pid = _fork()
    except OSError as error:
        request = sys._getframe(1).f_locals
        if "child_w" not in request:
            raise
        for descriptor in (request["child_r"], request["child_w"], *request["fds"]):
            os.close(descriptor)
        raise ConnectionAbortedError(errno.ECONNABORTED, "no process could be forked") from error
    if pid == 0:
        os.fork = _fork  # a worker, whose stage may fork
    return pid


def _wait_for_children() -> None:
    deadline = monotonic() + LINGER
    while os.getpid() == _server and monotonic() < deadline:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # none is left
            return
        sleep(0.02)


util.register_after_fork(_after_fork, _after_fork)
atexit.register(_wait_for_children)
os.fork = _fork_or_refuse
