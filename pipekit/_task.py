"""What a worker is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipekit._outlet import Outlet


class Kind(Enum):
    """How a stage's function is called."""

    ITERATOR = "function(items, *args) gives an iterable of results"
    MAP = "function(item, *args) gives one result"


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker does.

    has_input: False for the first stage, whose function is called without items.
    pickled: for each outbox, whether its results are pickled, each before the function goes on, since they leave for
        another process.
    outlet: the outboxes that a result goes to; None: there is one, for all results.
    skip_errors: leave out items whose call raises an Exception (only for Kind.MAP).
    """

    stage: str
    kind: Kind
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    has_input: bool = True
    pickled: tuple[bool, ...] = (False,)
    outlet: Outlet | None = None
    skip_errors: bool = False
