"""Committing a result once, whoever else commits it at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora_contract.digests import digest_bytes, digest_of
from fimlora_worker.artifacts import commit, describe, sweep_work_folders, work_folder
from support.jobs import Jobs


def write_result(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "rank_map.svg").write_text("<svg/>")
    return folder


def test_racing_committers_make_one_folder(tmp_path):
    """Eight attempts with the same result: all get the same address, all succeed."""
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    folders = [write_result(tmp_path / f"attempt{n}") for n in range(8)]

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda f: commit(f, artifacts, describe(f)), folders))

    expected = digest_of({
        "adapter_config.json": digest_bytes(b"{}"), "rank_map.svg": digest_bytes(b"<svg/>")
    })  # fmt: skip
    assert set(digests) == {expected}
    [committed] = artifacts.iterdir()
    assert committed.name == expected.replace(":", "-")
    assert (committed / "adapter_config.json").read_text() == "{}"


def test_files_are_described_by_content_and_kind(tmp_path):
    """What a client needs to check a download."""
    described = describe(write_result(tmp_path / "f"))

    assert described == [
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
    with work_folder(tmp_path, "job_1", 1) as folder:
        result = write_result(folder / "adapter")
        with pytest.raises(FileNotFoundError):
            commit(result, tmp_path / "missing", describe(result))

    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_dead_attempts_are_swept(jobs: Jobs, tmp_path):
    """A running attempt keeps its folder; overtaken, ended and unknown ones lose theirs."""
    running, ended = jobs.submit(), jobs.submit()
    jobs.store.start(running, 1, worker="w")
    jobs.store.request_cancel(ended)
    for name in (f"{running}-1.aa", f"{running}-2.bb", f"{ended}-1.cc", "job_x-1.dd", "empty"):
        (tmp_path / name).mkdir(exist_ok=True)

    sweep_work_folders(tmp_path, jobs.store)

    assert {f.name for f in tmp_path.iterdir() if f.name != "data"} == {
        f"{running}-1.aa",
        "empty",
    }
