"""Time of allocating ranks, against the same mathematics in plain Python loops.

Both solve the same cases in turn and must agree on every rank; a ratio is the median over
the turns of processor time. ``allocate`` is the whole call of a user: the plan and its six
controls, seven solutions in all; below, the same under all that ranks may have to keep to.

    python benchmarks/allocate.py
"""

import argparse
import math
import random
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from fimlora.allocation import allocate, allocate_ranks
from fimlora.plan import Budget, TargetModule
from fimlora.scores import Scores

MEAN_RANK, R_MIN, R_MAX = 16, 8, 32
KINDS = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 14336),
    "mlp.up_proj": (4096, 14336),
    "mlp.down_proj": (14336, 4096),
}


def modules_of(n: int) -> list[TargetModule]:
    """As many target modules of Llama-3-8B's shapes, layer by layer."""
    kinds = list(KINDS.items())
    return [
        TargetModule(f"model.layers.{i // 7}.{kinds[i % 7][0]}", *kinds[i % 7][1])
        for i in range(n)
    ]


def plain_loops(scores: dict[str, float], limit: int) -> dict[str, int]:
    """Bounded proportional shares of a rank budget, as one would write them down."""
    largest = max(scores.values())
    q = {name: max(score / largest, 2.0**-200) for name, score in scores.items()}
    bends = sorted({bound / share for share in q.values() for bound in (R_MIN, R_MAX)})

    def quotas(level: float) -> dict[str, float]:
        return {name: min(max(level * share, R_MIN), R_MAX) for name, share in q.items()}

    end = bisect_left(bends, limit, key=lambda bend: math.fsum(quotas(bend).values()))
    start, stop = bends[max(end - 1, 0)], bends[min(end, len(bends) - 1)]
    free = [s for s in q.values() if R_MIN / s < stop and R_MAX / s > start]
    fixed = math.fsum(R_MIN for s in q.values() if R_MIN / s >= stop) + math.fsum(
        R_MAX for s in q.values() if R_MAX / s <= start
    )
    shares = quotas((limit - fixed) / math.fsum(free))
    ranks = {name: math.floor(share) for name, share in shares.items()}
    open_ = [name for name in scores if ranks[name] < R_MAX]
    open_.sort(key=lambda n: (-round((shares[n] - ranks[n]) * 2**20), -scores[n], n))
    for name in open_[: limit - sum(ranks.values())]:
        ranks[name] += 1
    return ranks


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def row(n: int, turns: int) -> str:
    """Time one size, and see that both ways agree."""
    modules = modules_of(n)
    rng = random.Random(n)
    scores = {m.name: rng.lognormvariate(0, 2) for m in modules}
    limit = MEAN_RANK * n
    bounds = {"lowest": dict.fromkeys(scores, R_MIN), "highest": dict.fromkeys(scores, R_MAX)}

    def ours() -> dict[str, int]:
        return allocate_ranks(scores, limit=limit, **bounds)

    assert ours() == plain_loops(scores, limit)
    times = [
        (
            seconds(ours),
            seconds(lambda: plain_loops(scores, limit)),
            seconds(lambda: allocate(Scores(modules, scores), MEAN_RANK)),
        )
        for _ in range(turns)
    ]
    solve, loops, whole = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(loop / ours_ for ours_, loop, _ in times)
    return f"| {n:,} | {solve:.4f} | {loops:.4f} | {ratio:.1f}x | {whole:.4f} |"


CONSTRAINTS: dict[str, dict[str, Any]] = {
    "none": {},
    "groups: fused": {"groups": "fused"},
    "groups: type": {"groups": "type"},
    "rank_menu: powers-of-two": {"rank_menu": "powers-of-two"},
    "per_type: shares of three types": {
        "per_type": {
            "q_proj": {"share": 0.05, "r_min": 4},
            "v_proj": {"share": 0.04},
            "down_proj": {"share": 0.3, "r_max": 48},
        }
    },
    "groups, menu and shares at once": {
        "groups": "fused",
        "rank_menu": "powers-of-two",
        "per_type": {"down_proj": {"share": 0.3}, "o_proj": {"r_max": 24}},
    },
}


def constrained_row(name: str, n: int, turns: int) -> str:
    """Time a whole call with constraints, at a budget in parameters."""
    modules = modules_of(n)
    rng = random.Random(n)
    scores = Scores(modules, {m.name: rng.lognormvariate(0, 2) for m in modules})
    budget = Budget("parameters", MEAN_RANK * sum(m.cost for m in modules))

    def call() -> object:
        return allocate(scores, budget, **CONSTRAINTS[name])

    return f"| {name} | {n:,} | {statistics.median(seconds(call) for _ in range(turns)):.4f} |"


RULES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "random": {},
    "proportional": {"groups": "fused", "r_min": 4, "r_max": 64},
    "spectral": {"r_min": 0, "r_max": 32},
    "spectral, groups": {"groups": "fused", "r_min": 4, "r_max": 32},
    "layers": {},
    "layers, groups": {"groups": "fused", "r_min": 4, "r_max": 64},
    "lists of groups": {"groups": "lists", "r_min": 4, "r_max": 64},
}


def rule_row(name: str, n: int, turns: int) -> str:
    """Time a whole call by a rule, its budget in parameters."""
    modules = modules_of(n)
    rng, options = np.random.default_rng(n), dict(RULES[name])
    budget = Budget("parameters", MEAN_RANK * sum(m.cost for m in modules))
    names = [module.name for module in modules]
    if options.get("groups") == "lists":
        options["groups"] = [names[i : i + 3] for i in range(0, n - 3, 3)]
    if name.startswith("spectral"):
        values = np.sort(rng.lognormal(0, 1, (n, 32)))[:, ::-1]
        scores = Scores(modules, spectra=dict(zip(names, values, strict=True)), rule="spectral")
    else:
        drawn = rng.lognormal(0, 2, n).tolist()
        rule = name.partition(",")[0]
        rule = rule if rule in {"uniform", "random", "layers"} else "proportional"
        scores = Scores(modules, dict(zip(names, drawn, strict=True)), rule=rule)

    def call() -> object:
        return allocate(scores, budget, **options)

    return f"| {name} | {n:,} | {statistics.median(seconds(call) for _ in range(turns)):.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 10_000, 100_000])
    options = parser.parse_args()
    print(
        "| modules | allocate_ranks, s | plain loops, s | ratio | allocate with controls, s |"
    )
    print("| --- | --- | --- | --- | --- |")
    for n in options.sizes:
        print(row(n, options.turns), flush=True)
    print("\n| constraints | modules | allocate with controls, s |\n| --- | --- | --- |")
    for name in CONSTRAINTS:
        print(constrained_row(name, max(options.sizes), options.turns), flush=True)
    print("\n| rule | modules | allocate with controls, s |\n| --- | --- | --- |")
    for name in RULES:
        print(rule_row(name, max(options.sizes), options.turns), flush=True)


if __name__ == "__main__":
    main()
