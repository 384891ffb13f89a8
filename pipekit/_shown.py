"""Showing what a pickle holds without unpickling it: no code of its objects is run, none of their modules is imported.

The parent names the items of a worker that has died. Unpickling them might do to the parent what it did to the worker.
"""

from __future__ import annotations

import io
import pickle
from reprlib import recursive_repr
from typing import Any

from pipekit._errors import short_repr

#: Bytes of a pickle that is looked into; of a larger one, only the size is told.
MOST_BYTES = 1 << 20

# What comes out as it is: values of these do nothing when they are made.
_HARMLESS = {
    "builtins": frozenset({"bytearray", "complex", "dict", "frozenset", "list", "range", "set", "slice", "tuple"}),
    "collections": frozenset({"Counter", "OrderedDict", "defaultdict", "deque"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "fractions": frozenset({"Fraction"}),
}
# cloudpickle makes the classes of `__main__` by these; the second argument is the class's name.
_CLASS_MAKERS = frozenset({"_make_skeleton_class", "_make_skeleton_enum"})


def shown(data: bytes | bytearray) -> str:
    """What `repr` might give for the pickled object, shortened."""
    if len(data) > MOST_BYTES:
        return size_shown(len(data))
    try:
        return short_repr(_Looker(io.BytesIO(data)).load())
    except Exception:
        return size_shown(len(data))


def size_shown(size: int) -> str:
    """What is told where nothing else can be."""
    return f"<{size:,} bytes, pickled>"


class _Looker(pickle.Unpickler):
    """Makes stand-ins for all objects but plain values and containers."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        if module.startswith("cloudpickle") and name in _CLASS_MAKERS:
            return _made_class
        return _stand_in(module, name)


def _made_class(_: object, name: str, *rest: object) -> type[_StandIn]:
    return _stand_in("__main__", name)


def _stand_in(module: str, name: str) -> type[_StandIn]:
    return type(name.rpartition(".")[2], (_StandIn,), {"__module__": module})


class _StandIn:
    """In the place of an object or of the result of a function; keeps what it was made from."""

    def __new__(cls, *args: object, **kwargs: object) -> _StandIn:
        made = object.__new__(cls)
        made._made_from, made._state = (args, kwargs), None
        return made

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._made_from: tuple[tuple[object, ...], dict[str, object]]
        self._state: object

    def __setstate__(self, state: object) -> None:
        self._state = state[0] or state[1] if isinstance(state, tuple) and len(state) == 2 else state

    def __call__(self, *args: object, **kwargs: object) -> _StandIn:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    add = append

    @recursive_repr()
    def __repr__(self) -> str:
        args, kwargs = self._made_from
        if args and isinstance(args[0], type):  # a function that makes objects of a class
            return f"{args[0].__name__}(...)"
        named = {**kwargs, **self._state} if isinstance(self._state, dict) else kwargs
        inside = [*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())]
        return f"{type(self).__name__}({', '.join(inside)})"
