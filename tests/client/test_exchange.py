"""Retries, waiting and downloads, for the blocking and the asynchronous client alike."""

import asyncio
import json

import httpx2
import pytest

from fimlora_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    DigestMismatch,
    JobCanceled,
    JobFailed,
    RetryPolicy,
    WaitTimeout,
)
from fimlora_client.context import Context
from fimlora_client.errors import (
    IdempotencyInFlight,
    IdempotencyMismatch,
    Internal,
    InvalidFile,
    RedisUnavailable,
)
from fimlora_contract.digests import digest_bytes
from fimlora_contract.problems import PROBLEMS

FIELDS = {"base_model": "local:tiny", "dataset": "local:rows", "budget": 8}


def job(status="queued", **fields):
    values = {"id": "job_1", "status": status, "attempt": 1, "created_at": 0}
    return httpx2.Response(200, json=values | {"request": {}, "resolved": {}} | fields)


def problem(code, **headers):
    known = PROBLEMS[code]
    body = {"type": code, "title": known.title, "status": known.status, "code": code}
    body |= {"detail": f"this is {code}", "next_step": known.next_step}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(known.status, json=body, headers=headers)


class Blocking:
    """Drives a `Client` against a script of answers, on a clock that only pauses move."""

    def __init__(self, script, *, retries=4):
        self.script, self.requests, self.pauses, self.now = list(script), [], [], 0.0
        context = Context(
            RetryPolicy(max_retries=retries),
            random=lambda: 0.0,
            clock=lambda: self.now,
            unix_time=lambda: 0.0,
        )
        self.client = self.make(context)

    def make(self, context):
        transport = httpx2.MockTransport(self.answer_blocking)
        http = httpx2.Client(transport=transport, base_url="http://fimlora.test")
        return Client(http=http, sleep=self.sleep, context=context)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def answer_blocking(self, request):
        request.read()
        return self.answer(request)

    def answer(self, request):
        self.requests.append(request)
        # The last answer is given for ever.
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return step(request) if callable(step) else step

    def do(self, ask):
        return ask(self.client)


class Asynchronous(Blocking):
    """The same for an `AsyncClient`."""

    async def answer_async(self, request):
        await request.aread()
        return self.answer(request)

    def make(self, context):
        transport = httpx2.MockTransport(self.answer_async)
        http = httpx2.AsyncClient(transport=transport, base_url="http://fimlora.test")
        return AsyncClient(http=http, sleep=self.asleep, context=context)

    async def asleep(self, seconds):
        self.sleep(seconds)

    def do(self, ask):
        return asyncio.run(ask(self.client))


@pytest.fixture(params=[Blocking, Asynchronous])
def played(request):
    return request.param


def test_a_request_is_repeated_until_it_passes_under_one_key(played):
    """Whatever fails on the way, the service can tell that it is one request."""
    broken = httpx2.ConnectError("refused")
    refused = problem("redis_unavailable", retry_after="3")
    player = played([broken, refused, problem("idempotency_in_flight"), job()])

    handle = player.do(lambda client: client.calibrate(**FIELDS))

    assert handle.id == "job_1"
    keys = {request.headers["idempotency-key"] for request in player.requests}
    assert len(player.requests) == 4
    assert len(keys) == 1
    assert player.pauses == [0.25, 3.0, 1.0]


def test_a_request_in_flight_is_waited_for_longer_than_a_dead_one_is_held(played):
    """That costs no retries: those are for what fails. It has an end, too."""
    in_flight = problem("idempotency_in_flight", retry_after="1")
    patient = played([*[in_flight] * 20, *[problem("redis_unavailable")] * 4, job()])
    stuck = played([in_flight])

    assert patient.do(lambda client: client.calibrate(**FIELDS)).id == "job_1"
    with pytest.raises(IdempotencyInFlight):
        stuck.do(lambda client: client.calibrate(**FIELDS))

    assert sum(patient.pauses[:20]) == 20
    assert 60 <= stuck.now <= 70


def test_two_requests_have_two_keys(played):
    """A key must not outlive its request, or the second would be answered as the first."""
    player = played([job()])

    for _ in range(2):
        player.do(lambda client: client.calibrate(**FIELDS))

    keys = {request.headers["idempotency-key"] for request in player.requests}
    assert len(keys) == 2


