"""Jobs with rows to retain: both datasets under one head, refused by name, resumed, reused."""

import itertools

import pytest

from fimlora import Statistics, score
from fimlora_contract.jobs import Job, JobKind
from fimlora_worker.errors import ShutdownRequested
from fimlora_worker.job import calibration
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.tasks import run_attempt
from fimlora_worker.job.work_folders import progress_folder
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs, write_jsonl
from support.statistics import assert_identical

LENGTHS = (60, 9, 7, 3, 2, 31)


def rows(n, *, step=1, **more):
    return [
        {
            "text": " ".join(f"w{(i * step * k) % 50}" for k in range(1, LENGTHS[i % 6])),
            "label": i % 3,
        }
        | more
        for i in range(n)
    ]


def inline(*args, **options):
    return {"source": "inline", "rows": rows(*args, **options)}


def submit(jobs: Jobs, *, retain=None, method="vila", head="fitted", **request) -> str:
    calibration = {"batch_size": 2, "n_batches": 5, "head": head, "head_rows": 16}
    return jobs.submit(
        dataset=request.pop("dataset", inline(40)),
        retain=retain,
        calibration=calibration | request.pop("calibration", {}),
        allocation={"method": method, "r_min": 1, "r_max": 16},
        budget=8,
        **request,
    )


def result_of(jobs: Jobs, job_id: str) -> Job:
    job = jobs.get(job_id).to_job()
    assert job.status == "succeeded", job.error
    return job.result


def statistics_of(jobs: Jobs, job_id: str) -> Statistics:
    digest = result_of(jobs, job_id).digest.replace(":", "-")
    return Statistics.load(jobs.data_dir / "artifacts" / digest / "statistics.safetensors")


def error_of(jobs: Jobs, job_id: str) -> str:
    job = jobs.get(job_id).to_job()
    assert job.status == "failed"
    assert job.error.code == "dataset_schema"
    assert not any(e.progress and e.progress.n_batches for e in jobs.store.events(job_id))
    return job.error.detail


def test_both_are_measured_under_the_head_of_the_dataset(jobs: Jobs, run_queue):
    """As in a calibration of the dataset alone; the plan goes by both, and shows both."""
    both = submit(jobs, retain=inline(30, step=7))
    alone = submit(jobs, method="fim")
    run_queue()

    found, dataset = (statistics_of(jobs, id_) for id_ in (both, alone))
    assert found.head["kind"] == "fitted"
    assert found.retain.n_batches == 5
    kept = found.retain
    assert_identical(
        found.with_parts({n: p for n, p in found.parts.items() if p is not kept}), dataset
    )
    assert [half.n_batches for half in kept.halves] == [3, 2]
    rank_map = result_of(jobs, both).rank_map
    wanted = score(found, "vila")
    assert {m.name: m.score for m in rank_map.modules} == wanted.by_module
    maps = rank_map.provenance["contrast"]
    assert maps["target"].keys() == maps["retain"].keys() == wanted.by_module.keys()
    assert rank_map.provenance["retain"]["source"] == "inline"
    assert rank_map.provenance["retained"] == {"n_examples": 10, "n_batches": 5}
    assert rank_map.signal.verdict in {"none", "weak", "task"}
    codes = {warning.code for warning in rank_map.warnings}
    assert rank_map.confidence is None
    assert codes


def test_columns_may_go_by_other_names(jobs: Jobs, run_queue):
    """What they carry is the same."""
    renamed = [{"review": row["text"], "stars": row["label"]} for row in rows(30, step=7)]
    columns = {"text": "review", "label": "stars"}
    named = {"source": "inline", "rows": renamed, "columns": columns}
    ids = [submit(jobs, retain=retain) for retain in (named, inline(30, step=7))]
    run_queue()

    one, other = (statistics_of(jobs, id_) for id_ in ids)
    assert one.to_bytes() == other.to_bytes()


def test_streamed_is_resident(jobs: Jobs, run_queue):
    """Bit for bit, both datasets."""
    ids = [
        submit(jobs, retain=inline(30, step=7), calibration={"executor": executor})
        for executor in ("resident", "streamed")
    ]
    run_queue()

    resident, streamed = (statistics_of(jobs, id_) for id_ in ids)
    assert resident.to_bytes() == streamed.to_bytes()


def test_progress_goes_over_both(jobs: Jobs, run_queue):
    """From the first batch of the one to the last of the other."""
    job_id = submit(jobs, retain=inline(7, step=7), head="fresh")
    run_queue()

    told = [e.progress for e in jobs.store.events(job_id) if e.progress]
    batches = [(p.batch, p.n_batches) for p in told if p.stage == "calibrating"]
    assert {n for _, n in batches} == {9}
    assert batches[-1] == (9, 9)
    numbers = [batch or 0 for batch, _ in batches]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("stop", [2, 7])
