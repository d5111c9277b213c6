"""A report as a page: one file, no script, nothing fetched, for screens of both kinds and paper."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a heading.

    Attributes:
        title: What it is of.
        head: The columns; the first one names the row.
        rows: Their cells, as they are to be read.
        note: What one must know to read it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with what it shows in words.

    Attributes:
        svg: The picture.
        caption: What it shows.
        table: Its numbers, for whoever does not see it.
    """

    svg: str
    caption: str
    table: Table | None = None

    @property
    def source(self) -> Markup:
        """The picture as an address that holds it: its styles are its own."""
        coded = base64.b64encode(self.svg.encode()).decode()
        return Markup("data:image/svg+xml;base64," + coded)  # noqa: S704 - letters of base64


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report says, in the order of reading.

    Attributes:
        title: Its heading.
        facts: Model, data, day and the like, by name.
        verdict: The sentence that one opens it for.
        notes: What one must know beside it.
        figures: Pictures.
        tables: Tables.
        use: Commands and code: what each does, and its lines.
        digests: What the files hold, by name.
        missing: Why pictures lack, if they do.
    """

    title: str
    facts: Mapping[str, str]
    verdict: str
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    use: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def render(report: Report) -> bytes:
    """The page of a report."""
    return _environment().get_template("report.html").render(report=report).encode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def shown(value: Any) -> str:
    """A value of a request or a result in a cell: short, on one line."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return " ".join(str(value).split())
