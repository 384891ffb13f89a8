"""Bars as SVG: the same figures give the same file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape

WIDTH, LABEL, VALUE, ROW = 720, 190, 70, 20
COLOURS = {"pipekit": "#2a6fbb", "serial": "#777777", "": "#c9c9c9"}
#: From this ratio on between the longest and the shortest bar, lengths are logarithms.
LOGARITHMIC = 50


def bars(title: str, values: Mapping[str, float]) -> str:
    """A bar for each value, the shortest first; pipekit's are blue."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    lengths = _lengths([value for _, value in ordered])
    note = " (logarithmic)" if _is_wide([value for _, value in ordered]) else ""
    height = ROW * (len(ordered) + 1) + 12
    size = f'width="{WIDTH}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {size} {style}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="16" font-weight="bold">{escape(title + note)}</text>',
    ]
    for row, ((name, value), length) in enumerate(zip(ordered, lengths, strict=True), start=1):
        lines.extend(_bar(name, value, length, row * ROW + 8))
    return "\n".join((*lines, "</svg>")) + "\n"


def _bar(name: str, value: float, length: float, top: int) -> Iterator[str]:
    colour = next(colour for prefix, colour in COLOURS.items() if name.startswith(prefix))
    yield f'<text x="{LABEL - 6}" y="{top + 13}" text-anchor="end">{escape(name)}</text>'
    yield f'<rect x="{LABEL}" y="{top + 2}" width="{length:.1f}" height="{ROW - 6}" fill="{colour}"/>'
    yield f'<text x="{LABEL + length + 5:.1f}" y="{top + 13}">{value:.3g}</text>'


def _is_wide(values: list[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOGARITHMIC


def _lengths(values: list[float]) -> list[float]:
    room = WIDTH - LABEL - VALUE
    if not _is_wide(values):
        most = max((*values, 0.0)) or 1.0
        return [max(1.0, room * value / most) for value in values]
    least, most = math.log10(min(values)) - 0.3, math.log10(max(values))
    return [room * (math.log10(value) - least) / (most - least) for value in values]
