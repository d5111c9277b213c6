"""Work folders, and commits that outlast a storage that is away for a moment."""

import pytest

from fimlora_contract.digests import digest_bytes
from fimlora_jobs.results.local import LocalArtifacts
from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.store import StorageUnavailable, describe
from fimlora_jobs.runs import Runs
from fimlora_worker.job.commit import commit_patiently
from fimlora_worker.job.work_folders import (
    remove_dead_folders,
    work_folder,
)
from support.jobs import Jobs


def write_result(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "rank_map.svg").write_text("<svg/>")
    return folder


def test_files_are_described_by_content_and_kind(tmp_path):
    """What a client needs to check a download."""
    described = describe(write_result(tmp_path / "f"))

    assert [file.model_dump() for file in described] == [
        {
            "name": "adapter_config.json",
            "digest": digest_bytes(b"{}"),
            "size": 2,
            "media_type": "application/json",
        },
        {
            "name": "rank_map.svg",
            "digest": digest_bytes(b"<svg/>"),
            "size": 6,
            "media_type": "image/svg+xml",
        },
    ]


def test_a_commit_that_fails_leaves_nothing(tmp_path):
    """A missing target is an error of the job; the work folder still goes."""
    missing = LocalArtifacts(tmp_path / "missing")
    with work_folder(tmp_path, "job_1-1") as folder:
        result = write_result(folder / "adapter")
        with pytest.raises(FileNotFoundError):
            commit_patiently(
                missing, result, describe(result), patience_s=0, before_each=lambda: None
            )

    assert list(tmp_path.iterdir()) == []


def test_a_commit_waits_for_a_storage_that_comes_back(tmp_path, s3):
    """It is tried again after growing waits, and only then is the attempt given up."""
    artifacts = open_artifacts(s3.url, data_dir=tmp_path)
    result = write_result(tmp_path / "adapter")
    s3.stop()
    tries, waits = [], []

    def sleep(wait_s):
        waits.append(wait_s)
        if len(waits) == 2:
            s3.start()

    digest = commit_patiently(
        artifacts,
        result,
        describe(result),
        patience_s=10,
        before_each=lambda: tries.append(1),
        sleep=sleep,
    )

    assert artifacts.exists(digest)
    assert (len(tries), waits) == (3, [1.0, 3.0])
    s3.stop()
    other = write_result(tmp_path / "other")
    with pytest.raises(StorageUnavailable):
        commit_patiently(
            artifacts, other, describe(other), patience_s=0, before_each=lambda: None
        )


def test_only_folders_of_dead_attempts_are_removed(jobs: Jobs, tmp_path):
    """Who runs or holds a run keeps its folder; overtaken, ended and unknown ones lose theirs."""
    running, ended = jobs.submit(), jobs.submit()
    jobs.store.start(running, 1, worker="w")
    jobs.store.request_cancel(ended)
    hands = [f"{running}-hand_1.ee", f"{running}-hand_2.ff"]
    Runs(jobs.store, running).claim(["a"], holder=f"{running}-hand_1")
    attempts = (f"{running}-1.aa", f"{running}-2.bb", f"{ended}-1.cc", "job_x-1.dd", "empty")
    for name in (*attempts, *hands):
        (tmp_path / name).mkdir(exist_ok=True)

    remove_dead_folders(tmp_path, jobs.store)

    assert {f.name for f in tmp_path.iterdir() if f.name != "data"} == {
        f"{running}-1.aa",
        hands[0],
        "empty",
    }
