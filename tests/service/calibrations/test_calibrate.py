"""POST /calibrate."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from rq import Queue

from fimlora_contract.jobs import JobStatus
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.attempts import QUEUE_NAME, RUN_ATTEMPT, rq_job_id
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.reaper import requeue_orphans
from support.results import make_result
from support.service import ROWS


class SlowResolver:
    """A resolver that is so slow that all locks run out."""

    def __init__(self, resolver, redis):
        self.resolver, self.redis = resolver, redis

    def resolve(self, request):
        assert self.redis.delete(*self.redis.keys("fimlora:lock:submit:*")) == 1
        return self.resolver.resolve(request)


class LateLocks:
    """Locks that are asked for late: something else comes first, once."""

    def __init__(self, locks, first):
        self.locks, self.first = locks, [first]

    def hold(self, name):
        if self.first:
            self.first.pop()()
        return self.locks.hold(name)


def test_a_request_is_recorded_and_queued(http, body, store, redis_client):
    """The answer comes at once; record and queue hold what a worker needs, as JSON."""
    answer = http.post("/calibrate", json=body)

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert int(answer.headers["Retry-After"]) > 0
    assert (job["status"], job["attempt"], job["cached"]) == ("queued", 1, False)
    record = store.get(job["id"])
    assert record.request["dataset"]["rows"] == body["dataset"]["rows"]
    assert record.resolved["base_model"]["model_type"] == "gpt2"
    assert record.resolved["dataset"]["fields"]["label"] == "label"
    [queued] = Queue(QUEUE_NAME, connection=redis_client, serializer="json").jobs
    assert queued.id == rq_job_id(job["id"], 1)
    assert queued.func_name == RUN_ATTEMPT
    assert list(queued.args) == [job["id"], 1]
    assert (queued.result_ttl, queued.failure_ttl) == (3600, 7 * 24 * 3600)


def test_the_versioned_path_answers_with_versioned_links(http, body):
    """A client that speaks /v1 stays on /v1."""
    answer = http.post("/v1/calibrate", json=body)

    assert answer.headers["Location"].startswith("/v1/jobs/job_")


def test_an_equal_request_is_answered_from_the_cache(http, body, job_id, succeed):
    """Once a request has succeeded, an equal one queues nothing and has the result at once."""
    succeed(job_id)

    answer = http.post("/calibrate", json=body | {"metadata": {"run": "2"}})

    job = answer.json()
    assert answer.status_code == 200
    assert (job["id"], job["cached"], job["status"]) == (job_id, True, "succeeded")
    assert job["result"]["adapter_config"] == {"r": 8}
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize(
    "change",
    [
        {"force": True},
        {"budget": 9},
        {"calibration": {"seed": 1}},
        {"adapter": {"layout": "C"}},
    ],
    ids=str,
)
def test_a_different_request_is_calibrated(http, body, job_id, succeed, change):
    """Whatever may change the result, and `force`, leads to a job of its own."""
    succeed(job_id)

    answer = http.post("/calibrate", json=body | change)

    assert answer.status_code == 202
    assert answer.json()["id"] != job_id


def test_a_result_that_is_gone_is_not_offered(http, body, job_id, succeed, data_dir):
    """The cache only answers with files that are still there."""
    succeed(job_id)
    [folder] = (data_dir / "artifacts").iterdir()
    folder.rename(data_dir / "tmp" / "gone")

    assert http.post("/calibrate", json=body).status_code == 202


def test_a_changed_model_is_another_model(http, body, job_id, succeed, data_dir):
    """The cache key is the model's content, not its name."""
    succeed(job_id)
    with (data_dir / "models" / "tiny" / "tokenizer.json").open("a") as file:
        file.write(" ")

    assert http.post("/calibrate", json=body).status_code == 202


