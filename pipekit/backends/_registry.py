"""Backends by name: the built-in ones, then those that installed packages announce.

A package announces a backend by an entry point in the group `pipekit.backends` whose object is a `Backend`, or a class
that makes one when called without arguments. Nothing is imported before a pipeline asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pipekit._errors import BackendUnavailable, OptionError
from pipekit.backends._base import Backend

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP = "pipekit.backends"
_BUILT_IN = {
    "thread": ("pipekit.backends.thread", "ThreadBackend"),
    "process": ("pipekit.backends.process", "ProcessBackend"),
    "free-threaded": ("pipekit.backends.free_threaded", "FreeThreadedBackend"),
    "ray": ("pipekit.backends.ray", "RayBackend"),
}
#: The name that stands for the cheapest of them that runs Python code in parallel here.
AUTO = "auto"
_WARM_UPS = {"process": ("pipekit.backends._launch", "start_default_server")}


def check_backend_name(name: str) -> None:
    """Raise OptionError if there is no backend of that name."""
    if name in _BUILT_IN or name == AUTO:
        return
    announced = _announced().names
    if name not in announced:
        known = ", ".join(repr(known) for known in sorted({AUTO, *_BUILT_IN, *announced}))
        raise OptionError(f"there is no backend {name!r}: use one of {known}, or a Backend object")


def warm_up(backend: str | Backend) -> None:
    """`Backend.warm_up`; of a built-in one before its other modules are imported, which takes as long."""
    if isinstance(backend, Backend):
        backend.warm_up()
    elif (name := _meant(backend)) in _WARM_UPS:
        module, function = _WARM_UPS[name]
        getattr(import_module(module), function)()


def resolve_backend(backend: str | Backend) -> Backend:
    """The backend that a stage's option means.

    Raises:
        OptionError: there is none of that name.
        BackendUnavailable: its package cannot be imported, or announces something else.
    """
    if isinstance(backend, Backend):
        return backend
    check_backend_name(backend)
    made = _load(_meant(backend))
    made = made() if isinstance(made, type) else made
    if not isinstance(made, Backend):
        raise BackendUnavailable(f"the entry point {backend!r} in the group {GROUP!r} gives {made!r}, not a Backend")
    return made


def _meant(name: str) -> str:
    """The name of the backend that `AUTO` stands for here; or the name itself."""
    if name != AUTO:
        return name
    from pipekit._gil import gil_is_on  # to declare a pipeline takes as few modules as possible

    return "process" if gil_is_on() else "free-threaded"


def _load(name: str) -> object:
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        return getattr(import_module(module), attribute)
    (entry_point, *_) = _announced().select(name=name)
    try:
        return entry_point.load()
    except Exception as error:
        raise BackendUnavailable(f"the backend {name!r} ({entry_point.value}) cannot be imported: {error}") from error


def _announced() -> EntryPoints:
    from importlib.metadata import entry_points  # takes longer to import than all of pipekit

    return entry_points(group=GROUP)
