"""Jobs of high priority, and jobs with a deadline."""

import pytest
from rq import Queue

from fimlora_jobs.attempts import QUEUE_NAME, parse_rq_job_id
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.reaper import requeue_orphans


@pytest.fixture
def submit(http, body):
    """Submit a request that differs from all others; answers the job's id."""
    budgets = iter(range(1, 100))

    def post(**fields) -> str:
        answer = http.post("/calibrate", json=body | {"budget": next(budgets)} | fields)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    return post


@pytest.fixture
def line(redis_client):
    """Ids of the waiting jobs in the order in which workers take them."""
    queue = Queue(QUEUE_NAME, connection=redis_client, serializer="json")
    return lambda: [parse_rq_job_id(id_)[0] for id_ in queue.job_ids]


def test_high_goes_before_normal_and_keeps_its_own_order(submit, line):
    """First come, first served, within each priority."""
    a, b = submit(), submit()
    c = submit(priority="high")
    d = submit(priority="normal")
    e, f = submit(priority="high"), submit(priority="high")

    assert line() == [c, e, f, a, b, d]


def test_the_order_holds_while_jobs_are_taken(submit, line, redis_client):
    """Also when the last one of high priority has gone."""
    a, b, c = submit(), submit(priority="high"), submit(priority="high")
    queue = Queue(QUEUE_NAME, connection=redis_client, serializer="json")
    taken = [parse_rq_job_id(redis_client.lpop(queue.key).decode())[0] for _ in range(2)]
    d, e = submit(priority="high"), submit(priority="high")

    assert taken == [b, c]
    assert line() == [d, e, a]


def test_an_attempt_that_waits_no_more_is_not_put_back(submit, line, redis_client):
    """A worker may have taken it just before it could be promoted."""
    a = submit()
    RqTransport(redis_client).promote("job_taken", 1)

    assert line() == [a]


def test_an_urgent_request_hurries_the_job_it_shares(http, body, submit, line):
    """Whoever asks for the same with high priority does not wait for others."""
    a = submit()
    b = http.post("/calibrate", json=body | {"budget": 15}).json()["id"]

    again = http.post("/calibrate", json=body | {"budget": 15, "priority": "high"}).json()

    assert again["id"] == b
    assert line() == [b, a]


def test_the_estimate_knows_the_line(http, body, submit):
    """Those of high priority only, for a request of high priority."""
    for priority in ("normal", "normal", "high"):
        submit(priority=priority)

    def ahead(priority: str) -> int:
        answer = http.post("/estimate", json=body | {"budget": 14, "priority": priority})
        return answer.json()["queue"]["ahead"]

    assert (ahead("normal"), ahead("high")) == (3, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": "urgent"},
        {"priority": 1},
        {"deadline_s": 0},
        {"deadline_s": -1},
        {"deadline_s": "60"},
        {"deadline_s": 1e9},
        {"deadline_s": True},
    ],
    ids=str,
)
def test_what_is_no_priority_or_deadline_is_refused(http, body, fields):
    """422 that names the field."""
    problem = http.post("/calibrate", json=body | fields).json()

    assert problem["code"] == "validation_failed"
    assert problem["errors"][0]["field"] == f"body.{next(iter(fields))}"


def let_pass(redis_client, job_id: str) -> None:
    """Move a job's deadline into the past."""
    due = int(redis_client.hget(f"fimlora:job:{job_id}", "deadline_at")) - 100_000
    redis_client.hset(f"fimlora:job:{job_id}", "deadline_at", due)
    redis_client.zadd("fimlora:deadlines", {job_id: due})


def reap(store, redis_client) -> list[tuple[str, str]]:
    """Look for orphans once; answers what was reaped."""
    found = []
    redis_client.delete("fimlora:lock:reaper")
    requeue_orphans(
        store, RqTransport(redis_client), on_reaped=lambda r: found.append((r.job_id, r.status))
    )
    return found


def test_a_deadline_counts_from_acceptance(http, submit):
    """The job says when it is."""
    job = http.get(f"/jobs/{submit(deadline_s=90)}").json()
    without = http.get(f"/jobs/{submit()}").json()

    created, due = (int(job[key][17:19]) for key in ("created_at", "deadline_at"))
    assert (due - created) % 60 == 30
    assert without["deadline_at"] is None


@pytest.mark.parametrize("status", ["queued", "running"])
def test_a_job_whose_deadline_has_passed_fails(http, submit, store, redis_client, status):
    """Queued or running, with code timeout; once, and others go on."""
    job_id, other = submit(deadline_s=50), submit(deadline_s=50)
    if status == "running":
        store.start(job_id, 1, worker="w")
    let_pass(redis_client, job_id)

    reaped = [reap(store, redis_client), reap(store, redis_client)]

    job = http.get(f"/jobs/{job_id}").json()
    assert reaped == [[(job_id, "failed")], []]
    assert (job["status"], job["error"]["code"]) == ("failed", "timeout")
    assert "deadline_s" in job["error"]["detail"]
    assert http.get(f"/jobs/{other}").json()["status"] == "queued"


def test_an_end_before_the_deadline_stands(http, submit, succeed, store, redis_client):
    """Final states never change; a forgotten job is no trouble either."""
    done, canceled, gone = (submit(deadline_s=50) for _ in range(3))
    succeed(done)
    store.start(canceled, 1, worker="w")
    store.request_cancel(canceled)
    store.request_cancel(gone)
    for job_id in (done, canceled, gone):
        let_pass(redis_client, job_id)
    http.delete(f"/jobs/{gone}")
    redis_client.delete(f"fimlora:job:{gone}")

    assert reap(store, redis_client) == []
    statuses = [http.get(f"/jobs/{id_}").json()["status"] for id_ in (done, canceled)]
    assert statuses == ["succeeded", "canceling"]
    assert redis_client.zcard("fimlora:deadlines") == 0


def test_a_job_with_a_deadline_is_nobody_elses(http, body):
    """Equal requests without one, or with another, must not fail with it."""
    ids = [
        http.post("/calibrate", json=body | fields).json()["id"]
        for fields in ({"deadline_s": 50}, {"deadline_s": 50}, {}, {"deadline_s": 60}, {})
    ]

    assert ids[2] == ids[4]
    assert len(set(ids)) == 4


def test_a_retried_job_gets_its_time_anew(http, submit, store, redis_client):
    """From the retry on."""
    job_id = submit(deadline_s=50)
    let_pass(redis_client, job_id)
    reap(store, redis_client)

    again = http.post(f"/jobs/{job_id}/retry").json()

    assert again["deadline_at"] > again["created_at"]
    assert reap(store, redis_client) == []
