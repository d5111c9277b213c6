"""Local folders and object stores keep results by the same rules."""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fsspec.core import url_to_fs

from fimlora_contract.digests import digest_bytes, digest_of
from fimlora_jobs.results.local import LocalArtifacts
from fimlora_jobs.results.local_copies import LocalCopies
from fimlora_jobs.results.object_store import ObjectArtifacts, open_artifacts
from fimlora_jobs.results.store import (
    MANIFEST,
    ArtifactStore,
    ResultMissing,
    StorageUnavailable,
    describe,
)
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultUsage
from fimlora_jobs.store import JobStore
from support.s3 import S3Server

FILES = {"adapter_config.json": b'{"r": 8}', "rank_map.svg": b"<svg/>", "w.bin": b"\0" * 3000}
DIGEST = digest_of({name: digest_bytes(content) for name, content in FILES.items()})


def write_result(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def commit(artifacts: ArtifactStore, folder: Path, files: dict[str, bytes] = FILES) -> str:
    written = write_result(folder, files)
    return artifacts.commit(written, describe(written))


@pytest.fixture(params=["folder", "file-url", "other-file-system", "memory", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    """An empty store of every kind."""
    elsewhere = Path(f"/dev/shm/fimlora-{uuid4().hex}")
    urls = {
        "folder": "",
        "file-url": f"file://{tmp_path}/elsewhere/results",
        "other-file-system": f"file://{elsewhere}",
        "memory": f"memory://{uuid4().hex}/results",
    }
    url = urls.get(request.param) or (
        request.getfixturevalue("s3").url if request.param == "s3" else ""
    )
    yield open_artifacts(url, data_dir=tmp_path / "data")
    shutil.rmtree(elsewhere, ignore_errors=True)


@pytest.fixture
def remote(s3: S3Server, tmp_path: Path) -> ObjectArtifacts:
    """An empty store in a bucket."""
    opened = open_artifacts(s3.url, data_dir=tmp_path / "data")
    assert isinstance(opened, ObjectArtifacts)
    return opened


def test_a_committed_result_is_read_back(artifacts, tmp_path):
    """Every way of reading gives the bytes that were committed, under their digest."""
    digest = commit(artifacts, tmp_path / "work")

    assert digest == DIGEST
    assert artifacts.exists(digest)
    for name, content in FILES.items():
        stored = artifacts.stat(digest, name)
        assert (stored.size, stored.digest) == (len(content), digest_bytes(content))
        assert artifacts.exists(digest, name)
        assert artifacts.local(digest, name).read_bytes() == content
        with artifacts.open(digest, name) as file:
            assert file.read(5) + file.read() == content
    [listed] = artifacts.list()
    assert listed.digest == digest
    assert listed.sizes.keys() == {*FILES, MANIFEST}
    assert listed.sizes["w.bin"] == 3000
    assert listed.changed_ms > 1_700_000_000_000
    artifacts.check()


def test_racing_committers_make_one_result(artifacts, tmp_path):
    """Eight attempts with the same result: all get the same address, all succeed."""
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda n: commit(artifacts, tmp_path / f"work{n}"), range(8)))

    assert set(digests) == {DIGEST}
    assert [result.digest for result in artifacts.list()] == [DIGEST]
    assert artifacts.local(DIGEST, "w.bin").read_bytes() == FILES["w.bin"]


def test_what_is_not_there_is_missing(artifacts, tmp_path):
    """An unknown digest and an unknown name are told apart from a storage that is away."""
    commit(artifacts, tmp_path / "work")
    other = "sha256:" + "0" * 64

    assert not artifacts.exists(other)
    assert not artifacts.exists(DIGEST, "other.bin")
    for digest, name in ((other, "w.bin"), (DIGEST, "other.bin")):
        for read in (artifacts.open, artifacts.local, artifacts.stat):
            with pytest.raises(ResultMissing):
                read(digest, name)


def test_a_deleted_result_is_gone_and_can_be_committed_again(artifacts, tmp_path):
    """Only that result goes; deleting it twice changes nothing."""
    digest = commit(artifacts, tmp_path / "work")
    other = commit(artifacts, tmp_path / "other", {"w.bin": b"1"})
    kept = artifacts.local(digest, "w.bin")

    artifacts.delete(digest)
    artifacts.delete(digest)

    assert not artifacts.exists(digest)
    assert [result.digest for result in artifacts.list()] == [other]
    with pytest.raises(ResultMissing):
        artifacts.open(digest, "w.bin")
    with pytest.raises(ResultMissing):
        artifacts.local(digest, "w.bin")
    assert commit(artifacts, tmp_path / "again") == digest
    assert artifacts.local(digest, "w.bin").read_bytes() == FILES["w.bin"]
    assert kept.exists()


def test_an_open_local_file_is_read_to_its_end(tmp_path):
    """Deleting a result does not cut off who is reading it."""
    artifacts = open_artifacts("", data_dir=tmp_path / "data")
    digest = commit(artifacts, tmp_path / "work")

    with artifacts.open(digest, "w.bin") as file:
        artifacts.delete(digest)
        assert file.read() == FILES["w.bin"]


def test_a_commit_that_fails_half_way_leaves_nothing_to_find(remote, tmp_path, s3):
    """Without a manifest there is no result, however many of its files were put."""
    folder = write_result(tmp_path / "work")
    described = describe(folder)
    (folder / "w.bin").unlink()

    with pytest.raises(ResultMissing):
        remote.commit(folder, described)

    assert list(s3.objects.rglob("adapter_config.json"))
    assert not remote.exists(DIGEST)
    assert list(remote.list()) == []
    assert commit(remote, tmp_path / "again") == DIGEST
    assert remote.exists(DIGEST)


def test_what_was_never_finished_is_swept(artifacts, tmp_path):
    """Old files without a manifest go; new ones may belong to a commit under way."""
    digest = commit(artifacts, tmp_path / "work")
    [listed] = artifacts.list()
    if isinstance(artifacts, LocalArtifacts):
        left = write_result(artifacts.root / ".incoming-x")
        is_left = left.exists
    else:
        key = f"{artifacts.root}/sha256-{'0' * 64}/w.bin"
        artifacts.files.pipe_file(key, b"1")

        def is_left():
            return artifacts.files.exists(key)

    artifacts.remove_leftovers(before_ms=listed.changed_ms - 60_000, may_delete=lambda _: True)
    assert is_left()
    artifacts.remove_leftovers(before_ms=listed.changed_ms + 60_000, may_delete=lambda _: True)

    assert not is_left()
    assert artifacts.local(digest, "w.bin").read_bytes() == FILES["w.bin"]


def test_a_commit_that_began_again_is_no_leftover(remote, tmp_path, redis_client):
    """What an attempt left long ago is kept from the moment that another commits the same."""
    usage = ResultUsage(JobStore(redis_client))
    tracked = TrackedArtifacts(remote, usage)
    key = f"{remote.root}/{DIGEST.replace(':', '-')}/w.bin"
    remote.files.pipe_file(key, FILES["w.bin"])
    far = 2**53

    tracked.remove_leftovers(before_ms=far, may_delete=usage.revive)

    assert remote.files.exists(key)
    tracked.remove_leftovers(before_ms=far)
    assert not remote.files.exists(key)
    assert commit(tracked, tmp_path / "work") == DIGEST
    assert tracked.exists(DIGEST, "w.bin")


def test_objects_lie_under_their_digest(remote, tmp_path, s3):
    """Other tools find the files where the address says."""
    commit(remote, tmp_path / "work")

    folder = s3.objects / DIGEST.replace(":", "-")
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST}
    assert json.loads((folder / MANIFEST).read_bytes())["digest"] == DIGEST


