"""Webhooks: who may be called, what is told, and that nothing is lost."""

import base64
import hashlib
import hmac
import json
import time
from concurrent.futures import Future
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from fimlora_contract.jobs import JobError
from fimlora_contract.webhooks import WebhookTry
from fimlora_jobs.durability import NotOnDisk
from fimlora_jobs.outbox import TRIES_KEPT, Notice, Outbox
from fimlora_service.app import create_app
from fimlora_service.operations.metrics import Metrics
from fimlora_service.settings import Settings
from fimlora_service.webhooks.delivery import PAUSES_S, WebhookSender
from fimlora_service.webhooks.posting import Poster
from fimlora_service.webhooks.receivers import Receivers
from support.receiver import Receiver
from support.testclient import TestClient

OLD_SECRET = "whsec_" + base64.b64encode(b"fedcba9876543210").decode()
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()


@pytest.fixture
def settings(settings, receiver: Receiver):
    """The receiver is allowed; only tests deliver."""
    return settings.model_copy(
        update={
            "webhook_hosts": f"hooks.example, {receiver.url}",
            "webhook_secret": SecretStr(SECRET),
            "webhook_interval_s": 3600.0,
        }
    )


@pytest.fixture
def outbox(store) -> Outbox:
    return Outbox(store)


def sender_to(outbox: Outbox, settings: Settings, **options) -> WebhookSender:
    """A sender as the service makes it."""
    receivers = Receivers(settings.webhook_origins, settings.webhook_near_origins)
    options = {"poster": Poster(receivers), "keys": settings.webhook_keys} | options
    return WebhookSender(outbox, tries=Metrics().webhooks, **options)


@pytest.fixture
def sender(outbox, settings) -> WebhookSender:
    return sender_to(outbox, settings, clock=lambda: 1_700_000_000.5)


@pytest.fixture
def told(body, receiver: Receiver):
    """A request whose end the receiver is told of."""
    return body | {"webhook": f"{receiver.url}/hook?token=t0p", "metadata": {"run": "7"}}


def take_all(outbox: Outbox) -> list[Notice]:
    """Take what is due, as a sender that calls nobody."""
    return outbox.take(at_most=5, per_origin=5, calling={})


def let_due(redis_client) -> None:
    """Make everything in the outbox due."""
    for entry in redis_client.zrange("fimlora:outbox", 0, -1):
        redis_client.zadd("fimlora:outbox", {entry: 0})


