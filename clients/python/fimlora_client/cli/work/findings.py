"""What an evaluation found, on a terminal: arms, differences, and the verdict at the end."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fimlora_client.cli.common.console import make_table, out
from fimlora_contract.jobs import RunProgress
from fimlora_contract.metrics import SHARES
from fimlora_contract.verdicts import ArmSummary, Difference, EvaluationResult

NONE = "\N{EN DASH}"
CHOICE = "* trained with: the lowest one whose loss is within 2 % of the least"


def show_findings(result: EvaluationResult) -> None:
    """Print tables and sentences; the verdict comes last, as it is what one asked for."""
    console = out()
    console.print(arms_table(result.arms))
    console.print()
    console.print(rates_table(result.arms))
    console.print(Text(CHOICE, "dim"))
    console.print()
    console.print(differences_table(result.differences))
    console.print()
    console.print(Text(result.levers.sentence), soft_wrap=True)
    for note in result.verdict.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
    console.print(Text(result.verdict.sentence, "bold"), soft_wrap=True)


def arms_table(arms: Sequence[ArmSummary]) -> Table:
    """A line per arm: its parameters, its best rate, and its metrics on the held-out rows."""
    metrics = list(dict.fromkeys(name for arm in arms for name in arm.metrics))
    columns = ("parameters", "best rate", "runs", *map(_heading, metrics))
    table = make_table("arm", *columns, right=columns)
    for arm in arms:
        least, most = arm.adapter_parameters
        table.add_row(
            arm.name,
            f"{least:,}" if least == most else f"{least:,} to {most:,}",
            NONE if arm.best_rate is None else f"{arm.best_rate:g}",
            f"{arm.n_final - arm.n_diverged}/{arm.n_final}",
            *(_spread(arm, name) for name in metrics),
        )
    return table


def rates_table(arms: Sequence[ArmSummary]) -> Table:
    """A line per arm: its loss in tuning at every rate, the best one marked."""
    rates = sorted({each.rate for arm in arms for each in arm.rates})
    columns = tuple(f"{rate:g}" for rate in rates)
    table = make_table("loss in tuning at", *columns, right=columns)
    for arm in arms:
        losses = {each.rate: _number(each.loss) for each in arm.rates}
        cells = (
            f"{losses.get(rate, NONE)}{'*' if rate == arm.best_rate else ' '}" for rate in rates
        )
        table.add_row(arm.name, *cells)
    return table


def differences_table(differences: Sequence[Difference]) -> Table:
    """A line per arm, control and metric: the difference with its interval at 95 %."""
    table = make_table("difference", "metric", "mean", "95 % interval", "better in",
                       right=("mean",))  # fmt: skip
    for each in differences:
        factor = 100 if each.metric in SHARES else 1
        table.add_row(
            f"{each.arm} - {each.reference}",
            f"{each.metric}{' (points)' if factor > 1 else ''}",
            _number(each.mean, factor, sign=True),
            _interval(each, factor),
            f"{each.n_better} of {each.n} seeds",
        )
    return table


def runs_text(runs: RunProgress) -> str:
    """How far an evaluation is, in words."""
    words = f"run {min(runs.done + 1, runs.n_runs)} of {runs.n_runs}"
    if runs.arm is None:
        return words
    step = f", step {runs.step} of {runs.n_steps}" if runs.n_steps else ""
    return f"{words}: {runs.arm} at {runs.learning_rate:g}, seed {runs.seed}{step}"


def _heading(metric: str) -> str:
    return f"{metric} %" if metric in SHARES else metric


def _spread(arm: ArmSummary, metric: str) -> str:
    found = arm.metrics.get(metric)
    if found is None or found.mean is None:
        return NONE
    factor = 100 if metric in SHARES else 1
    spread = "" if found.spread is None else f" ± {_number(found.spread, factor)}"
    return f"{_number(found.mean, factor)}{spread}"


def _interval(difference: Difference, factor: float) -> str:
    if difference.low is None or difference.high is None:
        return NONE
    ends = (_number(end, factor, sign=True) for end in (difference.low, difference.high))
    return " to ".join(ends)


def _number(value: float | None, factor: float = 1, *, sign: bool = False) -> str:
    if value is None:
        return NONE
    digits = 1 if factor > 1 else 4
    return f"{value * factor:{'+' if sign else ''}.{digits}f}"