def test_a_storage_that_is_away_is_said_to_be(remote, tmp_path, s3):
    """Every method says so at once; when it is back all goes on, nothing was lost."""
    digest = commit(remote, tmp_path / "work")
    folder = write_result(tmp_path / "other", {"w.bin": b"1"})
    s3.stop()

    for use in (
        remote.check,
        lambda: list(remote.list()),
        lambda: remote.exists(digest),
        lambda: remote.open(digest, "w.bin"),
        lambda: remote.commit(folder, describe(folder)),
        lambda: remote.delete(digest),
    ):
        with pytest.raises(StorageUnavailable, match="the artefact storage fails"):
            use()

    s3.start()
    assert remote.exists(digest)
    assert remote.commit(folder, describe(folder))


def test_wrong_keys_are_no_missing_result(s3, tmp_path, monkeypatch):
    """Who may not read must not conclude that a result is gone."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    options: dict[str, Any] = {"skip_instance_cache": True}
    artifacts = open_artifacts(
        s3.url, data_dir=tmp_path, connect=lambda url, **more: url_to_fs(url, **more, **options)
    )

    with pytest.raises(StorageUnavailable):
        artifacts.exists(DIGEST)


def test_repeated_reads_fetch_once(remote, tmp_path, s3):
    """The copy is found by content; one that was damaged on the way is refused."""
    digest = commit(remote, tmp_path / "work")
    first = remote.local(digest, "w.bin")
    [object_] = s3.objects.rglob("w.bin")
    object_.write_bytes(b"x" * 3000)

    assert remote.local(digest, "w.bin") == first
    assert first.read_bytes() == FILES["w.bin"]
    first.unlink()
    with pytest.raises(StorageUnavailable, match="ValueError"):
        remote.local(digest, "w.bin")


def test_copies_are_dropped_oldest_first(tmp_path):
    """The limit holds, and what was used of late stays."""
    copies = LocalCopies(tmp_path / "copies", limit_bytes=25)
    contents = [bytes([65 + n]) * 10 for n in range(3)]
    digests = [digest_bytes(content) for content in contents]
    for n in (0, 1):
        path = copies.get(digests[n], lambda to, n=n: to.write_bytes(contents[n]))
        os.utime(path, (n, n))
    copies.get(digests[0], lambda to: pytest.fail("it is there"))

    copies.get(digests[2], lambda to: to.write_bytes(contents[2]))

    kept = {path.read_bytes() for path in (tmp_path / "copies").iterdir()}
    assert kept == {contents[0], contents[2]}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bucket/prefix", "must be <scheme>://"),
        ("nosuch://bucket", "nosuch://"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url, says, tmp_path):
    """The operator is told what is wrong when the process starts."""
    with pytest.raises(ValueError, match=says):
        open_artifacts(url, data_dir=tmp_path)


def test_a_library_that_is_not_installed_is_named(tmp_path):
    """The sentence says which extra brings it."""

    def connect(url: str, **options: Any) -> tuple[Any, str]:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(ValueError, match=r"fimlora\[s3\]"):
        open_artifacts("s3://bucket", data_dir=tmp_path, connect=connect)


def test_a_bucket_that_does_not_exist_is_said_to_be_missing(s3, tmp_path):
    """Readiness names it before a job has been measured in vain, and so does the job."""
    url = s3.url.replace("results", "no-such-bucket", 1)
    artifacts = open_artifacts(url, data_dir=tmp_path / "data")

    with pytest.raises(StorageUnavailable, match="no such bucket"):
        artifacts.check()
    with pytest.raises(StorageUnavailable, match="no such bucket"):
        commit(artifacts, tmp_path / "work")
    assert not (s3.folder / "no-such-bucket").exists()


def test_a_store_that_is_ready_has_no_result(artifacts):
    """Looking whether a store can be written leaves nothing that is taken for a result."""
    artifacts.check()
    artifacts.check()

    artifacts.remove_leftovers(before_ms=1 << 60, may_delete=lambda digest: True)
    artifacts.check()
    assert list(artifacts.list()) == []


def test_a_folder_that_cannot_be_written_is_said_to_be(tmp_path):
    """Readiness names the reason."""
    artifacts = open_artifacts("", data_dir=tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "artifacts")

    with pytest.raises(StorageUnavailable, match="No such file"):
        artifacts.check()


def test_results_from_before_manifests_are_described(tmp_path):
    """A folder without a manifest is complete all the same: it was renamed once."""
    artifacts = open_artifacts("", data_dir=tmp_path / "data")
    digest = commit(artifacts, tmp_path / "work")
    artifacts.local(digest, MANIFEST).unlink()

    assert artifacts.stat(digest, "w.bin").digest == digest_bytes(FILES["w.bin"])