@pytest.mark.parametrize(
    ("webhook", "status", "code"),
    [
        ("https://other.example/", 403, "webhook_not_allowed"),
        ("http://hooks.example/", 403, "webhook_not_allowed"),
        ("https://hooks.example:444/", 403, "webhook_not_allowed"),
        ("https://hooks.example.evil.example/", 403, "webhook_not_allowed"),
        ("http://127.0.0.1:1/", 403, "webhook_not_allowed"),
        ("https://hooks.example:99999/", 403, "webhook_not_allowed"),
        ("https://u@hooks.example/", 422, "validation_failed"),
        ("file:///etc/passwd", 422, "validation_failed"),
        ("https://hooks.example/" + "a" * 2048, 422, "validation_failed"),
        (7, 422, "validation_failed"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("path", ["/calibrate", "/estimate"])
def test_only_allowed_hosts_may_be_named(http, body, path, webhook, status, code):
    """Scheme, host and port are compared as they are; no job is made."""
    answer = http.post(path, json=body | {"webhook": webhook})

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert http.get("/jobs").json()["data"] == []


def test_without_a_list_there_are_no_webhooks(settings, body):
    """Off unless the operator allows hosts."""
    off = settings.model_copy(update={"webhook_hosts": ""})
    with TestClient(create_app(off)) as http:
        answer = http.post("/calibrate", json=body | {"webhook": "https://hooks.example/"})

    assert answer.status_code == 403
    assert "FIMLORA_WEBHOOK_HOSTS" in answer.json()["next_step"]


def test_the_end_is_told_and_signed(http, told, succeed, sender, outbox, receiver):
    """Once, as Standard Webhooks has it, with what polling would have shown."""
    job_id = http.post("/calibrate", json=told).json()["id"]
    sender.deliver_due()
    assert receiver.got == []
    result = succeed(job_id)

    sender.deliver_due()
    sender.deliver_due()

    [(path, headers, body)] = receiver.got
    event, job = json.loads(body), http.get(f"/jobs/{job_id}").json()
    assert path == "/hook?token=t0p"
    assert event["type"] == "job.succeeded"
    assert event["timestamp"] == job["finished_at"]
    assert (event["data"]["id"], event["data"]["digest"]) == (job_id, result["digest"])
    assert event["data"]["metadata"] == {"run": "7"}
    signed = f"{headers['webhook-id']}.1700000000.".encode() + body
    mac = base64.b64encode(hmac.digest(b"0123456789abcdef", signed, hashlib.sha256)).decode()
    assert headers["webhook-timestamp"] == "1700000000"
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert outbox.waiting() == 0


def test_an_end_that_is_not_on_disk_is_not_told(
    http, told, succeed, outbox, settings, receiver
):
    """The power may be cut now, and the job would run again; it is told at the next try."""
    job_id = http.post("/calibrate", json=told).json()["id"]
    succeed(job_id)
    refused: Future[None] = Future()
    refused.set_exception(NotOnDisk("not on disk within 5 s"))

    sender_to(outbox, settings, settled=lambda: refused).deliver_due()

    [tried] = outbox.tries(job_id)
    assert receiver.got == []
    assert (tried.outcome, tried.reason) == ("retry", "the end of the job is not on disk yet")


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_every_kind_of_end_is_told(http, told, store, sender, receiver, end):
    """A failure with its error."""
    job_id = http.post("/calibrate", json=told).json()["id"]
    if end == "failed":
        store.fail(job_id, 1, JobError(code="timeout", detail="too late"))
    else:
        http.post(f"/jobs/{job_id}/cancel")

    sender.deliver_due()

    event = json.loads(receiver.got[0][2])
    assert (event["type"], event["data"]["status"]) == (f"job.{end}", end)
    assert (event["data"]["error"] or {}).get("code") == (
        "timeout" if end == "failed" else None
    )


def test_a_receiver_that_fails_is_called_again(
    http, told, succeed, sender, outbox, receiver, redis_client
):
    """Later each time, under the same id; a redirect is a failure and is not followed."""
    receiver.answers = [500, 302, 404]
    receiver.location = f"{receiver.url}/elsewhere"
    succeed(http.post("/calibrate", json=told).json()["id"])
    pauses = []
    for _ in range(4):
        sender.deliver_due()
        if waiting := redis_client.zrange("fimlora:outbox", 0, -1, withscores=True):
            pauses.append(waiting[0][1] / 1000 - time.time())
        let_due(redis_client)

    assert [path for path, _, _ in receiver.got] == ["/hook?token=t0p"] * 4
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    for pause, planned in zip(pauses, PAUSES_S, strict=False):
        assert 0.7 * planned <= pause <= 1.3 * planned
    assert (len(pauses), outbox.waiting()) == (3, 0)
    assert redis_client.hlen("fimlora:outbox_tries") == 0


def test_it_is_given_up_after_the_last_pause(
    http, told, succeed, sender, outbox, receiver, redis_client
):
    """A receiver that has gone for good costs a bounded number of tries."""
    receiver.answers = [503] * 100
    succeed(http.post("/calibrate", json=told).json()["id"])
    for _ in range(len(PAUSES_S) + 3):
        sender.deliver_due()
        let_due(redis_client)

    assert len(receiver.got) == len(PAUSES_S) + 1
    assert outbox.waiting() == 0


def test_gone_means_never_again(http, told, succeed, sender, outbox, receiver):
    """410."""
    receiver.answers = [410]
    succeed(http.post("/calibrate", json=told).json()["id"])

    sender.deliver_due()

    assert (len(receiver.got), outbox.waiting()) == (1, 0)


def test_a_receiver_that_is_not_there_is_tried_again(outbox, settings, http, body, store):
    """Nothing listens: as any other failure."""
    nowhere = settings.model_copy(update={"webhook_hosts": "http://127.0.0.1:9"})
    job_id = http.post("/calibrate", json=body).json()["id"]
    outbox.add(job_id, "http://127.0.0.1:9/")
    store.request_cancel(job_id)

    sender_to(outbox, nowhere).deliver_due()

    assert outbox.waiting() == 1


def test_a_delivery_that_died_is_taken_up_by_another(http, told, succeed, outbox, redis_client):
    """Taken for a minute, not removed; meanwhile nobody else takes it."""
    succeed(http.post("/calibrate", json=told).json()["id"])

    first, meanwhile = take_all(outbox), take_all(outbox)
    let_due(redis_client)

    assert (len(first), meanwhile) == (1, [])
    assert take_all(outbox) == first


def test_a_running_service_delivers_by_itself(settings, told, succeed, receiver):
    """From its own thread."""
    quick = settings.model_copy(update={"webhook_interval_s": 0.02})
    with TestClient(create_app(quick)) as http:
        succeed(http.post("/calibrate", json=told).json()["id"])
        deadline = time.monotonic() + 10
        while not receiver.got and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)

    assert len(receiver.got) == 1


def test_no_answer_shows_the_address(http, told, store, succeed):
    """It may hold a token; neither do the logs' fields nor another job's record."""
    job = http.post("/calibrate", json=told).json()

    shown = [http.get(f"/jobs/{job['id']}").text, http.get("/jobs").text, json.dumps(job)]
    assert not any("t0p" in text for text in shown)
    assert "webhook" not in store.get(job["id"]).request


def test_everyone_who_shares_a_job_is_told(http, told, body, receiver, sender, succeed):
    """Each address once, however many requests named it."""
    ids = [
        http.post("/calibrate", json=body | {"webhook": f"{receiver.url}/{name}"}).json()["id"]
        for name in ("a", "b", "a")
    ]
    succeed(ids[0])

    sender.deliver_due()

    assert len(set(ids)) == 1
    assert sorted(path for path, _, _ in receiver.got) == ["/a", "/b"]


def test_a_request_repeated_after_the_end_tells_once(http, told, succeed, sender, receiver):
    """The key finds the job, which has been told of."""
    headers = {"Idempotency-Key": "k"}
    job_id = http.post("/calibrate", json=told, headers=headers).json()["id"]
    succeed(job_id)
    sender.deliver_due()

    again = http.post("/calibrate", json=told, headers=headers)
    sender.deliver_due()

    assert again.json()["id"] == job_id
    assert len(receiver.got) == 1


def test_an_address_that_comes_after_the_end_is_told_at_once(http, body, store, outbox):
    """Between accepting a request and noting its address the job may end."""
    job_id = http.post("/calibrate", json=body).json()["id"]
    store.request_cancel(job_id)

    outbox.add(job_id, "https://hooks.example/late")

    assert take_all(outbox) == [Notice(job_id, "https://hooks.example/late")]


def test_a_retried_job_is_told_of_too(http, told, store, sender, receiver):
    """Whoever wanted to know the end of the first wants to know the second's."""
    job_id = http.post("/calibrate", json=told).json()["id"]
    store.request_cancel(job_id)
    again = http.post(f"/jobs/{job_id}/retry").json()["id"]
    store.request_cancel(again)

    sender.deliver_due()

    assert {json.loads(body)["data"]["id"] for _, _, body in receiver.got} == {job_id, again}


def test_what_cannot_be_told_any_more_is_dropped(
    http, told, succeed, outbox, settings, receiver, store
):
    """A job that was deleted, and a host that is not allowed any more."""
    first = http.post("/calibrate", json=told).json()["id"]
    second = http.post("/calibrate", json=told | {"budget": 4}).json()["id"]
    store.request_cancel(first)
    store.request_cancel(second)
    http.delete(f"/jobs/{first}")
    strict = settings.model_copy(update={"webhook_hosts": "hooks.example"})

    sender_to(outbox, strict).deliver_due()

    assert (receiver.got, outbox.waiting()) == ([], 0)


def test_while_a_secret_is_changed_both_are_good(
    http, told, succeed, outbox, settings, receiver
):
    """By the verifier that receivers use; a third secret is not."""
    rotating = settings.model_copy(update={"webhook_old_secret": SecretStr(OLD_SECRET)})
    succeed(http.post("/calibrate", json=told).json()["id"])

    sender_to(outbox, rotating).deliver_due()

    [(_, headers, body)] = receiver.got
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"another").decode()).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