def test_an_upload_is_read_anew_for_every_try(played, tmp_path):
    """In pieces, so that a large file needs no memory, with its length said beforehand."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n' * 100_000)  # more than one piece
    dataset = {"id": "ds_1", "source": "upload", "format": "jsonl", "size": 1}
    player = played([problem("redis_unavailable"), httpx2.Response(201, json=dataset)])

    player.do(lambda client: client.datasets.upload(file))

    assert [request.content for request in player.requests] == [file.read_bytes()] * 2
    for request in player.requests:
        assert request.headers["content-length"] == str(file.stat().st_size)
        assert "transfer-encoding" not in request.headers


def test_the_last_problem_is_raised_when_retries_are_used_up(played):
    """The caller learns what was wrong in the end."""
    player = played([problem("internal"), problem("redis_unavailable")], retries=2)

    with pytest.raises(RedisUnavailable):
        player.do(lambda client: client.jobs.list())

    assert len(player.requests) == 3


def test_a_service_that_is_away_is_named(played):
    """The error says where nobody answered."""
    player = played([httpx2.ConnectError("refused")], retries=1)

    with pytest.raises(ConnectionFailed, match=r"http://fimlora\.test: refused") as caught:
        player.do(lambda client: client.version())

    assert len(player.requests) == 2
    assert (caught.value.status, caught.value.problem) == (None, None)


@pytest.mark.parametrize("code", ["idempotency_mismatch"])
def test_what_cannot_pass_is_not_repeated(played, code):
    """A refusal is raised at once."""
    player = played([problem(code)])

    with pytest.raises(IdempotencyMismatch, match="this is idempotency_mismatch"):
        player.do(lambda client: client.calibrate(**FIELDS))

    assert len(player.requests) == 1


def test_a_wait_reports_progress_and_returns_the_result(played):
    """Every poll is shown to the caller, the pauses grow up to what the service suggests."""
    progress = {"stage": "calibrating", "batch": 1, "n_batches": 8}
    done = job("succeeded", result=RESULT)
    player = played([job(), *[job("running", progress=progress)] * 9, done])
    seen = []

    async def wait_async(client):
        handle = await client.calibrate(**FIELDS)
        return await handle.wait(on_progress=seen.append)

    def wait(client):
        if isinstance(client, AsyncClient):
            return wait_async(client)
        return client.calibrate(**FIELDS).wait(on_progress=seen.append)

    result = player.do(wait)

    assert result.rank_pattern == {"a": 8}
    assert [j.status for j in seen] == ["running"] * 9 + ["succeeded"]
    assert player.pauses == sorted(player.pauses)
    assert player.pauses[0] == 0.1
    assert player.pauses[-1] == 2.0


def test_a_wait_ends_at_its_deadline(played):
    """A job that never ends does not hold its caller for ever."""
    player = played([job("running")])

    with pytest.raises(WaitTimeout, match="job_1 is still running after 10 s"):
        player.do(lambda client: client.jobs.wait("job_1", timeout=10))

    assert player.now == 10


def test_a_wait_outlasts_a_rate_limit(played):
    """However often the key has asked too much: the pauses are those that it is told."""
    limited = problem("rate_limited", retry_after="30")
    player = played([job("running"), *[limited] * 20, job("succeeded")])

    done = player.do(lambda client: client.jobs.wait("job_1"))

    assert done.status == "succeeded"
    assert player.pauses == [0.1, *[30.0] * 20]


@pytest.mark.parametrize(
    ("seen", "stands"), [([], "hidden by the rate limit"), (["running"], "running after")]
)
def test_a_wait_behind_a_rate_limit_ends_at_its_deadline(played, seen, stands):
    """As if the job had not ended, also when it was never seen."""
    player = played([*map(job, seen), problem("rate_limited", retry_after="30")])

    with pytest.raises(WaitTimeout, match=f"job_1 is still {stands}"):
        player.do(lambda client: client.jobs.wait("job_1", timeout=100))

    assert player.now == 100


def test_a_wait_keeps_the_pace_it_was_given(played):
    """The caller's own pace is kept from the first poll on."""
    player = played([job("running"), job("running"), job("succeeded")])

    player.do(lambda client: client.jobs.wait("job_1", poll_every=0.7))

    assert player.pauses == [0.7, 0.7]


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        ("failed", {"code": "internal", "detail": "why"}, JobFailed),
        ("canceled", None, JobCanceled),
    ],
)
def test_a_job_without_a_result_raises(played, status, error, kind):
    """Failed and canceled jobs end a wait with their own exceptions."""
    player = played([job("running"), job(status, error=error)])

    with pytest.raises(kind, match="job_1"):
        player.do(lambda client: client.jobs.wait("job_1"))


