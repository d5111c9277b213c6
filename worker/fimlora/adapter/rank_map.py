"""The plan as a table: layers down, kinds of module across, the rank in every cell.

Pure text in, pure text out: the same plan gives the same bytes. Nothing here imports torch.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fimlora.adapter.initial.registry import START_CODES
from fimlora.adapter.model_classes import sentence
from fimlora.plan import RankPlan, TargetModule
from fimlora.whole_names import saved_sentence

SCORED = "in brackets: the score over the mean score, which bounds hide"
MOVED = "after a rank: how many more or fewer than under labels of other rows"
_INNER_INDEX = re.compile(r"\b\d+\b")  # of an expert, in a kind
_SHOWN_DIGITS = 12  # of a digest: to be told from others at a glance


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


def family_grids(plan: RankPlan) -> list[tuple[str, Grid]]:
    """Sort a plan's modules into layers and kinds, each family by itself.

    Args:
        plan: The plan.

    Returns:
        Name and table of each family, in the model's order; one table without a name for a
        model that is one family.
    """
    families: dict[str, list[TargetModule]] = {}
    for module in plan.modules:
        families.setdefault(module.family or "", []).append(module)
    return [(name, layer_grid(plan, modules)) for name, modules in families.items()]


def layer_grid(plan: RankPlan, modules: Sequence[TargetModule] | None = None) -> Grid:
    """Sort a plan's modules into layers and kinds.

    Args:
        plan: The plan.
        modules: Some of them; all by default.

    Returns:
        The table.
    """
    cells: dict[tuple[str, int], dict[str, list[int]]] = {}
    moves: dict[tuple[str, int], dict[str, int]] = {}
    sums: dict[tuple[str, int], dict[str, float]] = {}
    columns: dict[str, None] = {}
    loose, moved, scores = [], moved_by_labels(plan), relative_scores(plan)
    for module in plan.modules if modules is None else modules:
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


def marks_moves(plan: RankPlan) -> bool:
    """Whether a cell of the table says how many of its ranks follow from the labels.

    Args:
        plan: The plan.

    Returns:
        False also where labels move no rank, so that no legend explains what is not there.
    """
    return any(
        move for _, grid in family_grids(plan) for row in grid.rows for move in row.moved
    )


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
    if whole := saved_sentence(plan.provenance):
        line += f"; {whole}"
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
    """Say which types, depths and families get which part of the parameters, and what uniform gives them.

    Args:
        plan: The plan.

    Returns:
        A line for the types and one for the depths, and one for the families of a model that has
        several; none of a plan without a uniform control.
    """
    if "uniform" not in plan.controls:
        return []
    shares = plan.shares()
    types = zip(_labels([row["name"] for row in shares["types"]]), shares["types"], strict=True)
    depths = ((f"layers {row['name']}", row) for row in shares["depths"])
    families = ((row["name"], row) for row in shares.get("families", ()))
    return [
        f"parameters in % / of uniform: {', '.join(said)}"
        for rows in (types, depths, families)
        if (said := [_share_text(name, row) for name, row in rows])
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
    bounds = "ranks {} to {}".format(*plan.bounds)
    if plan.rule == "layers":
        targeted, every = (
            {m.block for m in plan.modules if m.block and ranks[m.name]}
            for ranks in (plan.ranks, dict.fromkeys(plan.ranks, 1))
        )
        bounds = f"{len(targeted)} of {len(every)} layers, {bounds}"
    return f"Rank map: {len(plan.modules)} modules, {plan.method or plan.rule}, {bounds}"


def source_line(plan: RankPlan) -> str:
    """Say what the plan was made of: the model and the data, by name and content.

    Args:
        plan: The plan.

    Returns:
        The line; empty for scores of one's own, of which nothing is known.
    """
    known = (("model", "base_model"), ("data", "dataset"), ("kept", "retain"))
    named = ((word, source_name(plan.provenance.get(role))) for word, role in known)
    return ", ".join(f"{word}: {name}" for word, name in named if name)


def source_name(facts: Any) -> str:
    """Name a model or dataset in a few words, with the start of what pins its content.

    Args:
        facts: What provenance says of it.

    Returns:
        Such as ``org/model (0e9e39f249a1)``; empty if nothing is known.
    """
    if not isinstance(facts, Mapping):
        return ""
    name = str(facts.get("id") or facts.get("name") or "rows of the request")
    content = str(facts.get("revision") or facts.get("digest") or "")
    pinned = content.removeprefix("sha256:")[:_SHOWN_DIGITS]
    return f"{name} ({pinned})" if pinned else name


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
    notes = [SCORED] * bool(relative_scores(plan)) + [MOVED] * marks_moves(plan)
    lines += ["", *notes] if notes else []
    mind = [f"mind: {w.message}" for w in plan.warnings if w.message != start]
    below = [*share_lines(plan), budget_line(plan), *mind]
    return "\n".join([heading(plan), *said, "", *lines, "", *below, ""])


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


def rank_text(ranks: Sequence[int]) -> str:
    """The ranks of a cell.

    Args:
        ranks: One, or those of all modules that share the cell.

    Returns:
        The rank, or the lowest and the highest; empty without any.
    """
    if not ranks:
        return ""
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}-{high}"


def _texts(row: Row) -> list[str]:
    """Cells as text, with what follows from the labels behind the rank, and the score."""
    moved = row.moved or (0,) * len(row.cells)
    scores = row.scores or (None,) * len(row.cells)
    return [
        rank_text(ranks) + (f" {move:+d}" if move else "") + (_behind(score) if ranks else "")
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
