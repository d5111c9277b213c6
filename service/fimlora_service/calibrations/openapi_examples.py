"""Requests that the API reference shows."""

from typing import Any

CALIBRATION_EXAMPLES: dict[str, Any] = {
    "shortest": {
        "summary": "A registered model, an uploaded dataset, a mean rank of 8",
        "value": {
            "base_model": "local:minilm",
            "dataset": "upload:ds_0123456789abcdef0123456789abcdef",
            "budget": 8,
        },
    },
    "hub": {
        "summary": "Everything from the hub, every linear map, a budget in parameters",
        "value": {
            "base_model": {"source": "hub", "id": "org/model", "revision": "main"},
            "dataset": {"source": "hub", "id": "org/dataset", "split": "train"},
            "budget": {"parameters": 2_000_000},
            "target_modules": "all-linear",
            "allocation": {"r_min": 2, "r_max": 32},
        },
    },
    "contrast": {
        "summary": "What matters for one dataset and not for another, whose function is to be kept",
        "value": {
            "base_model": "local:minilm",
            "dataset": "local:forget.jsonl",
            "retain": "local:general.jsonl",
            "budget": 8,
            "allocation": {"method": "vila"},
        },
    },
    "inline": {
        "summary": "Rows in the request, for a small probe",
        "value": {
            "base_model": "local:minilm",
            "dataset": {
                "source": "inline",
                "rows": [
                    {"text": "a fine film", "label": "good"},
                    {"text": "two hours lost", "label": "bad"},
                ],
            },
            "budget": {"rank": 4},
            "calibration": {"n_batches": 1, "batch_size": 2},
            "metadata": {"run": "probe-1"},
        },
    },
}
