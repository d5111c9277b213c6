"""A rank map as a table for the terminal: layers down, module types across.

The shade of a cell follows its rank, so that the shape of the plan is seen before a number
is read. Modules outside the repeated blocks are listed below the table; several modules in
one cell, such as experts, show their lowest and highest rank.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fimlora_client.head_line import head_line
from fimlora_contract.confidence import START_CODES, PlanWarning
from fimlora_contract.rank_maps import RankMap, RankMapModule
from fimlora_contract.signals import Signal

# From pale to deep; the text colour keeps enough contrast on each.
SHADES = (
    "#eef3f7",
    "#cfe0ea",
    "#a9cadb",
    "#7db0ca",
    "#4f92b3",
    "#2b7197",
    "#155176",
    "#0a3553",
)
DARK_FROM = 4
SIGNAL_STYLES = {"task": "bold green", "weak": "bold yellow", "none": "bold yellow"}
EMPTY = "·"
CELL = 10


@dataclass(frozen=True, slots=True)
class Grid:
    """The modules of the repeated blocks by layer and type, and the others.

    Attributes:
        layers: Block indices, ascending.
        kinds: Module types in the model's order.
        cells: Ranks of the modules at a layer and type.
        scores: Their scores over the mean score of all; empty where all are zero.
        others: Modules outside the blocks.
    """

    layers: Sequence[int]
    kinds: Sequence[str]
    cells: Mapping[tuple[int, str], Sequence[int]]
    scores: Mapping[tuple[int, str], Sequence[float]]
    others: Sequence[RankMapModule]


def arrange(modules: Iterable[RankMapModule], mean: float | None = None) -> Grid:
    """Sort modules into a grid; numbers inside a type, such as experts, share a cell.

    Args:
        modules: The modules.
        mean: What scores are shown over; ``None`` for the mean of these modules.
    """
    cells: dict[tuple[int, str], list[int]] = defaultdict(list)
    scores: dict[tuple[int, str], list[float]] = defaultdict(list)
    modules = list(modules)
    mean = mean_score(modules) if mean is None else mean
    others = []
    for module in modules:
        if module.layer is None:
            others.append(module)
        else:
            place = module.layer, re.sub(r"\.\d+\.", ".*.", module.kind)
            cells[place].append(module.rank)
            if mean:
                scores[place].append(module.score / mean)
    kinds = dict.fromkeys(kind for _, kind in cells)
    return Grid(sorted({layer for layer, _ in cells}), list(kinds), cells, scores, others)


def mean_score(modules: Sequence[RankMapModule]) -> float:
    """What scores are shown over."""
    return sum(module.score / len(modules) for module in modules)


def short_names(kinds: Sequence[str]) -> list[str]:
    """As few trailing parts of each dotted name as tell it from all others."""
    names = []
    for kind in kinds:
        parts = kind.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        names.append(next((t for t in tails if _is_unique(t, kinds)), kind))
    return names


def rank_map_table(rank_map: RankMap) -> RenderableType:
    """The whole rank map: table, other modules, budget."""
    parts: list[RenderableType] = []
    if begins_elsewhere(rank_map):
        parts.append(Padding(warning_lines(rank_map.warnings[:1]), (1, 0, 0, 2)))
    if rank_map.signal:
        parts.append(Padding(signal_line(rank_map.signal), (1, 0, 0, 2)))
    for family, modules in by_family(rank_map.modules).items():
        if family is not None:
            parts.append(Padding(family_line(family, rank_map), (1, 0, 0, 1)))
        grid = arrange(modules, mean_score(rank_map.modules))
        if grid.layers:
            parts.append(Padding(_blocks(grid, rank_map), (family is None, 0, 0, 1)))
        if grid.others:
            parts.append(Padding(_others(grid.others, rank_map), (family is None, 0, 0, 2)))
    parts.append(Padding(budget_lines(rank_map), (1, 0, 1, 2)))
    if others := rank_map.warnings[begins_elsewhere(rank_map) :]:
        parts.append(Padding(warning_lines(others), (0, 0, 1, 2)))
    if rank_map.not_targeted:
        parts.append(Padding(left_out_lines(rank_map), (0, 0, 1, 2)))
    return Group(*parts)


def by_family(modules: Iterable[RankMapModule]) -> dict[str | None, list[RankMapModule]]:
    """Modules by family, in the model's order; of most models all are of one that has no name."""
    found: dict[str | None, list[RankMapModule]] = {}
    for module in modules:
        found.setdefault(module.family, []).append(module)
    return found


def family_line(family: str, rank_map: RankMap) -> Text:
    """A family's name, and what it gets of ranks, parameters and scores."""
    rows = (rank_map.shares and rank_map.shares.families) or ()
    row = next((each for each in rows if each.name == family), None)
    if row is None:
        return Text(family, "bold")
    said = (
        f"  {row.modules:,} module{'s' if row.modules > 1 else ''}, {row.ranks:,} ranks, "
        f"{row.parameters:,} parameters, {row.share_of_parameters:.0%} of all"
    )
    if row.uniform_share_of_parameters is not None:
        said += f" (uniform {row.uniform_share_of_parameters:.0%})"
    if row.share_of_scores is not None:
        said += f", {row.share_of_scores:.0%} of the scores"
    return Text.assemble((family, "bold"), (said, "dim"))


