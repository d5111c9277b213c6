"""POST /jobs/{id}/sweep."""

from dataclasses import replace

import pytest

from fimlora import Budget, Statistics
from fimlora.confidence.sweep import sweep
from fimlora_contract.sweeps import MOST_ROWS
from support.results import make_result, make_statistics, with_null_and_halves


@pytest.fixture
def statistics() -> Statistics:
    sized = replace(make_statistics(), batch_sizes=(4, 4, 4, 4))
    return with_null_and_halves(sized)


@pytest.fixture
def measured(store, data_dir, job_id, statistics) -> str:
    store.start(job_id, 1, worker="w")
    store.succeed(job_id, 1, make_result(data_dir, statistics=statistics))
    return job_id


def asked(http, job_id, **body):
    return http.post(f"/jobs/{job_id}/sweep", json={"budget": 8} | body)


class TestSweep:
    @pytest.mark.parametrize(
        ("change", "budget", "options"),
        [
            ({}, 8, {}),
            ({"aggregations": ["mean"], "n_batches": [3, 1], "r_min": [2]}, 8,
             {"aggregations": ["mean"], "n_batches": [1, 3], "r_min": [2]}),
            ({"budget": {"parameters": 12_000}, "allocation": {"r_max": 20, "multiple_of": 2}},
             Budget("parameters", 12_000), {"r_max": 20, "multiple_of": 2}),
            ({"signal": False}, 8, {"signal": False}),
        ],
        ids=["default", "some", "bounds", "no signal"],
    )  # fmt: skip
    def test_it_is_what_the_engine_finds(
        self, http, measured, statistics, change, budget, options
    ):
        """In the statistics of the job, at once."""
        answer = asked(http, measured, **change)

        assert answer.status_code == 200
        found = sweep(statistics, budget, **options).to_json()
        assert answer.json() == found | {"object": "sweep", "job_id": measured}
        assert any(row["unknown"] is None for row in found["rows"])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"n_batches": [5]}, "n_batches=5: 4 were measured"),
            ({"n_batches": []}, "at least one, each once"),
            ({"aggregations": ["mean", "mean"]}, "at least one, each once"),
            ({"r_min": list(range(1, MOST_ROWS // 3 + 2))}, f"a sweep has {MOST_ROWS} at most"),
            ({"r_min": list(range(1, 40))}, "rows; ask for fewer"),
            ({"allocation": {"method": "spectral"}}, "a sweep goes by fim"),
            ({"allocation": {"aggregation": "max"}}, "give it in aggregations"),
            ({"allocation": {"r_min": 2}}, "allocation.r_min has no meaning here"),
            ({"allocation": {"r_max": 4}}, "a mean rank of 8 is outside"),
            ({"budget": {"parameters": 3}}, "parameters=3"),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_is_outside_is_refused(self, http, measured, change, said):
        """In a sentence, whoever notices it."""
        answer = asked(http, measured, **change)

        assert answer.status_code == 422
        assert said in answer.text

    def test_a_job_that_has_not_measured_has_none(self, http, job_id):
        """Nor has one that nobody knows."""
        assert asked(http, job_id).status_code == 409
        assert asked(http, "job_nobody").status_code == 404
