"""How functions and items become bytes and items again.

Plain pickle where it will do, cloudpickle where something is met that only lives here: lambdas, closures, functions
and classes of `__main__` (a worker process does not import the user's `__main__`, so a reference to it means nothing
there). cloudpickle is imported when first needed.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakSet

PROTOCOL = 5
_MAIN = b"__main__"

# Classes that this process has whole, either because it made them or because they have arrived once already.
_complete: WeakSet[type] = WeakSet()


def encode(item: object) -> bytes:
    """Pickle one item; raises whatever pickling it raises.

    A pickle that mentions `__main__` is made again by cloudpickle, which carries the class itself. The mention may be
    plain text inside the item: the second pickle is then as good as the first, only slower.
    """
    try:
        data = pickle.dumps(item, PROTOCOL)
    except Exception:
        return encode_by_value(item)
    return encode_by_value(item) if _MAIN in data else data


def encode_apart(item: object, least: int) -> tuple[bytes, list[memoryview]]:
    """As `encode`, but buffers of `least` bytes or more are left out (pickle protocol 5), and given beside it."""
    apart = _Apart(least)
    try:
        data = pickle.dumps(item, PROTOCOL, buffer_callback=apart)
        if _MAIN not in data:
            return data, apart.buffers
    except Exception:
        pass
    apart = _Apart(least)
    return encode_by_value(item, apart), apart.buffers


class _Apart:
    """Takes large buffers away. What it answers is whether a buffer stays in the pickle."""

    def __init__(self, least: int) -> None:
        self.buffers: list[memoryview] = []
        self._least = least

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            memory = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if memory.nbytes < self._least:
            return True
        self.buffers.append(memory)
        return False


def encode_by_value(value: object, buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None) -> bytes:
    """Pickle with cloudpickle, whatever `value` refers to in `__main__` included."""
    file = io.BytesIO()
    _by_value_pickler()(file, PROTOCOL, buffer_callback=buffer_callback).dump(value)
    return file.getvalue()


def encode_task(task: object) -> bytes:
    """As `encode_by_value`; without cloudpickle, which takes long to import, where nothing needs it."""
    if "cloudpickle" in sys.modules:  # then it costs nothing, and may have been told to pickle a module by value
        return encode_by_value(task)
    buffer = io.BytesIO()
    try:
        _ByNamePickler(buffer, PROTOCOL).dump(task)
    except Exception:
        return encode_by_value(task)
    data = buffer.getvalue()
    return encode_by_value(task) if _MAIN in data else data


class _ByNamePickler(pickle.Pickler):
    """Plain pickle that knows decorated functions, and gives up at the first object of `__main__`: not at the end,
    since arguments may be large."""

    def reducer_override(self, obj: Any) -> Any:
        named = decorated_name(obj) if isinstance(obj, FunctionType) else None
        if named is not None:
            return import_decorated, named
        if getattr(obj, "__module__", None) == _MAIN.decode():
            raise pickle.PicklingError("it is of __main__")
        return NotImplemented


def decode(data: bytes | bytearray | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """The object that was encoded; buffers: what was left out, in its order."""
    return pickle.loads(data, buffers=buffers)


@cache
def _by_value_pickler() -> type[pickle.Pickler]:
    import cloudpickle

    class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
        """cloudpickle, but a class that comes back to a process that has it stays as it is there.

        cloudpickle recognises such a class and then sets all its attributes again, from the copy: methods of the
        caller's own class would be replaced by copies that see other globals.
        """

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, CodeType):  # cloudpickle 3.1.3 leaves out the file, which tracebacks name
                _, values = self.dispatch_table[CodeType](obj)
                return _code_of_file, (values, obj.co_filename)
            named = decorated_name(obj) if isinstance(obj, FunctionType) else None
            if named is not None:
                return import_decorated, named
            reduced = super().reducer_override(obj)
            if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == 6 and reduced[5]:
                _complete.add(obj)
                return (*reduced[:5], partial(_set_class_state_once, reduced[5]))
            return reduced

    return ByValuePickler


def _code_of_file(values: tuple[Any, ...], filename: str) -> CodeType:
    return CodeType(*values).replace(co_filename=filename)


def _set_class_state_once(set_state: Callable[[type, Any], Any], cls: type, state: Any) -> None:
    if cls in _complete:
        return
    _complete.add(cls)
    set_state(cls, state)


def decorated_name(function: object) -> tuple[str, str] | None:
    """Module and name under which a *decorated* function can be imported by a worker, else None.

    There the module's attribute is not the function but what the decorator made of it, which has it as `__wrapped__`:
    pickle would refuse the function, cloudpickle would copy it with all the globals that it uses.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == _MAIN.decode():
        return None
    decorated = _attribute(sys.modules.get(module), name)
    if decorated is function or getattr(decorated, "__wrapped__", None) is not function:
        return None
    return module, name


def import_decorated(module: str, name: str) -> Any:
    """The function that `decorated_name` named."""
    return _attribute(import_module(module), name).__wrapped__


def _attribute(module: object, name: str) -> Any:
    value = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value
