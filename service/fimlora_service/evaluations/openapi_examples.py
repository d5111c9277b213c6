"""Evaluations that the API reference shows."""

from typing import Any

EVALUATION_EXAMPLES: dict[str, Any] = {
    "quick": {
        "summary": "A first look: the plan by Fisher information beside uniform and random",
        "value": {
            "base_model": "local:minilm",
            "dataset": "upload:ds_0123456789abcdef0123456789abcdef",
            "budget": 8,
            "quick": True,
        },
    },
    "hub": {
        "summary": "Two methods, a split of its own to test on, ten seeds",
        "value": {
            "base_model": {"source": "hub", "id": "org/model", "revision": "main"},
            "dataset": {"source": "hub", "id": "org/dataset", "split": "train"},
            "budget": {"parameters": 500_000},
            "methods": ["fim", "spectral"],
            "eval_split": "validation",
            "seeds": 10,
        },
    },
    "plans": {
        "summary": "A plan that is pinned, at the parameters it spends",
        "value": {
            "base_model": "local:minilm",
            "dataset": "local:reviews",
            "budget": {"parameters": 73_728},
            "plans": {"ours": "reviews/prod"},
            "learning_rates": [0.0005, 0.001, 0.002, 0.004],
        },
    },
}
