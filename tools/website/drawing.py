"""A small SVG writer for the figures of the documentation: the same bytes on every machine."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

INK, MUTED, PAPER = "#1f2933", "#7b8794", "#ffffff"
GREY, BLUE, ORANGE, GREEN, RED = "#e4e7eb", "#a9c7e8", "#f9c98b", "#b5dba6", "#f2a9a4"
STRONG = {GREY: "#7b8794", BLUE: "#2b6cb0", ORANGE: "#c05621", GREEN: "#2f7d32", RED: "#b83227"}


class Point(NamedTuple):
    x: float
    y: float


class Box(NamedTuple):
    """A rectangle that was drawn; lines start and end at the middles of its sides."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> Point:
        return Point(self.x + self.width / 2, self.y)

    @property
    def bottom(self) -> Point:
        return Point(self.x + self.width / 2, self.y + self.height)

    @property
    def left(self) -> Point:
        return Point(self.x, self.y + self.height / 2)

    @property
    def right(self) -> Point:
        return Point(self.x + self.width, self.y + self.height / 2)


class Drawing:
    """Shapes on white paper, so that a figure reads on a dark page too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str = GREY,
        label: str = "",
        *,
        size: int = 13,
        dashed: bool = False,
    ) -> Box:
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" '
            f'fill="{fill}" stroke="{STRONG.get(fill, MUTED)}"{dash}/>'
        )
        if label:
            self.text(x + width / 2, y + height / 2 + size * 0.35, label, size=size)
        return Box(x, y, width, height)

    def row(
        self, x: float, y: float, cell: float, labels: list[str], fills: list[str]
    ) -> list[Box]:
        """Square cells side by side."""
        return [
            self.box(x + i * cell, y, cell, cell, fill, label)
            for i, (label, fill) in enumerate(zip(labels, fills, strict=True))
        ]

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 13,
        anchor: str = "middle",
        color: str = INK,
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        style = ' font-weight="bold"' if bold else ""
        style += ' font-family="monospace"' if mono else ""
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{color}"{style}>{escape(text)}</text>'
        )

    def note(self, x: float, y: float, text: str, *, anchor: str = "start") -> None:
        """A smaller text beside a figure's parts."""
        self.text(x, y, text, size=12, anchor=anchor, color=MUTED)

    def line(
        self,
        start: Point | tuple[float, float],
        end: Point | tuple[float, float],
        color: str = MUTED,
        *,
        width: float = 1.2,
        arrow: bool = False,
        dashed: bool = False,
    ) -> None:
        extra = ' marker-end="url(#arrow)"' if arrow else ""
        extra += ' stroke-dasharray="4 3"' if dashed else ""
        self._shapes.append(
            f'<line x1="{start[0]:g}" y1="{start[1]:g}" x2="{end[0]:g}" y2="{end[1]:g}" '
            f'stroke="{color}" stroke-width="{width:g}"{extra}/>'
        )

    def __str__(self) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" '
                'font-family="Helvetica, Arial, sans-serif" role="img">',
                f"<title>{escape(self.title)}</title>",
                '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{MUTED}"/>'
                "</marker></defs>",
                f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}"/>',
                *self._shapes,
                "</svg>\n",
            ]
        )
