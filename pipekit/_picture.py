"""Pictures of a declared graph: as Mermaid or Graphviz text, and as SVG for notebooks and documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from pipekit._errors import SignatureError
from pipekit._graph import DROP, Merge, Node, Part, Route, Series, Tee, check_closed
from pipekit._layout import Layout, lay_out
from pipekit._outlet import Outlet, To, ToAll, key_text

#: Sizes of the SVG, in pixels: a cell of the grid, the box in it, and the characters that fit into a box.
CELL_WIDTH, CELL_HEIGHT = 180, 64
BOX_WIDTH, BOX_HEIGHT = 124, 40
BOX_CHARACTERS = 17


@dataclass(frozen=True, slots=True)
class Box:
    """What is drawn for a stage, or for where the graph begins or ends."""

    title: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """Between two boxes, by their indices; `label` is a route's key."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Boxes in the order of the data, and arrows.

    cells: column and row of each box, which may lie between two rows.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    cells: tuple[tuple[float, float], ...]

    def to_mermaid(self) -> str:
        boxes = [f'    s{index}["{_mermaid_text(box)}"]' for index, box in enumerate(self.boxes)]
        arrows = [f"    s{arrow.start} -->{_mermaid_label(arrow.label)} s{arrow.end}" for arrow in self.arrows]
        return "\n".join(["flowchart LR", *boxes, *arrows, ""])

    def to_dot(self) -> str:
        boxes = [f'    s{index} [label="{_dot_text(box)}"]' for index, box in enumerate(self.boxes)]
        arrows = [f'    s{arrow.start} -> s{arrow.end} [label="{_dot_escaped(arrow.label)}"]' for arrow in self.arrows]
        return "\n".join(["digraph pipeline {", "    rankdir=LR; node [shape=box]", *boxes, *arrows, "}", ""])

    def to_svg(self) -> str:
        width = (1 + max(column for column, _ in self.cells)) * CELL_WIDTH
        height = (1 + max(row for _, row in self.cells)) * CELL_HEIGHT
        boxes = [_svg_box(box, *_centre(cell)) for box, cell in zip(self.boxes, self.cells, strict=True)]
        arrows = [
            _svg_arrow(arrow.label, *_centre(self.cells[arrow.start]), *_centre(self.cells[arrow.end]))
            for arrow in self.arrows
        ]
        return "\n".join([_SVG_HEAD.format(width=f"{width:g}", height=f"{height:g}"), *arrows, *boxes, "</svg>", ""])


def picture(part: Part) -> Picture:
    """The picture of a graph, with or without its sources."""
    layout = lay_out(part)
    boxes = [Box(place.name, _detail(place.node)) for place in layout.places]
    boxes.append(Box("results"))
    arrows = [
        Arrow(number, reader, label)
        for number, place in enumerate(layout.places)
        for reader, label in _readers(place.outlet, "")
    ]
    cells = list(_cells(part, 1, 0, _size(part)[1]))
    cells.append((1 + _size(part)[0], (_size(part)[1] - 1) / 2))
    if _is_open(part, layout):
        assert layout.entry is not None
        arrows += [Arrow(len(boxes), reader, label) for reader, label in _readers(layout.entry, "")]
        boxes.append(Box("items"))
        cells.append((0, (_size(part)[1] - 1) / 2))
    else:
        cells = [(column - 1, row) for column, row in cells]
    return Picture(tuple(boxes), tuple(arrows), tuple(cells))


def _is_open(part: Part, layout: Layout) -> bool:
    if layout.entry is None:
        return False
    try:
        check_closed(part)
    except SignatureError:
        return True
    return False


def _detail(node: Node) -> str:
    if node.is_source:
        return ""
    options = node.options
    backend = options.backend if isinstance(options.backend, str) else options.backend.name
    return f"{options.workers} x {backend}{'' if options.key is None else ', by key'}"