def signal_line(signal: Signal) -> Text:
    """How much of the plan follows from the task: first of all, as all else hangs on it."""
    return Text(signal.sentence, SIGNAL_STYLES.get(signal.verdict, ""))


def budget_lines(rank_map: RankMap) -> Table:
    """What was asked, what is spent, and what the controls would spend."""
    ranks, parameters = rank_map.spent["ranks"], rank_map.spent["parameters"]
    in_ranks = rank_map.budget.get("unit") == "rank"
    used, unit = (ranks, "ranks") if in_ranks else (parameters, "parameters")
    spent = Text(f"{used:,} of {rank_map.budget.get('limit', used):,} {unit}")
    if in_ranks:
        spent.append(f" = {parameters:,} parameters")
    if unspent := rank_map.budget.get("unspent"):
        spent.append(f", {unspent:,} {unit} unspent")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_row(Text("budget", "bold"), _asked(rank_map))
    table.add_row(Text("spent", "bold"), spent)
    if mean_score(rank_map.modules):
        table.add_row(Text("scores", "bold"), Text("in brackets, over their mean", "dim"))
    if controls := controls_line(rank_map):
        table.add_row(Text("controls", "bold"), Text(controls, "dim"))
    for heading, shares in share_lines(rank_map).items():
        table.add_row(Text(heading, "bold"), Text(shares, "dim"))
    if rank_map.adapter and rank_map.adapter.width:
        trained = f"{rank_map.adapter.trainable_parameters:,} parameters"
        padded = f"{trained}, each module padded to rank {rank_map.adapter.width}"
        table.add_row(Text("trained", "bold"), Text(padded))
    if saved := saved_line(rank_map.provenance):
        table.add_row(Text("saved", "bold"), Text(saved))
    if confidence := confidence_line(rank_map):
        table.add_row(Text("sure", "bold"), Text(confidence))
    if head := head_line(rank_map.provenance.get("head")):
        table.add_row(Text("head", "bold"), Text(head))
    if classes := classes_line(rank_map.provenance):
        table.add_row(Text("names", "bold"), Text(classes))
    return table


def controls_line(rank_map: RankMap) -> str:
    """What the controls spend beside the plan; empty where a map has none."""
    spent = {name: control["parameters"] for name, control in rank_map.controls.items()}
    said = [f"uniform {spent.pop('uniform'):,}"] if "uniform" in spent else []
    if spent:
        least, most = min(spent.values()), max(spent.values())
        span = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        said.append(f"random {span} ({len(spent)} pattern{'s' if len(spent) > 1 else ''})")
    return ", ".join(said) + " parameters" if said else ""


def share_lines(rank_map: RankMap) -> dict[str, str]:
    """Which part of the parameters types and layers get, beside that of uniform."""
    if rank_map.shares is None or "uniform" not in rank_map.controls:
        return {}
    return {
        heading: "parameters in % / of uniform: "
        + ", ".join(
            f"{name} {100 * row.share_of_parameters:.0f}/"
            f"{100 * (row.uniform_share_of_parameters or 0):.0f}"
            for name, row in zip(short_names([row.name for row in rows]), rows, strict=True)
        )
        for heading, rows in (
            ("types", rank_map.shares.types),
            ("layers", rank_map.shares.depths),
        )
    }


def confidence_line(rank_map: RankMap) -> str:
    """How sure the ranks are; empty where a map does not say."""
    if (found := rank_map.confidence) is None:
        return ""
    n = len(rank_map.modules)
    return (
        f"{n - found.n_unresolved} of {n} ranks hold in {found.level:.0%} of other draws of "
        f"{found.n_examples:,} examples; a plan from one overlaps by {found.expected_overlap:.1%}"
    )


def classes_line(provenance: Mapping[str, Any]) -> str:
    """Which model classes the names of the adapter are for; empty where nobody knows."""
    if not (own := provenance.get("model_class")):
        return ""
    if also := provenance.get("names_also_hold_for"):
        return f"of {own}; those of the config hold for {also}, too"
    if other := provenance.get("names_do_not_hold_for"):
        return f"of {own}, and not for {other}, which has others"
    return f"of {own}"


def saved_line(provenance: Mapping[str, Any]) -> str:
    """What trains whole beside the budget; empty where nothing does."""
    modules: Mapping[str, int] = provenance.get("modules_to_save") or {}
    if not modules:
        return ""
    line = (
        f"whole: {', '.join(modules)}, {sum(modules.values()):,} parameters beside the budget"
    )
    untied = provenance.get("untied_by_saving") or {}
    pairs = ", ".join(f"{name} from {other}" for name, other in untied.items())
    return f"{line}; as copies, which unties {pairs}" if pairs else line


def begins_elsewhere(rank_map: RankMap) -> bool:
    """Whether the first warning is about what training begins with: that stands before all."""
    return bool(rank_map.warnings) and rank_map.warnings[0].code in START_CODES


