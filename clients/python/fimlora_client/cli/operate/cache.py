"""``fimlora cache``: what is kept, and how often it helped."""

from typing import Annotated

import typer

from fimlora_client.cli.common.console import make_table, out, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson
from fimlora_contract.cache import CacheFigures, CacheLimits


def cache(
    ctx: typer.Context,
    evict: Annotated[
        bool, typer.Option("--evict", help="First delete what is beyond the limits.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is kept of earlier calibrations and how often it spared one.

    [bold]Example[/bold]

      fimlora cache
    """
    client = client_of(ctx)
    if evict:
        report = client.cache.evict()
        results = "1 result" if report.entries == 1 else f"{report.entries} results"
        say(f"evicted {results}, {size(report.bytes)}")
    figures = client.cache.figures()
    if as_json:
        show_json(figures.model_dump(mode="json"))
        return
    _show(figures)


def _show(figures: CacheFigures) -> None:
    table = make_table("kind", "entries", "size", right=("entries", "size"))
    for kind in ("results", "statistics", "uploads", "evicted"):
        listed = getattr(figures, kind)
        table.add_row(kind, str(listed.entries), size(listed.bytes))
    out().print(table)
    say(
        f"{figures.hits} requests answered at once, {figures.replanned} planned anew, "
        f"{figures.misses} measured; {figures.pinned} results pinned; {_limits(figures.limits)}"
    )


def _limits(limits: CacheLimits) -> str:
    parts = []
    if limits.max_bytes is not None:
        parts.append(size(limits.max_bytes))
    if limits.max_age_days is not None:
        parts.append(f"{limits.max_age_days:g} days unused")
    return f"limit: {' and '.join(parts)}" if parts else "no limit"
