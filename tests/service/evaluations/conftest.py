"""Evaluations that are accepted, and what they find, as a worker puts it on record."""

from typing import Any

import pytest

ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(80)]


@pytest.fixture
def body() -> dict[str, Any]:
    """An evaluation that is accepted."""
    return {
        "base_model": "local:tiny",
        "dataset": {"source": "inline", "rows": ROWS},
        "budget": 8,
    }


@pytest.fixture
def evaluation_id(http, body) -> str:
    """A queued evaluation."""
    answer = http.post("/evaluations", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def found() -> dict[str, Any]:
    """A result as it lies on the record."""
    arm = {
        "best_rate": 0.001, "rates": [{"rate": 0.001, "loss": 0.5, "n_diverged": 0}],
        "is_at_edge": True, "n_final": 5, "n_diverged": 0, "adapter_parameters": [64, 64],
        "trainable_parameters": 66, "seconds": 1.5,
        "metrics": {"loss": {"mean": 0.5, "spread": None}}, "curve": [[8, 0.5, None]],
    }  # fmt: skip
    difference = {
        "arm": "fim", "reference": "uniform", "metric": "loss", "mean": -0.01, "low": -0.03,
        "high": 0.01, "p": 0.3, "p_holm": 0.6, "n": 5, "n_better": 3,
    }  # fmt: skip
    return {
        "digest": "sha256:" + "cd" * 32,
        "artifacts": [],
        "verdict": {
            "code": "no_difference", "winner": "uniform", "sentence": "Use uniform.", "notes": [],
        },
        "arms": [arm | {"name": name} for name in ("fim", "uniform", "random")],
        "differences": [difference],
        "levers": {"rate": 0.1, "ranks": 0.01, "sentence": "The rate."},
        "n_runs": 39,
        "seconds": 60.0,
        "settings": {"n_steps": 96},
    }  # fmt: skip
