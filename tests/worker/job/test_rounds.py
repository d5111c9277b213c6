"""Jobs that measure until their plan is stable: how many batches, why, and after a loss."""

import itertools
from dataclasses import replace

import pytest

from fimlora import Statistics, allocate, score
from fimlora.confidence.evidence import expected_move
from fimlora.errors import InvalidStatistics
from fimlora_contract.jobs import Job
from fimlora_worker.errors import ShutdownRequested
from fimlora_worker.job import calibration
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.rounds import KeptRounds, begun_or_anew
from fimlora_worker.job.tasks import run_attempt
from fimlora_worker.job.work_folders import progress_folder
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs, write_jsonl
from support.results import make_statistics

LENGTHS = (60, 9, 7, 3, 2, 31)


def rows_of(jobs: Jobs, n: int) -> dict:
    """Rows of uneven length and three classes."""
    rows = [
        {"text": " ".join(f"w{(i * k) % 50}" for k in range(1, LENGTHS[i % 6])), "label": i % 3}
        for i in range(n)
    ]
    write_jsonl(jobs.data_dir / "datasets" / f"rows-{n}.jsonl", rows)
    return {"source": "local", "name": f"rows-{n}.jsonl"}


def submit(jobs: Jobs, n_rows: int = 70, **calibration) -> str:
    calibration = {"batch_size": 2, "n_batches": "auto", "head": "fresh"} | calibration
    allocation = {"r_min": 1, "r_max": 16}  # wide, so that other rows always move a rank
    dataset = rows_of(jobs, n_rows)
    return jobs.submit(
        dataset=dataset, calibration=calibration, allocation=allocation, budget=8
    )


def result_of(jobs: Jobs, job_id: str) -> Job:
    job = jobs.get(job_id).to_job()
    assert job.status == "succeeded", job.error
    return job.result


def statistics_of(jobs: Jobs, job_id: str) -> Statistics:
    digest = result_of(jobs, job_id).digest.replace(":", "-")
    return Statistics.load(jobs.data_dir / "artifacts" / digest / "statistics.safetensors")


@pytest.mark.parametrize(
    ("options", "used", "stopped"),
    [
        ({"tolerance": 0.9}, 4, "stable"),
        ({"tolerance": 1e-9, "max_batches": 6}, 6, "cap"),
        ({"tolerance": 1e-9}, 35, "data"),
    ],
    ids=["stable", "cap", "data"],
)
def test_the_rank_map_says_how_many_batches_and_why(
    jobs: Jobs, run_queue, options, used, stopped
):
    """Four are the first round; what is tolerated, allowed or there ends it."""
    job_id = submit(jobs, **options)
    run_queue()

    rank_map = result_of(jobs, job_id).rank_map
    facts = rank_map.provenance["n_batches_by"]
    assert (facts["used"], facts["stopped"]) == (used, stopped)
    assert rank_map.provenance["n_batches"] == used
    assert rank_map.provenance["n_examples"] == 2 * used
    assert rank_map.provenance["requested_examples"] == 2 * used
    assert sum(rank_map.provenance["label_counts"].values()) == 2 * used
    codes = [warning.code for warning in rank_map.warnings]
    assert ("not_stable" in codes) == (stopped != "stable")


def test_as_many_batches_by_number_are_the_same_plan(jobs: Jobs, run_queue):
    """The rounds are one run; only how their number came about differs."""
    rounds = submit(jobs, tolerance=1e-9, max_batches=12)
    whole = submit(jobs, n_batches=12)
    run_queue()

    found, wanted = (result_of(jobs, id_).rank_map for id_ in (rounds, whole))
    assert [m.rank for m in found.modules] == [m.rank for m in wanted.modules]
    assert [m.score for m in found.modules] == pytest.approx([m.score for m in wanted.modules])
    differ = {
        key
        for key in found.provenance.keys() | wanted.provenance.keys()
        if found.provenance.get(key) != wanted.provenance.get(key)
    }
    assert differ == {"n_batches_by"}


def test_what_is_expected_to_move_is_what_the_last_plan_says(jobs: Jobs, run_queue):
    """By the confidence that stands beside the plan."""
    job_id = submit(jobs, tolerance=1e-9, max_batches=8)
    run_queue()

    rank_map = result_of(jobs, job_id).rank_map
    said = rank_map.provenance["n_batches_by"]["expected_move"]
    assert said == pytest.approx(1 - rank_map.confidence.expected_overlap, abs=1e-4)


