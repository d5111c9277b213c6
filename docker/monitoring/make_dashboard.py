"""Write dashboard.json, the Grafana dashboard: ``python docker/monitoring/make_dashboard.py``.

A dashboard in JSON is a page of coordinates; here is a line per panel.
"""

import json
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 8, 7
Panel = tuple[str, str, str, list[tuple[str, str]]]
PANELS: list[Panel] = [
    ("Jobs that have not ended", "timeseries", "short", [("max by (status) (fimlora_jobs_open)", "{{status}}")]),
    ("Oldest job that waits", "timeseries", "s", [("max(fimlora_oldest_queued_job_seconds)", "age")]),
    ("Workers", "timeseries", "short", [("max by (state, device) (fimlora_workers)", "{{state}} {{device}}")]),
    ("Jobs ended per hour", "timeseries", "short", [("max by (status) (increase(fimlora_jobs_ended_total[1h]))", "{{status}}")]),
    ("Attempts ended per hour, by reason", "timeseries", "short", [("max by (reason) (increase(fimlora_attempts_ended_total[1h]))", "{{reason}}")]),
    ("Duration of a calibration", "timeseries", "s", [
        ("histogram_quantile(0.5, max by (le) (rate(fimlora_calibration_duration_seconds_bucket[6h])))", "median"),
        ("histogram_quantile(0.95, max by (le) (rate(fimlora_calibration_duration_seconds_bucket[6h])))", "95 %"),
    ]),
    ("Accepted calibrations per hour", "timeseries", "short", [("sum by (outcome) (increase(fimlora_calibrations_accepted_total[1h]))", "{{outcome}}")]),
    ("Refused submissions per hour", "timeseries", "short", [("sum by (code) (increase(fimlora_submissions_refused_total[1h]))", "{{code}}")]),
    ("Requests per second", "timeseries", "reqps", [("sum by (status) (rate(fimlora_http_request_duration_seconds_count[5m]))", "{{status}}")]),
    ("Answers, 95 % within", "timeseries", "s", [('histogram_quantile(0.95, sum by (le, route) (rate(fimlora_http_request_duration_seconds_bucket{route!~".*events|.*wait.*"}[5m])))', "{{route}}")]),
    ("Store answers, and takes writes", "timeseries", "short", [("min(fimlora_redis_up)", "answers"), ("min(fimlora_store_writable)", "takes writes")]),
    ("Free in the data folder", "timeseries", "bytes", [("min(fimlora_disk_free_bytes)", "free")]),
    ("Webhooks that wait", "timeseries", "short", [("max(fimlora_webhooks_waiting)", "waiting")]),
    ("Webhook tries per hour", "timeseries", "short", [("sum by (outcome) (increase(fimlora_webhook_tries_total[1h]))", "{{outcome}}")]),
    ("Versions that answer", "timeseries", "short", [("count by (version) (fimlora_build_info)", "{{version}}")]),
]  # fmt: skip


def panel_of(number: int, panel: Panel) -> dict[str, Any]:
    """One panel at its place, three in a row."""
    title, kind, unit, queries = panel
    row, column = divmod(number, 3)
    return {
        "id": number + 1,
        "title": title,
        "type": kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    return {
        "title": "fimlora",
        "uid": "fimlora",
        "schemaVersion": 39,
        "time": {"from": "now-24h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [panel_of(number, panel) for number, panel in enumerate(PANELS)],
    }


if __name__ == "__main__":
    text = json.dumps(dashboard(), indent=1) + "\n"
    Path(__file__).with_name("dashboard.json").write_text(text, encoding="utf-8")
