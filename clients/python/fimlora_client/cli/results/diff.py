"""``fimlora diff``: how far two results lie apart, and whether that is too far for CI."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fimlora_client.cli.common import completion
from fimlora_client.cli.common.console import (
    DIFFERS,
    make_table,
    out,
    print_plain,
    say,
    show_json,
)
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson
from fimlora_client.cli.results.diff_markdown import Difference, as_markdown, listed
from fimlora_client.cli.results.references import find_map
from fimlora_contract.drift import rank_changes, rank_drift
from fimlora_contract.drift_gate import Kind, judge, percent, read_limits
from fimlora_contract.rank_patterns import DriftJudgement, RankDrift

A = "A job (job_...), a digest (sha256:...), a pin (NAME:TAG), or a rank_map.json or adapter folder."


def diff(
    ctx: typer.Context,
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help=A, show_default=False, autocompletion=completion.results
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B",
            help="What to hold against it.",
            show_default=False,
            autocompletion=completion.results,
        ),
    ],
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE",
            help="Exit with 6 if more has moved, and more than other rows would move: 5% for "
            "ranks, scores and experts that are selected, or ranks=5%, scores=10%, experts=0. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Modules to show, largest change first.")
    ] = 20,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print it as Markdown, for a comment.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the ranks and scores of two results differ, and fail above a limit.

    Where experts are selected, other experts that train are a difference, too. Beside what has moved stands the noise: how far two draws of rows from the same data would
    move ranks and scores at most, as the results themselves say. With --fail-above only what is
    above both the limit and the noise fails.

    Exit codes: 0 within the limits, 6 drifted, 1 all else, such as no answer, 2 wrong usage,
    3 not found, 4 the job failed or was canceled, 5 the job has not ended.

    [bold]Examples[/bold]

      fimlora diff job_... job_...
      fimlora diff docstrings:prod job_... --fail-above 5%
      fimlora diff docstrings:prod ./adapter --fail-above ranks=5% --fail-above scores=10%
    """
    limits = _limits(fail_above or [])
    if markdown and as_json:
        raise typer.BadParameter("--markdown and --json: give one of them")
    maps = [find_map(lambda: client_of(ctx), text) for text in (a, b)]
    before, after = maps[0].rank_map, maps[1].rank_map
    drift = rank_drift(before, after)
    found = Difference(
        maps[0],
        maps[1],
        drift,
        rank_changes(before, after),
        judge(drift, limits) if limits else None,
    )
    if as_json:
        show_json(_as_json(found))
    elif markdown:
        print_plain(as_markdown(found, limit=limit))
    else:
        _show(found, limit=limit)
    if found.judgement and found.judgement.fails:
        raise typer.Exit(DIFFERS)


def _limits(texts: list[str]) -> dict[Kind, float]:
    try:
        return read_limits(texts)
    except ValueError as error:
        raise typer.BadParameter(f"--fail-above {error}") from error


def _as_json(found: Difference) -> dict[str, Any]:
    return {
        "a": {"name": found.a.name, "digest": found.a.digest},
        "b": {"name": found.b.name, "digest": found.b.digest},
        "drift": found.drift.model_dump(mode="json"),
        "modules": [change.model_dump(mode="json") for change in found.changes],
        "judgement": found.judgement.model_dump(mode="json") if found.judgement else None,
    }


def _show(found: Difference, *, limit: int) -> None:
    if found.changes:
        out().print(_table(found, limit=limit))
    for line in _lines(found.drift):
        out().print(Text(line), soft_wrap=True)
    if (left := len(found.changes) - limit) > 0:
        say((f"  {left} more with  ", "dim"), f"--limit {len(found.changes)}")
    if found.judgement:
        _say_judgement(found.judgement)


def _table(found: Difference, *, limit: int) -> Table:
    experts = ("experts", "others") if found.drift.n_other_experts else ()
    table = make_table(
        "module", "rank", "other", "change", *experts, right=("rank", "other", "change")
    )
    for module in found.changes[:limit]:
        style = "green" if module.change > 0 else "red" if module.change else ""
        change = Text(f"{module.change:+}" if module.change else "0", style)
        cells = experts and (listed(module.experts_a), listed(module.experts_b))
        table.add_row(module.name, str(module.rank_a), str(module.rank_b), change, *cells)
    return table


def _say_judgement(judgement: DriftJudgement) -> None:
    mark = ("✗ ", "bold red") if judgement.fails else ("✓ ", "green")
    say(mark, judgement.sentence)


def _lines(drift: RankDrift) -> list[str]:
    """What has moved, what noise would move, and what the two differ in besides."""
    lines = [f"no rank differs in {drift.n_modules} modules"]
    if drift.n_changed:
        moved = f"{drift.moved} ranks moved ({percent(drift.share_moved)})"
        spent = f"{drift.ranks_a} ranks before, {drift.ranks_b} after"
        lines = [f"{drift.n_changed} of {drift.n_modules} modules differ, {moved}; {spent}"]
    if drift.share_of_scores_moved is not None:
        lines.append(f"{percent(drift.share_of_scores_moved)} of the scores moved")
    if drift.share_of_experts_moved is not None:
        lines.append(_experts(drift))
    return [*lines, _noise(drift), *drift.remarks]


def _experts(drift: RankDrift) -> str:
    if not drift.n_other_experts:
        return "the same experts train"
    return (
        f"other experts train in {drift.n_other_experts} modules: "
        f"{percent(drift.share_of_experts_moved or 0.0)} of them moved"
    )


def _noise(drift: RankDrift) -> str:
    """How far other rows would move the two, as far as that is known."""
    kinds = {"ranks": drift.rank_noise, "scores": drift.score_noise}
    known = [f"{percent(share)} of the {k}" for k, share in kinds.items() if share is not None]
    if not known:
        return "what other rows would move is not known"
    return f"other rows would move up to {' and '.join(known)}"
