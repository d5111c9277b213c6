"""Disks that are full or take nothing: jobs wait for them, say so, and lose no attempt."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from fimlora_jobs.results.store import StorageUnavailable
from fimlora_worker.job.failures import describe_away, is_storage_away
from fimlora_worker.job.storage import until_allowed, wait_for_storage
from support.jobs import Jobs
from support.refused_storage import once_it_waits
from support.small_disk import SmallDisk, small_disk

SMALL = {"n_batches": 1, "batch_size": 2}


@pytest.fixture
def disk(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[SmallDisk]:
    """What attempts work on, or what results are kept on."""
    with small_disk(data_dir / request.param) as mounted:
        yield mounted


@pytest.mark.parametrize(
    ("disk", "refuse"),
    [("tmp", SmallDisk.fill), ("artifacts", SmallDisk.forbid)],
    indirect=["disk"],
    ids=["work folders, full", "results, read-only"],
)
def test_a_job_waits_for_a_disk_and_goes_on(
    disk: SmallDisk, jobs: Jobs, run_queue, monkeypatch, refuse: Callable[[SmallDisk], None]
):
    """No attempt counts, and its progress and its events say what it waits for."""
    monkeypatch.setenv("FIMLORA_STORAGE_PATIENCE_S", "0")
    refuse(disk)
    job_id = jobs.submit(calibration=SMALL)
    with once_it_waits(jobs, job_id, disk.put_right):
        run_queue()

    record, events = jobs.get(job_id), jobs.store.events(job_id)
    waits = {event.progress.waiting_for for event in events if event.progress} - {None}
    ends = {(ended.reason, ended.counted) for ended in record.earlier_attempts}
    assert (record.status, record.failures) == ("succeeded", 0), record.fields
    assert record.attempt > 1
    assert len(waits) == 1
    assert "disk" in waits.pop()
    assert ends == {("storage_unavailable", False)}


def test_a_job_that_alone_is_refused_fails_in_the_end(data_dir: Path, jobs: Jobs, run_queue):
    """Where the storage works at every look, it is not what the job waits for."""
    folder = data_dir / "datasets" / "broken"
    folder.mkdir()
    (folder / "rows.jsonl").symlink_to("/proc/self/mem")  # it is there, and fails to be read
    dataset = {"source": "local", "name": "broken"}
    job_id = jobs.submit(dataset=dataset, calibration=SMALL)
    # Three times it has been refused already.
    jobs.redis.hset(jobs.store.key("job", job_id), "storage_refusals", 3)

    run_queue(max_jobs=3)

    record = jobs.get(job_id)
    error = record.json_field("error")
    assert (record.status, record.attempt, record.failures) == ("failed", 2, 0), error
    assert (error["code"], error["retryable"]) == ("storage_unavailable", True)
    assert "Input/output error" in error["detail"]
    assert str(data_dir) not in error["detail"]


@pytest.mark.parametrize("disk", ["tmp"], indirect=True)
def test_a_wait_ends_with_the_jobs_deadline(disk: SmallDisk, jobs: Jobs, run_queue):
    """The disk may never come back; whoever asked has said for how long that matters."""
    disk.forbid()
    job_id = jobs.submit(calibration=SMALL, deadline_s=4)

    run_queue()
    disk.put_right()

    error = jobs.get(job_id).json_field("error")
    assert error["code"] == "timeout"


@pytest.mark.parametrize("disk", ["tmp"], indirect=True)
def test_a_job_that_waits_can_be_canceled(disk: SmallDisk, jobs: Jobs, run_queue):
    """Between two looks at the disk."""
    disk.forbid()
    job_id = jobs.submit(calibration=SMALL)
    with once_it_waits(jobs, job_id, lambda: jobs.store.request_cancel(job_id)):
        run_queue()
    disk.put_right()

    record = jobs.get(job_id)
    assert (record.status, record.failures) == ("canceled", 0)


def raised(error: Exception, *, cause: BaseException | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/srv/data/x"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "not permitted"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (raised(ValueError("x"), cause=OSError(errno.EROFS, "x")), "Read-only file system"),
        (StorageUnavailable("the artefact storage fails: Timeout"), "artefact storage fails"),
    ],
)
def test_what_storage_refuses_is_told_without_a_path(error, reason):
    """Whatever library it came through."""
    told = describe_away(error, data_dir=Path("/srv/data"))

    assert is_storage_away(error)
    assert reason in told
    assert "/srv" not in told


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("(os error 2)"),
        raised(httpx2.ConnectError("x"), cause=PermissionError(errno.EPERM, "x")),
        ValueError("x"),
    ],
)
def test_other_errors_are_no_matter_of_storage(error):
    """Nor is a network that lets nobody out."""
    assert not is_storage_away(error)


def test_each_wait_is_longer_than_the_one_before():
    """Up to a quarter of a minute, so that a job that storage refuses does not spin."""

    def waited(n_before: int) -> float:
        slept: list[float] = []
        wait_for_storage(
            n_before=n_before, is_usable=lambda: True, on_wait=lambda: None, sleep=slept.append
        )
        return sum(slept)

    assert [waited(n) for n in (0, 1, 3, 4, 100)] == [1, 2, 8, 15, 15]


def test_a_wait_lasts_until_storage_is_usable():
    """And not for ever: another worker may have better luck."""
    answers, slept = iter([False] * 30 + [True]), []
    wait_for_storage(
        n_before=0, is_usable=lambda: next(answers), on_wait=lambda: None, sleep=slept.append
    )
    stuck: list[float] = []
    wait_for_storage(
        n_before=0, is_usable=lambda: False, on_wait=lambda: None, sleep=stuck.append
    )

    assert sum(slept) == 16
    assert sum(stuck) == 600


def test_a_start_waits_for_the_disk():
    """A worker that is started on a full disk does not die of it."""
    faults = iter([OSError(errno.ENOSPC, "x"), OSError(errno.EROFS, "x")])

    def step() -> str:
        for fault in faults:
            raise fault
        return "done"

    assert until_allowed(step, sleep=lambda _: None) == "done"
    with pytest.raises(FileNotFoundError):
        until_allowed(lambda: Path("/nonexistent/x").read_text())
