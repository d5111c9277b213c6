"""The rank map as a picture: layers down, kinds of module across, rank and score in every cell.

Pure text in, pure text out: the same plan gives the same bytes, so a picture that is kept
beside a plan names no day. Whoever draws one on request may add it. Nothing here imports torch.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from fimlora.adapter.rank_map import (
    MOVED,
    SCORED,
    Grid,
    budget_line,
    family_grids,
    heading,
    marks_moves,
    rank_text,
    ratio_text,
    relative_scores,
    signal_line,
    source_line,
    start_line,
)
from fimlora.plan import RankPlan

# Light to dark; the numbers turn from black to white where contrast is equal.
_RAMP = ((222, 235, 247), (158, 202, 225), (66, 146, 198), (8, 81, 156), (8, 48, 107))
_WHITE_INK_FROM = 0.59
_PAD, _GAP, _CELL_H, _LINE_H = 20, 2, 22, 18
_BLOCK_GAP = 28
_BAND_H = 26  # from the end of a family to the foot of the next one's name
_ROWS = 40  # of a block, before another one stands beside it
_BLOCKS = 4  # side by side; what has more layers grows downwards
_CHAR_W = 7.0  # of the 12 px sans-serif used for labels; a little more than most have
_LINE_CHARS = 112

PICTURE_STYLE = """
    .card{fill:#fff}.ink{fill:#1f2328}.dim{fill:#59636e}.none{fill:none;stroke:#d1d9e0}
    text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;font-size:12px}
    .h{font-size:16px;font-weight:600}.n{font-variant-numeric:tabular-nums;font-weight:600}
    .s{font-size:10px;font-weight:400}
    @media (prefers-color-scheme:dark){.card{fill:#0d1117}.ink{fill:#f0f6fc}
    .dim{fill:#9198a1}.none{stroke:#3d444d}}
"""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Ranks to colours."""

    low: int
    high: int

    def share(self, ranks: Sequence[int]) -> float:
        spread = self.high - self.low
        return (sum(ranks) / len(ranks) - self.low) / spread if spread else 0.5


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are; a long model is laid in blocks of layers side by side.

    Attributes:
        grid: The table.
        label_w: Width of the layers' labels, with the space behind them.
        cell_w: Width of a cell.
        rows: Rows of a block.
        slant: Height of the columns' labels, which lean.
    """

    grid: Grid
    label_w: int
    cell_w: int
    rows: int
    slant: int

    @classmethod
    def of(cls, grid: Grid) -> "_Layout":
        labels = [len(row.label) for row in grid.rows]
        blocks = min(_BLOCKS, -(-len(grid.rows) // _ROWS)) or 1
        longest = max([0, *map(len, grid.columns)])
        return cls(
            grid,
            label_w=10 + int(_CHAR_W * max([5, *labels])),
            cell_w=max(_cell_widths(grid)),
            rows=-(-len(grid.rows) // blocks),
            slant=16 + int(longest * _CHAR_W * 0.57),  # the sine of 35 degrees
        )

    @property
    def n_blocks(self) -> int:
        return -(-len(self.grid.rows) // self.rows) if self.rows else 0

    @property
    def lean(self) -> int:
        """How far the last column's label leans out of its block."""
        last = len(self.grid.columns[-1]) if self.grid.columns else 0
        return int(last * _CHAR_W * 0.82)

    @property
    def block_w(self) -> int:
        cells = len(self.grid.columns) * (self.cell_w + _GAP)
        return self.label_w + cells + max(_BLOCK_GAP, self.lean - self.cell_w // 2 + 8)

    def corner(self, row: int, column: int, top: int) -> tuple[int, int]:
        """Where the cell of a row and a column begins."""
        block, line = divmod(row, self.rows)
        x = _PAD + block * self.block_w + self.label_w + column * (self.cell_w + _GAP)
        return x, top + line * (_CELL_H + _GAP)


def render_svg(plan: RankPlan, *, dated: str = "") -> str:
    """Draw a plan as a heat map that reads on light and on dark pages.

    Args:
        plan: The plan.
        dated: The day to name; left out of what is kept, as a plan has the same bytes always.

    Returns:
        A complete SVG document.
    """
    bands = [(name, _Layout.of(grid)) for name, grid in family_grids(plan)]
    scale = _Scale(min(plan.ranks.values()), max(plan.ranks.values()))
    above, below = _sources(plan, dated), _notes(plan)
    bottom, drawn = _PAD + 24 + _LINE_H * len(above), []
    for name, layout in bands:
        lines, bottom = _band(name, layout, bottom, scale)
        drawn += lines
    bottom += 10
    width = max(_width(layout, [*above, *below], heading(plan)) for _, layout in bands)
    height = bottom + 24 + _LINE_H * len(below) + _PAD
    body = [
        f'<rect class="card" width="{width}" height="{height}" rx="6"/>',
        text_at(_PAD, _PAD + 14, heading(plan), "ink h"),
        *(text_at(_PAD, _PAD + 36 + _LINE_H * i, line, "dim") for i, line in enumerate(above)),
        *drawn,
        *_legend(bottom, scale),
        *(text_at(_PAD, bottom + 34 + _LINE_H * i, s, "dim") for i, s in enumerate(below)),
    ]
    return _document(body, heading(plan), _description(plan, dated), (width, height))


def _band(name: str, layout: _Layout, start: int, scale: _Scale) -> tuple[list[str], int]:
    """The table of one family below where another ended, and where this one does."""
    heading_lines = []
    if name:
        start += _BAND_H
        heading_lines = [text_at(_PAD, start, name, "ink n")]
    grid = layout.grid
    top = start + layout.slant + 8 if grid.rows or not name else start + 8
    loose_top = top + layout.rows * (_CELL_H + _GAP) + (8 if grid.rows else 0)
    lines = [
        *heading_lines,
        *_headings(layout, top),
        *_cells(layout, top, scale),
        *_loose_cells(layout, loose_top, scale),
    ]
    return lines, loose_top + len(grid.loose) * (_CELL_H + _GAP)


def _document(body: Sequence[str], title: str, said: str, size: tuple[int, int]) -> str:
    width, height = size
    area = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {area} role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(title)}</title>',
        f'<desc id="d">{escape(said)}</desc>',
        f"<style>{PICTURE_STYLE}</style>",
    ]
    return "\n".join([*head, *body, "</svg>", ""])


def _sources(plan: RankPlan, dated: str) -> list[str]:
    """What the plan was made of, and what is to be known before the map is read."""
    parts = [*([source_line(plan)] if source_line(plan) else []), *([dated] if dated else [])]
    said = [", ".join(parts)] if parts else []
    said += [line for line in (start_line(plan), signal_line(plan)) if line]
    return [part for line in said for part in textwrap.wrap(line, _LINE_CHARS)]


def _notes(plan: RankPlan) -> list[str]:
    """What the budget bought, and how to read a cell."""
    lines = [
        part for line in budget_line(plan).split("; ") for part in textwrap.wrap(line, 112)
    ]
    lines += [MOVED] * marks_moves(plan) + [SCORED] * bool(relative_scores(plan))
    return lines


def _description(plan: RankPlan, dated: str) -> str:
    parts = (start_line(plan), signal_line(plan), source_line(plan), dated, budget_line(plan))
    return "; ".join(part for part in parts if part)


def _width(layout: _Layout, lines: Sequence[str], title: str) -> int:
    blocks = layout.n_blocks * layout.block_w
    names = [len(name) for name, _ in layout.grid.loose]
    loose = layout.label_w + layout.cell_w + 8 + int(_CHAR_W * max([0, *names]))
    texts = int(_CHAR_W * max([0, *map(len, lines)])), int(10 * len(title))
    return max(blocks, loose, *texts, 320) + 2 * _PAD


def _headings(layout: _Layout, top: int) -> Iterator[str]:
    """The names of both axes, over every block."""
    for block in range(layout.n_blocks):
        x, _ = layout.corner(block * layout.rows, 0, top)
        yield text_at(x - 8, top - 8, "layer", "dim", "end")
        for j, column in enumerate(layout.grid.columns):
            at = f"{x + j * (layout.cell_w + _GAP) + layout.cell_w // 2} {top - 8}"
            turned = f'transform="translate({at}) rotate(-35)"'
            yield f'<text class="dim" {turned}>{escape(column)}</text>'


def _cells(layout: _Layout, top: int, scale: _Scale) -> Iterator[str]:
    for i, row in enumerate(layout.grid.rows):
        x, y = layout.corner(i, 0, top)
        yield text_at(x - 8, y + 15, row.label, "dim", "end")
        for j, ranks in enumerate(row.cells):
            moved = row.moved[j] if row.moved else 0
            score = row.scores[j] if row.scores else None
            yield _cell(layout.corner(i, j, top), layout.cell_w, ranks, scale, moved, score)


def _loose_cells(layout: _Layout, top: int, scale: _Scale) -> Iterator[str]:
    """What stands outside the repeated blocks, by its name."""
    scores = layout.grid.loose_scores or (None,) * len(layout.grid.loose)
    for i, ((name, rank), score) in enumerate(zip(layout.grid.loose, scores, strict=True)):
        x, y = _PAD + layout.label_w, top + i * (_CELL_H + _GAP)
        yield _cell((x, y), layout.cell_w, (rank,), scale, 0, score)
        yield text_at(x + layout.cell_w + 8, y + 15, name, "dim")


def _cell(
    corner: tuple[int, int],
    width: int,
    ranks: Sequence[int],
    scale: _Scale,
    moved: int,
    score: float | None,
) -> str:
    x, y = corner
    size = f'x="{x}" y="{y}" width="{width}" height="{_CELL_H}" rx="3"'
    if not ranks:
        return f'<rect class="none" {size}/>'
    share = scale.share(ranks)
    ink = "#fff" if share >= _WHITE_INK_FROM else "#000"
    return (
        f'<rect {size} fill="{rank_color(share)}"/>'
        f'<text class="n" fill="{ink}" x="{x + width // 2}" y="{y + 15}" text-anchor="middle">'
        f"{rank_text(ranks)}{_small(f'{moved:+d}' if moved else '')}"
        f"{_small(_bracketed(score))}</text>"
    )


def _small(text: str) -> str:
    return f'<tspan class="s" dx="3">{escape(text)}</tspan>' if text else ""


def _bracketed(score: float | None) -> str:
    return "" if score is None else f"({ratio_text(score)})"


def _cell_widths(grid: Grid) -> Iterator[int]:
    """The width that each cell's text asks for."""
    yield 34
    for row in grid.rows:
        moved = row.moved or (0,) * len(row.cells)
        scores = row.scores or (None,) * len(row.cells)
        for ranks, move, score in zip(row.cells, moved, scores, strict=True):
            small = (f"{move:+d}" if move else "", _bracketed(score) if ranks else "")
            yield 12 + int(
                _CHAR_W * len(rank_text(ranks))
                + sum(3 + 6 * len(part) for part in small if part)
            )
    for score in grid.loose_scores:
        yield 12 + int(_CHAR_W * 4) + 3 + 6 * len(_bracketed(score))


def _legend(y: int, scale: _Scale) -> Iterator[str]:
    """A bar of the colours in use, with the ranks at its ends."""
    shares = [i / 9 for i in range(10)] if scale.high > scale.low else [0.5]
    for i, share in enumerate(shares):
        at = f'x="{_PAD + i * 16}" y="{y}" width="16" height="10"'
        yield f'<rect {at} fill="{rank_color(share)}"/>'
    many = f"rank {scale.low} to {scale.high}"
    text = many if scale.high > scale.low else f"rank {scale.low}"
    yield text_at(_PAD + len(shares) * 16 + 8, y + 9, text, "dim")


def text_at(x: int, y: int, text: str, kind: str, anchor: str = "") -> str:
    """A line of text.

    Args:
        x: From the left.
        y: Of its foot, from the top.
        text: What it says.
        kind: Its classes.
        anchor: ``middle`` or ``end``; it begins there by default.

    Returns:
        The element.
    """
    placed = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x}" y="{y}"{placed}>{escape(text)}</text>'


@lru_cache(maxsize=1024)  # a plan has many modules and few ranks
def rank_color(share: float) -> str:
    """Mix the colour of a rank.

    Args:
        share: Where it lies between the lowest, 0, and the highest, 1.

    Returns:
        The colour, as SVG has it.
    """
    place = share * (len(_RAMP) - 1)
    i = min(int(place), len(_RAMP) - 2)
    mixed = (
        round(a + (b - a) * (place - i)) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
