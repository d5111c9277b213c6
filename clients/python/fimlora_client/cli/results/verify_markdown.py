"""What was found of an adapter as Markdown: the verdict first, then figures and faults.

Names come from files, so nothing of them may become markup or call a person.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fimlora_client.cli.results.diff_markdown import code_span

if TYPE_CHECKING:
    from fimlora.adapter.verifying.findings import Verification

MOST_FAULTS = 50


def as_markdown(found: "Verification") -> str:
    """The whole comment, or a part of one."""
    parts = [
        f"### LoRA adapter: {code_span(found.subject)}",
        f"{'✅' if found.as_planned else '❌'} **{'as planned' if found.as_planned else 'not as planned'}**",
        "\n".join(_figures(found)),
        "\n".join(_faults(found)),
        found.next_step,
        "\n".join(f"- {code_span(note)}" for note in found.notes),
    ]
    return "\n\n".join(part for part in parts if part)


def _figures(found: "Verification") -> Iterator[str]:
    yield "| | modules | ranks | parameters |"
    yield "| --- | ---: | ---: | ---: |"
    for name, totals in (("planned", found.planned), ("found", found.found)):
        yield f"| {name} | {totals.modules:,} | {totals.ranks:,} | {totals.parameters:,} |"


def _faults(found: "Verification") -> Iterator[str]:
    if not found.faults:
        return
    yield "| fault | module | planned | found |"
    yield "| --- | --- | --- | --- |"
    for fault in found.faults[:MOST_FAULTS]:
        cells = (fault.code, fault.module, fault.planned, fault.found)
        yield f"| {' | '.join(code_span(cell) if cell else '' for cell in cells)} |"
    if len(found.faults) > MOST_FAULTS:
        yield f"| and {len(found.faults) - MOST_FAULTS:,} more | | | |"
