"""A comparison as a picture: the ranks by method side by side, and a table of their overlaps.

Pure text, the same comparison gives the same bytes. Nothing here imports torch.
"""

from collections.abc import Iterator, Sequence
from html import escape

from fimlora.adapter.rank_map import Grid, layer_grid
from fimlora.adapter.rank_map_picture import PICTURE_STYLE, rank_color, text_at
from fimlora.confidence.compare import Comparison

_PAD, _CELL_W, _CELL_H, _CHAR_W = 16, 14, 10, 6.6
_TABLE_W, _TABLE_H, _LABEL_W, _COLUMNS = 64, 20, 120, 3


def render_comparison(comparison: Comparison) -> str:
    """Draw a comparison, on a light and on a dark page.

    Args:
        comparison: The comparison.

    Returns:
        A complete SVG document.
    """
    grids = {method: layer_grid(plan) for method, plan in comparison.plans.items()}
    low, high = _range(comparison)
    across = max(_LABEL_W, *(len(g.columns) * _CELL_W + 8 for g in grids.values())) + _PAD
    down = 36 + max((len(g.rows) + len(g.loose)) * _CELL_H for g in grids.values()) + _PAD
    body = []
    for i, (method, grid) in enumerate(grids.items()):
        x, y = _PAD + i % _COLUMNS * across, 48 + i // _COLUMNS * down
        body += [text_at(x, y, method, "ink"), *_cells(grid, x, y + 8, low, high)]
    top = 48 + -(-len(grids) // _COLUMNS) * down
    body += _overlaps(comparison, top)
    n = len(grids)
    width = max(2 * _PAD + min(n, _COLUMNS) * across, 2 * _PAD + _LABEL_W + n * _TABLE_W)
    return _document(body, f"Ranks {low} to {high} by method", width, top + 48 + n * _TABLE_H)


def _range(comparison: Comparison) -> tuple[int, int]:
    ranks = [rank for plan in comparison.plans.values() for rank in plan.ranks.values()]
    return min(ranks), max(ranks)


def _cells(grid: Grid, x: int, y: int, low: int, high: int) -> Iterator[str]:
    rows = [row.cells for row in grid.rows] + [((rank,),) for _, rank in grid.loose]
    for i, cells in enumerate(rows):
        for j, ranks in enumerate(cells):
            if ranks:
                at = f'x="{x + j * _CELL_W}" y="{y + i * _CELL_H}"'
                fill = _shade(sum(ranks) / len(ranks), low, high)
                yield f'<rect {at} width="{_CELL_W - 1}" height="{_CELL_H - 1}" fill="{fill}"/>'


def _shade(rank: float, low: int, high: int) -> str:
    return rank_color((rank - low) / (high - low) if high > low else 0.5)


def _overlaps(comparison: Comparison, top: int) -> Iterator[str]:
    """A table: the share that lies in the same place, of each two plans."""
    methods = list(comparison.plans)
    shares = {(pair.a, pair.b): pair.overlap for pair in comparison.pairs}
    yield text_at(_PAD, top, "overlap of each two plans", "ink")
    for i, a in enumerate(methods):
        y = top + 24 + i * _TABLE_H
        yield text_at(_PAD, y, a, "dim")
        for j, b in enumerate(methods[:i]):
            x = _PAD + _LABEL_W + j * _TABLE_W
            yield text_at(x, y, f"{shares[b, a]:.1%}", "ink")
    for j, b in enumerate(methods[:-1]):
        x = _PAD + _LABEL_W + j * _TABLE_W
        yield text_at(x, top + 24 + j * _TABLE_H, _short(b), "dim")


def _short(method: str) -> str:
    return method if len(method) < 9 else method[:8] + "…"


def _document(body: Sequence[str], title: str, width: int, height: int) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t">',
            f'<title id="t">{escape(title)}</title>',
            f"<style>{PICTURE_STYLE}</style>",
            f'<rect class="card" width="{width}" height="{height}" rx="6"/>',
            text_at(_PAD, 26, title, "ink h"),
            *body,
            "</svg>",
            "",
        ]
    )