def test_the_log_tells_every_try(
    http, told, body, succeed, sender, receiver, redis_client, store
):
    """When, what came of it and what comes next; and nothing of an address but its origin."""
    receiver.answers = [500]
    job_id = http.post("/calibrate", json=told).json()["id"]
    before = http.get(f"/jobs/{job_id}/webhooks").json()
    succeed(job_id)
    sender.deliver_due()
    between = http.get(f"/jobs/{job_id}/webhooks").json()
    let_due(redis_client)
    sender.deliver_due()

    answer = http.get(f"/jobs/{job_id}/webhooks")

    assert (before["data"], before["waiting"], between["waiting"]) == ([], 1, 1)
    second, first = answer.json()["data"]
    assert (first["outcome"], first["status"], first["attempt"]) == ("retry", 500, 1)
    assert (second["outcome"], second["status"], second["attempt"]) == ("delivered", 200, 2)
    assert first["next_try_at"] > first["at"]
    assert second["next_try_at"] is None
    assert first["id"] == second["id"] == receiver.got[0][1]["webhook-id"]
    assert first["origin"] == receiver.url
    assert answer.json()["waiting"] == 0
    assert "t0p" not in answer.text
    http.delete(f"/jobs/{job_id}")
    assert http.get(f"/jobs/{job_id}/webhooks").status_code == 404
    assert redis_client.keys("*webhook*") == []


