"""Marks what users import."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def public(value: T) -> T:
    """Have a class or function say that it is `pipekit`'s: so users import it, and messages and pickles name it."""
    value.__module__ = "pipekit"
    return value
