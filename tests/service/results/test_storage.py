"""The same routes over a bucket: what is read, and what is said when the bucket is away."""

from pathlib import Path

import pytest

from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.store import describe
from fimlora_service.settings import Settings
from support.results import make_result


@pytest.fixture
def settings(settings: Settings, s3) -> Settings:
    return settings.model_copy(update={"artifacts_url": s3.url})


@pytest.fixture
def result(store, job_id, data_dir: Path, settings):
    """The result of a finished job, in the bucket and nowhere else."""
    made = make_result(data_dir)
    folder = data_dir / "artifacts" / made["digest"].replace(":", "-")
    artifacts = open_artifacts(settings.artifacts_url, data_dir=data_dir)
    assert artifacts.commit(folder, describe(folder)) == made["digest"]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    store.start(job_id, 1, worker="test")
    store.succeed(job_id, 1, made)
    return made


def test_artefacts_come_from_the_bucket(http, job_id, result):
    """Whole, with their digests as tags; a client that has them is told so."""
    for artifact in result["artifacts"]:
        url = f"/jobs/{job_id}/artifacts/{artifact['name']}"
        answer = http.get(url, headers={"Range": "bytes=0-3"})

        assert answer.status_code == 200
        assert answer.headers["ETag"] == f'"{artifact["digest"]}"'
        assert len(answer.content) == artifact["size"]
        again = http.get(url, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_plans_and_patterns_come_from_the_bucket(http, job_id, result, body):
    """Re-planning, look-ups by content, pins and the cache read through the same storage."""
    assert http.post(f"/jobs/{job_id}/allocate", json={"budget": 4}).status_code == 200
    pattern = http.get(f"/rank-patterns/{result['digest']}")
    assert pattern.json()["adapter_config"] == result["adapter_config"]
    pin = http.put("/rank-patterns/a/b", json={"digest": result["digest"]})
    assert pin.status_code == 201
    assert http.post("/calibrate", json=body).json()["cached"] is True


def test_a_bucket_that_is_away_is_503(http, job_id, result, s3):
    """Readers may come again; nothing is said to be gone."""
    s3.stop()

    answers = [
        http.get(f"/jobs/{job_id}/artifacts/rank_map.json"),
        http.get(f"/rank-patterns/{result['digest']}"),
        http.post(f"/jobs/{job_id}/allocate", json={"budget": 4}),
    ]

    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    ready = http.get("/readyz")
    assert ready.status_code == 503
    assert "storage fails" in ready.json()["checks"]["artifacts"]
    s3.start()
    assert http.get(f"/jobs/{job_id}/artifacts/rank_map.json").status_code == 200
