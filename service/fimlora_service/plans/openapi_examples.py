"""Requests that the API reference shows."""

from typing import Any

PLAN_EXAMPLES: dict[str, Any] = {
    "half": {"summary": "A smaller mean rank", "value": {"budget": 4}},
    "other bounds": {
        "summary": "Parameters instead of ranks, a floor, another aggregation",
        "value": {
            "budget": {"parameters": 1_000_000},
            "allocation": {"r_min": 2, "aggregation": "max"},
            "adapter": {"layout": "C"},
        },
    },
}
SWEEP_EXAMPLES: dict[str, Any] = {
    "plain": {"summary": "What the paper varies", "value": {"budget": 8}},
    "some": {
        "summary": "The mean of fewer batches, under two floors",
        "value": {
            "budget": {"parameters": 1_000_000},
            "aggregations": ["mean"],
            "n_batches": [1, 4, 8],
            "r_min": [1, 4],
        },
    },
}
