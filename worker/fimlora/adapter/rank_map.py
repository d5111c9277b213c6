"""The plan as a picture: layers down, kinds of module across, the rank in every cell.

Pure text in, pure text out: the same plan gives the same bytes. Nothing here imports torch.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

from fimlora.adapter.initial.registry import START_CODES
from fimlora.adapter.model_classes import sentence
from fimlora.plan import RankPlan, TargetModule

# Light to dark; the numbers turn from black to white where contrast is equal.
_RAMP = ((222, 235, 247), (158, 202, 225), (66, 146, 198), (8, 81, 156), (8, 48, 107))
_WHITE_INK_FROM = 0.59
_CELL_W, _CELL_H, _GAP, _PAD = 52, 26, 2, 16
_SCORED = "in brackets: the score over the mean score, which bounds hide"
_MOVED = "after a rank: how many more or fewer than under labels of other rows"
_INNER_INDEX = re.compile(r"\b\d+\b")  # of an expert, in a kind
_START_CHARS = 110  # of a line, of what is to be minded at the start
_CHAR_W = 6.6  # of the 11 px sans-serif used for labels

PICTURE_STYLE = """
    .card{fill:#fff}.ink{fill:#1f2328}.dim{fill:#59636e}.none{fill:none;stroke:#d1d9e0}
    text{font:11px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
    .h{font-size:15px;font-weight:600}.n{text-anchor:middle;font-variant-numeric:tabular-nums}
    @media (prefers-color-scheme:dark){.card{fill:#0d1117}.ink{fill:#f0f6fc}
    .dim{fill:#9198a1}.none{stroke:#3d444d}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Ranks of one layer by column; several modules may share a cell, as experts do.

    Attributes:
        label: The layer.
        cells: Ranks by column.
        moved: By column, ranks that follow from the labels: more, or fewer, than under those of
            other rows; empty where that is not known.
        scores: By column, the mean score over that of all modules; empty where all are zero.
    """

    label: str
    cells: tuple[tuple[int, ...], ...]
    moved: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """A plan as a table.

    Attributes:
        columns: Kinds of module, in the model's order; inner indices read ``*``.
        rows: One per layer, in the model's order.
        loose: Name and rank of the modules outside the repeated blocks.
        loose_scores: Their scores over the mean of all; empty where all are zero.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    loose: tuple[tuple[str, int], ...]
    loose_scores: tuple[float, ...] = ()


def layer_grid(plan: RankPlan) -> Grid:
    """Sort a plan's modules into layers and kinds.

    Args:
        plan: The plan.

    Returns:
        The table.
    """
    cells: dict[tuple[str, int], dict[str, list[int]]] = {}
    moves: dict[tuple[str, int], dict[str, int]] = {}
    sums: dict[tuple[str, int], dict[str, float]] = {}
    columns: dict[str, None] = {}
    loose, moved, scores = [], moved_by_labels(plan), relative_scores(plan)
    for module in plan.modules:
        rank = plan.ranks[module.name]
        layer = module.layer
        if layer is None:
            loose.append((module.name, rank))
            continue
        kind = _INNER_INDEX.sub("*", module.kind)
        columns.setdefault(kind)
        place = _stack(module), layer
        cells.setdefault(place, {}).setdefault(kind, []).append(rank)
        row = moves.setdefault(place, {})
        row[kind] = row.get(kind, 0) + moved.get(module.name, 0)
        in_row = sums.setdefault(place, {})
        in_row[kind] = in_row.get(kind, 0.0) + scores.get(module.name, 0.0)
    several = len({stack for stack, _ in cells}) > 1
    rows = tuple(
        Row(
            f"{stack}.{layer}" if several else str(layer),
            tuple(tuple(row.get(kind, ())) for kind in columns),
            tuple(moves[stack, layer].get(kind, 0) for kind in columns) if moved else (),
            tuple(
                sums[stack, layer].get(kind, 0.0) / max(1, len(row.get(kind, ())))
                for kind in columns
            )
            if scores
            else (),
        )
        for (stack, layer), row in cells.items()
    )
    loose_scores = tuple(scores[name] for name, _ in loose) if scores else ()
    return Grid(_labels(columns), rows, tuple(loose), loose_scores)


def relative_scores(plan: RankPlan) -> dict[str, float]:
    """Say how much each module was scored, which its bounds may hide.

    Args:
        plan: The plan.

    Returns:
        Score over the mean score, per module name; empty where all are zero.
    """
    mean = math.fsum(plan.scores[m.name] / len(plan.modules) for m in plan.modules)
    return {m.name: plan.scores[m.name] / mean for m in plan.modules} if mean else {}


def moved_by_labels(plan: RankPlan) -> dict[str, int]:
    """Say how many ranks of each module follow from the labels.

    Args:
        plan: The plan.

    Returns:
        Per module name, how many more it has than under labels of other rows; empty where
        that is not known.
    """
    null = (plan.signal or {}).get("null_ranks") or ()
    if not null:
        return {}
    return {m.name: plan.ranks[m.name] - r for m, r in zip(plan.modules, null, strict=True)}


def signal_line(plan: RankPlan) -> str:
    """Say how much of a plan follows from the task.

    Args:
        plan: The plan.

    Returns:
        The sentence; empty where nobody asked.
    """
    return str((plan.signal or {}).get("sentence", ""))


def budget_line(plan: RankPlan) -> str:
    """Say in one line what was asked for, what it buys, and which model class it is for.

    Args:
        plan: The plan.

    Returns:
        The line.
    """
    unit = "mean rank" if plan.budget.unit == "rank" else plan.budget.unit
    spent = f"{plan.spent.ranks:,} ranks, {plan.spent.parameters:,} trainable parameters"
    line = f"budget: {unit} {plan.budget.value:,}; spent: {spent}"
    if controls := _controls(plan):
        line += f" ({controls})"
    if holes := sum(rank == 0 for rank in plan.ranks.values()):
        line += f"; {holes} modules not targeted, check that your server allows that"
    if classes := sentence(plan.provenance):
        line += f"; {classes}"
    if plan.budget.unit == "rank":
        if plan.unspent:
            line += f"; {plan.unspent:,} ranks unspent, as tied or multiple ranks miss them"
    elif all(
        rank >= min(plan.r_max, m.d_in, m.d_out)
        for m, rank in ((m, plan.ranks[m.name]) for m in plan.modules)
        if rank or plan.rule != "layers"
    ):
        which = "module of these layers" if plan.rule == "layers" else "module"
        line += f"; {plan.unspent:,} unspent, as every {which} is at r_max"
    return line


def _controls(plan: RankPlan) -> str:
    """What the controls spend, in parameters: they are the plan's equals, or say nothing."""
    spent = {name: plan.spending_of(ranks).parameters for name, ranks in plan.controls.items()}
    said = [f"uniform {spent.pop('uniform'):,}"] if "uniform" in spent else []
    if spent:
        least, most = min(spent.values()), max(spent.values())
        said.append(f"random {least:,}" + (f" to {most:,}" if most > least else ""))
    return ", ".join(said)


def start_line(plan: RankPlan) -> str:
    """Say what is to be minded of the weights that training begins with: before all else.

    Args:
        plan: The plan.

    Returns:
        A sentence; empty for weights that begin as the base model, and train.
    """
    first = next(iter(plan.warnings), None)
    return first.message if first is not None and first.code in START_CODES else ""


def share_lines(plan: RankPlan) -> list[str]:
    """Say which types and depths get which part of the parameters, and what uniform gives them.

    Args:
        plan: The plan.

    Returns:
        A line for the types and one for the depths; none of a plan without a uniform control.
    """
    if "uniform" not in plan.controls:
        return []
    shares = plan.shares()
    types = zip(_labels([row["name"] for row in shares["types"]]), shares["types"], strict=True)
    depths = ((f"layers {row['name']}", row) for row in shares["depths"])
    return [
        f"parameters in % / of uniform: {', '.join(_share_text(name, row) for name, row in rows)}"
        for rows in (types, depths)
    ]


def _share_text(name: str, row: Mapping[str, Any]) -> str:
    own, even = row["share_of_parameters"], row["uniform_share_of_parameters"]
    return f"{name} {100 * own:.0f}/{100 * even:.0f}"


def heading(plan: RankPlan) -> str:
    """Name the plan.

    Args:
        plan: The plan.

    Returns:
        The heading.
    """
    bounds = f"ranks {plan.r_min} to {plan.r_max}"
    if plan.rule == "layers":
        targeted, every = (
            {m.block for m in plan.modules if m.block and ranks[m.name]}
            for ranks in (plan.ranks, dict.fromkeys(plan.ranks, 1))
        )
        bounds = f"{len(targeted)} of {len(every)} layers, {bounds}"
    return f"Rank map: {len(plan.modules)} modules, {plan.method or plan.rule}, {bounds}"


def render_text(plan: RankPlan) -> str:
    """Draw a plan for a terminal.

    Args:
        plan: The plan.

    Returns:
        A table with the budget line below it.
    """
    grid = layer_grid(plan)
    table = [
        ("layer", *grid.columns),
        *((row.label, *_texts(row)) for row in grid.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in table
    ]
    lines = lines if grid.rows else []
    lines += [
        f"{name}  {rank}{score}"
        for (name, rank), score in zip(grid.loose, _loose(grid), strict=True)
    ]
    start = start_line(plan)
    said = [f"mind: {start}"] * bool(start) + ([signal_line(plan)] if plan.signal else [])
    notes = [_SCORED] * bool(relative_scores(plan)) + [_MOVED] * bool(moved_by_labels(plan))
    lines += ["", *notes] if notes else []
    mind = [f"mind: {w.message}" for w in plan.warnings if w.message != start]
    below = [*share_lines(plan), budget_line(plan), *mind]
    return "\n".join([heading(plan), *said, "", *lines, "", *below, ""])


def render_svg(plan: RankPlan) -> str:
    """Draw a plan as a heat map that reads on light and on dark pages.

    Args:
        plan: The plan.

    Returns:
        A complete SVG document.
    """
    grid = layer_grid(plan)
    low, high = min(plan.ranks.values()), max(plan.ranks.values())
    left = _PAD + 8 + int(_CHAR_W * max([5, *(len(row.label) for row in grid.rows)]))
    # Labels lean at 35 degrees: sin 0.57, cos 0.82.
    longest = max([0, *map(len, grid.columns)]) * _CHAR_W
    top = 62 + int(longest * 0.57) + 14
    n_rows = len(grid.rows) + len(grid.loose)
    bottom = top + n_rows * (_CELL_H + _GAP)
    said = (start_line(plan), signal_line(plan), budget_line(plan))
    line = "; ".join(part for part in said if part)
    start = textwrap.wrap(start_line(plan), _START_CHARS)
    lines = [
        *start,
        *([signal_line(plan)] if plan.signal else []),
        *_wrap(budget_line(plan)),
    ]
    if moved_by_labels(plan):
        lines.append(_MOVED)
    if relative_scores(plan):
        lines.append(_SCORED)
    text_w = max(len(part) for part in (*lines, heading(plan))) * _CHAR_W * 1.15
    cells_w = len(grid.columns) * (_CELL_W + _GAP) + longest * 0.82
    loose_w = max([0, *(len(name) for name, _ in grid.loose)]) * _CHAR_W + _CELL_W + 12
    width = int(max(left + cells_w, left + loose_w, text_w + _PAD, 320)) + _PAD
    height = bottom + 46 + _PAD + len(lines) * 16

    body = [
        f'<rect class="card" width="{width}" height="{height}" rx="6"/>',
        _label(_PAD, 30, heading(plan), "ink h"),
        *_column_labels(grid.columns, left, top),
        *_grid_cells(grid, left, top, low, high),
        *_legend(left, bottom + 14, low, high),
        *(_label(_PAD, bottom + 62 + 16 * i, part, "dim") for i, part in enumerate(lines)),
    ]
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="t d">',
        f'<title id="t">{escape(heading(plan))}</title>',
        f'<desc id="d">{escape(line)}</desc>',
        f"<style>{PICTURE_STYLE}</style>",
    ]
    return "\n".join([*head, *body, "</svg>", ""])


def _stack(module: TargetModule) -> str:
    """What comes before the layer index: models with two towers have two of these."""
    return re.split(r"\.\d+\.", module.name, maxsplit=1)[0]


def _labels(kinds: Iterable[str]) -> tuple[str, ...]:
    """Leaf names where they tell the kinds apart, else the whole kind."""
    kinds = list(kinds)
    leaves = [kind.rsplit(".", 1)[-1] for kind in kinds]
    return tuple(
        leaf if leaves.count(leaf) == 1 else kind
        for kind, leaf in zip(kinds, leaves, strict=True)
    )


def _text(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}-{high}"


def _texts(row: Row) -> list[str]:
    """Cells as text, with what follows from the labels behind the rank, and the score."""
    moved = row.moved or (0,) * len(row.cells)
    scores = row.scores or (None,) * len(row.cells)
    return [
        _text(ranks) + (f" {move:+d}" if move else "") + (_behind(score) if ranks else "")
        for ranks, move, score in zip(row.cells, moved, scores, strict=True)
    ]


def _loose(grid: Grid) -> list[str]:
    """Scores of the modules outside the blocks, as they stand behind a rank."""
    return [_behind(score) for score in grid.loose_scores or (None,) * len(grid.loose)]


def _behind(score: float | None) -> str:
    return "" if score is None else f" ({ratio_text(score)})"


def ratio_text(ratio: float) -> str:
    """A ratio in at most four characters: it is to be seen, not computed with.

    Args:
        ratio: The ratio, not negative.

    Returns:
        Such as ``120``, ``12``, ``1.2``, ``.12``, ``.01`` and ``<.01``.
    """
    if ratio >= 9.95:
        return f"{ratio:.0f}" if ratio < 9999.5 else ">9k"
    if ratio >= 0.995:
        return f"{ratio:.1f}"
    if ratio >= 0.005 or ratio == 0:
        return f"{ratio:.2f}"[1:] if ratio else "0"
    return "<.01"


def _small(moved: int) -> str:
    return f'<tspan dx="3" font-size="8">{moved:+d}</tspan>' if moved else ""


def _under(score: float | None, x: int) -> str:
    """The score below the rank, smaller."""
    if score is None:
        return ""
    at = f'x="{x + _CELL_W // 2}" dy="10" font-size="8"'
    return f"<tspan {at}>({escape(ratio_text(score))})</tspan>"


def _wrap(line: str) -> list[str]:
    return line.split("; ")


def _label(x: int, y: int, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def _column_labels(columns: Sequence[str], left: int, top: int) -> list[str]:
    return [
        f'<text class="dim" transform="translate({left + i * (_CELL_W + _GAP) + _CELL_W // 2} '
        f'{top - 8}) rotate(-35)">{escape(column)}</text>'
        for i, column in enumerate(columns)
    ]


def _grid_cells(grid: Grid, left: int, top: int, low: int, high: int) -> list[str]:
    drawn = []
    for i, row in enumerate(grid.rows):
        y = top + i * (_CELL_H + _GAP)
        drawn.append(
            f'<text class="dim" x="{left - 8}" y="{y + 17}" text-anchor="end">'
            f"{escape(row.label)}</text>"
        )
        for j, ranks in enumerate(row.cells):
            moved = row.moved[j] if row.moved else 0
            score = row.scores[j] if row.scores else None
            drawn.append(_cell(left + j * (_CELL_W + _GAP), y, ranks, low, high, moved, score))
    for i, (name, rank) in enumerate(grid.loose, start=len(grid.rows)):
        y = top + i * (_CELL_H + _GAP)
        score = grid.loose_scores[i - len(grid.rows)] if grid.loose_scores else None
        drawn.append(_cell(left, y, (rank,), low, high, score=score))
        drawn.append(_label(left + _CELL_W + 8, y + 17, name, "dim"))
    return drawn


def _cell(
    x: int,
    y: int,
    ranks: Sequence[int],
    low: int,
    high: int,
    moved: int = 0,
    score: float | None = None,
) -> str:
    size = f'x="{x}" y="{y}" width="{_CELL_W}" height="{_CELL_H}" rx="3"'
    if not ranks:
        return f'<rect class="none" {size}/>'
    share = (sum(ranks) / len(ranks) - low) / (high - low) if high > low else 0.5
    ink = "#fff" if share >= _WHITE_INK_FROM else "#000"
    return (
        f'<rect {size} fill="{rank_color(share)}"/>'
        f'<text class="n" fill="{ink}" x="{x + _CELL_W // 2}" y="{y + 13}">{_text(ranks)}'
        f"{_small(moved)}{_under(score, x)}</text>"
    )


def _legend(left: int, y: int, low: int, high: int) -> list[str]:
    """A bar of the colours in use, with the ranks at its ends."""
    shares = [i / 9 for i in range(10)] if high > low else [0.5]
    bar = [
        f'<rect x="{left + i * 16}" y="{y}" width="16" height="10" fill="{rank_color(share)}"/>'
        for i, share in enumerate(shares)
    ]
    end = left + len(shares) * 16
    text = f"rank {low} to {high}" if high > low else f"rank {low}"
    return [*bar, _label(end + 8, y + 9, text, "dim")]


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
