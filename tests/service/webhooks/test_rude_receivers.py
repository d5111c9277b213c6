"""Receivers that take their time keep nobody waiting but themselves."""

import asyncio
import threading
import time

import pytest

from fimlora_contract.webhooks import origin_of
from fimlora_jobs.outbox import TAKEN_S, Outbox
from fimlora_jobs.store import JobStore
from fimlora_service.operations.metrics import Metrics
from fimlora_service.webhooks import delivery
from fimlora_service.webhooks.delivery import WebhookSender
from fimlora_service.webhooks.posting import TRY_S, NoAnswer, Poster
from fimlora_service.webhooks.receivers import Receivers
from support import rude_receivers as rude
from support.receiver import Receiver
from support.rude_receivers import rude_receiver

GENEROUS_S = 30.0


def poster_to(*urls: str, **options) -> Poster:
    origins = frozenset(origin_of(url) or "" for url in urls)
    return Poster(Receivers(origins, origins), **options)


@pytest.fixture
def outbox(redis_client) -> Outbox:
    return Outbox(JobStore(redis_client))


def sender_to(outbox: Outbox, poster: Poster, **options) -> WebhookSender:
    return WebhookSender(outbox, poster=poster, keys=(), tries=Metrics().webhooks, **options)


def ended_job(outbox: Outbox, *urls: str) -> str:
    """A job that was canceled, and addresses that are due to be told of it."""
    job_id = outbox.store.new_id()
    outbox.store.create(job_id, request={}, resolved={}, digest="sha256:00")
    for url in urls:
        outbox.add(job_id, url)
    outbox.store.request_cancel(job_id)
    return job_id


def wait_until(condition) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    "conduct",
    [
        rude.silent,
        rude.drip,
        rude.endless_headers,
        rude.endless_preliminaries,
        rude.huge_headers,
    ],
    ids=lambda conduct: conduct.__name__,
)
def test_a_try_ends_in_its_time_whatever_the_receiver_does(conduct):
    """Each byte comes soon after the last, so no limit on a single read would end it."""
    began = time.monotonic()
    with rude_receiver(conduct) as url:
        post = poster_to(url, try_s=0.5).post(f"{url}/", b"{}", {})
        with pytest.raises(NoAnswer):
            asyncio.run(post)
    assert time.monotonic() - began < GENEROUS_S


def test_of_an_answer_only_the_status_is_read():
    """A body without an end is none of ours."""
    with rude_receiver(rude.endless_body) as url:
        assert asyncio.run(poster_to(url, try_s=GENEROUS_S).post(f"{url}/", b"{}", {})) == 200


def test_a_name_that_is_never_found_ends_in_time_too():
    """A lookup cannot be ended, but nobody waits for it; too many at once are refused."""
    hang = threading.Event()

    def look_up(host: str, port: int) -> list[str]:
        hang.wait()
        return []

    async def post_all(poster: Poster) -> list[str]:
        posts = [poster.post("https://hooks.example/", b"", {}) for _ in range(20)]
        return [str(e) for e in await asyncio.gather(*posts, return_exceptions=True)]

    try:
        reasons = asyncio.run(
            post_all(poster_to("https://hooks.example/", look_up=look_up, try_s=0.3))
        )
    finally:
        hang.set()

    assert reasons.count("too many names are being looked up") == 4
    assert reasons.count("no answer within 0.3 s") == 16


def test_a_try_is_over_before_another_process_may_take_it():
    """Else one that is slow would be called by two at once."""
    assert TAKEN_S >= 2 * TRY_S


def test_one_slow_receiver_keeps_no_other_waiting(outbox, receiver: Receiver):
    """Its own notices wait their turn, others go past them: also those that come meanwhile."""
    with rude_receiver(rude.drip) as slow:
        poster = poster_to(slow, receiver.url, try_s=GENEROUS_S)
        sender = sender_to(outbox, poster, per_origin=2)
        ended_job(outbox, *(f"{slow}/{n}" for n in range(100)))
        ended_job(outbox, f"{receiver.url}/behind")
        thread = threading.Thread(target=sender.deliver_due)
        thread.start()
        wait_until(lambda: receiver.got)
        ended_job(outbox, f"{receiver.url}/later")
        wait_until(lambda: len(receiver.got) == 2)
        # Received is not yet answered: a notice stays until its answer is in.
        wait_until(lambda: outbox.waiting() == 100)
        sender.close()
        thread.join(GENEROUS_S)

    assert not thread.is_alive()
    assert [path for path, _, _ in receiver.got] == ["/behind", "/later"]
    # What was under way is due at once: for this process after a restart, or for another.
    assert len(outbox.take(at_most=200, per_origin=200, calling={})) == 100


def test_a_receiver_is_called_a_few_times_at_once(outbox, receiver: Receiver):
    """However it is written; and the threads of this process stay as many as they were."""
    with rude_receiver(rude.silent) as slow:
        lower, upper = (
            slow.replace("127.0.0.1", "localhost"),
            slow.replace("127.0.0.1", "LOCALHOST"),
        )
        origins = frozenset({origin_of(lower) or ""})
        sender = sender_to(
            outbox,
            Poster(Receivers(origins, origins), try_s=GENEROUS_S),
            per_origin=3,
        )
        ended_job(outbox, *(f"{(lower, upper)[n % 2]}/{n}" for n in range(20)))
        before = threading.active_count()
        thread = threading.Thread(target=sender.deliver_due)
        thread.start()
        wait_until(lambda: len(due_later(outbox)) == 3)
        time.sleep(2 * delivery.LOOK_S)
        n_threads, taken = threading.active_count(), due_later(outbox)
        sender.close()
        thread.join(GENEROUS_S)

    assert len(taken) == 3
    assert n_threads <= before + 1 + 3  # the one that delivers, and the receiver's own


def due_later(outbox: Outbox) -> list[bytes]:
    """What is taken now."""
    key, now = outbox.store.key("outbox"), outbox.store.now_ms()
    return outbox.store.redis.zrangebyscore(key, now + 1, "+inf")
