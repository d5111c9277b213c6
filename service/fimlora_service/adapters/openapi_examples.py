"""Requests that the API reference shows."""

from typing import Any

TRUNCATION_EXAMPLES: dict[str, Any] = {
    "mean rank": {"summary": "Half of a uniform rank of 16", "value": {"budget": 8}},
    "energy": {
        "summary": "As few ranks as keep 95 % of the energy, none above 16, padded to one rank",
        "value": {"energy": 0.95, "r_max": 16, "layout": "C"},
    },
    "parameters": {
        "summary": "A limit in parameters",
        "value": {"budget": {"parameters": 2_000_000}},
    },
}
AUDIT_EXAMPLES: dict[str, Any] = {
    "alone": {"summary": "What it uses of its ranks", "value": {}},
    "planned": {"summary": "Against the plan of a job", "value": {"job_id": "job_0"}},
}
CONVERSION_EXAMPLES: dict[str, Any] = {
    "padded": {"summary": "For a server that knows one rank only", "value": {"layout": "C"}},
}
