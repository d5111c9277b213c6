"""How plans and evaluations look in a notebook: a chart where it can draw one, a table anywhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fimlora_contract.charts import MEDIA_TYPE, chart
from fimlora_contract.charts.rows import Data, cell_rows, evaluation_rows, plan_rows
from fimlora_contract.metrics import SHARES

MOST_ROWS = 200
SHOWN_DIGITS = 12  # of what pins a content, as pictures have it
Bundle = dict[str, Any]


def plan_bundle(rank_map: Data, *, day: str = "") -> Bundle:
    """A rank map: what it is of, what follows from the task, then ranks by layer and type."""
    made_of = sources(rank_map, day)
    signal = (rank_map.get("signal") or {}).get("sentence", "")
    spent, budget = rank_map["spent"], rank_map["budget"]
    lowest, highest = shown_bounds(rank_map)
    said = (
        f"{len(rank_map['modules']):,} modules, ranks {lowest} to {highest}, "
        f"budget {budget.get('unit')} {budget.get('value')}, {spent['parameters']:,} parameters"
    )
    lines = [line for line in (made_of, signal, said) if line]
    html = "".join(f"<p>{escape(line)}</p>" for line in lines)
    plain = f"{made_of}: {signal} {said}" if made_of else f"{signal} {said}"
    return bundle(html + _grid(rank_map), plain.strip(), "ranks", plan_rows(rank_map))


def shown_bounds(rank_map: Data) -> tuple[int, int]:
    """The lowest and the highest rank of a rank map as far as some module can have them."""
    full = (min(module["d_in"], module["d_out"]) for module in rank_map["modules"])
    highest = min(rank_map["r_max"], max(full, default=rank_map["r_max"]))
    return min(rank_map["r_min"], highest), highest


def sources(rank_map: Data, day: str = "") -> str:
    """Model, data and day of a plan, as its pictures name them; what is not known is left out."""
    facts = rank_map.get("provenance") or {}
    known = (("model", "base_model"), ("data", "dataset"), ("kept", "retain"))
    named = [f"{word}: {_name(facts[role])}" for word, role in known if _name(facts.get(role))]
    return ", ".join([*named, day] if day else named)


def _name(facts: object) -> str:
    """A model's or a dataset's name with the start of what pins its content; empty if unknown."""
    if not isinstance(facts, Mapping) or not facts:
        return ""
    name = str(facts.get("id") or facts.get("name") or "rows of the request")
    content = str(facts.get("revision") or facts.get("digest") or "")
    pinned = content.removeprefix("sha256:")[:SHOWN_DIGITS]
    return f"{name} ({pinned})" if pinned else name


def evaluation_bundle(found: Data) -> Bundle:
    """What an evaluation found: the verdict, then each arm against its controls."""
    verdict = found["verdict"]["sentence"]
    rows = [
        (
            f"{d['arm']} \N{MINUS SIGN} {d['reference']}", *_difference(d),
        )
        for d in found["differences"]
    ]  # fmt: skip
    head = ("difference", "metric", "mean", "95 % from", "to")
    html = f"<p><b>{escape(verdict)}</b></p>" + table(head, rows)
    return bundle(html, verdict, "differences", evaluation_rows(found))


def _difference(found: Data) -> tuple[str, ...]:
    """Metric, mean and ends of the interval; shares of rows in points."""
    is_share = found["metric"] in SHARES
    told = []
    for end in ("mean", "low", "high"):
        value = found[end]
        points = "" if value is None else f"{100 * value:+.1f}"
        told.append(points if is_share or value is None else f"{value:+.4f}")
    return (f"{found['metric']} (points)" if is_share else found["metric"], *told)


def bundle(html: str, plain: str, name: str, rows: dict[str, list[dict[str, Any]]]) -> Bundle:
    """Everything that a notebook may choose from."""
    found: Bundle = {"text/plain": plain, "text/html": html}
    if spec := chart(name, rows):
        found[MEDIA_TYPE] = spec
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML; the first cell of a row names it."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(c)}</td>' for c in row[1:])}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _grid(rank_map: Data) -> str:
    """Layers down, types across; what stands outside the layers is listed below them."""
    cells = cell_rows(rank_map)
    types = list(dict.fromkeys(c["type"] for c in cells if c["layer"] is not None))
    ranks = {(c["layer"], c["type"]): f"{c['rank']:g}" for c in cells}
    layers = sorted({c["layer"] for c in cells if c["layer"] is not None})
    rows = [[str(at), *(ranks.get((at, kind), "") for kind in types)] for at in layers]
    rows += [[c["type"], f"{c['rank']:g}"] for c in cells if c["layer"] is None]
    more = len(rows) - MOST_ROWS
    note = f"<p>and {more:,} more rows</p>" if more > 0 else ""
    return table(("layer", *types), rows[:MOST_ROWS]) + note
