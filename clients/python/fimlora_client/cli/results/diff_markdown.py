"""A difference of two results as Markdown: the verdict first, then figures, changes and the map.

Names come from files and services, so nothing of them may become markup or call a person.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fimlora_client.cli.results.references import NamedMap
from fimlora_client.rank_map import arrange
from fimlora_contract.drift_gate import Kind, percent
from fimlora_contract.number_ranges import as_ranges
from fimlora_contract.rank_patterns import DriftJudgement, RankChange, RankDrift

# A comment of GitHub or GitLab holds some 65,000 characters; a map of 120 layers has 12,000.
MOST_CELLS = 2000


@dataclass(frozen=True, slots=True)
class Difference:
    """Two results and how far they lie apart.

    Attributes:
        a: One result.
        b: The other.
        drift: In sum.
        changes: Per module, the largest first.
        judgement: What the gate says; ``None`` without limits.
    """

    a: NamedMap
    b: NamedMap
    drift: RankDrift
    changes: Sequence[RankChange]
    judgement: DriftJudgement | None


def as_markdown(found: Difference, *, limit: int) -> str:
    """The whole comment."""
    parts = [
        f"### LoRA ranks: {code_span(found.a.name)} → {code_span(found.b.name)}",
        _verdict(found),
        "\n".join(_figures(found)),
        "\n".join(f"- {remark}" for remark in found.drift.remarks),
        _folded(f"{len(found.changes)} modules changed", _changes(found, limit)),
        _folded("Rank map", _map(found)),
        f"{code_span(found.a.digest or 'a file')} → {code_span(found.b.digest or 'a file')}",
    ]
    return "\n\n".join(part for part in parts if part)


def _verdict(found: Difference) -> str:
    if not found.judgement:
        drift = found.drift
        ranks = f"{drift.n_changed} of {drift.n_modules} modules have other ranks."
        said = [ranks if drift.n_changed else "No rank differs."]
        if drift.n_other_experts:
            said.append(f"Other experts train in {drift.n_other_experts}.")
        return " ".join(said)
    return f"{'❌' if found.judgement.fails else '✅'} **{found.judgement.sentence}**"


def _figures(found: Difference) -> Iterator[str]:
    drift = found.drift
    limits = {kind.of: kind.limit for kind in found.judgement.kinds} if found.judgement else {}
    figures: dict[Kind, tuple[float | None, float | None]] = {
        "ranks": (drift.share_moved, drift.rank_noise),
        "scores": (drift.share_of_scores_moved, drift.score_noise),
    }
    if drift.share_of_experts_moved is not None:
        figures["experts"] = (drift.share_of_experts_moved, None)
    yield "| | moved | other rows would move up to | limit |"
    yield "| --- | --: | --: | --: |"
    for kind, (moved, noise) in figures.items():
        cells = (_percent(share) for share in (moved, noise, limits.get(kind)))
        yield f"| {kind} | {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _changes(found: Difference, limit: int) -> Iterator[str]:
    if not found.changes:
        return
    has_experts = found.drift.n_other_experts > 0
    yield "| module | before | after | change |" + (
        " experts | others |" if has_experts else ""
    )
    yield "| --- | --: | --: | --: |" + (" --- | --- |" if has_experts else "")
    for change in found.changes[:limit]:
        cells = [f"{change.rank_a}", f"{change.rank_b}", f"{change.change:+}"]
        if has_experts:
            cells += [listed(change.experts_a), listed(change.experts_b)]
        yield f"| {code_span(change.name)} | {' | '.join(cells)} |"
    if (left := len(found.changes) - limit) > 0:
        yield ""
        yield f"{left} more."


def _map(found: Difference) -> Iterator[str]:
    """Ranks by layer and type after, with those before where they differ."""
    before, after = (arrange(named.rank_map.modules) for named in (found.a, found.b))
    if not after.cells or len(after.layers) * len(after.kinds) > MOST_CELLS:
        return
    yield "| layer | " + " | ".join(code_span(kind) for kind in after.kinds) + " |"
    yield "| --: |" + " --: |" * len(after.kinds)
    for layer in after.layers:
        cells = []
        for kind in after.kinds:
            now, was = after.cells.get((layer, kind), ()), before.cells.get((layer, kind), ())
            cells.append(_cell(was, now))
        yield f"| {layer} | {' | '.join(cells)} |"


def _cell(was: Sequence[int], now: Sequence[int]) -> str:
    if sorted(was) == sorted(now):
        return _span(now)
    return f"{_span(was)} → **{_span(now)}**" if now else f"{_span(was)} → ·"


def _span(ranks: Sequence[int]) -> str:
    if not ranks:
        return "·"
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}-{high}"


def _folded(title: str, lines: Iterator[str]) -> str:
    body = "\n".join(lines)
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""


def listed(experts: Sequence[int] | None) -> str:
    """Numbers of experts; a dash where the same ones train."""
    return "-" if experts is None else as_ranges(experts)


def code_span(text: str) -> str:
    """Text that is shown as it is, whatever is in it, also in a cell of a table."""
    shown = re.sub(r"[`|\x00-\x1f\x7f\u2028\u2029]", "?", text)[:160]
    return f"`{shown or '?'}`"
