"""Steps that are repeated beside the requests."""

import logging
import time
from functools import partial

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.connection import impatient_redis
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.store import JobStore
from fimlora_service.operations.background import reap, repeating


def test_the_reaper_gives_a_lost_job_its_next_attempt(http, job_id, store, redis_client):
    """A worker died with its lease: the loop in the API finds the job."""
    store.start(job_id, 1, worker="w")
    redis_client.hset(store.key("job", job_id), "lease_until", 1)
    transport = RqTransport(redis_client)

    with repeating("reaper", partial(reap, store, transport), every_s=0.02):
        deadline = time.monotonic() + 5
        while store.get(job_id).attempt == 1 and time.monotonic() < deadline:
            time.sleep(0.02)

    record = store.get(job_id)
    assert (record.status, record.attempt) == (JobStatus.QUEUED, 2)
    assert (job_id, 2) in transport.waiting()


def test_the_reaper_outlives_an_outage(redis_client, caplog):
    """It says what is wrong and goes on."""
    gone = impatient_redis("unix:///tmp/fimlora-no-such-socket")
    transport = RqTransport(redis_client)

    with (
        caplog.at_level(logging.WARNING),
        repeating("reaper", partial(reap, JobStore(gone), transport), every_s=0.02),
    ):
        time.sleep(0.3)

    assert [record.message for record in caplog.records].count("reaper.redis_unavailable") > 1
