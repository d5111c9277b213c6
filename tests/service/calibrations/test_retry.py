"""POST /jobs/{id}/retry."""

import pytest

from fimlora_contract.jobs import JobError


class TestRetry:
    @pytest.mark.parametrize("end", ["failed", "canceled"])
    def test_the_same_request_is_queued_as_a_new_job(self, http, job_id, store, end):
        """On the same content; the old job keeps its end."""
        if end == "failed":
            store.start(job_id, 1, worker="w")
            store.fail(job_id, 1, JobError(code="worker_lost", detail="gone"))
        else:
            http.post(f"/jobs/{job_id}/cancel")

        answer = http.post(f"/jobs/{job_id}/retry")

        again = answer.json()
        assert (answer.status_code, again["status"]) == (202, "queued")
        assert answer.headers["Location"] == f"/jobs/{again['id']}"
        assert again["id"] != job_id
        assert store.get(again["id"]).request == store.get(job_id).request
        assert again["resolved"] == store.get(job_id).resolved
        assert store.get(job_id).status == end

    def test_one_key_stands_for_one_retry(self, http, body, store):
        """Also of a request with `force`, which shares no job, and after the new job's end."""
        forced = http.post("/calibrate", json=body | {"force": True}).json()["id"]
        store.request_cancel(forced)
        keys = ["a", "a", "b", "a"]

        ids = []
        for key in keys:
            answer = http.post(f"/jobs/{forced}/retry", headers={"Idempotency-Key": key})
            ids.append(answer.json()["id"])
            http.post(f"/jobs/{ids[-1]}/cancel")

        assert ids == [ids[0], ids[0], ids[2], ids[0]]
        assert len({forced, *ids}) == 3

    def test_a_key_of_another_request_is_refused(self, http, body, job_id, store):
        """One key, one meaning: of a calibration, or of the retry of one job."""
        store.request_cancel(job_id)
        keyed = {"Idempotency-Key": "k"}
        http.post("/calibrate", json=body | {"budget": 3}, headers=keyed).raise_for_status()

        answer = http.post(f"/jobs/{job_id}/retry", headers=keyed)

        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")

    def test_only_what_ended_without_a_result_is_retried(self, http, job_id, succeed):
        """409 before the end and after success, 404 for an unknown job."""
        queued = http.post(f"/jobs/{job_id}/retry")
        succeed(job_id)
        succeeded = http.post(f"/jobs/{job_id}/retry")

        assert (queued.status_code, queued.json()["code"]) == (409, "job_not_finished")
        assert (succeeded.status_code, succeeded.json()["code"]) == (
            409,
            "job_already_finished",
        )
        assert http.post("/jobs/job_0/retry").status_code == 404
