"""What a notebook shows of plans, jobs and evaluations."""

import json
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from fimlora.plan import TargetModule
from fimlora_client.results import Result
from fimlora_contract.charts import MEDIA_TYPE
from fimlora_contract.jobs import CalibrationResult, Job
from fimlora_contract.plans import Plan
from fimlora_contract.rank_maps import RankMap
from fimlora_contract.verdicts import EvaluationResult
from support.plans import plan_of

ODD = "<script>alert(1)</script>"
MODULES = (
    *(TargetModule(f"h.{i}.{k}", 8, 4) for i in range(2) for k in "qv"),
    TargetModule(ODD, 8, 3),
)


class Cells(HTMLParser):
    """The cells of every table of a page, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.cells.append(data)


def shown(thing):
    """What a notebook's own formatter makes of it, where one is installed."""
    try:
        from IPython.core.interactiveshell import InteractiveShell
    except ImportError:
        return thing._repr_mimebundle_()
    return InteractiveShell.instance().display_formatter.format(thing)[0]


@pytest.fixture
def rank_map() -> RankMap:
    signal = {"verdict": "none", "sentence": "no signal <here>"}
    plan = plan_of(MODULES, [1, 2, 3, 4, 5], signal=signal)
    return RankMap.model_validate(plan.to_json())


def job(**fields) -> Job:
    return Job(
        id="job_1", attempt=1, created_at=datetime(2026, 1, 2, tzinfo=UTC), request={}, resolved={},
        **fields,
    )  # fmt: skip


def test_a_plan_is_a_table_anywhere_and_a_chart_where_one_can_be_drawn(rank_map):
    """Every rank in its cell, the signal first, nothing becomes markup; as JSON it may travel."""
    plan = Plan(job_id="job_1", digest="sha256:1", adapter_config={}, rank_map=rank_map)

    for thing in (plan, rank_map):
        found = shown(thing)
        page = Cells(found["text/html"])
        assert page.cells[0] == "no signal <here>"
        assert page.cells[2:] == ["layer", "q", "v", "0", "1", "2", "1", "3", "4", ODD, "5"]
        assert "script" not in page.tags
        assert found[MEDIA_TYPE]["datasets"]["cells"][0]["rank"] == 1
        assert json.loads(json.dumps(found)) == found


def test_a_job_says_where_it_stands_and_what_it_found(rank_map):
    """Queued, failed with its reason, succeeded with its plan."""
    result = CalibrationResult(
        digest="sha256:1", artifacts=[], adapter_config={}, rank_map=rank_map
    )
    error = {"code": "numerical_failure", "detail": "the loss is <nan>"}

    queued = shown(job(status="queued"))
    failed = shown(job(status="failed", error=error))
    succeeded = shown(job(status="succeeded", result=result))

    assert Cells(queued["text/html"]).cells == ["job job_1 is queued"]
    assert MEDIA_TYPE not in queued
    assert "the loss is <nan>" in Cells(failed["text/html"]).cells[0]
    assert Cells(succeeded["text/html"]).cells[:2] == [
        "job job_1 is succeeded",
        "2026-01-02",
    ]
    assert MEDIA_TYPE in succeeded


def test_a_job_and_its_result_name_model_data_and_day(rank_map):
    """A plan by itself has no day, and names what it knows."""
    facts = {
        "base_model": {"id": "org/model", "revision": "0123456789abcdef"},
        "dataset": {"source": "inline", "digest": "sha256:fedcba9876543210"},
    }
    known = rank_map.model_copy(update={"provenance": facts})
    result = CalibrationResult(
        digest="sha256:1", artifacts=[], adapter_config={}, rank_map=known
    )
    done = job(status="succeeded", result=result)
    of = "model: org/model (0123456789ab), data: rows of the request (fedcba987654)"

    assert Cells(shown(known)["text/html"]).cells[0] == of
    assert Cells(shown(done)["text/html"]).cells[1] == f"{of}, 2026-01-02"
    made = shown(Result.of(done))
    assert Cells(made["text/html"]).cells[0] == f"{of}, 2026-01-02"
    assert made["text/plain"].startswith(f"{of}, 2026-01-02: no signal <here> ")


@pytest.mark.parametrize("facts", ["org/model", ["org/model"], 7, {}, None])
def test_facts_of_another_form_are_left_out(rank_map, facts):
    """Whoever allocates by the library writes into the provenance what he likes."""
    known = rank_map.model_copy(update={"provenance": {"base_model": facts, "dataset": facts}})

    assert shown(known)["text/plain"].startswith("no signal")


def test_an_evaluation_shows_its_verdict_and_differences():
    """What is not known is an empty cell."""
    difference = {
        "arm": "fim", "reference": "uniform", "metric": "loss", "mean": -0.01, "low": None,
        "high": 0.02, "p": None, "p_holm": None, "n": 2, "n_better": 1,
    }  # fmt: skip
    found = EvaluationResult.model_validate({
        "digest": "sha256:1", "artifacts": [], "arms": [], "differences": [difference],
        "verdict": {"code": "undecided", "winner": "uniform", "sentence": "Use uniform."},
        "levers": {"rate": None, "ranks": None, "sentence": ""}, "n_runs": 2, "seconds": 1,
        "settings": {},
    })  # fmt: skip

    made = shown(found)

    cells = Cells(made["text/html"]).cells
    assert cells[0] == "Use uniform."
    assert cells[-4:] == ["fim \N{MINUS SIGN} uniform", "loss", "-0.0100", "+0.0200"]


def test_the_engines_own_plan_is_a_table_too():
    """Without the contract, which a machine that trains need not have."""
    plan = plan_of(
        (*MODULES, TargetModule("h.1.x.0.up", 4, 4), TargetModule("h.1.x.1.up", 4, 4)), [1, 2]
    )

    page = Cells(plan._repr_html_())

    assert "script" not in page.tags
    assert page.cells[1:5] == ["layer", "q", "v", "x.*.up"]
    assert page.cells[5:12] == ["0", "1", "2", "1", "1", "2", "1 to 2"]
