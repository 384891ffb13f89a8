"""Imported by the fork server alone, which pipekit starts with SIGINT blocked; so its children start with it blocked.

A terminal sends Ctrl-C to every process. The fork server restores the handler of SIGINT in its children, long before a
worker gets to say that it ignores it: blocked, the signal finds it ignored. A child that is no worker of pipekit (the
program may use the same fork server for its own) gets the signal let in here, before its own code runs.
"""

from __future__ import annotations

import logging.handlers  # noqa: F401  # each worker needs it
import signal
from multiprocessing import current_process, util

from pipekit.backends import _child


def _let_interrupts_in(_: object) -> None:
    if getattr(current_process(), "_target", None) is not _child.main:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


util.register_after_fork(_let_interrupts_in, _let_interrupts_in)
