"""Charts and pictures, drawn in a process of their own that has a limited time."""

import base64
import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fimlora_contract.charts import theme

PATIENCE_S = 90
MOST_PIXELS = 16_000_000  # of a picture: 64 MB while it is drawn
LARGEST_SCALE = 2.0
# The library fetches what pictures embed, wherever it is.
_EMBEDS = re.compile(r"<(image|use|feImage)\b", re.IGNORECASE)
_FETCHING = frozenset({"url", "href"})
_SIZE = re.compile(r'viewBox="0 0 (\d+) (\d+)"')

logger = logging.getLogger(__name__)


class NotDrawn(Exception):
    """The drawing failed, or took too long; the log says why."""


def draw_charts(
    specs: Sequence[Mapping[str, Any]], *, patience_s: float = PATIENCE_S
) -> list[str]:
    """Charts as SVG, each for light and for dark pages.

    Args:
        specs: Whole specifications in the light theme, with their rows.
        patience_s: Seconds for all of them.

    Raises:
        NotDrawn: They are not to be had.
    """
    if not specs:
        return []
    if any(map(_may_fetch, specs)):
        raise NotDrawn("a chart names an address")
    drawn = _paint({"charts": list(specs), "pictures": []}, patience_s)["charts"]
    return [adapted(svg) for svg in drawn]


def draw_png(svg: str, *, patience_s: float = PATIENCE_S) -> bytes:
    """A picture of ours as PNG, as large as its limit allows.

    Raises:
        NotDrawn: It is not to be had.
    """
    if _EMBEDS.search(svg):
        raise NotDrawn("a picture embeds another")
    picture = {"svg": svg, "scale": scale_for(svg)}
    drawn = _paint({"charts": [], "pictures": [picture]}, patience_s)["pictures"]
    return base64.b64decode(drawn[0])


def scale_for(svg: str) -> float:
    """Two pixels for each of the picture's own, or fewer where that would be too many."""
    found = _SIZE.search(svg)
    assert found, "a picture of ours states its size"
    n_pixels = int(found[1]) * int(found[2])
    return float(min(LARGEST_SCALE, (MOST_PIXELS / n_pixels) ** 0.5))


def adapted(svg: str) -> str:
    """A chart in light colours that has the dark ones on dark pages."""
    light, dark = (list(_colours(theme(name))) for name in ("light", "dark"))
    pairs = dict(zip(light, dark, strict=True))
    rules = "".join(
        f'[{paint}="{a}"]{{{paint}:{b}}}'
        for a, b in pairs.items()
        for paint in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    head, end, rest = svg.partition(">")
    return f"{head}{end}{style}{rest}"


def _may_fetch(value: Any) -> bool:
    """Whether a specification has a place for an address; rows are data and are not looked at."""
    if isinstance(value, Mapping):
        return any(
            name in _FETCHING or each == "image" or _may_fetch(each)
            for name, each in value.items()
            if name != "datasets"
        )
    return isinstance(value, list) and any(map(_may_fetch, value))


def _colours(value: Any) -> Any:
    """Every colour of a theme, in its order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _colours(each)
    elif isinstance(value, str) and value.startswith("#"):
        yield value


def _paint(asked: Mapping[str, Any], patience_s: float) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "fimlora_service.reports.painter"]
    try:
        ended = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=patience_s,
            check=True,
        )  # fmt: skip
        drawn: dict[str, Any] = json.loads(ended.stdout)
    except (subprocess.SubprocessError, ValueError, OSError) as error:
        said = getattr(error, "stderr", None) or b""
        logger.warning(
            "report.not_drawn",
            extra={
                "reason": type(error).__name__,
                "said": said[-2000:].decode(errors="replace"),
            },
        )
        raise NotDrawn from error
    return drawn
