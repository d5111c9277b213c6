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
