"""Graphs that are no chains: `tee` and `route` fan out, `merge` fans in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Never, TypeAlias, TypeVar, cast, overload

from pipekit._errors import OptionError, SignatureError, short_repr
from pipekit._graph import (
    DROP,
    Drop,
    Merge,
    Options,
    Part,
    Route,
    Tee,
    check_closed,
    check_name,
    check_open,
    source_node,
    stage_name,
    written,
)
from pipekit._pipeline import In, Joinable, NoInput, Out, Pipeline, is_iterable
from pipekit._public import public
from pipekit._stage import Stage

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")

#: Characters of the branches in the name of a tee.
NAME_LENGTH = 60

#: What can be a branch.
Branch: TypeAlias = Joinable[A, B, []]
#: What can be merged.
Mergeable: TypeAlias = Joinable[NoInput, B, []] | Iterable[B]


class _Branches(Stage[In, Out, []]):
    """What `tee` and `route` make. Has no workers, and of the options only a name."""

    def __init__(self, part: Tee | Route, default_name: str | None = None) -> None:
        self._graph = part
        self._default_name = default_name or part.name

    def _part(self) -> Part:
        return self._graph

    @property
    def name(self) -> str:
        return self._graph.name

    @property
    def options(self) -> Options:
        raise OptionError(_NO_OPTIONS.format(self.name))

    def setup(self, **options: Any) -> Any:
        if set(options) - {"name"}:
            raise OptionError(_NO_OPTIONS.format(self.name))
        if "name" in options:
            name = options["name"]
            if name is not None:
                check_name(name)
            self._graph = replace(self._graph, name=name or self._default_name)
        return self

    def __call__(self, *args: Never, **kwargs: Never) -> Stage[In, Out]:
        if args or kwargs:
            raise SignatureError(f"{self.name} takes no arguments: give them to the stages in it")
        return _Branches(self._graph, self._default_name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Branches, (self._graph, self._default_name)

    def __repr__(self) -> str:
        return f"<Stage {self.name}>"


_NO_OPTIONS = "{} has no workers of its own, so it can only be given a name: set up the stages in it"


@overload
def tee(first: Branch[A, B], /) -> Stage[A, B]: ...
@overload
def tee(first: Branch[A, B], second: Branch[A, C], /) -> Stage[A, B | C]: ...
@overload
def tee(first: Branch[A, B], second: Branch[A, C], third: Branch[A, D], /) -> Stage[A, B | C | D]: ...
@overload
def tee(
    first: Branch[A, B], second: Branch[A, C], third: Branch[A, D], fourth: Branch[A, E], /
) -> Stage[A, B | C | D | E]: ...
@overload
def tee(
    first: Branch[A, B],
    second: Branch[A, C],
    third: Branch[A, D],
    fourth: Branch[A, E],
    fifth: Branch[A, F],
    /,
) -> Stage[A, B | C | D | E | F]: ...
@overload
def tee(*branches: Branch[A, B]) -> Stage[A, B]: ...
@public
def tee(*branches: Branch[Any, Any]) -> Stage[Any, Any]:
    """Give each item to every branch; what the branches give flows on together.

    What stands left of it runs once. Branches that are threads see the same object if a thread gave it; processes get
    copies, pickled once. The slowest branch sets the pace.

    Args:
        branches: stages, or pipelines without a source.

    Returns:
        Stage: to be joined like any other.

    Raises:
        SignatureError: there is no branch, or one cannot take items.
    """
    parts = tuple(_branch("tee", branch) for branch in branches)
    if not parts:
        raise SignatureError("tee() needs at least one branch")
    return _Branches(Tee(f"tee({_shortened(', '.join(map(written, parts)))})", parts))


@public
def route(
    choose: Callable[[A], object],
    branches: Mapping[Any, Branch[A, B]] | None = None,
    /,
    *,
    default: Branch[A, B] | Literal[Drop.DROP] | None = None,
    **named: Branch[A, B],
) -> Stage[A, B]:
    """Give each item to the branch whose key `choose` gives for it; what the branches give flows on together.

    `choose` runs where the items come from: in the workers of the stage left of it, once for each of their results.

    Args:
        choose: a function of an item that gives a key.
        branches: stages, or pipelines without a source, by key: for keys that are no names.
        default: the branch of all other keys; DROP to leave such items out. Default None: they are an error.
        named: further branches, by keys that are names.

    Returns:
        Stage: to be joined like any other.

    Raises:
        SignatureError: there is no branch, one cannot take items, two have the same key, or `choose` is no function.
    """
    if not callable(choose):
        raise SignatureError(f"what chooses a branch must be a function of an item, not {short_repr(choose)}")
    name = f"route({stage_name(choose)})"
    given: dict[Any, object] = {**_as_mapping(branches), **named}
    twice = [key for key in named if key in (branches or {})]
    if twice:
        raise SignatureError(f"{name} has two branches for {twice[0]!r}")
    parts = {key: _branch(name, branch) for key, branch in given.items()}
    other = default if default is None or default is DROP else _branch(name, default)
    if not parts and (other is None or other is DROP):
        raise SignatureError(f"{name} needs at least one branch")
    return _Branches(Route(name, choose, parts, other))


@overload
def merge(first: Mergeable[B], /) -> Pipeline[NoInput, B]: ...
@overload
def merge(first: Mergeable[B], second: Mergeable[C], /) -> Pipeline[NoInput, B | C]: ...
@overload
def merge(first: Mergeable[B], second: Mergeable[C], third: Mergeable[D], /) -> Pipeline[NoInput, B | C | D]: ...
@overload
def merge(
    first: Mergeable[B], second: Mergeable[C], third: Mergeable[D], fourth: Mergeable[E], /
) -> Pipeline[NoInput, B | C | D | E]: ...
@overload
def merge(
    first: Mergeable[B],
    second: Mergeable[C],
    third: Mergeable[D],
    fourth: Mergeable[E],
    fifth: Mergeable[F],
    /,
) -> Pipeline[NoInput, B | C | D | E | F]: ...
@overload
def merge(*pipelines: Mergeable[B]) -> Pipeline[NoInput, B]: ...
@public
def merge(*pipelines: Mergeable[Any]) -> Pipeline[NoInput, Any]:
    """Run several pipelines side by side and let their results flow on together, as they are ready.

    Ends when all have ended. Each is a run of its own: `merge(p | a, p | b)` runs `p` twice; to run it once and have
    its results twice, write `p | tee(a, b)`.

    Args:
        pipelines: pipelines or stages that have their source, or iterables.

    Returns:
        Pipeline: one that has its sources.

    Raises:
        SignatureError: there is nothing to merge, or something that needs an input.
    """
    if not pipelines:
        raise SignatureError("merge() needs at least one pipeline")
    return Pipeline(Merge(tuple(map(_closed, pipelines))))


def _shortened(text: str) -> str:
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 3]}..."


def _branch(of: str, branch: object) -> Part:
    if not isinstance(branch, Joinable):
        raise SignatureError(
            f"{short_repr(branch)} cannot be a branch of {of}: that must be a stage or a pipeline without a source; "
            "make a function one with `stage` or `map_stage`"
        )
    part = branch._part()
    try:
        check_open(part)
    except SignatureError as error:
        raise SignatureError(f"{branch!r} cannot be a branch of {of}: {error}") from None
    return part


def _closed(pipeline: object) -> Part:
    if isinstance(pipeline, Joinable):
        check_closed(pipeline._part())
        return pipeline._part()
    if isinstance(pipeline, (list, tuple)) and any(isinstance(one, Joinable) for one in pipeline):
        raise SignatureError("merge takes pipelines, not a list of them: write merge(*pipelines)")
    if not is_iterable(pipeline):
        raise SignatureError(f"{short_repr(pipeline)} cannot be merged: that must be a pipeline or an iterable")
    return source_node(cast("Iterable[Any]", pipeline))


def _as_mapping(branches: object) -> Mapping[Any, Any]:
    if branches is None:
        return {}
    if not isinstance(branches, Mapping):
        raise SignatureError(f"the branches must be a mapping of keys to stages, not {short_repr(branches)}")
    return branches
