"""A plan as a small table of HTML, for notebooks: layers down, kinds of module across."""

from collections.abc import Mapping, Sequence
from html import escape

from fimlora.shares import Module, type_name

MOST_ROWS = 200


def plan_table(modules: Sequence[Module], ranks: Mapping[str, int]) -> str:
    """Lay the ranks out; modules that share a layer and a kind share a cell.

    Args:
        modules: The target modules.
        ranks: Rank per module name.

    Returns:
        The table, of at most two hundred rows.
    """
    cells: dict[tuple[int | None, str], list[int]] = {}
    for module in modules:
        cells.setdefault((module.layer, type_name(module.kind)), []).append(ranks[module.name])
    kinds = list(dict.fromkeys(kind for layer, kind in cells if layer is not None))
    layers = sorted({layer for layer, _ in cells if layer is not None})
    rows = [[str(at), *(_text(cells.get((at, kind), ())) for kind in kinds)] for at in layers]
    rows += [[kind, _text(found)] for (layer, kind), found in cells.items() if layer is None]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("layer", *kinds))
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows[:MOST_ROWS]
    )
    more = f"<p>and {len(rows) - MOST_ROWS:,} more rows</p>" if len(rows) > MOST_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _text(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"
