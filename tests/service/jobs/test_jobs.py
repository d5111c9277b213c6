"""Jobs, their results and their artefacts."""

import threading
import time

import pytest

from fimlora_contract.jobs import JobError, Progress, Stage
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

    @pytest.mark.parametrize("id_", ["job_0", "..%2f..", "%00", "\ud83d\ude00", "x" * 64])
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

    def test_an_open_job_cannot_be_deleted(self, http, job_id, store):
        """409 while queued and while running; it goes on."""
        queued = http.delete(f"/jobs/{job_id}")
        store.start(job_id, 1, worker="w")
        running = http.delete(f"/jobs/{job_id}")

        assert [a.json()["code"] for a in (queued, running)] == ["job_not_finished"] * 2
        assert (queued.status_code, running.status_code) == (409, 409)
        assert http.get(f"/jobs/{job_id}").json()["status"] == "running"


class TestListArtifacts:
    def test_every_file_has_its_link(self, http, job_id, succeed):
        """The same entries as in the result; 409 before there is one."""
        before = http.get(f"/jobs/{job_id}/artifacts")
        succeed(job_id)

        listed = http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]

        assert before.status_code == 409
        assert listed == http.get(f"/v1/jobs/{job_id}/result").json()["artifacts"]
        assert listed[0]["href"] == f"/v1/jobs/{job_id}/artifacts/adapter_config.json"


class TestResult:
    def test_a_result_links_its_artefacts(self, http, job_id, succeed):
        """Links keep the version of the path that was asked."""
        succeed(job_id)

        plain = http.get(f"/jobs/{job_id}/result").json()
        versioned = http.get(f"/v1/jobs/{job_id}/result").json()

        path = f"/jobs/{job_id}/artifacts/adapter_config.json"
        assert plain["artifacts"][0]["href"] == path
        assert versioned["artifacts"][0]["href"] == f"/v1{path}"

    def test_an_unfinished_job_has_none_yet(self, http, job_id):
        """409 with a hint when to come again."""
        answer = http.get(f"/jobs/{job_id}/result")

        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")
        assert "Retry-After" in answer.headers

    def test_a_failed_job_says_why(self, http, job_id, store):
        """The engine's sentence reaches whoever asks for the result."""
        store.start(job_id, 1, worker="w")
        error = JobError(code="numerical_failure", detail="the loss is nan in batch 1 of 8")
        store.fail(job_id, 1, error)

        answer = http.get(f"/jobs/{job_id}/result")

        assert (answer.status_code, answer.json()["code"]) == (409, "job_failed")
        assert "the loss is nan in batch 1 of 8" in answer.json()["detail"]


class TestArtifacts:
    @pytest.fixture
    def url(self, job_id, succeed) -> str:
        succeed(job_id)
        return f"/jobs/{job_id}/artifacts/"

    def test_a_file_is_immutable_under_its_digest(self, http, url):
        """The ETag is the digest, and caches may keep the file for ever."""
        answer = http.get(url + "adapter_config.json", headers={"Range": "bytes=0-1"})

        assert (answer.status_code, answer.content) == (200, b'{"r": 8}')
        assert answer.headers["ETag"] == '"sha256:0"'
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["Content-Type"] == "application/json"

    @pytest.mark.parametrize("tag", ['"sha256:0"', 'W/"sha256:0"', '"x", "sha256:0"', "*"])
    def test_a_copy_that_is_the_same_is_not_sent(self, http, url, tag):
        """304 without a body."""
        answer = http.get(url + "adapter_config.json", headers={"If-None-Match": tag})

        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == '"sha256:0"'

    def test_another_copy_is_replaced(self, http, url):
        """A different tag gets the file."""
        headers = {"If-None-Match": '"sha256:1"'}

        assert http.get(url + "adapter_config.json", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "name",
        ["secret.txt", "statistics.safetensors", "..%2fsecret.txt", "%00"],
    )
    def test_only_names_of_the_closed_set_are_found(self, http, url, name):
        """Not what lies beside them, not what the job has not."""
        answer = http.get(url + name)

        assert answer.status_code == 404
        assert answer.json()["code"] in {"artifact_not_found", "not_found"}

    def test_what_is_gone_is_told_from_what_never_was(self, http, url):
        """410 for a file that the record names and nobody has any more."""
        answer = http.get(url + "rank_map.json")

        assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")

    def test_an_unfinished_job_has_none(self, http, body):
        """409, as for the result."""
        id_ = http.post("/calibrate", json=body | {"force": True}).json()["id"]

        assert http.get(f"/jobs/{id_}/artifacts/rank_map.json").status_code == 409


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


@pytest.mark.parametrize("what", ["result", "artifacts"])
def test_a_result_is_fetched_once(http, job_id, succeed, what):
    """Its tag is its content address; whoever has it is told so without it."""
    result = succeed(job_id)

    first = http.get(f"/jobs/{job_id}/{what}")
    again = http.get(f"/jobs/{job_id}/{what}", headers={"If-None-Match": first.headers["ETag"]})
    other = http.get(f"/jobs/{job_id}/{what}", headers={"If-None-Match": '"sha256:0"'})

    assert first.headers["ETag"] == f'"{result["digest"]}"'
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert (other.status_code, other.json()) == (200, first.json())
