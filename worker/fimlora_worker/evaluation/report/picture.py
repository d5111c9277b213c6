"""One picture of an evaluation that stands alone: verdict, differences, learning curves."""

import textwrap
from collections.abc import Mapping
from typing import Any

from fimlora_worker.evaluation.report.marks import text
from fimlora_worker.evaluation.report.pictures import WIDTH, curves, forest
from fimlora_worker.evaluation.report.style import style_sheet

MARGIN = 24
LINE = 20
LINE_CHARS = 100


def report_svg(data: Mapping[str, Any]) -> str:
    """The picture.

    Args:
        data: What `Judgement.to_json` gave; ``title`` may be added.
    """
    title = str(data.get("title", "Evaluation of rank patterns"))
    lines = textwrap.wrap(data["verdict"]["sentence"], LINE_CHARS)
    parts = [text((0, 16), title, "strong")]
    parts += [text((0, 16 + LINE * (i + 1)), words) for i, words in enumerate(lines)]
    y = 16 + LINE * (len(lines) + 2)
    for name, (marks, height) in (
        ("Differences in loss, with 95 % intervals", forest(data, "loss")),
        ("Held-out loss by step", curves(data)),
    ):
        parts.append(text((0, y), name, "strong"))
        parts.append(f'<g transform="translate(0 {y + 12})">{marks}</g>')
        y += height + 40
    width, height = WIDTH + 2 * MARGIN, y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{style_sheet()}</style>'
        f'<rect class="sheet" width="{width}" height="{height}"/>'
        f'<g transform="translate({MARGIN} {MARGIN})">{"".join(parts)}</g></svg>\n'
    )