def test_fields_of_a_newer_service_are_ignored(played):
    """An old client goes on working."""
    player = played([job(moons=3, progress={"stage": "loading", "phase": "full"})])

    found = player.do(lambda client: client.jobs.retrieve("job_1"))

    assert found.progress.stage == "loading"


def test_an_id_is_never_more_than_one_part_of_the_path(played):
    """An id with a slash asks for a job of that name, not for another route."""
    player = played([job()])

    player.do(lambda client: client.jobs.retrieve("../datasets?x=1"))

    assert player.requests[0].url.raw_path == b"/jobs/..%2Fdatasets%3Fx%3D1"


CONTENT = {"adapter_config.json": b'{"r": 8}', "rank_map.svg": b"<svg/>"}
RANK_MAP = {
    "format": "fimlora.rank_map/1",
    "budget": {"unit": "rank", "value": 8, "limit": 8},
    "rule": "proportional",
    "r_min": 4,
    "r_max": 16,
    "scale": 2,
    "spent": {"ranks": 8, "parameters": 64},
    "controls": {},
    "provenance": {},
    "modules": [
        {
            "name": "a", "d_in": 4, "d_out": 4, "layer": 0, "kind": "a",
            "score": 1.0, "rank": 8, "alpha": 16, "parameters": 64,
        }
    ],
}  # fmt: skip
RESULT = {
    "digest": "sha256:0",
    "adapter_config": {"peft_type": "LORA", "r": 8},
    "rank_map": RANK_MAP,
    "artifacts": [
        {"name": name, "digest": digest_bytes(data), "size": len(data), "media_type": "x/y"}
        for name, data in CONTENT.items()
    ],
}


def serve(request, content=CONTENT, result=RESULT):
    """A service that has one result and its files."""
    name = request.url.path.rpartition("/")[2]
    if name == "artifacts":
        return httpx2.Response(200, json={"data": result["artifacts"]})
    return httpx2.Response(200, content=content[name])


def test_a_download_writes_all_files(played, tmp_path):
    """The folder holds exactly the files of the result, and nothing else is left behind."""
    folder = tmp_path / "deep" / "adapter"

    paths = played([serve]).do(lambda client: client.jobs.download("job_1", folder))

    assert {name: path.read_bytes() for name, path in paths.items()} == CONTENT
    assert sorted(folder.iterdir()) == sorted(paths.values())
    assert list(folder.parent.iterdir()) == [folder]


