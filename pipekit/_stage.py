"""Stages: functions with the way in which they are to be run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Never, Protocol, Self, overload

from typing_extensions import ParamSpec, TypedDict, Unpack

from pipekit._graph import Node, Options, Part, check_callable, stage_name
from pipekit._pipeline import A, B, C, In, Joinable, NoInput, Out, P, Pipeline, feed, join, last, start
from pipekit._public import public
from pipekit._task import Kind

if TYPE_CHECKING:
    from pipekit._results import Results
    from pipekit.backends._base import Backend

Q = ParamSpec("Q")


class GivenOptions(TypedDict, Generic[A], total=False):
    """The options of a stage that reads items of type A, as they are given; see `Options` for what they mean."""

    workers: int
    qsize: int | None
    backend: str | Backend
    key: Callable[[A], object] | None
    name: str | None
    fuse: bool | None


@public
class Stage(Joinable[In, Out, P], Generic[In, Out, P]):
    """A function of an iterator, with its extra arguments and the way in which it is to be run.

    `Stage(function, *args, **kwargs)` calls `function(items, *args, **kwargs)` in each worker; as the first stage of a
    pipeline, a producer, `function(*args, **kwargs)`. Decorators: `stage`, and `map_stage` for a function of one item.

    Raises:
        SignatureError: `function` is not callable.
    """

    @overload
    def __init__(
        self: Stage[A, B, []],
        function: Callable[Concatenate[Iterable[A], Q], Iterable[B]],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> None: ...
    @overload
    def __init__(
        self: Stage[A, Never, []],
        function: Callable[Concatenate[Iterable[A], Q], None],
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> None: ...
    @overload
    def __init__(
        self: Stage[NoInput, B, []], function: Callable[Q, Iterable[B]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> None: ...
    def __init__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        check_callable(function)
        self._set_node(Node(stage_name(function), Kind.ITERATOR, function, args, kwargs))

    @classmethod
    def _of(cls, node: Node) -> Self:
        stage = cls.__new__(cls)
        stage._set_node(node)
        return stage

    def _set_node(self, node: Node) -> None:
        self._node = node
        update_wrapper(self, node.function, updated=())

    def _part(self) -> Part:
        return self._node

    @property
    def name(self) -> str:
        """The stage's name in messages and statistics; its workers are called `<name>-<index>`.

        Where several stages of a graph have the same name, the second one is `<name>#2` there.
        """
        return self._node.name

    @property
    def options(self) -> Options:
        """The options in force."""
        return self._node.options

    def setup(self, **options: Unpack[GivenOptions[In]]) -> Self:
        """Change the given options in place, leave the others, and return the stage itself.

        A pipeline keeps the options that its stages had when it was joined.

        Args:
            workers: how many workers run the stage at the same time, default 1.
            qsize: how many of its results may wait for the next stage; 0 for no limit, default None: pipekit's choice,
                at most 262,144 items and far fewer while the next stage is slow.
            backend: "process" (the default), "thread", "free-threaded", the name of an installed backend, or a Backend
                object; "auto": "free-threaded" where Python has no GIL, else "process".
            key: a function of an item. Items with equal keys go to the same worker, in the order in which they came;
                each worker has a queue of its own. Runs where the items come from. Keys are text, bytes, numbers,
                None, dates, Enum members, UUIDs, paths, or tuples or frozensets of these. Default None: any worker.
            name: what the stage is called, default None: as its function.
            fuse: True to run it in the same workers as the map stages right before and behind it that have the same
                backend and number of workers; False to keep it apart. Default None: fused on processes if there are at
                least as many workers as CPUs that the program may use, since more processes could not compute more.

        Raises:
            OptionError: an option has a value that cannot work.
        """
        self._node = replace(self._node, options=self._node.options.changed(options))
        return self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Stage[In, Out]:
        """A new stage with these arguments for the function, and the same options.

        Raises:
            SignatureError: the function does not take these arguments.
        """
        node = replace(self._node, args=args, kwargs=kwargs)
        if node.argument_problem(inputs=0) is not None:  # no producer: then it reads an input
            node.check_arguments(inputs=1)
        return Stage[In, Out]._of(node)

    def __or__(self: Stage[A, B], other: Stage[B, C] | Pipeline[B, C]) -> Pipeline[A, C]:
        return join(self, other)

    def __ror__(self: Stage[A, B], source: Iterable[A]) -> Pipeline[NoInput, B]:
        return feed(source, self)

    def results(self: Stage[NoInput, B], *, stall_timeout: float | None = None) -> Results[B]:
        """As `Pipeline.results`, for a stage that needs no input."""
        return start(self, stall_timeout)

    def execute(self: Stage[NoInput, B], *, stall_timeout: float | None = None) -> B | None:
        """As `Pipeline.execute`, for a stage that needs no input."""
        return last(start(self, stall_timeout))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._node,)

    def __repr__(self) -> str:
        return f"<Stage {self.name} x{self.options.workers}>"


def _restore(node: Node) -> Stage[Any, Any]:
    return Stage._of(node)


class StageDecorator(Protocol):
    """What `stage(...)` returns: makes a Stage of an iterator function, keeping its extra parameters."""

    @overload
    def __call__(self, function: Callable[Concatenate[Iterable[A], Q], Iterable[B]], /) -> Stage[A, B, Q]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Iterable[A], Q], None], /) -> Stage[A, Never, Q]: ...
    @overload
    def __call__(self, function: Callable[Q, Iterable[B]], /) -> Stage[NoInput, B, Q]: ...


class MapStageDecorator(Protocol):
    """What `map_stage(...)` returns: makes a Stage of a function of one item, keeping its extra parameters."""

    def __call__(self, function: Callable[Concatenate[A, Q], B], /) -> Stage[A, B, Q]: ...


@overload
def stage(function: Callable[Concatenate[Iterable[A], Q], Iterable[B]], /) -> Stage[A, B, Q]: ...
@overload
def stage(function: Callable[Concatenate[Iterable[A], Q], None], /) -> Stage[A, Never, Q]: ...
@overload
def stage(function: Callable[Q, Iterable[B]], /) -> Stage[NoInput, B, Q]: ...
@overload
def stage(**options: Unpack[GivenOptions[Any]]) -> StageDecorator: ...
@public
def stage(function: Callable[..., Any] | None = None, /, **options: Unpack[GivenOptions[Any]]) -> Any:
    """Make a stage of a function that takes an iterator of items and gives an iterable of results.

    A function that reads all its items and returns None is a sink: a stage without results. The function's other
    parameters are given by calling the stage: `add_n(7)`. Use as `@stage(workers=4)` or `@stage`.

    Args:
        options: as for `Stage.setup`.

    Raises:
        OptionError: an option has a value that cannot work.
        SignatureError: what is decorated is not callable.
    """
    return _decorate(function, options, Kind.ITERATOR, skip_errors=False)


@overload
def map_stage(function: Callable[Concatenate[A, Q], B], /) -> Stage[A, B, Q]: ...
@overload
def map_stage(*, filter_errors: bool = False, **options: Unpack[GivenOptions[Any]]) -> MapStageDecorator: ...
@public
def map_stage(
    function: Callable[..., Any] | None = None, /, *, filter_errors: bool = False, **options: Unpack[GivenOptions[Any]]
) -> Any:
    """Make a stage of a function that takes one item and gives one result.

    The function's other parameters are given by calling the stage. Use as `@map_stage(workers=4)` or `@map_stage`.

    Args:
        filter_errors: leave out the items for which the function raises an Exception, default False.
        options: as for `Stage.setup`.

    Raises:
        OptionError: an option has a value that cannot work.
        SignatureError: what is decorated is not callable.
    """
    return _decorate(function, options, Kind.MAP, skip_errors=filter_errors)


def _decorate(function: Callable[..., Any] | None, given: Mapping[str, Any], kind: Kind, *, skip_errors: bool) -> Any:
    options = Options().changed(given)

    def decorate(function: Callable[..., Any]) -> Stage[Any, Any]:
        check_callable(function)
        return Stage._of(Node(stage_name(function), kind, function, options=options, skip_errors=skip_errors))

    return decorate if function is None else decorate(function)