def test_streamed_rounds_are_resident_ones(jobs: Jobs, run_queue):
    """Bit for bit, as without rounds."""
    ids = [
        submit(jobs, tolerance=1e-9, max_batches=8, executor=executor)
        for executor in ("resident", "streamed")
    ]
    run_queue()

    resident, streamed = (statistics_of(jobs, id_) for id_ in ids)
    assert resident.to_bytes() == streamed.to_bytes()


def test_all_rounds_have_the_estimator_of_the_first(jobs: Jobs, run_queue):
    """Though rows of other lengths might have been given another one by themselves."""
    job_id = submit(jobs, tolerance=1e-9, batch_size=1, estimator="auto")
    run_queue()

    facts = result_of(jobs, job_id).rank_map.provenance
    assert facts["n_batches_by"]["used"] == 64
    assert facts["estimator_reason"].startswith("auto: at ")


def test_a_lost_attempt_costs_no_round(jobs: Jobs, run_queue, tmp_path):
    """The next one goes on from the batches that are done, to the very same result."""
    options = {"tolerance": 1e-9}
    job_id, again = submit(jobs, **options), submit(jobs, **options)
    process, ticks = process_for(Settings()), itertools.count()

    def batch() -> int:
        return (jobs.get(job_id).json_field("progress") or {}).get("batch") or 0

    reporter = Reporter(
        jobs.store, job_id, 1, is_draining=lambda: batch() == 21, on_alive=lambda: None,
        deadline_s=1e9, clock=lambda: float(next(ticks)),
    )  # fmt: skip
    record = jobs.store.start(job_id, 1, worker="w")
    with pytest.raises(ShutdownRequested):
        calibration.run(record, process, reporter, tmp_path)
    kept = KeptRounds(progress_folder(jobs.data_dir / "tmp", job_id)).newest()
    jobs.store.requeue(job_id, 1)
    assert run_attempt(job_id, 2) == "succeeded"
    run_queue()

    assert kept is not None
    assert kept[1] == 16
    resumed = [e.progress.resumed_from or 0 for e in jobs.store.events(job_id) if e.progress]
    assert max(resumed) in {21, 22, 23}  # what was done when the attempt was told
    assert result_of(jobs, job_id).digest == result_of(jobs, again).digest


def test_kept_rounds_are_the_newest_that_can_be_read(tmp_path):
    """Older ones go; what is damaged is passed over, and all can be forgotten."""
    kept, statistics = KeptRounds(tmp_path / "job"), make_statistics()
    assert kept.newest() is None

    kept.keep(statistics, 4)
    kept.keep(statistics, 8)

    assert [path.name for path in (tmp_path / "job").iterdir()] == ["rounds.8.safetensors"]
    (tmp_path / "job" / "rounds.16.safetensors").write_bytes(b"cut off")
    found = kept.newest()
    assert found is not None
    assert (found[0].to_bytes(), found[1]) == (statistics.to_bytes(), 8)
    kept.forget()
    assert list((tmp_path / "job").iterdir()) == []


def test_a_round_that_cannot_be_saved_ends_nothing(tmp_path):
    """As where a disk is full: here, a file stands where the folder is to be."""
    (tmp_path / "job").write_text("in the way")

    KeptRounds(tmp_path / "job").keep(make_statistics(), 4)

    assert (tmp_path / "job").read_text() == "in the way"


def test_what_was_kept_and_does_not_fit_is_measured_anew_and_nothing_else(tmp_path):
    """Without it a second try would end as the first one did."""
    kept, tries = KeptRounds(tmp_path / "job"), []

    def refuse(begun):
        tries.append(begun and begun[1])
        raise InvalidStatistics("statistics differ in dtype")

    with pytest.raises(InvalidStatistics, match="dtype"):
        begun_or_anew(kept, refuse)
    assert tries == [None]
    kept.keep(make_statistics(), 4)
    with pytest.raises(InvalidStatistics, match="dtype"):
        begun_or_anew(kept, refuse)
    assert tries == [None, 4, None]
    assert kept.newest() is None


def test_one_example_is_never_stable():
    """It shows no difference; whatever its plan is, more are to be measured."""
    statistics = replace(make_statistics(), n_examples=1)

    assert expected_move(statistics, allocate(score(statistics), 8)) == 1
