"""Time and calibration of the confidence of plans.

Time: resamples of 224 modules of an 8B model allocated at once, beside one allocation each, which
must agree on every rank.

Calibration: on MiniLM and functions of the standard library, by package. All rows are measured
once; disjoint parts of them are redraws of the data, as what one example adds does not depend on
the others. Of each part's confidence it is asked what it promises: whether its intervals hold the
rank that all rows together give, whether its standard errors are those of the scores between the
parts, and whether the overlap it expects is that of the plans of two parts.

    python benchmarks/bootstrap.py
"""

import argparse
import itertools
import statistics as st
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
sys.path.insert(0, str(Path(__file__).parent))
from allocate import MEAN_RANK, R_MAX, R_MIN, modules_of
from cases import build_minilm
from fimlora import RankPlan, Statistics, allocate, fit_head, measure, score
from fimlora.allocation.distance import plans_apart
from fimlora.allocation.many import share_many
from fimlora.allocation.proportional import share_limit
from fimlora.allocation.units import gather_units
from fimlora.confidence.bootstrap import Confidence, confidence_of
from function_sources import PACKAGES, build_rows

TOKENS, BATCH = 64, 32


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def time_row(n_modules: int, n_resamples: int, turns: int) -> str:
    """Time one size, and see that both ways agree."""
    modules = modules_of(n_modules)
    names = [m.name for m in modules]
    rng = np.random.default_rng(0)
    scores = rng.lognormal(0, 1, n_modules) * rng.lognormal(0, 0.1, (n_resamples, n_modules))
    bounds = {"lowest": dict.fromkeys(names, R_MIN), "highest": dict.fromkeys(names, R_MAX)}
    units, limit = gather_units(names, **bounds), MEAN_RANK * n_modules

    def at_once() -> Any:
        return share_many(units, scores, limit)

    def alone() -> list[dict[str, int]]:
        rows = (dict(zip(names, row, strict=True)) for row in scores.tolist())
        return [share_limit(units, row, limit) for row in rows]

    assert [dict(zip(names, r, strict=True)) for r in at_once().tolist()] == alone()
    times = [(seconds(at_once), seconds(alone)) for _ in range(turns)]
    many, one = (st.median(column) for column in zip(*times, strict=True))
    ratio = st.median(slow / fast for fast, slow in times)
    return f"| {n_modules:,} | {n_resamples:,} | {many:.3f} | {one:.3f} | {ratio:.1f}x |"


def measured(n_rows: int, *, is_fitted: bool) -> Statistics:
    """All rows at once."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = build_minilm(device)
    model.classifier = torch.nn.Linear(model.config.hidden_size, len(PACKAGES))
    model.num_labels = model.config.num_labels = len(PACKAGES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.config.name_or_path)
    rows = build_rows()
    order = np.random.RandomState(0).permutation(len(rows))[:n_rows]
    batches = []
    for start in range(0, n_rows, BATCH):
        some = [rows[i] for i in order[start : start + BATCH]]
        texts = [row["text"] for row in some]
        encoded = tokenizer(
            texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
        labels = torch.tensor([PACKAGES.index(row["label"]) for row in some])
        batches.append({**encoded, "labels": labels})
    if is_fitted:
        fit_head(model, batches, drawn=["classifier"])
    return measure(
        model,
        batches,
        target_modules="all-linear",
        exclude_modules=["classifier", "bert.pooler.dense"],
        n_batches=len(batches),
    )


def part_of(whole: Statistics, rows: slice) -> Statistics:
    """What would have been measured of some of the rows alone, as far as confidence asks."""
    energies = {name: e[rows] for name, e in whole.example_energies.items()}
    sums = {m.name: np.full(m.d_out, energies[m.name].sum() / m.d_out) for m in whole.modules}
    n = len(next(iter(energies.values())))
    return replace(whole, example_energies=energies, row_energies=sums, n_examples=n)


def calibration_row(whole: Statistics, n: int, budget: int) -> str:
    """What confidence promises of parts of n rows, and what comes true."""
    total = whole.n_examples
    parts = [part_of(whole, slice(i, i + n)) for i in range(0, total - n + 1, n)]
    plans = [allocate(score(part), budget) for part in parts]
    found = [confidence_of(part, plan) for part, plan in zip(parts, plans, strict=True)]
    truth = allocate(score(part_of(whole, slice(0, total))), budget)
    errors = np.mean(
        [np.array(c.standard_errors) / _scores(p) for c, p in _pairs(found, plans)]
    )
    between = np.std([_scores(p) / _scores(truth) for p in plans], axis=0, ddof=1).mean()
    apart = [1 - plans_apart(a, b) for a, b in itertools.combinations(plans, 2)]
    expected = st.mean(c.expected_overlap for c in found)
    unresolved = st.mean(c.n_unresolved for c in found)
    return (
        f"| {n} | {len(parts)} | {st.mean(_coverage(c, truth) for c in found):.1%} | "
        f"{errors:.1%} | {between:.1%} | {expected:.1%} | {st.mean(apart):.1%} | "
        f"{unresolved:.1f} of {len(whole.modules)} |"
    )


def _pairs(found: Sequence[Confidence], plans: Sequence[RankPlan]) -> Any:
    return zip(found, plans, strict=True)


def _scores(plan: RankPlan) -> Any:
    return np.array([plan.scores[m.name] for m in plan.modules])


def _coverage(found: Confidence, truth: RankPlan) -> float:
    ranks = [truth.ranks[m.name] for m in truth.modules]
    ends = zip(found.lowest_ranks, ranks, found.highest_ranks, strict=True)
    return sum(low <= rank <= high for low, rank, high in ends) / len(ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--budget", type=int, default=8)
    options = parser.parse_args()
    print("| modules | resamples | at once, s | one by one, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for n_modules, n_resamples in [(36, 2000), (224, 585), (224, 2000)]:
        print(time_row(n_modules, n_resamples, options.turns), flush=True)
    for is_fitted in (False, True):
        whole = measured(options.rows, is_fitted=is_fitted)
        print(f"\n{'fitted' if is_fitted else 'fresh'} head, {whole.n_examples} rows")
        print(
            "| rows of a part | parts | intervals that hold the rank of all rows | standard "
            "error, said | between parts | overlap, said | between parts | not resolved |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for n in (n for n in (16, 32, 64, 128) if 2 * n <= whole.n_examples):
            print(calibration_row(whole, n, options.budget), flush=True)


if __name__ == "__main__":
    main()
