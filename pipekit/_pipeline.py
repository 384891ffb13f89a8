"""Pipelines: stages joined by `|`. Values: joining makes a new one, nothing runs before `results()` or `execute()`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, final

from typing_extensions import ParamSpec, TypeVar

from pipekit._errors import SignatureError, short_repr
from pipekit._graph import Part, Series, check_closed, check_open, nodes, source_node, written
from pipekit._public import public
from pipekit.backends._registry import warm_up

if TYPE_CHECKING:
    from pipekit._picture import Picture
    from pipekit._plan import Plan
    from pipekit._results import Results
    from pipekit._stage import Stage

# A pipeline reads `In` and gives `Out`. The variance is declared: inference would make a class with `__or__` invariant.
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
# The arguments that a stage still needs, beside its input.
P = ParamSpec("P", default=[])
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


@public
@final
class NoInput:
    """The `In` of a pipeline that has its source: nothing can be fed to it, and it can be run."""


class Joinable(Generic[In, Out, P]):
    """What stands on either side of `|`; not public, the two classes that are have the types."""

    # numpy arrays leave `array | stage` to the stage.
    __array_ufunc__ = None

    if not TYPE_CHECKING:  # for the type checker it is not iterable, as is meant

        def __iter__(self) -> NoReturn:
            raise SignatureError(
                f"{self!r} is not iterable: iterate over its results(). "
                "(A dict view iterates over what stands right of `|`: write `list(view) | stage`)"
            )

    def _part(self) -> Part:
        raise NotImplementedError

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart, as text: many sites draw blocks of it."""
        return _picture_of(self).to_mermaid()

    def to_dot(self) -> str:
        """The graph in Graphviz's language, as text: `dot -Tsvg` makes a picture of it."""
        return _picture_of(self).to_dot()

    def to_svg(self) -> str:
        """The graph as an SVG picture, as text. A notebook shows it by itself."""
        return _picture_of(self).to_svg()

    def _repr_svg_(self) -> str:
        return self.to_svg()


@public
class Pipeline(Joinable[In, Out, []], Generic[In, Out]):
    """Stages joined by `|`.

    `Pipeline[In, Out]` reads items of type In; one that has a source is a `Pipeline[NoInput, Out]`.
    """

    def __init__(self, graph: Part) -> None:
        self._graph = graph

    def _part(self) -> Part:
        return self._graph

    def __or__(self: Pipeline[A, B], other: Stage[B, C] | Pipeline[B, C]) -> Pipeline[A, C]:
        return join(self, other)

    def __ror__(self: Pipeline[A, B], source: Iterable[A]) -> Pipeline[NoInput, B]:
        return feed(source, self)

    def results(self: Pipeline[NoInput, B], *, stall_timeout: float | None = None) -> Results[B]:
        """Start the pipeline and return its results, in the order in which they are ready.

        Args:
            stall_timeout: seconds after which a run is given up in which nothing moves, default None: never. Longer
                than the slowest item takes. Time that you spend in your loop does not count.

        Returns:
            Results: an iterator and context manager; leaving it stops the run.

        Raises:
            OptionError: stall_timeout is not a number above 0.
            SignatureError: the first stage needs an input.
            BackendUnavailable: a stage's backend cannot run here.
            NotPicklable: a function or argument cannot be sent to a worker process.
            StartError: a worker could not be started.
            TaskException: from the iterator, when a stage failed (WorkerDied, ItemNotPicklable are such).
            Stalled: from the iterator, when nothing has moved for `stall_timeout` seconds.
        """
        return start(self, stall_timeout)

    def execute(self: Pipeline[NoInput, B], *, stall_timeout: float | None = None) -> B | None:
        """Run the pipeline to its end and return its last result, None if there was none.

        Arguments and errors are those of `results()`.
        """
        return last(start(self, stall_timeout))

    def plan(self: Pipeline[NoInput, B]) -> Plan:
        """What would run: compiles without starting anything.

        Raises what `results()` raises before it starts a worker.
        """
        from pipekit._plan import compile_plan  # as in `start`

        return compile_plan(self._graph)

    def explain(self: Pipeline[NoInput, B]) -> str:
        """The plan as text, a line a stage: workers, backend, where its results go, the queue on the way; and with
        which stage it shares its workers, and why.

        Raises what `plan()` raises.
        """
        return self.plan().explain()

    def __repr__(self) -> str:
        return f"<Pipeline {written(self._graph)}>"


def _picture_of(pipeline: Joinable[Any, Any, Any]) -> Picture:
    from pipekit._picture import picture  # seldom asked for

    return picture(pipeline._part())


def join(left: Joinable[Any, Any, Any], right: Joinable[Any, Any, Any]) -> Pipeline[Any, Any]:
    """`left | right`; raises SignatureError if `right` cannot follow."""
    if not isinstance(right, Joinable):
        raise SignatureError(
            f"{short_repr(right)} cannot stand right of `|`: that must be a stage or a pipeline; "
            "make a function one with `stage` or `map_stage`"
        )
    check_open(right._part())
    return Pipeline(Series((*_steps(left._part()), *_steps(right._part()))))


def _steps(part: Part) -> tuple[Part, ...]:
    return part.parts if isinstance(part, Series) else (part,)


def feed(source: Iterable[Any], right: Joinable[Any, Any, Any]) -> Pipeline[NoInput, Any]:
    """`source | right` for an iterable."""
    if not is_iterable(source):
        raise SignatureError(
            f"{short_repr(source)} cannot stand left of `|`: that must be an iterable, a stage or a pipeline"
        )
    return join(Pipeline(source_node(source)), right)


def is_iterable(source: object) -> bool:
    """Whether it can be read as a source."""
    return isinstance(source, Iterable) or hasattr(source, "__getitem__")


def start(pipeline: Joinable[Any, Any, Any], stall_timeout: float | None) -> Results[Any]:
    """Compile and start."""
    part = pipeline._part()
    check_closed(part)
    for backend in {node.options.backend for node in nodes(part)}:
        warm_up(backend)
    # What runs a pipeline takes longer to import than what declares one: not before it is needed, and all of it here,
    # before a worker starts.
    from pipekit._plan import compile_plan
    from pipekit._results import Results
    from pipekit._run import Run
    from pipekit._watch import check_stall_timeout

    check_stall_timeout(stall_timeout)
    run = Run(compile_plan(part))
    # Before the start: whoever is interrupted after it drops them, and that stops the run.
    results: Results[Any] = Results._of(run, stall_timeout)
    run.start()
    return results


def last(results: Results[B]) -> B | None:
    """The last result, None if there is none."""
    result = None
    with results:
        for result in results:  # noqa: B007
            pass
    return result
