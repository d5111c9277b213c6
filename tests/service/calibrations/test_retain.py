"""Requests with a second dataset, whose function is to be kept, before any worker sees them."""

from typing import Any

import pytest

from fimlora_jobs.record import ROWS

KEPT = [{"text": f"kept {n} words", "label": n % 2} for n in range(6)]
VILA = {"method": "vila"}


@pytest.fixture
def body(body: dict[str, Any]) -> dict[str, Any]:
    """A request for the contrast of two datasets."""
    return body | {"retain": {"source": "inline", "rows": KEPT}, "allocation": VILA}


class TestCalibrate:
    def test_its_rows_are_kept_apart_until_they_are_measured(self, http, body, store):
        """A job shows how many there are; who runs it gets them."""
        job = http.post("/calibrate", json=body).json()

        assert job["request"]["retain"]["n_rows"] == len(KEPT)
        assert "rows" not in job["request"]["retain"]
        assert job["resolved"]["retain"]["rows"] == len(KEPT)
        record = store.get(job["id"])
        assert record.request["retain"]["rows"] == KEPT
        assert record.request["dataset"]["rows"] == body["dataset"]["rows"]
        store.start(job["id"], 1, worker="test")
        store.succeed(job["id"], 1, {})
        assert all(not store.get(job["id"]).fields[field] for field in ROWS.values())

    def test_equal_requests_share_a_job_and_others_do_not(self, http, body):
        """By the content of both datasets."""
        first, second = (http.post("/calibrate", json=body).json()["id"] for _ in range(2))
        other = body | {"retain": {"source": "inline", "rows": KEPT[:4]}}

        assert first == second
        assert http.post("/calibrate", json=other).json()["id"] != first

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"retain": None}, "method vila holds the dataset against another"),
            ({"allocation": {"method": "fim"}}, "retain is read by method vila alone"),
            ({"calibration": {"n_batches": "auto"}}, "n_batches=auto with method vila"),
        ],
        ids=["no retain", "another method", "rounds"],
    )
    def test_what_nothing_would_read_or_lacks_is_refused(self, http, body, change, message):
        """In a sentence that has the next step."""
        answer = http.post("/calibrate", json=body | change)

        assert answer.status_code == 422
        assert message in answer.text

    def test_the_dataset_itself_and_rows_of_another_kind_are_refused(self, http, body):
        """Nothing tells a dataset from itself."""
        same = http.post("/calibrate", json=body | {"retain": body["dataset"]})
        plain = {"source": "inline", "rows": [{"text": "no label"}]}
        other = http.post("/calibrate", json=body | {"retain": plain})

        assert (same.status_code, other.status_code) == (422, 422)
        assert "the rows to retain are those of the dataset" in same.json()["detail"]
        assert "the rows to retain as {'text': 'text'}" in other.json()["detail"]

    def test_a_wrong_reference_is_named_as_the_client_wrote_it(self, http, body):
        """Its short forms are those of the dataset."""
        wrong = body | {"retain": {"source": "inline", "rows": [], "more": 1}}

        fields = [e["field"] for e in http.post("/calibrate", json=wrong).json()["errors"]]

        assert sorted(fields) == ["body.retain.more", "body.retain.rows"]
        missing = http.post("/calibrate", json=body | {"retain": "local:nobody"})
        assert missing.status_code == 404


class TestEstimate:
    def test_batches_of_both_are_counted(self, http, body):
        """As far as there are rows for them."""
        batches = {"batch_size": 4, "n_batches": 3}
        asked = body | {"calibration": batches}
        n_rows = len(body["dataset"]["rows"])

        found = http.post("/estimate", json=asked).json()

        assert found["batches"] == min(3, -(-n_rows // 4)) + 2
        assert found["resolved"]["retain"]["rows"] == len(KEPT)
