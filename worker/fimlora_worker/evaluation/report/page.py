"""The page of an evaluation: the verdict first, then what it rests on. Nothing is fetched."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from fimlora_worker.evaluation.report.marks import signed
from fimlora_worker.evaluation.report.pictures import (
    WIDTH,
    colour_of,
    curves,
    forest,
    rates,
)
from fimlora_worker.evaluation.report.style import style_sheet

Data = Mapping[str, Any]
PAGE = """
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 22px; margin: 0 0 16px; } h2 { font-size: 17px; margin: 36px 0 4px; }
p { margin: 4px 0 10px; } p.quiet, figcaption { color: var(--quiet); font-size: 14px; }
.verdict { background: var(--panel); border-left: 4px solid var(--arm2); padding: 14px 18px;
  font-size: 18px; } .verdict ul { font-size: 15px; margin: 8px 0 0; padding-left: 20px; }
.scroll { overflow-x: auto; } svg { display: block; min-width: 560px; width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 5px 10px 5px 0; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; } .scroll + p { margin-top: 12px; }
figcaption { margin-top: 8px; } th:first-child, td:first-child { text-align: left; }
th { color: var(--quiet); font-weight: 500; } figure { margin: 0; }
"""
NAMES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "rmse": "RMSE",
    "pearson": "Pearson's r",
    "perplexity": "perplexity",
}


def report_html(data: Data) -> str:
    """The whole page.

    Args:
        data: What `Judgement.to_json` gave; ``title`` may be added.
    """
    title = escape(str(data.get("title", "Evaluation of rank patterns")))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style_sheet()}{PAGE}</style></head><body><main>"
        f"<h1>{title}</h1>{''.join(_sections(data))}</main></body></html>\n"
    )


def _sections(data: Data) -> Iterable[str]:
    yield _verdict(data)
    yield _figure(
        "Differences in loss", forest(data, "loss"),
        "Mean over common seeds with 95 % interval; left of the line the arm is better.",
    )  # fmt: skip
    yield "<h2>Arms at their best rates</h2>" + _arms(data)
    yield f"<p>{escape(data['levers']['sentence'])}</p>"
    yield _figure(
        "Learning curves", curves(data),
        "Held-out loss; bands are one standard deviation over seeds.",
    )  # fmt: skip
    yield _figure(
        "Tuning of the learning rate", rates(data),
        "Mean held-out loss of the tuning runs; the large dot is each arm's choice.",
    )  # fmt: skip
    yield "<h2>All differences</h2>" + _differences(data)
    yield _method(data)


def _verdict(data: Data) -> str:
    verdict = data["verdict"]
    notes = "".join(f"<li>{escape(note)}</li>" for note in verdict["notes"])
    listed = f"<ul>{notes}</ul>" if notes else ""
    return f'<div class="verdict">{escape(verdict["sentence"])}{listed}</div>'


def _figure(title: str, drawn: tuple[str, int], caption: str) -> str:
    marks, height = drawn
    return (
        f'<h2>{title}</h2><figure><div class="scroll"><svg viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{title}">{marks}</svg></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _arms(data: Data) -> str:
    metrics = list(dict.fromkeys(name for arm in data["arms"] for name in arm["metrics"]))
    head = [
        "arm",
        "rate",
        *(NAMES.get(name, name) for name in metrics),
        "parameters",
        "s / run",
    ]
    rows = []
    for arm in data["arms"]:
        least, most = arm["adapter_parameters"]
        size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        found = [_spread(arm["metrics"].get(name)) for name in metrics]
        rate = "diverged" if arm["best_rate"] is None else f"{arm['best_rate']:g}"
        seconds = "" if arm["seconds"] is None else f"{arm['seconds']:.0f}"
        name = f'<b style="color:var(--arm{colour_of(data, arm["name"])})">{escape(arm["name"])}</b>'
        rows.append([name, rate, *found, size, seconds])
    return _table(head, rows)


def _spread(value: Data | None) -> str:
    if value is None:
        return ""
    spread = "" if value["spread"] is None else f" \N{PLUS-MINUS SIGN} {value['spread']:.4f}"
    return f"{value['mean']:.4f}{spread}"


def _differences(data: Data) -> str:
    head = ["", "metric", "difference", "95 % interval", "p", "p, Holm", "better in"]
    return _table(
        head,
        [
            [
                f"{escape(d['arm'])} \N{MINUS SIGN} {escape(d['reference'])}",
                NAMES.get(d["metric"], d["metric"]),
                signed(d["mean"]),
                f"{signed(d['low'])} to {signed(d['high'])}",
                f"{d['p']:.3f}",
                f"{d['p_holm']:.3f}",
                f"{d['n_better']} of {d['n']}",
            ]
            for d in data["differences"]
        ],
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _method(data: Data) -> str:
    s = data["settings"]
    grid = ", ".join(f"{rate:g}" for rate in s["learning_rates"])
    return (
        "<h2>How it was done</h2><p class='quiet'>"
        f"{data['n_runs']} runs, {data['seconds'] / 60:.0f} minutes of training and testing. Each "
        f"run: {s['n_steps']} steps of {s['batch_size']} rows of at most {s['max_length']} tokens, "
        "AdamW, a linear schedule. Every arm trains the same number of parameters (within one step "
        f"of the budget) with one alpha / rank, and was tuned on the rates {grid} with "
        f"{len(s['tuning_seeds'])} seed(s); a best rate at the edge widens the grid once for all. "
        f"Then {len(s['seeds'])} other seeds: equal data order and start in all arms of a seed. An "
        "arm wins if its loss is lower than uniform's at 5 % by the paired t test, after Holm's "
        "correction for the number of arms; a winner is then held against random ranks.</p>"
    )
