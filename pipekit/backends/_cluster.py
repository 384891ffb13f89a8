"""Being connected to Ray: to a cluster, or to a Ray of this program's own."""

from __future__ import annotations

import os
import socket
import sys
import threading
from queue import SimpleQueue
from time import sleep
from typing import Any

from pipekit._errors import BackendUnavailable

#: Bytes of the store of a Ray that pipekit starts.
LOCAL_STORE = 512 << 20
#: Seconds that a connection to a cluster's address may take.
CONNECT_SECONDS = 5.0

_connecting = threading.Lock()
_own_address: str | None = None  # of the Ray that this program has started, if it has


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        import sysconfig

        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise BackendUnavailable(_NO_RAY_FOR.format(f"free-threaded Python {version}")) from error
        raise BackendUnavailable(_NOT_INSTALLED.format(error, version)) from error
    return ray


_NOT_INSTALLED = (
    'the backend "ray" needs Ray, which cannot be imported ({}): pip install "pipekit-parallel[ray]". '
    "(If there is no Ray for Python {} yet, use an older Python)"
)
_NO_RAY_FOR = 'the backend "ray" needs Ray, and there is none for {}: use a Python with a GIL'


def is_to_be_started(ray: Any, address: str | None) -> bool:
    """Whether a Ray on this machine is meant that is still to be started: not for a plan that is only looked at."""
    return not ray.is_initialized() and (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def connect(ray: Any, address: str | None) -> None:
    """Be connected to the cluster of that address, or to a Ray of this program's own.

    Raises:
        BackendUnavailable: it cannot be reached, or this program is connected to another one.
    """
    with _connecting:
        if ray.is_initialized():
            _check_same(ray, address)
            return
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            if address == "local":
                _start_local(ray)
            else:
                _knock(ray, address)
                ray.init(address=address, logging_level="ERROR")
        except Exception as error:
            raise BackendUnavailable(_UNREACHABLE.format(address, error)) from error


_UNREACHABLE = (
    'the backend "ray" cannot use the cluster at {!r}: {}. Check that it runs (`ray status` on a node), the address, '
    "the versions of Ray and Python there, and that RAY_AUTH_MODE is the same on all nodes and here"
)


def _check_same(ray: Any, address: str | None) -> None:
    connected: str = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", connected):
        raise BackendUnavailable(
            f"a stage asks for the Ray cluster at {address!r}, and this program is connected to {connected!r}: "
            "a program can use one cluster; call ray.shutdown() to leave it"
        )


def _knock(ray: Any, address: str) -> None:
    """Raise OSError at once where nothing listens at the address: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        if host in ("localhost", "127.0.0.1"):  # for which Ray takes the machine's own address
            host = ray.util.get_node_ip_address()
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise OSError(f"nobody answers at {host}:{port} ({error})") from error


def _start_local(ray: Any) -> None:
    """Start a Ray of this program's own; Ray itself stops it when the program ends.

    In a thread that stays: the system ends Ray's processes when the thread ends that started them (PR_SET_PDEATHSIG).
    """
    outcome: SimpleQueue[BaseException | None] = SimpleQueue()

    def start_and_stay() -> None:
        global _own_address
        says_nothing = "RAY_USAGE_STATS_ENABLED" not in os.environ
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(
                "local",
                object_store_memory=LOCAL_STORE,
                include_dashboard=False,
                logging_level="ERROR",
            )
        except BaseException as error:
            outcome.put(error)
            return
        finally:
            if says_nothing:
                del os.environ["RAY_USAGE_STATS_ENABLED"]
        _own_address = ray.get_runtime_context().gcs_address
        outcome.put(None)
        while ray.is_initialized():  # until somebody shuts it down
            sleep(1.0)

    threading.Thread(target=start_and_stay, name="pipekit-ray", daemon=True).start()
    error = outcome.get()
    if error is not None:
        raise error


def is_own(ray: Any) -> bool:
    """Whether this program has started the Ray that it is connected to."""
    connected: str = ray.get_runtime_context().gcs_address
    return connected == _own_address
