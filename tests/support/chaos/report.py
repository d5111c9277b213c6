"""The trials as one page: rows by instants, how long recovery took, and how to repeat each."""

import html
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from support.chaos.faults import Fault
from support.chaos.trials import Trial

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .6rem;text-align:left;vertical-align:top}
thead th{border-bottom:2px solid #1b1f24}tbody tr{border-top:1px solid #d5d9de}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.i{display:inline-block;min-width:2.6em;padding:0 .2em;margin:1px;text-align:center;border-radius:3px;
background:#d9f0dd;font-size:12px}.i.late{background:#fff0c2}.i.bad{background:#f8c9c4}
.bar{background:#5b8def;height:.8em;display:inline-block}code{font-size:12px}
"""
ELSEWHERE = {
    "power is cut: unsynced writes are dropped": "tests/service/test_power_cut.py",
    "the kernel ends a child for want of memory": "tests/worker/process/test_memory_kills.py",
    "a limit of time that the job swallows": "tests/worker/process/test_time_limit.py",
    "an evaluation loses leader or hand": "tests/chaos/test_evaluation_faults.py",
    "a cancel that is not obeyed, a stop that is late": "tests/chaos/test_child_faults.py",
    "a webhook's receiver that is slow or rude": "tests/service/webhooks",
    "a result that breaks off while it is committed": "tests/worker/job",
    "fimlora up loses what it started": "tests/e2e/test_up.py, tests/e2e/test_store_away.py",
    "a kernel of the device that hangs": "row 'child hangs for good', without a device",
    "all of Valkey's data lost": "tests/chaos/test_matrix.py: its jobs are gone, repeated requests are not",
    "a host lost for good; Redis Cluster, Sentinel; macOS": "not covered",
}


def as_page(
    trials: Sequence[Trial],
    faults: Sequence[Fault],
    *,
    skipped: dict[str, str],
    limit_s: float,
    about: str,
) -> str:
    """The page as HTML that needs no other file."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Failure matrix</title>",
        f"<style>{STYLE}</style><h1>Failure matrix</h1>",
        f"<p>{html.escape(about)}</p>",
        _totals(trials, limit_s=limit_s),
        _rows(trials, faults, skipped=skipped, limit_s=limit_s),
        _recovery(trials),
        _findings(trials),
        _elsewhere(),
    ]
    return "\n".join(parts)


def is_late(trial: Trial, limit_s: float) -> bool:
    """Whether everything had ended, but not soon enough."""
    return trial.recovery_s is not None and trial.recovery_s > limit_s + trial.noticed_s


def _totals(trials: Sequence[Trial], *, limit_s: float) -> str:
    found = [finding for trial in trials for finding in trial.findings]
    ends = sum((Counter(trial.ends) for trial in trials), Counter())
    figures = {
        "faults injected": len(trials),
        "histories of jobs (one per acknowledged job and fault)": sum(t.n_jobs for t in trials),
        "of these not linearizable": sum("not linearizable" in f.what for f in found),
        "histories of idempotency keys": sum(t.n_keys for t in trials),
        "operations": sum(t.n_operations for t in trials),
        "acknowledged jobs lost": sum("lost" in f.what for f in found),
        "jobs that ended succeeded / canceled / failed": " / ".join(
            str(ends[status]) for status in ("succeeded", "canceled", "failed")
        ),
        f"recovered later than {limit_s:g} s": sum(is_late(t, limit_s) for t in trials),
        "not recovered": sum(t.recovery_s is None for t in trials),
        "trials with a finding": sum(bool(t.findings) for t in trials),
    }
    rows = (f"<tr><td>{name}<td class=n>{value}" for name, value in figures.items())
    return f"<table><tbody>{''.join(rows)}</table>"


def _rows(
    trials: Sequence[Trial],
    faults: Sequence[Fault],
    *,
    skipped: dict[str, str],
    limit_s: float,
) -> str:
    by_fault: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_fault[trial.fault].append(trial)
    lines = []
    for fault in faults:
        name, done = html.escape(fault.name), by_fault[fault.name]
        if fault.name in skipped:
            why = html.escape(skipped[fault.name])
            lines.append(f"<tr><td>{name}<td class=n>0<td colspan=4>skipped: {why}")
        elif done:
            times = [t.recovery_s for t in done if t.recovery_s is not None]
            middle = (
                f"{statistics.median(times):.1f}<td class=n>{max(times):.1f}"
                if times
                else "<td>"
            )
            cells = "".join(_cell(trial, limit_s) for trial in done)
            n_jobs = sum(t.n_jobs for t in done)
            lines.append(
                f"<tr><td>{name}<td class=n>{len(done)}<td class=n>{n_jobs}"
                f"<td class=n>{middle}<td>{cells}"
            )
    head = "<th>fault<th>instants<th>histories<th>median s<th>longest s<th>each instant: s to recover"
    return f"<h2>Rows</h2><table><thead><tr>{head}<tbody>{''.join(lines)}</table>"


def _cell(trial: Trial, limit_s: float) -> str:
    kind = "bad" if trial.findings else "late" if is_late(trial, limit_s) else ""
    text = "-" if trial.recovery_s is None else f"{trial.recovery_s:.1f}"
    title = html.escape(f"at {trial.instant_s:.2f} s, seed {trial.seed}", quote=True)
    return f'<span class="i {kind}" title="{title}">{text}</span>'


def _recovery(trials: Sequence[Trial]) -> str:
    times = [t.recovery_s for t in trials if t.recovery_s is not None]
    bounds = [1, 2, 5, 10, 15, 20, 25, 30, 45, 60, 120]
    lines = []
    for low, high in zip([0, *bounds], bounds, strict=False):
        n = sum(low <= time < high for time in times)
        width = 40 * n / max(1, len(times))
        bar = f'<span class=bar style="width:{width:.2f}em"></span>'
        lines.append(f"<tr><td class=n>{low} - {high} s<td class=n>{n}<td>{bar}")
    said = (
        "From the end of the fault, when processes are started again or links are fair, until every "
        "job that had been accepted has ended and one that was submitted afterwards has succeeded."
    )
    return f"<h2>Recovery</h2><p>{said}</p><table><tbody>{''.join(lines)}</table>"


def _findings(trials: Sequence[Trial]) -> str:
    lines = []
    for trial in trials:
        for finding in trial.findings:
            command = f'python tests/chaos/run.py --rows "{trial.fault}" --seeds {trial.seed}'
            lines.append(
                f"<tr><td>{html.escape(trial.fault)}<td>{html.escape(finding.thing)}"
                f"<td>{html.escape(finding.what)}<td><code>{html.escape(command)}</code>"
            )
    body = "".join(lines) or "<tr><td>none"
    return f"<h2>What must not be</h2><table><tbody>{body}</table>"


def _elsewhere() -> str:
    lines = (
        f"<tr><td>{html.escape(what)}<td>{html.escape(where)}"
        for what, where in ELSEWHERE.items()
    )
    return f"<h2>Not injected here</h2><table><tbody>{''.join(lines)}</table>"