def warning_lines(warnings: Sequence[PlanWarning]) -> Table:
    """What to mind, a warning a row."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    for warning in warnings:
        table.add_row(Text("mind", "bold yellow"), Text(warning.message))
    return table


def left_out_lines(rank_map: RankMap) -> Table:
    """What is not targeted: for each reason one name and how many more."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in rank_map.not_targeted.items():
        names[reason].append(name)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    for reason, found in names.items():
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        table.add_row(Text("left out", "bold"), Text(f"{found[0]}{more}: {reason}"))
    return table


def _blocks(grid: Grid, rank_map: RankMap) -> Table:
    width = max(CELL, *(2 + len(_cell_text(*cell)) for cell in _filled(grid)))
    table = Table(box=None, padding=(0, 0), pad_edge=False)
    table.add_column("layer ", justify="right", style="dim", vertical="bottom")
    for name in short_names(grid.kinds):
        heading = Text("\n".join(f" {part} " for part in name.split(".")), "dim")
        table.add_column(heading, justify="center", min_width=width, vertical="bottom")
    table.add_column("mean", justify="right", style="dim", vertical="bottom")
    for layer in grid.layers:
        row = [grid.cells.get((layer, kind), ()) for kind in grid.kinds]
        scores = [grid.scores.get((layer, kind), ()) for kind in grid.kinds]
        shown = [_cell(*cell, rank_map, width) for cell in zip(row, scores, strict=True)]
        table.add_row(f"{layer} ", *shown, _mean(rank for ranks in row for rank in ranks))
    means = [
        _mean(r for at in grid.layers for r in grid.cells.get((at, k), ())) for k in grid.kinds
    ]
    table.add_row("mean ", *means, "", style="dim")
    return table


def _others(modules: Sequence[RankMapModule], rank_map: RankMap) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=False, pad_edge=False)
    mean = mean_score(rank_map.modules)
    for module in modules:
        scores = [module.score / mean] if mean else []
        table.add_row(Text(module.name, "dim"), _cell([module.rank], scores, rank_map))
    return table


def _filled(grid: Grid) -> Iterable[tuple[Sequence[int], Sequence[float]]]:
    return ((ranks, grid.scores.get(place, ())) for place, ranks in grid.cells.items())


def _cell(
    ranks: Sequence[int], scores: Sequence[float], rank_map: RankMap, width: int = CELL
) -> Text:
    if not ranks:
        return Text(EMPTY, "dim", justify="center")
    middle = (min(ranks) + max(ranks)) / 2
    text = f" {_cell_text(ranks, scores)} "
    return Text(f"{text:^{width}}", _shade(middle, rank_map), justify="center")


def _cell_text(ranks: Sequence[int], scores: Sequence[float]) -> str:
    low, high = min(ranks), max(ranks)
    text = str(low) if low == high else f"{low}\N{EN DASH}{high}"
    return f"{text} ({ratio_text(sum(scores) / len(scores))})" if scores else text


def ratio_text(ratio: float) -> str:
    """A ratio in at most four characters: it is to be seen, not computed with."""
    if ratio >= 9.95:
        return f"{ratio:.0f}" if ratio < 9999.5 else ">9k"
    if ratio >= 0.995:
        return f"{ratio:.1f}"
    if ratio >= 0.005 or ratio == 0:
        return f"{ratio:.2f}"[1:] if ratio else "0"
    return "<.01"


def _shade(rank: float, rank_map: RankMap) -> Style:
    """Colour by where the rank lies between the lowest and the highest in use."""
    ranks = [module.rank for module in rank_map.modules]
    low, high = min(ranks), max(ranks)
    share = (rank - low) / (high - low) if high > low else 0.5
    step = round(share * (len(SHADES) - 1))
    return Style(color="#ffffff" if step >= DARK_FROM else "#1c2b36", bgcolor=SHADES[step])


def _mean(ranks: Iterable[int]) -> str:
    values = list(ranks)
    return f"{sum(values) / len(values):6.1f}" if values else EMPTY


def _asked(rank_map: RankMap) -> str:
    unit, value = rank_map.budget.get("unit"), rank_map.budget.get("value", 0)
    match unit:
        case "rank":
            amount = f"mean rank {value:g}"
        case "fraction":
            amount = f"{value:.3%} of the base model"
        case _:
            amount = f"{value:,.0f} {unit}"
    lowest, highest = rank_map.bounds
    return f"{amount}, each {lowest} to {highest}{_full(rank_map, lowest)}"


def _full(rank_map: RankMap, lowest: int) -> str:
    """How many modules are too small for the lowest rank, and have all that they can have."""
    full = [each for each in rank_map.modules if each.rank == min(each.d_in, each.d_out)]
    if len(full) == len(rank_map.modules):
        return "; all modules at their full rank"
    below = sum(each.rank < lowest for each in full)
    return (
        f"; {below} of {len(rank_map.modules)} modules at their full rank below"
        if below
        else ""
    )


def _is_unique(tail: str, kinds: Sequence[str]) -> bool:
    return sum(kind == tail or kind.endswith(f".{tail}") for kind in kinds) == 1
