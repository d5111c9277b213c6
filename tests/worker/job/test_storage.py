"""Jobs whose results go to a bucket."""

import pytest

from fimlora_jobs.results.object_store import open_artifacts
from support.jobs import LABELLED, Jobs, write_jsonl
from support.refused_storage import once_it_waits
from support.s3 import S3Server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch):
    monkeypatch.setenv("FIMLORA_ARTIFACTS_URL", s3.url)
    monkeypatch.setenv("FIMLORA_STORAGE_PATIENCE_S", "0")
    return s3


def test_results_and_statistics_go_through_the_bucket(jobs: Jobs, run_queue, bucket):
    """What one job has measured another finds there; nothing lies in the data folder."""
    write_jsonl(jobs.data_dir / "datasets" / "rows.jsonl", LABELLED)
    data = {"source": "local", "name": "rows.jsonl"}
    first = jobs.submit(dataset=data)
    run_queue()
    second = jobs.submit(dataset=data, budget=8, statistics_from=first)
    run_queue()

    results = [jobs.get(job_id).json_field("result") for job_id in (first, second)]
    artifacts = open_artifacts(bucket.url, data_dir=jobs.data_dir)
    assert {r.digest for r in artifacts.list()} == {r["digest"] for r in results}
    statistics = {artifacts.stat(r["digest"], "statistics.safetensors").digest for r in results}
    assert len(statistics) == 1
    assert jobs.get(second).fields["statistics_from"] == first
    assert not (jobs.data_dir / "artifacts").exists()


def test_a_job_waits_for_a_bucket_that_is_away(jobs: Jobs, run_queue, bucket):
    """However often it has to try, no attempt counts, and the job says what it waits for."""
    bucket.stop()
    job_id = jobs.submit(calibration={"n_batches": 1, "batch_size": 2})
    with once_it_waits(jobs, job_id, bucket.start):
        run_queue()

    record = jobs.get(job_id)
    assert (record.status, record.failures) == ("succeeded", 0)
    assert record.attempt > 1
    for ended in record.earlier_attempts:
        assert (ended.reason, ended.counted) == ("storage_unavailable", False)
        assert "storage fails" in (ended.detail or "")
