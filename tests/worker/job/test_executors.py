"""A job's model is measured where it fits; only the record of the job says where that was."""

import pytest

from fimlora_contract.jobs import JobError
from fimlora_jobs.reaper import give_up
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.executor_jobs import ROWS, ended, n_loads, submit
from support.jobs import Jobs


@pytest.mark.parametrize(
    ("model", "rows", "request_"),
    [
        ("tiny", "labels", {"adapter": {"weights": True}}),
        ("tiny", "numbers", {"target_modules": "all-linear"}),
        ("decoder", "labels", {"adapter": {"weights": True, "layout": "C"}}),
        ("decoder", "text", {"allocation": {"method": "spectral", "r_min": 0}}),
        ("decoder", "text", {"allocation": {"method": "fisher-layers", "n_layers": 1}}),
        (
            "tiny",
            "labels",
            {"allocation": {"method": "cka-layers"}, "adapter": {"weights": True}},
        ),
    ],
    ids=[
        "encoder with a new head",
        "regression",
        "decoder with a new head",
        "spectra",
        "layers by fisher",
        "layers by cka",
    ],
)
def test_a_streamed_job_writes_what_a_resident_one_writes(
    jobs: Jobs, run_queue, model, rows, request_
):
    """The same bytes in every file, from a model that was never loaded."""
    streamed = submit(jobs, model, rows, "streamed", **request_)
    run_queue()
    loads_streamed = n_loads()
    resident = submit(jobs, model, rows, "resident", **request_)
    run_queue()

    results = [ended(jobs, job_id).result for job_id in (streamed, resident)]
    assert results[0].digest == results[1].digest
    assert [r.execution.executor for r in results] == ["streamed", "resident"]
    assert [r.execution.micro_batch_size for r in results] == [4, 4]
    assert all(r.execution.peak_memory_bytes > 2**20 for r in results)
    assert (loads_streamed, n_loads()) == (0, 1)
    rank_map = results[0].rank_map
    if rank_map.rule == "layers":
        layers = {m.layer for m in rank_map.modules if m.rank}
        assert layers < {m.layer for m in rank_map.modules}
        assert rank_map.controls.keys() >= {"uniform", "random", "random-layers"}
        targets = results[0].adapter_config["target_modules"]
        assert all(f"{next(iter(layers))}." in name for name in targets)


def test_what_is_streamed_is_not_held_as_well(jobs: Jobs, run_queue):
    """A model that an earlier job has loaded makes room for its own blocks."""
    for executor in ("resident", "streamed"):
        submit(jobs, "tiny", "labels", executor, budget=len(executor))
    run_queue()

    assert (n_loads(), len(process_for(Settings()).models)) == (1, 0)


def test_statistics_of_another_job_were_not_measured_in_any_way(jobs: Jobs, run_queue):
    """Nothing is said of an execution that there was not."""
    first = submit(jobs, "tiny", "labels", "auto")
    run_queue()
    jobs.store.remember_statistics("sha256:x", first)
    second = jobs.submit(
        dataset={"source": "inline", "rows": ROWS["labels"]},
        calibration={"batch_size": 4, "n_batches": 3},
        budget=5,
        statistics_from=first,
    )
    run_queue()

    assert ended(jobs, first).result.execution.executor == "resident"
    assert ended(jobs, second).result.execution is None


def kill(jobs: Jobs, job_id: str, kills: list[str]) -> None:
    """Play workers whose processes the system ends for memory, each at what it had asked for."""
    error = JobError(code="out_of_memory_host", detail="killed", retryable=True)
    for attempt, asked in enumerate(kills, 1):
        jobs.store.start(job_id, attempt, worker="w")
        if asked:
            jobs.store.note_memory(job_id, attempt, asked)
        give_up(jobs.store, jobs.transport, job_id, attempt, error=error)


@pytest.mark.parametrize(
    ("kills", "executor", "wanted"),
    [
        (["resident 4"], "auto", ("resident", 1)),
        (["resident 4", "resident 1"], "auto", ("streamed", 1)),
        (["streamed 4"], "auto", ("streamed", 1)),
        (["resident 4"], "resident", ("resident", 1)),
        ([""], "auto", ("resident", 4)),
    ],
)
def test_an_attempt_after_a_kill_needs_less(jobs: Jobs, run_queue, kills, executor, wanted):
    """A process that took too much is killed and cannot adapt by itself."""
    job_id = submit(jobs, "tiny", "labels", executor)
    kill(jobs, job_id, kills)
    run_queue()

    execution = ended(jobs, job_id).result.execution
    assert (execution.executor, execution.micro_batch_size) == wanted
    asked = jobs.get(job_id).fields["memory_asked"]
    assert asked == " ".join(map(str, wanted))  # should it be killed, too


@pytest.mark.parametrize(
    ("kills", "executor", "words"),
    [
        (["resident 4", "resident 1"], "resident", "take executor=auto"),
        (["streamed 4", "streamed 1"], "streamed", "nothing smaller is left"),
        (["", ""], "auto", "before anything was measured"),
    ],
)
def test_what_was_killed_twice_is_not_tried_a_third_time(
    jobs: Jobs, run_queue, kills, executor, words
):
    """Where it can take nothing less, it is refused with what would."""
    job_id = submit(jobs, "tiny", "labels", executor)
    kill(jobs, job_id, kills)
    run_queue()

    error = ended(jobs, job_id).error
    assert error.code == "out_of_memory_host"
    assert error.detail.startswith("the system ended 2 attempts of this job")
    assert words in error.detail
    assert n_loads() == 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [({"budget": {"parameters": 10}}, "budget_infeasible"),
     ({"target_modules": ["q_projj"]}, "validation_failed")],
    ids=["budget", "module"],
)  # fmt: skip
@pytest.mark.parametrize("executor", ["streamed", "resident"])
def test_a_request_that_cannot_be_met_reads_no_weight(
    jobs: Jobs, run_queue, executor, request_, code
):
    """Names and budget are checked on the model's outline."""
    job_id = submit(jobs, "tiny", "labels", executor, **request_)
    run_queue()

    events = [e.progress.stage for e in jobs.store.events(job_id) if e.progress]
    assert ended(jobs, job_id).error.code == code
    assert "calibrating" not in events
    assert n_loads() == 0