def test_the_log_says_why_there_was_no_answer(http, body, outbox, settings, store):
    """In words, without the address; the newest tries are kept."""
    nowhere = settings.model_copy(update={"webhook_hosts": "http://127.0.0.1:9"})
    job_id = http.post("/calibrate", json=body).json()["id"]
    for n in range(TRIES_KEPT + 20):
        outbox.add(job_id, f"http://127.0.0.1:9/{n}")
    store.request_cancel(job_id)

    sender_to(outbox, nowhere).deliver_due()

    log = http.get(f"/jobs/{job_id}/webhooks").json()
    assert {tried["reason"] for tried in log["data"]} == {"no connection"}
    assert (len(log["data"]), log["waiting"]) == (TRIES_KEPT, TRIES_KEPT + 20)


def test_a_job_that_was_deleted_during_a_try_leaves_nothing(
    http, told, store, outbox, redis_client
):
    """What the try comes to has no place any more."""
    job_id = http.post("/calibrate", json=told).json()["id"]
    store.request_cancel(job_id)
    [notice] = take_all(outbox)
    store.delete(job_id)
    now = datetime.now(UTC)
    tried = WebhookTry(
        id=notice.id,
        origin="o",
        at=now,
        attempt=1,
        outcome="retry",
        duration_s=1,
        next_try_at=now,
    )

    outbox.note(notice, tried)
    outbox.give_back(notice)

    assert not redis_client.keys("*webhook*") + redis_client.keys("*outbox*")