class TestMeasuredBefore:
    @pytest.fixture
    def measured(self, job_id, store, data_dir) -> str:
        """A job that a worker has finished, with statistics."""
        store.start(job_id, 1, worker="w")
        store.succeed(job_id, 1, make_result(data_dir))
        store.remember_statistics(store.get(job_id).fields["statistics_digest"], job_id)
        return job_id

    @pytest.mark.parametrize(
        "change",
        [
            {"budget": {"parameters": 900}},
            {"allocation": {"method": "uniform", "r_min": 2, "aggregation": "max"}},
            {"adapter": {"layout": "C", "scale": 4, "weights": True}},
        ],
        ids=str,
    )
    def test_only_what_is_planned_differs(self, http, body, measured, change):
        """The job says whose statistics it uses."""
        answer = http.post("/calibrate", json=body | change)

        assert answer.status_code == 202
        assert answer.json()["statistics_from"] == measured
        assert http.get(f"/jobs/{measured}").json()["statistics_from"] is None

    @pytest.mark.parametrize(
        "change",
        [
            {"calibration": {"n_batches": 9}},
            {"calibration": {"estimator": "sampled"}},
            {"target_modules": "all-linear"},
            {"dataset": {"source": "inline", "rows": [*ROWS, {"text": "t", "label": 1}]}},
            {"budget": 9, "force": True},
        ],
        ids=str,
    )
    def test_what_is_measured_differs(self, http, body, measured, change):
        """Other settings, targets or rows, and `force`, are measured."""
        answer = http.post("/calibrate", json=body | change)

        assert (answer.status_code, answer.json()["statistics_from"]) == (202, None)

    def test_statistics_that_are_gone_are_not_offered(self, http, body, measured, data_dir):
        """The file counts, not the memory of it."""
        [file] = data_dir.glob("artifacts/*/statistics.safetensors")
        file.unlink()

        answer = http.post("/calibrate", json=body | {"budget": 9})

        assert answer.json()["statistics_from"] is None

    def test_a_plan_need_not_wait_for_measurements(self, http, body, measured, redis_client):
        """It takes milliseconds, so it goes to the front of the queue."""
        http.post("/calibrate", json=body | {"calibration": {"seed": 1}})

        id_ = http.post("/calibrate", json=body | {"budget": 9}).json()["id"]

        first = Queue(QUEUE_NAME, connection=redis_client, serializer="json").job_ids[0]
        assert first == rq_job_id(id_, 1)