def test_a_download_leaves_other_files_alone(played, tmp_path):
    """Old files of the same name are replaced, all others stay."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "rank_map.svg").write_text("old")

    played([serve]).do(lambda client: client.jobs.download("job_1", tmp_path))

    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "rank_map.svg").read_bytes() == CONTENT["rank_map.svg"]


def test_a_file_with_another_digest_is_refused_and_nothing_is_written(played, tmp_path):
    """One altered byte in the last file is enough."""
    altered = CONTENT | {"rank_map.svg": b"<svg>"}
    player = played([lambda request: serve(request, altered)])

    with pytest.raises(DigestMismatch, match=r"rank_map\.svg has digest sha256:"):
        player.do(lambda client: client.jobs.download("job_1", tmp_path / "adapter"))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", ".hidden", ""])
def test_a_file_outside_the_folder_is_refused(played, tmp_path, name):
    """A hostile service cannot write where it was not asked to."""
    artifact = RESULT["artifacts"][0] | {"name": name}
    result = RESULT | {"artifacts": [artifact]}
    player = played([lambda request: serve(request, result=result)])

    with pytest.raises(InvalidFile, match="not a plain file name"):
        player.do(lambda client: client.jobs.download("job_1", tmp_path / "adapter"))


def test_events_go_on_behind_the_last_one_after_a_lost_connection(played):
    """The second connection names the last event, the stream ends with the job."""

    def line(id_, status):
        data = {"id": id_, "type": "status", "job_id": "j", "status": status, "attempt": 1}
        return f"id: {id_}\nevent: status\ndata: {json.dumps(data)}\n\n"

    def stream(*lines):
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(
            200, text="retry: 2000\n\n: hello\n\n" + "".join(lines), headers=headers
        )

    script = [
        stream(line("1-0", "queued")),
        httpx2.ReadError("reset"),
        stream(line("2-0", "running"), line("3-0", "succeeded")),
    ]
    player = played(script)

    async def collect(client):
        return [event async for event in client.jobs.events("job_1")]

    def read(client):
        is_async = isinstance(client, AsyncClient)
        return collect(client) if is_async else list(client.jobs.events("job_1"))

    assert [event.id for event in player.do(read)] == ["1-0", "2-0", "3-0"]
    last_ids = [request.headers.get("last-event-id") for request in player.requests]
    assert last_ids == [None, "1-0", "1-0"]


def test_events_give_up_when_nothing_comes(played):
    """A service that is gone is an error in the end."""
    player = played([httpx2.ConnectError("refused")], retries=3)

    async def collect(client):
        return [event async for event in client.jobs.events("job_1")]

    def read(client):
        is_async = isinstance(client, AsyncClient)
        return collect(client) if is_async else list(client.jobs.events("job_1"))

    with pytest.raises(ConnectionFailed):
        player.do(read)

    assert len(player.requests) == 4


@pytest.mark.parametrize("status", [200, 503])
def test_health_is_an_answer_also_when_it_is_bad(played, status):
    """The caller sees which part fails, without retries."""
    body = {"status": "unavailable", "checks": {"redis": "does not answer"}}
    player = played([httpx2.Response(status, json=body)])

    assert player.do(lambda client: client.health()).checks == body["checks"]
    assert len(player.requests) == 1


def test_an_unknown_failure_of_the_service_carries_its_request_id(played):
    """The id is what the operator is asked about."""
    player = played([problem("internal", x_request_id="req-7")], retries=0)

    with pytest.raises(Internal) as caught:
        player.do(lambda client: client.models.list())

    assert caught.value.request_id == "req-7"


def changes_of(player, **options):
    """What a watch tells of two jobs, as pairs of id and status."""

    def blocking(client):
        return [(job.id, job.status) for job in client.jobs.watch("job_1", "job_2", **options)]

    async def asynchronous(client):
        jobs = client.jobs.watch("job_1", "job_2", **options)
        return [(job.id, job.status) async for job in jobs]

    return player.do(asynchronous if isinstance(player, Asynchronous) else blocking)


def test_a_watch_tells_each_change_once_whatever_comes_between(played):
    """A lost connection, a refusal and a rate limit pass, and are no change."""
    player = played(
        [
            job(id="job_1"), job("running", id="job_2"),
            httpx2.ConnectError("refused"), problem("redis_unavailable"),
            job(id="job_1"), problem("rate_limited", retry_after="30"),
            job("succeeded", id="job_1"), job("failed", id="job_2"),
        ]
    )  # fmt: skip
    away = []

    told = changes_of(player, on_away=away.append)

    assert told == [
        ("job_1", "queued"), ("job_2", "running"), ("job_1", "succeeded"), ("job_2", "failed")
    ]  # fmt: skip
    assert len(away) == 2
    assert max(player.pauses) == 30.0


def test_a_watch_gives_up_a_service_that_stays_away(played):
    """After its patience; one that never answered, after the retries of any request."""
    left = played([job(id="job_1"), job(id="job_2"), httpx2.ConnectError("refused")])
    never = played([httpx2.ConnectError("refused")])

    with pytest.raises(ConnectionFailed):
        changes_of(left, patience=60)
    with pytest.raises(ConnectionFailed):
        changes_of(never, patience=60)

    assert 60 <= left.now <= 70
    assert len(never.requests) == 5
