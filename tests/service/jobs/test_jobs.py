"""Jobs: listed, looked at, taken back, forgotten."""

import threading
import time

import pytest

from fimlora_contract.jobs import Progress, Stage
from fimlora_jobs.record import new_job_id
from fimlora_jobs.retention import DAY_MS


class TestList:
    def test_pages_run_from_newest_to_oldest(self, http, body):
        """Following the cursor gives every job once."""
        ids = [
            http.post("/calibrate", json=body | {"budget": 8 + n}).json()["id"]
            for n in range(5)
        ]

        seen, cursor = [], None
        while True:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = http.get("/jobs", params=query).json()
            seen += [job["id"] for job in page["data"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break

        assert sorted(seen) == sorted(ids)
        assert seen == sorted(seen, reverse=True)

    @pytest.mark.parametrize(
        "query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"cursor": "zzz"}], ids=str
    )
    def test_a_wrong_query_is_refused(self, http, query):
        """The field is named."""
        answer = http.get("/jobs", params=query)

        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == f"query.{next(iter(query))}"

    def test_one_kind_can_be_asked_for(self, http, job_id):
        """Every job says its kind; an unknown one is refused, and the known ones are named."""
        found = {
            kind: [job["id"] for job in http.get(f"/jobs?kind={kind}").json()["data"]]
            for kind in ("calibration", "evaluation")
        }
        refused = http.get("/jobs?kind=training")

        assert found == {"calibration": [job_id], "evaluation": []}
        assert http.get(f"/jobs/{job_id}").json()["kind"] == "calibration"
        assert refused.status_code == 422
        assert "evaluation" in refused.text


class TestRetrieve:
    def test_a_running_job_shows_its_progress(self, http, job_id, store):
        """Polling shows stage and batch, and when to come again."""
        store.start(job_id, 1, worker="w")
        store.report(job_id, 1, Progress(stage=Stage.CALIBRATING, batch=3, n_batches=8))

        answer = http.get(f"/jobs/{job_id}")

        assert answer.json()["progress"]["batch"] == 3
        assert answer.headers["Retry-After"] == "2"

    def test_an_unchanged_job_is_not_sent_again(self, http, job_id, store):
        """304 until something changes, however little."""
        tag = http.get(f"/jobs/{job_id}").headers["ETag"]
        same = http.get(f"/jobs/{job_id}", headers={"If-None-Match": tag})
        store.start(job_id, 1, worker="w")

        changed = http.get(f"/jobs/{job_id}", headers={"If-None-Match": tag})

        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["Retry-After"] == "2"
        assert (changed.status_code, changed.json()["status"]) == (200, "running")
        assert changed.headers["ETag"] != tag

    def test_inline_rows_are_not_sent_back(self, http, job_id):
        """Polling must not carry the dataset."""
        assert http.get(f"/jobs/{job_id}").json()["request"]["dataset"]["n_rows"] == 8

    @pytest.mark.parametrize("id_", ["job_0", "..%2f..", "\ud83d\ude00", "x" * 64])
    def test_an_unknown_job_is_a_404(self, http, id_):
        """Whatever the id looks like."""
        answer = http.get(f"/jobs/{id_}".encode("utf-16", "surrogatepass").decode("utf-16"))

        assert answer.status_code == 404

    def test_waiting_ends_when_the_job_does(self, http, job_id, succeed):
        """A long poll answers soon after the end, not at its deadline."""
        threading.Timer(0.3, succeed, [job_id]).start()
        began = time.monotonic()

        answer = http.get(f"/jobs/{job_id}", params={"wait": 30})

        assert answer.json()["status"] == "succeeded"
        assert 0.25 < time.monotonic() - began < 5

    def test_waiting_ends_at_the_deadline(self, http, job_id):
        """Without an end the job is reported as it is."""
        began = time.monotonic()

        answer = http.get(f"/jobs/{job_id}", params={"wait": 0.2})

        assert answer.json()["status"] == "queued"
        assert time.monotonic() - began >= 0.2

    @pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "x"])
    def test_a_wrong_wait_is_refused(self, http, job_id, wait):
        """0 to 60 seconds."""
        assert http.get(f"/jobs/{job_id}", params={"wait": wait}).status_code == 422


