"""Which file an attempt goes on from, and what becomes of the files."""

from pathlib import Path
from typing import Any

import pytest

from fimlora import ProgressFile
from fimlora.errors import InvalidProgress
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.work_folders import (
    progress_folder,
    remove_ended_progress,
    remove_progress,
)
from support.jobs import Jobs

JOB = "job_1"


def attempt(tmp_path: Path, number: int) -> MeasurementProgress:
    return MeasurementProgress(
        progress_folder(tmp_path, JOB), number, "sha256:1", lambda done, n: None
    )


def content_seen_by(saved: MeasurementProgress, way: str = "resident") -> Any:
    """What the file holds that an attempt goes on from."""

    def measure(file: ProgressFile) -> Any:
        return Path(file.path).read_text() if Path(file.path).exists() else None

    return saved.go_on(way, measure)


def save(saved: MeasurementProgress, content: str, way: str = "resident") -> None:
    saved.go_on(way, lambda file: Path(file.path).write_text(content))  # type: ignore[arg-type, return-value]


def test_an_attempt_goes_on_from_the_one_before(tmp_path):
    """From the newest that has saved anything, measured the same way."""
    save(attempt(tmp_path, 1), "first")
    save(attempt(tmp_path, 1), "streamed", "streamed")

    assert content_seen_by(attempt(tmp_path, 4)) == "first"
    save(attempt(tmp_path, 4), "fourth")
    assert content_seen_by(attempt(tmp_path, 5)) == "fourth"
    assert content_seen_by(attempt(tmp_path, 5), "streamed") == "streamed"


def test_what_a_superseded_attempt_still_writes_is_not_read(tmp_path):
    """It has lost its file, and writes another that no attempt after the next looks at first."""
    zombie, heir = attempt(tmp_path, 1), attempt(tmp_path, 2)
    save(zombie, "old")
    assert content_seen_by(heir) == "old"

    save(zombie, "late")

    assert content_seen_by(heir) == "old"
    assert content_seen_by(attempt(tmp_path, 3)) == "old"


def test_half_written_files_of_earlier_attempts_are_removed(tmp_path):
    """They can be as large as the sums; one's own may be at work."""
    save(attempt(tmp_path, 1), "sums")
    folder = progress_folder(tmp_path, JOB)
    for name in (".1.resident.abc", ".2.resident.def"):
        (folder / name).touch()

    content_seen_by(attempt(tmp_path, 2))

    assert {path.name for path in folder.iterdir()} == {"2.resident", ".2.resident.def"}


def test_a_file_that_is_refused_is_removed_and_the_job_measured_anew(tmp_path, caplog):
    """It never fails the job; the log says why."""
    save(attempt(tmp_path, 1), "other")
    seen = []

    def measure(file: ProgressFile) -> Any:
        seen.append(Path(file.path).exists())
        if seen[-1]:
            raise InvalidProgress("cannot go on from it: its rank is 8, this run's is 4")
        return "anew"

    assert attempt(tmp_path, 2).go_on("resident", measure) == "anew"  # type: ignore[comparison-overlap]
    assert seen == [True, False]
    [refused] = [record for record in caplog.records if record.msg == "progress.refused"]
    assert "its rank is 8, this run's is 4" in vars(refused)["error"]


def test_only_progress_of_jobs_that_may_go_on_is_kept(jobs: Jobs, tmp_path):
    """A queued and a running job keep theirs; ended and unknown ones lose them."""
    queued, running, ended = jobs.submit(), jobs.submit(), jobs.submit()
    jobs.store.start(running, 1, worker="w")
    jobs.store.request_cancel(ended)
    for job_id in (queued, running, ended, "job_x"):
        progress_folder(tmp_path, job_id).mkdir()

    remove_ended_progress(tmp_path, jobs.store)

    left = {path.name for path in tmp_path.glob("job_*")}
    assert left == {progress_folder(tmp_path, job_id).name for job_id in (queued, running)}


def test_removing_twice_is_no_error(tmp_path):
    """The attempt and the parent process may both do it."""
    save(attempt(tmp_path, 1), "sums")

    remove_progress(tmp_path, JOB)
    remove_progress(tmp_path, JOB)

    assert not progress_folder(tmp_path, JOB).exists()


@pytest.mark.parametrize("name", ["job_1-1.abcd", "empty"])
def test_other_folders_are_left_alone(name, jobs: Jobs, tmp_path):
    """Work folders are removed by another rule."""
    (tmp_path / name).mkdir()

    remove_ended_progress(tmp_path, jobs.store)

    assert (tmp_path / name).exists()
