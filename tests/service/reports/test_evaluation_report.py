"""The report of an evaluation: the verdict first, every number, and nothing that is not known."""

import html
import json
import math
import re

import pytest

from fimlora_client.cli.work.findings import CHOICE as SAID_ON_TERMINAL
from fimlora_contract.charts import specification
from fimlora_service.reports.evaluation_report import CHOICE as SAID_IN_REPORT
from fimlora_service.reports.evaluation_report import signed
from fimlora_worker.evaluation.tuning import NEAR
from fimlora_worker.evaluation.verdict import judge
from support.evaluations import bowl, make_settings, run_all

ODD = "fim<script>&\"'"


def data_of(surface=None, *, arms=("uniform", "random", "fim"), **changes):
    settings = make_settings(arms=arms, **changes)
    usual = bowl(dict.fromkeys(arms, 2e-3))

    def noisy(spec):
        return usual(spec) + 0.01 * math.sin(37 * spec.seed + 11 * len(spec.arm))

    judged = judge(settings, run_all(settings, surface or noisy))
    return json.loads(json.dumps(judged.to_json(), allow_nan=False))


@pytest.fixture
def report_of(http, store):
    """Play a worker that ends an evaluation with these findings; answers the report's text."""

    def run(data):
        rows = [{"text": f"text {n}", "label": n % 2} for n in range(80)]
        dataset = {"source": "inline", "rows": rows}
        asked = {"base_model": "local:tiny", "dataset": dataset, "budget": 8}
        id_ = http.post("/evaluations", json=asked).json()["id"]
        store.start(id_, 1, worker="w")
        store.succeed(id_, 1, data | {"digest": "sha256:" + "cd" * 32, "artifacts": []})
        answer = http.get(f"/evaluations/{id_}/report")
        assert answer.status_code == 200, answer.text
        assert answer.content == http.get(f"/jobs/{id_}/report").content
        return answer.text

    return run


def words(page: str) -> str:
    """What one reads, without the styles and the pictures."""
    body = page.partition("</style>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_the_verdict_comes_first_and_no_number_lacks(report_of):
    """Whatever an arm is called, and every end of every interval."""
    data = data_of(arms=("uniform", "random", ODD))

    page = report_of(data)

    text = words(page)
    assert "<script" not in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert text.index(data["verdict"]["sentence"]) < text.index("Arms at their best rates")
    assert ODD in text
    assert data["levers"]["sentence"] in text
    for difference in data["differences"]:
        for end in ("mean", "low", "high"):
            assert signed(difference[end]) in text


def test_settings_tell_seeds_as_they_are_and_the_rates_that_ran(report_of):
    """A seed is no amount; a grid that was widened is not the one that was asked for."""
    data = data_of(tuning_seeds=(1_000_000, 1_000_001), learning_rates=(4e-3, 8e-3))

    text = words(report_of(data))

    assert "tuning seeds 1000000, 1000001" in text
    assert "1,000,000" not in text
    assert {each["rate"] for arm in data["arms"] for each in arm["rates"]} == {2e-3, 4e-3, 8e-3}
    assert "learning rates 0.002, 0.004, 0.008 (added to the grid: 0.002)" in text


def test_shares_of_rows_are_percent_and_their_differences_points(report_of):
    """As on a terminal; where all seeds differ alike no interval is told, nor drawn."""
    data = data_of(lambda spec: 1.0 + (spec.arm == "fim"))
    for arm in data["arms"]:
        arm["metrics"]["accuracy"] = {"mean": 0.03125, "spread": 0.0442}
    data["differences"].append(data["differences"][0] | {
        "metric": "accuracy", "mean": 0.03125, "low": -0.0041, "high": 0.0666,
    })  # fmt: skip

    page = report_of(data)

    text = words(page)
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "accuracy (%)" in text
    assert "3.1 \N{PLUS-MINUS SIGN} 4.4" in text
    assert "accuracy (points) +3.1 \N{MINUS SIGN}0.4 to +6.7" in text
    assert "loss +1.0000 \N{EN DASH} 0" in text
    assert not set(text.split()) & {"nan", "None", "inf"}


@pytest.mark.parametrize(
    "said",
    [SAID_ON_TERMINAL, SAID_IN_REPORT, specification("rates")["description"]],
    ids=["terminal", "report", "chart"],
)
def test_whatever_marks_a_best_rate_says_how_it_was_chosen(said):
    """By the rule that is in force."""
    assert f"lowest one whose loss is within {100 * NEAR:g} % of the least" in said


def test_arms_that_diverged_leave_gaps_and_no_numbers_that_are_none(report_of):
    """Nothing of what is not known is drawn or written."""
    page = report_of(data_of(lambda spec: math.nan))

    text = words(page)
    assert "diverged" in text
    assert not set(text.split()) & {"nan", "None", "inf"}


def test_a_plan_is_no_evaluation(http, job_id):
    """404 with where to look, though a job of that id is there."""
    answer = http.get(f"/evaluations/{job_id}/report")

    assert answer.status_code == 404
    assert f"GET /jobs/{job_id}" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.5, "+0.5000"), (-0.5, "\N{MINUS SIGN}0.5000"), (-1e-9, "0.0000"), (1e-9, "0.0000")],
)
def test_a_difference_that_rounds_to_zero_has_no_sign(value, written):
    """As plus or minus nothing would say something."""
    assert signed(value) == written