def _readers(outlet: Outlet, label: str) -> Iterator[tuple[int, str]]:
    """Where an outlet leads, each with the keys of the routes on the way."""
    if isinstance(outlet, To):
        yield from ((number, label) for number in outlet.numbers)
    elif isinstance(outlet, ToAll):
        for one in outlet.outlets:
            yield from _readers(one, label)
    else:
        for key, one in outlet.outlets.items():
            yield from _readers(one, _joined(label, key_text(key)))
        if outlet.default is not None:
            yield from _readers(outlet.default, _joined(label, "default"))


def _joined(label: str, key: str) -> str:
    return f"{label}, {key}" if label else key


# -- where the boxes of a SVG are: a series from left to right, branches above each other, each in rows of its own


def _size(part: Part) -> tuple[int, int]:
    """Columns and rows."""
    if isinstance(part, Node):
        return 1, 1
    sizes = [_size(inner) for inner in _inner(part)]
    columns, rows = zip(*sizes, strict=True)
    return (sum(columns), max(rows)) if isinstance(part, Series) else (max(columns), sum(rows))


def _inner(part: Series | Tee | Route | Merge) -> tuple[Part, ...]:
    if isinstance(part, Tee):
        return part.branches
    if isinstance(part, Route):
        default = part.default
        return (*part.branches.values(), *(() if default is None or default is DROP else (default,)))
    return part.parts


def _cells(part: Part, column: float, top: float, rows: int) -> Iterator[tuple[float, float]]:
    """The cells of the part's stages, in the order of the layout, in the middle of so many rows."""
    if isinstance(part, Node):
        yield column, top + (rows - 1) / 2
        return
    if not isinstance(part, Series):
        top += (rows - _size(part)[1]) / 2
    for inner in _inner(part):
        columns, inner_rows = _size(inner)
        if isinstance(part, Series):
            yield from _cells(inner, column, top, rows)
            column += columns
        else:
            yield from _cells(inner, column, top, inner_rows)
            top += inner_rows


def _centre(cell: tuple[float, float]) -> tuple[float, float]:
    column, row = cell
    return (column + 0.5) * CELL_WIDTH, (row + 0.5) * CELL_HEIGHT


# -- texts

_SVG_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
    'font-family="sans-serif" font-size="12" text-anchor="middle">\n'
    '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker></defs>'
)


def _svg_box(box: Box, x: float, y: float) -> str:
    left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
    title = f'<text x="{x:g}" y="{y - 3 if box.detail else y + 4:g}">{escape(_short(box.title))}</text>'
    detail = f'<text x="{x:g}" y="{y + 12:g}" font-size="10" fill="#666">{escape(_short(box.detail))}</text>'
    frame = f'<rect x="{left:g}" y="{top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"'
    return f'{frame} fill="#f4f6fa" stroke="#777"/>{title}{detail if box.detail else ""}'


def _svg_arrow(label: str, x: float, y: float, to_x: float, to_y: float) -> str:
    """A line that leaves its row just before the box to which it leads, where no box of another row is."""
    x, to_x = x + BOX_WIDTH / 2, to_x - BOX_WIDTH / 2
    bend = to_x - (CELL_WIDTH - BOX_WIDTH)
    middle = (bend + to_x) / 2
    line = f"M{x:g},{y:g} H{bend:g} C{middle:g},{y:g} {middle:g},{to_y:g} {to_x:g},{to_y:g}"
    path = f'<path d="{line}" fill="none" stroke="#777" marker-end="url(#tip)"/>'
    text = f'<text x="{middle:g}" y="{to_y - 5:g}" font-size="10" fill="#666">{escape(_short(label))}</text>'
    return path + (text if label else "")


def _short(text: str) -> str:
    return text if len(text) <= BOX_CHARACTERS else f"{text[: BOX_CHARACTERS - 1]}…"


def _mermaid_text(box: Box) -> str:
    return "<br>".join(_mermaid_escaped(text) for text in (box.title, box.detail) if text)


def _mermaid_escaped(text: str) -> str:
    return escape(text, quote=False).replace('"', "&quot;").replace("&", "#")


def _mermaid_label(label: str) -> str:
    return f'|"{_mermaid_escaped(label)}"|' if label else ""


def _dot_text(box: Box) -> str:
    return "\\n".join(_dot_escaped(text) for text in (box.title, box.detail) if text)


def _dot_escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