class TestIdempotencyKey:
    def test_the_same_key_gives_the_same_job(self, http, body):
        """A client that repeats a request after a lost answer gets that answer."""
        headers = {"Idempotency-Key": "k 1"}

        first, second = (http.post("/calibrate", json=body, headers=headers) for _ in "ab")

        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["id"] == second.json()["id"]
        assert len(http.get("/jobs").json()["data"]) == 1

    def test_another_body_under_the_key_is_refused(self, http, body):
        """A key stands for one request."""
        headers = {"Idempotency-Key": "k"}
        http.post("/calibrate", json=body, headers=headers)

        answer = http.post("/calibrate", json=body | {"budget": 9}, headers=headers)

        assert answer.status_code == 422
        assert answer.json()["code"] == "idempotency_mismatch"

    def test_a_refused_request_leaves_its_key_free(self, http, body):
        """After correcting the request the same key can be used."""
        headers = {"Idempotency-Key": "k"}
        wrong = body | {"base_model": "local:other"}
        assert http.post("/calibrate", json=wrong, headers=headers).status_code == 424

        assert http.post("/calibrate", json=body, headers=headers).status_code == 202

    def test_a_cached_answer_is_repeated(self, http, body, job_id, succeed):
        """Under a key the cache answers the same again."""
        succeed(job_id)
        headers = {"Idempotency-Key": "k"}

        first, second = (http.post("/calibrate", json=body, headers=headers) for _ in "ab")

        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json() == second.json()

    def test_a_crash_after_binding_the_key_is_made_good(self, http, body, store):
        """The key is bound but there is no job: the repetition makes it, under that id."""
        headers = {"Idempotency-Key": "k"}
        id_ = http.post("/calibrate", json=body, headers=headers).json()["id"]
        store._redis.delete(store.key("job", id_))

        answer = http.post("/calibrate", json=body, headers=headers)

        assert answer.status_code == 202
        assert answer.json()["id"] == id_

    def test_a_key_in_flight_is_told(self, http, body, store):
        """While one request under the key is handled, another waits its turn."""
        headers = {"Idempotency-Key": "k"}
        id_ = http.post("/calibrate", json=body, headers=headers).json()["id"]
        store._redis.delete(store.key("job", id_))
        assert store.lock(f"submit:{id_}", ttl_s=60).acquire()

        answer = http.post("/calibrate", json=body, headers=headers)

        assert answer.status_code == 409
        assert answer.json()["code"] == "idempotency_in_flight"
        assert answer.headers["Retry-After"] == "1"

    def test_what_took_longer_than_the_lock_is_accepted(self, http, body, redis_client):
        """A hub that answers late must not make an error of a job that was queued."""
        submission = http.app_state["submission"]
        late = SlowResolver(submission.resolver, redis_client)

        accepted = replace(submission, resolver=late).accept(
            CalibrationRequest.model_validate(body), key="k"
        )

        assert accepted.outcome == "measured"
        assert http.get(f"/jobs/{accepted.record.id}").json()["status"] == "queued"

    def test_racing_repetitions_make_one_job(self, http, body):
        """Eight requests under one key at once end up as one job."""
        headers = {"Idempotency-Key": "race"}

        def post(_: int) -> int:
            return http.post("/calibrate", json=body, headers=headers).status_code

        with ThreadPoolExecutor(8) as pool:
            codes = set(pool.map(post, range(8)))

        assert codes <= {202, 409}
        assert len(http.get("/jobs").json()["data"]) == 1

    @pytest.mark.parametrize("n_open", [0, 1], ids=["makes a job", "shares a job"])
    def test_a_repetition_that_comes_late_to_the_lock_counts_once(self, http, body, n_open):
        """Its twin has come first meanwhile, and the key may stand for another id by now."""
        request = CalibrationRequest.model_validate(body)
        submission = http.app_state["submission"]
        for _ in range(n_open):
            submission.accept(request, key=None)
        first = []
        late = LateLocks(
            submission.locks, lambda: first.append(submission.accept(request, key="k"))
        )

        second = replace(submission, locks=late).accept(request, key="k")

        assert second.outcome == "repeated"
        assert second.record.id == first[0].record.id
        assert http.get(f"/jobs/{second.record.id}").json()["requests"] == 1 + n_open

    @pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"], ids=["empty", "long", "tab"])
    def test_a_key_must_be_printable_and_short(self, http, body, key):
        """1 to 255 printable characters."""
        answer = http.post("/calibrate", json=body, headers={"Idempotency-Key": key})

        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "header.Idempotency-Key"


def test_a_job_that_could_not_be_queued_is_queued_by_the_reaper(
    http, body, store, redis_client
):
    """The record counts: when the queue fails the request is accepted, and not forgotten."""
    transport = RqTransport(redis_client)
    redis_client.set("rq:queue:fimlora", "not a list")  # every push fails

    answer = http.post("/calibrate", json=body)
    id_ = answer.json()["id"]
    redis_client.delete("rq:queue:fimlora")
    for _ in range(2):  # seen in no list, and still in none after the grace
        redis_client.hset(store.key("job", id_), "updated_at", store.now_ms() - 60_000)
        redis_client.delete(store.key("lock", "reaper"))
        requeue_orphans(store, transport, on_reaped=lambda reaped: None)

    assert answer.status_code == 202
    record = store.get(id_)
    assert record.status is JobStatus.QUEUED
    assert (id_, record.attempt) in transport.waiting()
