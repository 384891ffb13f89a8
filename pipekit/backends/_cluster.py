"""Being connected to Ray: to a cluster, or to a Ray of this program's own."""

from __future__ import annotations

import os
import socket
import sys
import threading
from concurrent.futures import Future
from time import sleep
from typing import Any

from pipekit._errors import BackendUnavailable
from pipekit._signals import uninterrupted

#: Bytes of the store of a Ray that pipekit starts.
LOCAL_STORE = 512 << 20
#: Seconds that the answer of a cluster's address may take.
ANSWER_SECONDS = 5.0

_connecting = threading.Lock()
_own_address: str | None = None  # of the Ray that was started for this program, if one was
_known: dict[str, str] = {}  # what an address that was asked for has turned out to be
_starting: Future[None] | None = None  # the start of a Ray of this program's own
_here = threading.local()


def import_ray() -> Any:
    """The module `ray`; raises BackendUnavailable."""
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
    return not ray.is_initialized() and _resolved(ray, address) == "local"


def is_own(ray: Any) -> bool:
    """Whether the Ray that is connected was started by this program, or by that of which this is a worker."""
    return _gcs_address(ray) == _own_address


def be_of_own_ray(ray: Any) -> None:
    """This process is a worker on the Ray that its driver has started."""
    global _own_address
    _own_address = _gcs_address(ray)


def connect(ray: Any, address: str | None) -> None:
    """Be connected to the cluster of that address, or to a Ray of this program's own.

    Raises:
        BackendUnavailable: it cannot be reached, or this program is connected to another one.
    """
    with _connecting:
        if ray.is_initialized():
            _check_same(ray, address)
            return
        asked = _resolved(ray, address)
        try:
            if asked == "local":
                _start_local(ray)
            else:
                _check_answers(ray, asked)
                ray.init(address=asked, logging_level="ERROR")
                _known[asked] = _gcs_address(ray)
        except Exception as error:
            raise BackendUnavailable(_UNREACHABLE.format(asked, error)) from error


def start_no_ray_in_this_thread() -> None:
    """Have calls of Ray in this thread raise where Ray was shut down. Most would start another one, also those that a
    generator of Ray's makes by itself while it waits.

    Undocumented, therefore tested; where Ray has it no longer, nothing changes.
    """
    global _auto_init
    _here.starts_no_ray = True
    try:
        import ray._private.auto_init_hook as hook
    except ImportError:
        return
    if not hasattr(hook, "auto_init_ray"):
        return
    with _connecting:
        if hook.auto_init_ray is not _auto_init_elsewhere:
            _auto_init, hook.auto_init_ray = hook.auto_init_ray, _auto_init_elsewhere


def _auto_init_elsewhere() -> None:
    if not getattr(_here, "starts_no_ray", False):
        _auto_init()


def _auto_init() -> None:
    """Ray's own, once it is replaced."""


def _resolved(ray: Any, address: str | None) -> str:
    if address not in (None, "auto"):
        return str(address)
    return os.environ.get("RAY_ADDRESS") or _address_of_running(ray) or address or "local"


def _address_of_running(ray: Any) -> str | None:
    """Of the cluster that was started on this machine last (`ray start`), if it answers; as `ray.init()` finds it."""
    try:
        from ray._private.utils import read_ray_address

        address: str = read_ray_address()
        _check_answers(ray, address)
    except Exception:
        return None
    return address


def _gcs_address(ray: Any) -> str:
    return str(ray.get_runtime_context().gcs_address)


_UNREACHABLE = (
    'the backend "ray" cannot use the cluster at {!r}: {}. Check that it runs (`ray status` on a node), the address, '
    "the versions of Ray and Python there, and that RAY_AUTH_MODE is the same on all nodes and here"
)


def _check_same(ray: Any, address: str | None) -> None:
    connected = _gcs_address(ray)
    if address is None or connected in (address, _known.get(address)):
        return
    own = is_own(ray)
    if address == "local" if own else address == "auto":
        return
    raise BackendUnavailable(
        f"a stage asks for the Ray cluster at {address!r}, and this program is connected to "
        f"{'a Ray of its own' if own else repr(connected)}: a program can use one cluster; ray.shutdown() leaves it"
    )


def _check_answers(ray: Any, address: str) -> None:
    """Raise at once where nobody answers at the address, or not as a cluster does: Ray would try for minutes.

    The GCS speaks gRPC, so it answers the greeting of HTTP/2 with its settings (RFC 9113, 3.4).
    """
    if address == "auto":
        raise OSError("no cluster that answers was started on this machine")
    if address.startswith("ray://"):
        raise ValueError(NO_CLIENT)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or os.environ.get("RAY_USE_TLS") == "1":
        return
    if host in ("localhost", "127.0.0.1"):  # for which Ray takes the machine's own address
        host = ray.util.get_node_ip_address()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]))
            answer = connection.recv(9)
    except OSError as error:
        raise OSError(f"nobody answers at {host}:{port} ({error})") from error
    if answer[3:4] != bytes([_SETTINGS]):
        raise OSError(f"what answers at {host}:{port} is no Ray cluster")


_SETTINGS = 4  # the type of a frame of HTTP/2
NO_CLIENT = (
    "Ray Client passes on no generators. Run the program on a node of the cluster with address='auto' "
    "(`ray job submit` does), or use the address of its GCS, as in '10.0.0.1:6379'"
)


def _start_local(ray: Any) -> None:
    """Start a Ray of this program's own, or wait for the start under way; Ray itself stops it when the program ends.

    In a thread that stays: the system ends Ray's processes when the thread ends that started them (PR_SET_PDEATHSIG).
    """
    global _starting
    if _starting is None or _starting.done():
        starting: Future[None] = Future()
        with uninterrupted():  # or the next one would begin a second start beside it
            threading.Thread(target=_start_and_stay, args=(ray, starting), name="pipekit-ray", daemon=True).start()
            _starting = starting
    _starting.result()  # a Ctrl-C ends the wait; who comes next waits for the same start


def _start_and_stay(ray: Any, started: Future[None]) -> None:
    says_nothing = "RAY_USAGE_STATS_ENABLED" not in os.environ
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", object_store_memory=LOCAL_STORE, include_dashboard=False, logging_level="ERROR")
        be_of_own_ray(ray)
    except BaseException as error:
        started.set_exception(error)
        return
    finally:
        if says_nothing:
            os.environ.pop("RAY_USAGE_STATS_ENABLED", None)
    started.set_result(None)
    while ray.is_initialized():  # until somebody shuts it down
        sleep(1.0)
