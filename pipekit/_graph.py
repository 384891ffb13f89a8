"""What a user declares, as plain values: nodes with options. Starts nothing, knows nothing of running."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from pipekit._errors import OptionError, PipelineError, SignatureError, short_repr
from pipekit._task import Kind
from pipekit.backends._base import Backend
from pipekit.backends._registry import check_backend_name

SOURCE_NAME = "source"


@dataclass(frozen=True, slots=True)
class Options:
    """What `setup()` and the decorators accept; checked when made.

    workers: how many workers run the stage at the same time.
    qsize: how many of its results may wait for the next stage; 0 for no limit, None for pipekit's choice.
    backend: a name, or a Backend object.
    """

    workers: int = 1
    qsize: int | None = None
    backend: str | Backend = "process"

    def __post_init__(self) -> None:
        _check_count("workers", self.workers, least=1, hint="1 or more")
        if self.qsize is not None:
            _check_count("qsize", self.qsize, least=0, hint="0 for no limit, 1 or more, or None for pipekit's choice")
        if isinstance(self.backend, str):
            check_backend_name(self.backend)
        elif not isinstance(self.backend, Backend):
            raise OptionError(f"backend must be a name or a Backend object, not {self.backend!r}")

    def changed(self, given: Mapping[str, Any]) -> Options:
        """These options with the given ones changed."""
        known = [option.name for option in fields(self)]
        for name in given:
            if name not in known:
                raise SignatureError(f"there is no option {name!r}: the options are {', '.join(known)}")
        return replace(self, **given)


def _check_count(name: str, value: object, *, least: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}={value!r} cannot work: it must be a whole number, {hint}")


@dataclass(frozen=True, slots=True)
class Node:
    """One stage of a graph: its function with its arguments, and its options."""

    name: str
    kind: Kind
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: Options = Options()
    skip_errors: bool = False
    is_source: bool = False

    def check_arguments(self, inputs: int) -> None:
        """Raise SignatureError unless the function can be called with `inputs` input and its arguments."""
        problem = self.argument_problem(inputs)
        if problem is not None:
            raise SignatureError(
                f"stage {self.name!r}: {problem}; call the stage to give its arguments, {self.name}(...)"
            )

    def argument_problem(self, inputs: int) -> str | None:
        """Why the function cannot be called so, or None if it can or its signature does not tell."""
        try:
            signature = inspect.signature(self.function)
        except (ValueError, TypeError):  # many built-in functions have none
            return None
        try:
            signature.bind(*[None] * inputs, *self.args, **self.kwargs)
        except TypeError as error:
            return str(error)
        return None


@dataclass(eq=False, slots=True)
class OneShot:
    """An iterator given as a source: there is only one pass over it, so only one run may read it."""

    iterator: Iterator[Any]
    used: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> Iterator[Any]:
        return self.iterator

    def claim(self) -> None:
        """Take it for a run; raises PipelineError the second time."""
        with self.lock:
            used, self.used = self.used, True
        if used:
            raise PipelineError(
                f"the source {short_repr(self.iterator)} is an iterator that an earlier run has read: its items are "
                "gone. Give a list or another iterable that can be read again, or Stage(function)"
            )


def source_node(source: Iterable[Any]) -> Node:
    """The node that reads an iterable, in a thread of the caller's process."""
    read: Callable[[], Iterator[Any]] = OneShot(source) if isinstance(source, Iterator) else partial(iter, source)
    return Node(SOURCE_NAME, Kind.ITERATOR, read, options=Options(backend="thread"), is_source=True)


def check_callable(function: object) -> None:
    """Raise SignatureError if a stage cannot be made of it."""
    if not callable(function):
        hint = f"; for {function} workers write workers={function}" if isinstance(function, int) else ""
        raise SignatureError(f"a stage is made of a function, {short_repr(function)} is not callable{hint}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise SignatureError(
            f"{short_repr(function)} is async, and a stage calls plain functions: "
            "write one that calls asyncio.run, or one that blocks, on threads"
        )


def stage_name(function: Callable[..., Any]) -> str:
    """What a stage of this function is called: the function's name, `Class.method` for a bound method."""
    if isinstance(function, partial):
        return stage_name(function.func)
    name = getattr(function, "__name__", None) or type(function).__name__
    if inspect.ismethod(function):
        owner = function.__self__
        return f"{owner.__name__ if isinstance(owner, type) else type(owner).__name__}.{name}"
    return name
