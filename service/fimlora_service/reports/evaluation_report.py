"""What the report of an evaluation says: the verdict first, then what it rests on."""

from collections.abc import Iterator
from typing import Any

from fimlora.adapter.rank_map import source_name
from fimlora_contract.charts import EVALUATION_CHARTS
from fimlora_contract.charts.rows import evaluation_rows
from fimlora_contract.jobs import Job
from fimlora_contract.metrics import SHARES
from fimlora_contract.verdicts import ArmSummary, Difference, EvaluationResult
from fimlora_service.reports.pages import Report, Table, shown
from fimlora_service.reports.plan_report import digests_of, draw, facts_of

NAMES = {
    "macro_f1": "macro F1",
    "rmse": "RMSE",
    "pearson": "Pearson's r",
}
CHOICE = "* the rate that the arm trained with: the lowest one whose loss is within 2 % of the least."
METHOD = (
    "Every arm trains the same number of parameters, within one step of the budget, with one "
    "alpha / rank, and was tuned on the same learning rates. A seed gives all arms the same order "
    "of rows and the same start. An arm wins if its loss is lower than uniform's at 5 % by the "
    "paired t test, after Holm's correction for the number of arms; a winner is then held against "
    "random ranks, and where experts were selected against random experts."
)


def evaluation_report(job: Job, result: EvaluationResult) -> Report:
    """The report of an evaluation."""
    figures, missing = draw(EVALUATION_CHARTS, evaluation_rows(result.model_dump(mode="json")))
    model, data = (source_name(job.resolved.get(role)) for role in ("base_model", "dataset"))
    return Report(
        title=f"Evaluation of ranks for {model or 'a model'} on {data or 'a dataset'}",
        facts=facts_of(job),
        verdict=result.verdict.sentence,
        notes=[*result.verdict.notes, result.levers.sentence],
        figures=figures,
        tables=list(_tables(result)),
        use={"Keep every run and every curve:": f"fimlora fetch {job.id} --output findings"},
        digests=digests_of(result),
        missing=missing,
    )


def _tables(result: EvaluationResult) -> Iterator[Table]:
    yield _arms(result.arms)
    yield _differences(result)
    yield _rates(result.arms)
    yield _settings(result)


def _arms(arms: list[ArmSummary]) -> Table:
    metrics = list(dict.fromkeys(name for arm in arms for name in arm.metrics))
    words = (_heading(name, "%") for name in metrics)
    head = ("arm", "rate", *words, "parameters", "runs", "seconds")
    rows = []
    for arm in arms:
        least, most = arm.adapter_parameters
        size = shown(least) if least == most else f"{least:,} to {most:,}"
        rate = "diverged" if arm.best_rate is None else f"{arm.best_rate:g}"
        spreads = [_spread(arm, name) for name in metrics]
        runs = f"{arm.n_final - arm.n_diverged} of {arm.n_final}"
        rows.append([arm.name, rate, *spreads, size, runs, shown(arm.seconds)])
    return Table(
        "Arms at their best rates", head, rows, "Mean and standard deviation over seeds."
    )


def _spread(arm: ArmSummary, name: str) -> str:
    found = arm.metrics.get(name)
    if found is None or found.mean is None:
        return shown(None)
    factor, digits = _read(name)
    spread = (
        ""
        if found.spread is None
        else f" \N{PLUS-MINUS SIGN} {factor * found.spread:.{digits}f}"
    )
    return f"{factor * found.mean:.{digits}f}{spread}"


def _read(metric: str) -> tuple[int, int]:
    """By what a metric is multiplied to be read, and its digits: shares are read in percent."""
    return (100, 1) if metric in SHARES else (1, 4)


def _heading(metric: str, unit: str) -> str:
    name = NAMES.get(metric, metric)
    return f"{name} ({unit})" if metric in SHARES else name


def _differences(result: EvaluationResult) -> Table:
    head = ("difference", "metric", "mean", "95 % interval", "p", "p, Holm", "better in")
    rows = [
        [
            f"{d.arm} \N{MINUS SIGN} {d.reference}",
            _heading(d.metric, "points"),
            signed(d.mean, *_read(d.metric)),
            _interval(d),
            shown(d.p),
            shown(d.p_holm),
            f"{d.n_better} of {d.n}",
        ]
        for d in result.differences
    ]
    return Table("Differences", head, rows)


def _interval(difference: Difference) -> str:
    ends = (difference.low, difference.high)
    if None in ends:
        return shown(None)
    return " to ".join(signed(end, *_read(difference.metric)) for end in ends)


def signed(value: float | None, factor: int = 1, digits: int = 4) -> str:
    """A difference with its sign, unless it rounds to zero."""
    if value is None:
        return shown(None)
    text = f"{factor * value:+.{digits}f}"
    return text[1:] if not text.strip("+-0.") else text.replace("-", "\N{MINUS SIGN}")


def _rates(arms: list[ArmSummary]) -> Table:
    rates = sorted({each.rate for arm in arms for each in arm.rates})
    rows = []
    for arm in arms:
        losses = {each.rate: each.loss for each in arm.rates}
        rows.append([
            arm.name,
            *(shown(losses.get(r)) + ("*" if r == arm.best_rate else "") for r in rates),
        ])  # fmt: skip
    head = ("arm", *(f"{rate:g}" for rate in rates))
    return Table("Held-out loss in tuning", head, rows, CHOICE)


def _settings(result: EvaluationResult) -> Table:
    told: dict[str, Any] = {
        **result.settings, **result.data, "runs": result.n_runs, "seconds of all runs": result.seconds,
    }  # fmt: skip
    told |= {
        name: _ids(value) for name, value in told.items() if name.endswith(("seed", "seeds"))
    }
    if "learning_rates" in told:
        told["learning_rates"] = _rates_that_ran(result)
    rows = [[name.replace("_", " "), shown(value)] for name, value in told.items()]
    return Table("How it was done", ("setting", "value"), rows, METHOD)


def _ids(value: Any) -> str:
    """Seeds as they are: they are names, not amounts."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _rates_that_ran(result: EvaluationResult) -> str:
    """Every rate that was tuned with; which of them the grid was widened by."""
    given = set(result.settings["learning_rates"])
    ran = sorted({each.rate for arm in result.arms for each in arm.rates} or given)
    added = [f"{rate:g}" for rate in ran if rate not in given]
    text = ", ".join(f"{rate:g}" for rate in ran)
    return f"{text} (added to the grid: {', '.join(added)})" if added else text
