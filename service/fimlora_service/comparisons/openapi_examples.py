"""Requests that the API reference shows."""

from typing import Any

COMPARISON_EXAMPLES: dict[str, Any] = {
    "all": {
        "summary": "All methods that one set of passes gives",
        "value": {
            "base_model": "local:minilm",
            "dataset": "upload:ds_0123456789abcdef0123456789abcdef",
            "budget": 8,
        },
    },
    "some": {
        "summary": "Three of them, at a budget in parameters",
        "value": {
            "base_model": {"source": "hub", "id": "org/model", "revision": "main"},
            "dataset": {"source": "hub", "id": "org/dataset", "split": "train"},
            "budget": {"parameters": 2_000_000},
            "methods": ["fim", "coherent", "uniform"],
            "calibration": {"n_batches": 32},
        },
    },
}
JOB_COMPARISON_EXAMPLES: dict[str, Any] = {
    "plain": {"summary": "All that its statistics give", "value": {"budget": 8}},
    "picture": {
        "summary": "Two methods with a floor, and a picture",
        "value": {
            "budget": 8,
            "methods": ["fim", "spectral"],
            "allocation": {"r_min": 2},
            "picture": True,
        },
    },
}
