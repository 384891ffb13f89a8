"""What a user declares, as plain values: nodes with options, and how they are joined. Starts nothing.

A graph is made of parts: a node; a series; a tee or a route, whose branches are parts; a merge of parts.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from typing import Any, Final, Literal, TypeAlias

from pipekit._errors import OptionError, PipelineError, SignatureError, short_repr
from pipekit._pickling import decorated_name, import_decorated
from pipekit._public import public
from pipekit._task import Kind
from pipekit.backends._base import Backend
from pipekit.backends._registry import check_backend_name

SOURCE_NAME = "source"


@public
@dataclass(frozen=True, slots=True)
class Options:
    """What `setup()` and the decorators accept; checked when made.

    workers: how many workers run the stage at the same time.
    qsize: how many of its results may wait for the next stage; 0 for no limit, None for pipekit's choice.
    backend: a name, or a Backend object.
    key: of an item; items with equal keys go to the same worker. None: to any.
    name: the stage's name, None for its function's.
    fuse: whether it is to run in the same workers as the map stages beside it; None: where that costs no parallelism.
    """

    workers: int = 1
    qsize: int | None = None
    backend: str | Backend = "process"
    key: Callable[[Any], object] | None = None
    name: str | None = None
    fuse: bool | None = None

    def __post_init__(self) -> None:
        _check_count("workers", self.workers, least=1, hint="1 or more")
        if self.qsize is not None:
            _check_count("qsize", self.qsize, least=0, hint="0 for no limit, 1 or more, or None for pipekit's choice")
        if isinstance(self.backend, str):
            check_backend_name(self.backend)
        elif not isinstance(self.backend, Backend):
            raise OptionError(f"backend must be a name or a Backend object, not {self.backend!r}")
        if self.key is not None and not callable(self.key):
            raise OptionError(f"key={short_repr(self.key)} cannot work: it must be a function of an item, or None")
        if self.name is not None:
            check_name(self.name)
        if not isinstance(self.fuse, bool | None):
            raise OptionError(f"fuse={short_repr(self.fuse)} cannot work: it must be True, False or None")

    def changed(self, given: Mapping[str, Any]) -> Options:
        """These options with the given ones changed."""
        known = [option.name for option in fields(self)]
        for name in given:
            if name not in known:
                raise SignatureError(f"there is no option {name!r}: the options are {', '.join(known)}")
        return replace(self, **given)


def check_name(name: object) -> None:
    """Raise OptionError unless it can be the name of a stage."""
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise OptionError(f"name={short_repr(name)} cannot work: it must be text of one line that is not empty")


def _check_count(name: str, value: object, *, least: int, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}={value!r} cannot work: it must be a whole number, {hint}")


@dataclass(frozen=True, slots=True)
class Node:
    """One stage of a graph: its function with its arguments, and its options."""

    function_name: str
    kind: Kind
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: Options = Options()
    skip_errors: bool = False
    is_source: bool = False

    @property
    def name(self) -> str:
        return self.options.name or self.function_name

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

    def __reduce__(self) -> tuple[Any, ...]:
        named = decorated_name(self.function)
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        if named is not None:
            values["function"] = _not_here
        return _restore_node, (values, named)


def _restore_node(values: dict[str, Any], named: tuple[str, str] | None) -> Node:
    """Unpickle; `named` are module and name of a decorated function, which is a stage there, not a function."""
    if named is not None:
        values["function"] = import_decorated(*named)
    return Node(**values)


def _not_here() -> None:
    """Stands for a function that is pickled by name."""


@dataclass(frozen=True, slots=True)
class Series:
    """One part after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tee:
    """Each item goes to every branch."""

    name: str
    branches: tuple[Part, ...]


class Drop(Enum):
    """The type of DROP."""

    DROP = "DROP"

    def __repr__(self) -> str:
        return self.name


#: `route(..., default=DROP)`: leave out the items whose key has no branch.
DROP: Final = Drop.DROP


@dataclass(frozen=True, slots=True)
class Route:
    """Each item goes to the branch whose key `choose` gives for it.

    default: for items with other keys; None: they are a failure.
    """

    name: str
    choose: Callable[[Any], object]
    branches: Mapping[Hashable, Part]
    default: Part | Literal[Drop.DROP] | None


@dataclass(frozen=True, slots=True)
class Merge:
    """Parts that have their sources."""

    parts: tuple[Part, ...]


Part: TypeAlias = Node | Series | Tee | Route | Merge


@dataclass(eq=False, slots=True)
class OneShot:
    """An iterator given as a source: there is only one pass over it, so only one run may read it."""

    iterator: Iterator[Any]
    used: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> Iterator[Any]:
        return self.iterator

    def claim(self) -> bool:
        """Take it for a run; False if another has it."""
        with self.lock:
            used, self.used = self.used, True
        return not used


def claim_all(sources: Iterable[OneShot]) -> None:
    """Take all or none of the iterators for a run; raises PipelineError if another run has one of them."""
    claimed = []
    for source in sources:
        if source.claim():
            claimed.append(source)
            continue
        for other in claimed:
            other.used = False
        raise PipelineError(
            f"the source {short_repr(source.iterator)} is an iterator that an earlier run has read: its items are "
            "gone. Give a list or another iterable that can be read again, or Stage(function)"
        )


def source_node(source: Iterable[Any]) -> Node:
    """The node that reads an iterable, in a thread of the caller's process."""
    read: Callable[[], Iterator[Any]] = OneShot(source) if isinstance(source, Iterator) else partial(iter, source)
    return Node(SOURCE_NAME, Kind.ITERATOR, read, options=Options(backend="thread"), is_source=True)


def nodes(part: Part) -> Iterator[Node]:
    """All stages of a part."""
    if isinstance(part, Node):
        yield part
        return
    for inner in _inner(part):
        yield from nodes(inner)


def _inner(part: Series | Tee | Route | Merge) -> tuple[Part, ...]:
    if isinstance(part, Tee):
        return part.branches
    if isinstance(part, Route):
        default = () if part.default is None or part.default is DROP else (part.default,)
        return (*part.branches.values(), *default)
    return part.parts


def check_open(part: Part) -> None:
    """Raise SignatureError unless the part can take items from what stands left of it."""
    if isinstance(part, Series):
        check_open(part.parts[0])
    elif isinstance(part, Node):
        if part.is_source:
            raise SignatureError(f"{written(part)} has a source already, so nothing can be joined to its left")
        part.check_arguments(inputs=1)
    elif isinstance(part, Merge):
        raise SignatureError(f"{written(part)} has its sources already, so nothing can be joined to its left")


def check_closed(part: Part) -> None:
    """Raise SignatureError if the part needs an input."""
    if isinstance(part, Series):
        check_closed(part.parts[0])
    elif isinstance(part, Node):
        problem = "it maps items" if part.kind is Kind.MAP else part.argument_problem(inputs=0)
        if problem is not None:
            raise _needs_input(part.name, problem)
        if part.options.key is not None:
            raise SignatureError(f"stage {part.name!r} has a key=, but it stands first: there are no items to divide")
    elif not isinstance(part, Merge):
        raise _needs_input(part.name, "it passes on what it gets")


def _needs_input(name: str, problem: str) -> SignatureError:
    return SignatureError(
        f"the pipeline starts with stage {name!r}, which needs an input ({problem}): "
        f"give it one with `iterable | {name}`"
    )


def written(part: Part) -> str:
    """The part as one would write it."""
    if isinstance(part, Series):
        return " | ".join(map(written, part.parts))
    if isinstance(part, Merge):
        return f"merge({', '.join(map(written, part.parts))})"
    return part.name


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
