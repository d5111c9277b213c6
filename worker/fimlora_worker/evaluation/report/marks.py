"""The few marks that pictures are made of, as SVG."""

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]


def line(first: Point, second: Point, kind: str) -> str:
    """A straight line of a class of the style sheet."""
    (x1, y1), (x2, y2) = first, second
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def path(points: Sequence[Point], kind: str) -> str:
    """A line through points."""
    places = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline class="{kind}" points="{places}"/>'


def area(points: Sequence[Point], kind: str) -> str:
    """A filled outline."""
    places = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polygon class="{kind}" points="{places}"/>'


def dot(place: Point, kind: str, radius: float = 4) -> str:
    """A dot."""
    return f'<circle class="{kind}" cx="{place[0]:g}" cy="{place[1]:g}" r="{radius:g}"/>'


def text(place: Point, content: str, kind: str = "", anchor: str = "start") -> str:
    """Words; whatever they are, they end as words."""
    x, y = place
    names = f' class="{kind}"' if kind else ""
    return f'<text{names} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(content)}</text>'


def number(value: float) -> str:
    """A tick's label."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; one that rounds to zero has none."""
    written = f"{value:+.{digits}f}"
    if float(written) == 0:
        return written[1:]
    return written.replace("-", "\N{MINUS SIGN}")
