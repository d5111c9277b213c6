"""Charts of plans and evaluations: one specification each, for page, report and notebook.

A specification is Vega-Lite and names its data; `fimlora_contract.charts.rows` makes the rows
that go in. None holds an address, so drawing one fetches nothing.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
Theme = Literal["light", "dark"]

PLAN_CHARTS = ("ranks", "scores", "types", "depths", "spending")
EVALUATION_CHARTS = ("differences", "curves", "rates")
MEDIA_TYPE = "application/vnd.vegalite.v6+json"


def specification(name: str) -> dict[str, Any]:
    """A chart by name, without its rows; the caller's own to change."""
    found: dict[str, Any] = json.loads(_read(f"{name}.vl.json"))
    return found


def theme(name: Theme) -> dict[str, Any]:
    """Colours and type of charts on a light or on a dark page."""
    found: dict[str, Any] = json.loads(_read("themes.json"))[name]
    return found


def chart(name: str, rows: Rows, *, theme_name: Theme = "light") -> dict[str, Any] | None:
    """A chart with the rows that it names, whole; ``None`` where there are none to draw."""
    spec = specification(name)
    wanted = spec["data"]["name"]
    if not rows.get(wanted):
        return None
    return spec | {"datasets": {wanted: list(rows[wanted])}, "config": theme(theme_name)}


@cache
def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
