"""What charts are drawn of: plain rows from a rank map, and from what an evaluation found.

Modules that share a layer and a type, as experts do, are one row, so that the largest model
has a few thousand at most.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Data = Mapping[str, Any]
CONTROLS = ("uniform", "random")
BLOCK_INDEX = re.compile(r"\.\d+\.")
_INNER_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # of an expert, in a type
_Z = 1.96  # standard errors to either end of a 95 % interval


def plan_rows(rank_map: Data) -> dict[str, list[Row]]:
    """The rows of a plan's charts, from a rank map as data."""
    return {"cells": cell_rows(rank_map), "spending": spending_rows(rank_map)}


def evaluation_rows(found: Data) -> dict[str, list[Row]]:
    """The rows of an evaluation's charts, from its result as data."""
    arms = sorted(found["arms"], key=lambda arm: arm["name"] not in CONTROLS)
    return {
        "curves": list(_curve_rows(arms)),
        "rates": list(_rate_rows(arms)),
        "differences": list(_difference_rows(found["differences"])),
    }


def cell_rows(rank_map: Data) -> list[Row]:
    """A row per layer and type; what stands outside the blocks has no layer."""
    modules = rank_map["modules"]
    errors = (rank_map.get("confidence") or {}).get("standard_errors") or [None] * len(modules)
    uniform = (rank_map["controls"].get("uniform") or {}).get("pattern", {})
    mean = sum(module["score"] for module in modules) / len(modules) if modules else 0
    cells: dict[tuple[str, int | None, str], list[tuple[Data, float | None]]] = defaultdict(
        list
    )
    for module, error in zip(modules, errors, strict=True):
        kind = _INNER_INDEX.sub("*", module["kind"])
        cells[_stack(module), module["layer"], kind].append((module, error))
    names = type_names((stack, kind) for stack, _, kind in cells)
    places = {name: place for place, name in enumerate(names.values())}
    return [
        {"layer": layer, "type": names[stack, kind], "place": places[names[stack, kind]]}
        | _cell(found, uniform, mean)
        for (stack, layer, kind), found in cells.items()
    ]


def spending_rows(rank_map: Data) -> list[Row]:
    """A row for the plan and one for each control."""
    spent = {"plan": rank_map["spent"]["parameters"]}
    controls = rank_map["controls"]
    spent |= {
        name: controls[name]["parameters"] for name in sorted(controls, key=_uniform_first)
    }
    return [
        {"name": name, "parameters": n, "whose": "plan" if name == "plan" else "control"}
        for name, n in spent.items()
    ]


def type_names(places: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name for each stack and type: as few trailing parts as tell the types apart."""
    places = list(dict.fromkeys(places))
    kinds = list(dict.fromkeys(kind for _, kind in places))
    stacks = {stack for stack, _ in places if stack}
    short = dict(zip(kinds, short_names(kinds), strict=True))
    return {
        (stack, kind): f"{stack}: {short[kind]}" if stack and len(stacks) > 1 else short[kind]
        for stack, kind in places
    }


def short_names(kinds: Sequence[str]) -> list[str]:
    """As few trailing parts of each dotted name as tell it from all others."""
    names = []
    for kind in kinds:
        parts = kind.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        names.append(next((tail for tail in tails if _is_unique(tail, kinds)), kind))
    return names


def _is_unique(tail: str, kinds: Sequence[str]) -> bool:
    return sum(kind == tail or kind.endswith(f".{tail}") for kind in kinds) == 1


def _stack(module: Data) -> str:
    """What comes before the layer: models with two towers have two of these."""
    if module["layer"] is None:
        return ""
    return BLOCK_INDEX.split(module["name"], maxsplit=1)[0]


def _trained(module: Data) -> int:
    """How many matrices of a row train."""
    experts = module.get("experts")
    return (module.get("n_experts") or 1) if experts is None else len(experts)


def _cell(found: Sequence[tuple[Data, float | None]], uniform: Data, mean: float) -> Row:
    modules, n = [module for module, _ in found], len(found)
    even = [
        (uniform[m["name"]], _trained(m) * (m["d_in"] + m["d_out"]))
        for m in modules
        if m["name"] in uniform
    ]
    errors = [error for _, error in found if error is not None]
    score = sum(m["score"] for m in modules) / n / mean if mean else None
    row: Row = {
        "modules": n,
        "rank": sum(m["rank"] for m in modules) / n,
        "uniform_rank": sum(rank for rank, _ in even) / n if even else None,
        "score": score,
        "score_low": None,
        "score_high": None,
        "parameters": sum(m["parameters"] for m in modules),
        "uniform_parameters": sum(rank * cost for rank, cost in even) if even else None,
    }
    if score is not None and len(errors) == n:
        spread = _Z * sum(error**2 for error in errors) ** 0.5 / n / mean
        row |= {"score_low": max(0.0, score - spread), "score_high": score + spread}
    return row


def _uniform_first(name: str) -> tuple[bool, str]:
    return name != "uniform", name


def _curve_rows(arms: Iterable[Data]) -> Iterator[Row]:
    for arm in arms:
        for step, loss, spread in arm["curve"]:
            if loss is not None:
                ends = (loss, loss) if spread is None else (loss - spread, loss + spread)
                yield {
                    "arm": arm["name"], "step": step, "loss": loss, "low": ends[0], "high": ends[1]
                }  # fmt: skip


def _rate_rows(arms: Iterable[Data]) -> Iterator[Row]:
    for arm in arms:
        for each in arm["rates"]:
            if each["loss"] is not None:
                is_best = each["rate"] == arm["best_rate"]
                yield {
                    "arm": arm["name"], "rate": each["rate"], "loss": each["loss"],
                    "is_best": is_best,
                }  # fmt: skip


def _difference_rows(differences: Iterable[Data]) -> Iterator[Row]:
    for each in differences:
        if each["metric"] == "loss" and each["mean"] is not None:
            yield {
                "contrast": f"{each['arm']} \N{MINUS SIGN} {each['reference']}",
                "arm": each["arm"],
                "mean": each["mean"],
                "low": each["low"],
                "high": each["high"],
            }
