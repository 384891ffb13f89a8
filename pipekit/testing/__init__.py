"""For those who write a backend: its contract as checks that run, and faults to inject."""

from __future__ import annotations

from pipekit.testing._checks import CHECKS as CHECKS
from pipekit.testing._checks import Check as Check
from pipekit.testing._checks import CheckFailed as CheckFailed
from pipekit.testing._checks import check_backend as check_backend
from pipekit.testing._faults import Faults as Faults
from pipekit.testing._faults import FaultyBackend as FaultyBackend

__all__ = ["CHECKS", "Check", "CheckFailed", "Faults", "FaultyBackend", "check_backend"]
