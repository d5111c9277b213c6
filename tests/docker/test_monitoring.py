"""Alert rules and dashboard: queries that parse, over metrics that exist, with a runbook entry."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.testclient import TestClient
from support.valkey import running_valkey

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "monitoring"
RULES = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
QUERIES = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


def selectors_of(node: Any) -> list[Any]:
    """Every choice of series in a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    if isinstance(node, promql_parser.MatrixSelector):
        return [node.vector_selector]
    parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs")]
    parts += list(getattr(node, "args", None) or [])
    return [found for part in parts if part is not None for found in selectors_of(part)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all series that GET /metrics can show: those without samples, too."""
    data_dir = tmp_path_factory.mktemp("metrics")
    with running_valkey() as url:
        settings = Settings(redis_url=url, data_dir=data_dir)
        with TestClient(create_app(settings)) as client:
            text = client.get("/metrics").text
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
    return {
        family.name + suffix
        for family in text_string_to_metric_families(text)
        for suffix in suffixes.get(family.type, [""])
    }


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_parses_and_asks_for_what_there_is(query: str, shown: set[str]) -> None:
    """A misspelt series would never alarm; `up` and `absent` are Prometheus' own."""
    names = {selector.name for selector in selectors_of(promql_parser.parse(query))}

    assert names
    assert names - {"up"} <= shown


def test_every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert() -> None:
    """Whoever is woken finds what to do."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### (Fimlora\w+)$", text, re.MULTILINE)

    assert entries == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_the_dashboard_is_what_its_script_writes() -> None:
    """Panels are changed in the script, where a person can read them."""
    spec = importlib.util.spec_from_file_location("made", FOLDER / "make_dashboard.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)

    assert made.dashboard() == DASHBOARD
