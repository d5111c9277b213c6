"""What a job has found is read once for every state of its record."""

import pytest

from fimlora_jobs.allow_lists import Allowed
from fimlora_jobs.reader import JobMissing
from fimlora_service import errors
from fimlora_service.plans.measured_jobs import MeasuredJobs
from support.results import make_result


@pytest.fixture
def counted(store, monkeypatch):
    """How often a whole record is read."""
    reads, plain = [], store.shown
    monkeypatch.setattr(store, "shown", lambda job_id: reads.append(job_id) or plain(job_id))
    return reads


def test_a_record_is_read_once_until_it_changes(store, data_dir, job_id, counted):
    """A slider's questions go by the version; a record that changed is read anew."""
    jobs = MeasuredJobs(store, Allowed())
    store.start(job_id, 1, worker="w")
    with pytest.raises(errors.JobNotFinished):
        jobs.result(job_id)
    store.succeed(job_id, 1, make_result(data_dir))

    found = [jobs.result(job_id) for _ in range(3)]
    assert found[0] is found[1] is found[2]
    assert found[0] == store.shown(job_id).to_job().result
    counted.clear()
    store.redis.hincrby(store.key("job", job_id), "version", 1)
    assert jobs.result(job_id) == found[0]
    assert counted == [job_id]
    store.delete(job_id)
    with pytest.raises(JobMissing):
        jobs.result(job_id)


def test_what_is_too_large_is_not_kept(store, data_dir, job_id, counted):
    """It is read whenever it is asked for."""
    jobs = MeasuredJobs(store, Allowed(), max_bytes=10)
    store.start(job_id, 1, worker="w")
    store.succeed(job_id, 1, make_result(data_dir))

    assert jobs.result(job_id) == jobs.result(job_id)
    assert counted == [job_id, job_id]
