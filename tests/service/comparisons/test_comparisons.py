"""POST /compare and POST /jobs/{id}/compare."""

import subprocess
import sys
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

from fimlora import Budget, compare
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.methods import ON_REQUEST, MethodName
from fimlora_service.comparisons.openapi_examples import (
    COMPARISON_EXAMPLES,
    JOB_COMPARISON_EXAMPLES,
)
from support.gradients import noise, statistics_of
from support.results import make_result, make_statistics

ROOT = Path(__file__).parents[3]
KINDS = ("q_proj", "v_proj", "down_proj")


def with_spectra():
    """Statistics of six modules that hold all that any method needs."""
    names = [f"model.layers.{layer}.{kind}" for layer in range(2) for kind in KINDS]
    return statistics_of(
        {name: i + noise(9, 24, 24, seed=i) for i, name in enumerate(names)}, scale=2
    )


@pytest.fixture
def measured(store, data_dir, job_id):
    """A job that has measured; the function takes what `make_result` takes."""

    def finish(**options):
        store.start(job_id, 1, worker="w")
        result = make_result(data_dir, **options)
        store.succeed(job_id, 1, result)
        return result

    return finish


class TestCompare:
    @pytest.mark.parametrize("prefix", ["", "/v1"])
    def test_it_is_queued_as_a_job_of_its_kind(self, http, body, store, prefix):
        """Beside calibrations, with all that a job has."""
        answer = http.post(f"{prefix}/compare", json=body)

        job = answer.json()
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"{prefix}/jobs/{job['id']}"
        assert (job["kind"], job["status"]) == ("comparison", "queued")
        assert store.get(job["id"]).request["methods"] is None

    def test_equal_requests_share_a_job_and_others_do_not(self, http, body):
        """The methods are a part of what is asked, and a calibration is no comparison."""
        ids = [
            http.post(route, json=body | more).json()["id"]
            for route, more in [
                ("/compare", {}),
                ("/compare", {}),
                ("/compare", {"methods": ["fim", "uniform"]}),
                ("/compare", {"budget": 5}),
                ("/calibrate", {}),
            ]
        ]

        assert ids[0] == ids[1]
        assert len(set(ids)) == 4

    def test_methods_that_need_the_same_share_their_statistics(self, http, body, store):
        """With a calibration, too: what it has measured is compared without a device."""
        spectral = http.post("/calibrate", json=body | {"allocation": {"method": "spectral"}})
        some = http.post("/compare", json=body | {"methods": ["fim", "spectral"]})
        none = http.post("/compare", json=body | {"methods": ["fim", "uniform"]})

        keys = [
            store.get(answer.json()["id"]).fields["statistics_digest"]
            for answer in (spectral, some, none)
        ]
        assert keys[0] == keys[1] != keys[2]

    @pytest.mark.parametrize(
        ("change", "field", "said"),
        [
            ({"methods": ["fim"]}, "body.methods", "methods=['fim']: at least two, each once"),
            ({"methods": ["fim", "fim"]}, "body.methods", "methods=['fim', 'fim']: at least"),
            ({"methods": ["fim", "best"]}, "body.methods[1]", "must be 'fim', 'coherent'"),
            ({"allocation": {"method": "fim"}}, None, None),
            (
                {"allocation": {"method": "spectral"}},
                "body.allocation",
                "allocation.method='spectral' has no meaning here; give it in methods",
            ),
            ({"allocation": {"r_min": 0}}, "body.allocation", "r_min=0 with method fim"),
            ({"adapter": {"weights": True}}, "body", "adapter has no meaning here"),
            (
                {"calibration": {"n_batches": "auto"}},
                "body",
                "n_batches=auto with method coherent: only a plan of fim tells when to stop",
            ),
            ({"methods": ["fim", "random"], "calibration": {"n_batches": "auto"}}, None, None),
            (
                {"methods": ["fim", "coherent"], "calibration": {"estimator": "sampled"}},
                "body",
                "method coherent needs the energy of each example's gradient",
            ),
        ],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused(self, http, body, change, field, said):
        """Nothing that is asked for is left aside in silence."""
        answer = http.post("/compare", json=body | change)

        if said is None:
            assert answer.status_code == 202
            return
        assert answer.status_code == 422
        [error] = answer.json()["errors"]
        assert error["field"] == field
        assert error["message"].startswith(said)

    def test_by_default_it_asks_for_all_that_one_run_gives(self, body):
        """Of a sampled run, those that need no value per example."""
        sampled = body | {"calibration": {"estimator": "sampled"}}

        every, fewer = (ComparisonRequest.model_validate(b) for b in (body, sampled))

        kept = ComparisonRequest.model_validate(body | {"retain": "local:other"})
        assert set(kept.methods_measured) == set(get_args(MethodName)) - set(ON_REQUEST)
        assert set(kept.methods_measured) - set(every.methods_measured) == {"vila"}
        assert set(every.methods_measured) - set(fewer.methods_measured) == {
            "coherent",
            "spectral-denoised",
            "fisher-layers",
        }

    def test_validating_alone_says_what_it_would_need(self, http, body, store):
        """More memory than a calibration, as spectra are recorded; and no job."""
        more, less = (
            http.post("/compare", json=body | {"validate_only": True, "methods": methods})
            for methods in (["fim", "spectral"], ["fim", "uniform"])
        )

        assert (more.status_code, less.status_code) == (200, 200)
        assert more.json()["outcome"] == "measured"
        assert (
            more.json()["memory"]["resident_bytes"] >= less.json()["memory"]["resident_bytes"]
        )
        assert http.get("/jobs").json()["data"] == []

    def test_the_examples_are_accepted(self):
        """As the reference shows them."""
        for example in COMPARISON_EXAMPLES.values():
            request = ComparisonRequest.model_validate(example["value"])
            assert request.model_fields_set == example["value"].keys()


class TestCompareAJob:
    @pytest.mark.parametrize("budget", [4, {"parameters": 1500}], ids=str)
    def test_what_a_job_has_measured_is_compared_at_once(self, http, job_id, measured, budget):
        """The answer is what the engine finds in those statistics; nothing is queued."""
        statistics = with_spectra()
        measured(statistics=statistics)

        answer = http.post(
            f"/jobs/{job_id}/compare", json={"budget": budget, "allocation": {"r_min": 1}}
        )

        unit, value = ("rank", 4) if budget == 4 else ("parameters", 1500)
        found = compare(statistics, Budget(unit, value), r_min=1).to_json()
        assert answer.status_code == 200
        assert {key: answer.json()[key] for key in found} == found
        assert answer.json()["job_id"] == job_id
        assert answer.json()["picture"] is None
        assert [row["method"] for row in found["methods"]] >= ["fim", "coherent"]
        assert len(http.get("/jobs").json()["data"]) == 1

    def test_what_was_not_measured_is_left_out_or_refused(self, http, job_id, measured):
        """By itself with the reason; by name with a 422."""
        measured(statistics=make_statistics())
        url = f"/jobs/{job_id}/compare"

        plain = http.post(url, json={"budget": 8})
        named = http.post(url, json={"budget": 8, "methods": ["fim", "spectral"]})

        assert {row["method"] for row in plain.json()["methods"]} == {
            "fim",
            "fisher-layers",
            "uniform",
            "random",
        }
        assert "needs spectra" in plain.json()["left_out"]["spectral"]
        assert named.status_code == 422
        assert named.json()["detail"].startswith("method 'spectral' needs spectra, and")

    def test_a_picture_comes_if_it_is_asked_for(self, http, job_id, measured):
        """It names every method."""
        measured(statistics=with_spectra())

        answer = http.post(f"/jobs/{job_id}/compare", json={"budget": 4, "picture": True})

        picture = ElementTree.fromstring(answer.json()["picture"])
        words = {element.text for element in picture.iter()}
        assert words >= {row["method"] for row in answer.json()["methods"]}

    @pytest.mark.parametrize(
        ("asked", "status", "code"),
        [
            ({"budget": {"parameters": 1}}, 422, "budget_infeasible"),
            ({"budget": 8, "methods": ["fim"]}, 422, "validation_failed"),
            ({}, 422, "validation_failed"),
        ],
        ids=str,
    )
    def test_what_cannot_be_planned_is_refused(
        self, http, job_id, measured, asked, status, code
    ):
        """As POST /jobs/{id}/allocate does."""
        measured()

        answer = http.post(f"/jobs/{job_id}/compare", json=asked)

        assert (answer.status_code, answer.json()["code"]) == (status, code)

    def test_a_job_that_has_not_ended_is_a_conflict(self, http, job_id):
        """It may be asked again later."""
        answer = http.post(f"/jobs/{job_id}/compare", json={"budget": 8})

        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")

    def test_a_comparison_can_be_asked_for_another_budget(self, http, store, data_dir, body):
        """Its statistics are kept beside it; a plan of its own it has none."""
        job_id = http.post("/compare", json=body).json()["id"]
        kept = make_result(data_dir, statistics=with_spectra())
        comparison = compare(with_spectra(), 4).to_json()
        store.start(job_id, 1, worker="w")
        files = {name: kept[name] for name in ("digest", "artifacts")}
        store.succeed(job_id, 1, files | {"comparison": comparison})

        again = http.post(f"/jobs/{job_id}/compare", json={"budget": 3})
        plan = http.post(f"/jobs/{job_id}/allocate", json={"budget": 3})

        assert again.status_code == 200
        assert again.json()["budget"]["value"] == 3
        assert http.get(f"/jobs/{job_id}").json()["result"]["comparison"] == comparison
        assert (plan.status_code, plan.json()["code"]) == (404, "no_pattern")

    def test_the_examples_are_accepted(self, http, job_id, measured):
        """As the reference shows them."""
        measured(statistics=with_spectra())

        for example in JOB_COMPARISON_EXAMPLES.values():
            answer = http.post(f"/jobs/{job_id}/compare", json=example["value"])
            assert answer.status_code == 200, answer.text


def test_comparing_brings_no_torch_into_the_service():
    """Nor does the route bring numpy before it is used."""
    code = (
        "import sys\nimport fimlora_service.comparisons.endpoints\n"
        "assert 'numpy' not in sys.modules\n"
        "import fimlora_service.comparisons.comparing\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