class TestCancel:
    def test_a_queued_job_is_canceled_at_once(self, http, job_id):
        """Nobody works on it, so 200 and the final state."""
        answer = http.post(f"/jobs/{job_id}/cancel")

        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")

    def test_a_running_job_is_asked_to_stop(self, http, job_id, store):
        """202 until the worker has obeyed; asking twice is the same."""
        store.start(job_id, 1, worker="w")

        first, second = (http.post(f"/jobs/{job_id}/cancel") for _ in "ab")

        assert (first.status_code, first.json()["status"]) == (202, "canceling")
        assert (second.status_code, second.json()["status"]) == (202, "canceling")
        store.confirm_cancel(job_id, 1)
        assert http.get(f"/jobs/{job_id}/result").json()["code"] == "canceled"

    def test_a_finished_job_cannot_be_canceled(self, http, job_id, succeed):
        """409, and the job stays as it was."""
        succeed(job_id)

        answer = http.post(f"/jobs/{job_id}/cancel")

        assert (answer.status_code, answer.json()["code"]) == (409, "job_already_finished")

    def test_an_unknown_job_cannot_be_canceled(self, http):
        """404."""
        assert http.post("/jobs/job_0/cancel").status_code == 404


class TestDelete:
    def test_an_ended_job_is_forgotten(self, http, job_id, succeed, redis_client):
        """Gone from everywhere but the cache, which notices; asking again is a 404."""
        succeed(job_id)

        answer = http.delete(f"/jobs/{job_id}")

        assert (answer.status_code, answer.content) == (204, b"")
        assert http.get(f"/jobs/{job_id}").status_code == 404
        assert http.get(f"/jobs/{job_id}/events").status_code == 404
        assert http.get("/jobs").json()["data"] == []
        assert http.delete(f"/jobs/{job_id}").status_code == 404
        named = [key for key in redis_client.scan_iter() if job_id.encode() in key]
        assert [key for key in named if not key.startswith(b"rq:")] == []

    def test_an_equal_request_after_that_is_calibrated(self, http, body, job_id, succeed):
        """The cache answers with jobs that are there, never with a memory of one."""
        succeed(job_id)
        http.delete(f"/jobs/{job_id}")

        assert http.post("/calibrate", json=body).status_code == 202

    def test_its_idempotency_key_is_free_again(self, http, body):
        """Under its old id the job would begin with attempts that there have been."""
        headers = {"Idempotency-Key": "k"}
        first = http.post("/calibrate", json=body, headers=headers).json()["id"]
        http.post(f"/jobs/{first}/cancel")
        http.delete(f"/jobs/{first}")

        again = http.post("/calibrate", json=body, headers=headers)

        assert again.status_code == 202
        assert again.json()["id"] != first

    def test_an_open_job_cannot_be_deleted(self, http, job_id, store):
        """409 while queued and while running; it goes on."""
        queued = http.delete(f"/jobs/{job_id}")
        store.start(job_id, 1, worker="w")
        running = http.delete(f"/jobs/{job_id}")

        assert [a.json()["code"] for a in (queued, running)] == ["job_not_finished"] * 2
        assert (queued.status_code, running.status_code) == (409, 409)
        assert http.get(f"/jobs/{job_id}").json()["status"] == "running"


def test_a_forgotten_job_is_gone(http, store):
    """410 with its age, where an id that never was is a 404; every route of a job agrees."""
    old = new_job_id(store.now_ms() - 200 * DAY_MS)

    for answer in (
        http.get(f"/jobs/{old}"),
        http.post(f"/jobs/{old}/cancel"),
        http.get(f"/jobs/{old}/result"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (410, "job_gone")
        assert "90 days" in answer.json()["detail"]
    assert http.get(f"/jobs/{new_job_id(store.now_ms())}").status_code == 404