def test_a_lost_attempt_goes_on_to_the_same_result(
    jobs: Jobs, run_queue, tmp_path, stop, executor
):
    """Lost in the dataset, or in the rows to retain: then nothing of the first is measured."""
    options = {"retain": inline(30, step=7), "calibration": {"executor": executor}}
    job_id, again = submit(jobs, **options), submit(jobs, **options)
    process, ticks = process_for(Settings()), itertools.count()

    def stage() -> tuple[str, int]:
        progress = jobs.get(job_id).json_field("progress") or {}
        return progress.get("stage"), progress.get("batch") or 0

    reporter = Reporter(
        jobs.store,
        job_id,
        1,
        is_draining=lambda: stage()[0] == "calibrating" and stage()[1] >= stop,
        on_alive=lambda: None,
        deadline_s=1e6,
        clock=lambda: float(next(ticks)),
    )
    record = jobs.store.start(job_id, 1, worker="test")
    with pytest.raises(ShutdownRequested):
        calibration.run(record, process, reporter, tmp_path)
    lost = progress_folder(process.settings.tmp_dir, job_id)
    assert any(lost.glob("rounds.*")) == (stop > 5)
    jobs.store.requeue(job_id, 1)
    assert run_attempt(job_id, 2) == "succeeded"
    run_queue()

    assert statistics_of(jobs, job_id).to_bytes() == statistics_of(jobs, again).to_bytes()


def test_a_class_that_only_the_rows_to_retain_have_is_refused(jobs: Jobs, run_queue):
    """By its row and name, before anything is measured."""
    others = rows(10)
    others[4]["label"] = 7
    job_id = submit(jobs, retain={"source": "inline", "rows": others})
    run_queue()

    message = error_of(jobs, job_id)
    assert "retain: row 5 is labelled '7', and the dataset has 0, 1, 2" in message


def test_a_label_of_another_kind_is_refused(jobs: Jobs, run_queue):
    """Words where the dataset has numbers."""
    words = [row | {"label": "good"} for row in rows(10)]
    job_id = submit(jobs, retain={"source": "inline", "rows": words})
    run_queue()

    assert "is labelled 'good'" in error_of(jobs, job_id)


def test_rows_of_another_kind_are_refused(jobs: Jobs, run_queue):
    """Text to go on with beside classes; the message has both."""
    plain = [{"text": row["text"]} for row in rows(10)]
    job_id = submit(jobs, retain={"source": "inline", "rows": plain})
    run_queue()

    message = error_of(jobs, job_id)
    assert "read as {'text': 'text', 'label': 'label'}" in message
    assert "the rows to retain as {'text': 'text'}" in message


def test_declared_classes_must_agree(jobs: Jobs, run_queue):
    """A number would mean two classes otherwise."""
    pytest.importorskip("datasets")
    from datasets import ClassLabel, Dataset, Features, Value

    for name, classes in (("one", ["bad", "good", "so"]), ("other", ["cat", "dog", "cow"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=classes)})
        path = jobs.data_dir / "datasets" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows(20), features=features).to_parquet(path)
    job_id = submit(
        jobs,
        dataset={"source": "local", "name": "one.parquet"},
        retain={"source": "local", "name": "other.parquet"},
    )
    run_queue()

    assert "retain: its classes are cat, dog, cow, and those of the dataset bad" in error_of(
        jobs, job_id
    )


def test_a_comparison_has_it_beside_the_others(jobs: Jobs, run_queue):
    """From one measurement of both datasets."""
    write_jsonl(jobs.data_dir / "datasets" / "kept.jsonl", rows(30, step=7))
    job_id = jobs.submit(
        kind=JobKind.COMPARISON,
        dataset=inline(40),
        retain={"source": "local", "name": "kept.jsonl"},
        methods=["fim", "vila", "uniform"],
        calibration={"n_batches": 3, "batch_size": 2},
    )
    run_queue()

    comparison = result_of(jobs, job_id).comparison
    assert [row.method for row in comparison.methods] == ["fim", "vila", "uniform"]
    by_method = {row.method: row for row in comparison.methods}
    assert by_method["vila"].signal is not None
    pair = next(p for p in comparison.pairs if {p.a, p.b} == {"fim", "vila"})
    assert pair.overlap < 1


def test_an_equal_request_measures_nothing(jobs: Jobs, run_queue):
    """What the earlier job has measured of both gives the same result."""
    first = submit(jobs, retain=inline(30, step=7), head="fresh")
    run_queue()
    again = submit(jobs, retain=inline(30, step=7), head="fresh", statistics_from=first)
    run_queue()

    assert result_of(jobs, again).digest == result_of(jobs, first).digest
    stages = {e.progress.stage for e in jobs.store.events(again) if e.progress}
    assert "calibrating" not in stages


def test_an_evaluation_trains_its_plan_beside_the_controls(jobs: Jobs, run_queue):
    """Planned from the rows that are trained on, against the same rows to retain."""
    job_id = jobs.submit_evaluation(methods=["vila"], retain=inline(20, step=7))
    run_queue()

    arms = {arm.name for arm in result_of(jobs, job_id).arms}
    assert arms == {"vila", "uniform", "random"}
