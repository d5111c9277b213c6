"""Evaluations from the queue to what they found, in this process."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from redis import Redis

from fimlora_contract.jobs import JobEvent
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.record import JobRecord
from fimlora_jobs.runs import Runs
from fimlora_worker.errors import CancelRequested, PlanGone
from fimlora_worker.evaluation.csv_files import read_runs
from fimlora_worker.evaluation.runs import RunResult
from fimlora_worker.job.evaluation import Prepared, prepare_evaluation
from fimlora_worker.job.evaluation_runs import RunTaker
from fimlora_worker.job.hands import lend_hand
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.burst import run_what_is_queued
from support.jobs import Jobs, write_jsonl

ON = "cpu float32"


def folder_of(jobs: Jobs, job_id: str) -> Path:
    """Where a result is kept."""
    job = jobs.get(job_id).to_job()
    assert job.result is not None, job.error
    return jobs.data_dir / "artifacts" / job.result.digest.replace(":", "-")


def progress_of(jobs: Jobs, job_id: str) -> list[JobEvent]:
    """Every report on a job, oldest first."""
    return [e for e in jobs.store.events(job_id, limit=5000) if e.progress]


def numbers_of(result: dict[str, Any]) -> RunResult:
    """A result without what differs from machine to machine."""
    return RunResult.from_json(result | {"seconds": 0.0})


def reporter_for(jobs: Jobs, record: JobRecord) -> Reporter:
    """Speaks for a running attempt; each look at its clock is a second later."""
    return Reporter(
        jobs.store,
        record.id,
        record.attempt,
        is_draining=lambda: False,
        on_alive=lambda: None,
        deadline_s=1e9,
        clock=itertools.count().__next__,
    )


@pytest.fixture
def begun(jobs: Jobs, run_queue, tmp_path: Path) -> Callable[[str], Prepared]:
    """Start an evaluation and make all that its runs need, and train none."""

    def begin(job_id: str) -> Prepared:
        jobs.redis.delete("rq:queue:fimlora")
        record = jobs.store.start(job_id, 1, worker="leader")
        process = process_for(Settings())
        reporter = reporter_for(jobs, record)
        runs = Runs(jobs.store, job_id)
        return prepare_evaluation(record, runs, process, reporter, folder=tmp_path)

    return begin


@pytest.fixture(scope="module")
def trained(
    model_folders: Path, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What each run of the small evaluation comes to, trained once for this file."""
    data_dir = tmp_path_factory.mktemp("trained")
    (data_dir / "datasets").mkdir()
    (data_dir / "models").symlink_to(model_folders)
    with Redis.from_url(valkey_server) as redis, pytest.MonkeyPatch.context() as environment:
        redis.flushall()
        environment.setenv("REDIS_URL", valkey_server)
        environment.setenv("FIMLORA_DATA_DIR", str(data_dir))
        jobs = Jobs(redis, data_dir)
        job_id = jobs.submit_evaluation()
        run_what_is_queued(redis)
        found = Runs(jobs.store, job_id, ON).results()
        redis.flushall()
    return found


@pytest.fixture
def nearly_done(trained, jobs: Jobs) -> Callable[..., str]:
    """Queue an evaluation of which two runs are left: it trains, and there is a between."""

    def submit(**request: Any) -> str:
        job_id = jobs.submit_evaluation(**request)
        for run, result in sorted(trained.items())[:-2]:
            assert Runs(jobs.store, job_id, ON).keep(run, result)
        return job_id

    return submit


def test_an_evaluation_ends_with_a_verdict_and_its_files(jobs: Jobs, run_queue):
    """All arms; every run is kept, in files and on record, and told of on the way."""
    job_id = jobs.submit_evaluation()
    run_queue()
    job = jobs.get(job_id).to_job()

    assert job.status == "succeeded", job.error
    assert [arm.name for arm in job.result.arms] == ["fim", "uniform", "random"]
    assert job.result.verdict.sentence
    assert "Tested on 19 held-out rows" in " ".join(job.result.verdict.notes)
    assert job.result.data == {
        "n_train": 16, "n_held_out": 19, "n_dropped": 0, "n_equal_texts": 0,
        "n_unknown_classes": 0,
    }  # fmt: skip
    folder = folder_of(jobs, job_id)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "runs.csv", "curves.csv", "evaluation.json",
    }  # fmt: skip
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["verdict"] == job.result.verdict.model_dump()
    assert {name: len(plans) for name, plans in found["plans"].items()} == {
        "fim": 1, "uniform": 1, "random": 5,
    }  # fmt: skip
    kept = Runs(jobs.store, job_id, ON).results()
    results = read_runs(*((folder / f"{n}.csv").read_text() for n in ("runs", "curves")))
    assert {r.spec.key for r in results} == kept.keys()
    assert len(results) == job.result.n_runs

    told = [e.progress for e in progress_of(jobs, job_id) if e.progress.runs]
    done = [progress.runs.done for progress in told]
    assert done == sorted(done)
    assert {progress.runs.arm for progress in told} == {"fim", "uniform", "random"}
    assert {progress.runs.n_steps for progress in told} == {4}
    assert all((p.seconds_left is None) is (p.runs.done == 0) for p in told)
    assert told[-1].runs.n_runs == job.result.n_runs


def test_others_go_first_between_two_runs(jobs: Jobs, nearly_done, run_queue):
    """A calibration that comes later need not wait for the end, and no plan is made twice."""
    evaluation = nearly_done()
    calibration = jobs.submit()
    run_queue()

    first, second = jobs.get(calibration).to_job(), jobs.get(evaluation).to_job()
    assert (first.status, second.status) == ("succeeded", "succeeded")
    assert first.finished_at < second.finished_at
    assert (second.attempt, jobs.get(evaluation).failures) == (2, 0)
    stages = [event.progress.stage for event in progress_of(jobs, evaluation)]
    assert stages.count("allocating") == 1


def test_lost_attempts_are_forgiven_once_a_run_is_finished(jobs: Jobs, nearly_done, run_queue):
    """Workers may come and go: only attempts in a row that finish nothing end the job."""
    job_id = nearly_done()
    jobs.redis.hset(f"fimlora:job:{job_id}", "failures", "2")
    run_queue()

    assert (jobs.get(job_id).status, jobs.get(job_id).failures) == ("succeeded", 0)


def test_an_urgent_evaluation_makes_no_room(jobs: Jobs, nearly_done, run_queue):
    """It was asked for before all normal jobs."""
    evaluation = nearly_done(priority="high")
    jobs.submit()
    run_queue()

    assert jobs.get(evaluation).attempt == 1


def test_an_urgent_evaluation_lets_urgent_jobs_go_first(jobs: Jobs, nearly_done, run_queue):
    """Between two runs, and then goes on before all normal jobs."""
    evaluation = nearly_done(priority="high")
    urgent, normal = jobs.submit(priority="high"), jobs.submit()
    transport = RqTransport(jobs.redis)
    for job_id in (evaluation, urgent):
        transport.promote(job_id, 1)
    run_queue()

    ends = [jobs.get(job_id).to_job().finished_at for job_id in (urgent, evaluation, normal)]
    assert ends == sorted(ends)
    assert jobs.get(evaluation).attempt == 2


def test_finished_runs_are_not_trained_again(jobs: Jobs, run_queue, caplog):
    """Another attempt takes what is on record, and comes to the same findings."""
    whole = jobs.submit_evaluation()
    run_queue()
    kept = Runs(jobs.store, whole, ON).results()
    again = jobs.submit_evaluation()
    Runs(jobs.store, again).adopt(whole)
    last = sorted(kept)[-1]
    jobs.redis.hdel(f"fimlora:runs:{again}", f"{ON}|{last}")
    with caplog.at_level("INFO", logger="fimlora_worker"):
        run_queue()

    trained = [record.run for record in caplog.records if record.msg == "run.kept"]
    assert trained == [last]
    assert numbers_of(Runs(jobs.store, again, ON).results()[last]) == numbers_of(kept[last])
    verdicts = [jobs.get(id_).to_job().result.verdict for id_ in (whole, again)]
    assert verdicts[0] == verdicts[1]


def test_a_hand_trains_one_run_as_the_leader_would(jobs: Jobs, begun, tmp_path):
    """To the same result, and it leaves nothing else: no event, no claim, no version."""
    led, helped = jobs.submit_evaluation(), jobs.submit_evaluation()
    prepared = begun(led)
    runs = Runs(jobs.store, led, ON)
    taker = RunTaker(runs, prepared.ground.settings, reporter_for(jobs, jobs.get(led)))
    lacking = taker.lacking()
    taker.take(taker.claim(lacking), lacking, prepared.task, tmp_path)
    begun(helped)
    version = jobs.store.version_of(helped)

    assert lend_hand(helped, f"{helped}-hand_1") == "trained"
    [(key, result)] = Runs(jobs.store, helped, ON).results().items()
    assert numbers_of(result) == numbers_of(runs.results()[key])
    assert Runs(jobs.store, helped).claimed() == {}
    assert jobs.store.version_of(helped) == version


def test_a_hand_that_is_not_wanted_does_nothing(jobs: Jobs, begun):
    """Before the plans are there, with nothing left to claim, and after the end."""
    job_id = jobs.submit_evaluation()
    runs = Runs(jobs.store, job_id, ON)
    said = [lend_hand(job_id, f"{job_id}-hand_1")]
    prepared = begun(job_id)
    taker = RunTaker(runs, prepared.ground.settings, reporter_for(jobs, jobs.get(job_id)))
    lacking = taker.lacking()
    while taker.claim(lacking):
        pass
    said.append(lend_hand(job_id, f"{job_id}-hand_2"))
    jobs.redis.delete(f"fimlora:plans:{job_id}")
    said.append(lend_hand(job_id, f"{job_id}-hand_3"))
    jobs.store.request_cancel(job_id)
    said.append(lend_hand(job_id, f"{job_id}-hand_4"))
    said.append(lend_hand("job_none", "job_none-hand_5"))

    assert said == ["not wanted", "nothing left", "not ready", "not wanted", "gone"]
    assert runs.results() == {}


@pytest.mark.parametrize("led_on", ["cuda bfloat16", "cpu bfloat16"])
def test_a_hand_on_other_hardware_trains_nothing(jobs: Jobs, begun, led_on):
    """By its device at once, by its dtype once that is known; the run stays for others."""
    job_id = jobs.submit_evaluation()
    begun(job_id)
    runs = Runs(jobs.store, job_id)
    assert runs.prepared_on() == ON
    runs.prepare(runs.prepared(), on=led_on)

    assert lend_hand(job_id, f"{job_id}-hand_1") == "other device"
    assert (runs.results(), runs.claimed()) == ({}, {})


def test_an_attempt_on_other_hardware_trains_all_runs_there(jobs: Jobs, run_queue):
    """What was finished elsewhere is not paired with it; the plans are not made again."""
    job_id = jobs.submit_evaluation()
    runs = Runs(jobs.store, job_id)
    run_queue()
    kept, plans = replace(runs, on=ON).results(), runs.prepared()
    again = jobs.submit_evaluation()
    elsewhere = Runs(jobs.store, again, "cuda bfloat16")
    elsewhere.prepare(plans, on=elsewhere.on)
    for run, result in kept.items():
        elsewhere.keep(run, result | {"metrics": {"loss": 99.0}})
    run_queue()

    found = replace(elsewhere, on=ON).results()
    assert {run: numbers_of(result) for run, result in found.items()} == {
        run: numbers_of(result) for run, result in kept.items()
    }
    assert elsewhere.prepared_on() == ON
    assert jobs.get(again).to_job().result.verdict == jobs.get(job_id).to_job().result.verdict
    assert "allocating" not in {event.progress.stage for event in progress_of(jobs, again)}


def test_rows_that_are_held_out_are_measured_by_nobody(jobs: Jobs, begun):
    """Of 96 rows 19 are held out; the plans are made from the others."""
    job_id = jobs.submit_evaluation(calibration={"n_batches": 200, "batch_size": 1})
    begun(job_id)

    [plan] = Runs(jobs.store, job_id).prepared()["fim"]
    assert plan["provenance"]["n_examples"] == 96 - 19


def test_all_arms_spend_what_uniform_ranks_spend(jobs: Jobs, begun):
    """In parameters, to less than what one rank costs, whatever the unit of the budget."""
    for budget in (4, {"parameters": 650}, {"fraction": 0.1}):
        job_id = jobs.submit_evaluation(budget=budget, methods=["fim", "spectral"])
        begun(job_id)

        plans = Runs(jobs.store, job_id).prepared()
        [uniform] = plans["uniform"]
        step = max(m["d_in"] + m["d_out"] for m in uniform["modules"])
        spent = [plan["spent"]["parameters"] for arm in plans.values() for plan in arm]
        assert len(spent) == 8
        assert max(spent) - min(spent) < step
        if budget == 4:
            assert {module["rank"] for module in uniform["modules"]} == {4}


def test_a_dataset_of_its_own_is_held_out_and_statistics_are_reused(
    jobs: Jobs, run_queue, begun
):
    """All rows may be measured then, as a calibration has: its statistics are taken."""
    rows = [{"text": f"v{n} w{n % 3} w{n % 11}", "label": n % 3} for n in range(20)]
    write_jsonl(jobs.data_dir / "datasets" / "test.jsonl", rows)
    calibration = jobs.submit(calibration={"n_batches": 2, "batch_size": 4})
    run_queue()
    job_id = jobs.submit_evaluation(
        eval_dataset={"source": "local", "name": "test.jsonl"}, statistics_from=calibration
    )
    prepared = begun(job_id)

    assert len(prepared.task.data.held_out) == 20
    assert prepared.ground.split.train.n_rows == 96
    assert "calibrating" not in {e.progress.stage for e in progress_of(jobs, job_id)}


def test_held_out_rows_of_other_columns_are_refused(jobs: Jobs, begun):
    """Where the service could not see them, too: never tested on another column of that name."""
    rows = [{"text": f"v{n} w{n % 3}", "label": n % 3, "gold": 0} for n in range(20)]
    write_jsonl(jobs.data_dir / "datasets" / "test.jsonl", rows)
    held_out = {"source": "local", "name": "test.jsonl", "columns": {"label": "gold"}}
    job_id = jobs.submit_evaluation(eval_dataset=held_out)

    with pytest.raises(
        ColumnError, match=r"'label': 'label'}, the held-out .*'label': 'gold'}"
    ):
        begun(job_id)


def test_a_plan_that_is_given_is_an_arm(jobs: Jobs, run_queue, begun):
    """As it is, at the parameters that it spends; one that is gone is named."""
    calibration = jobs.submit()
    run_queue()
    result = jobs.get(calibration).to_job().result
    budget = {"parameters": result.rank_map.spent["parameters"]}
    job_id = jobs.submit_evaluation(plans={"mine": result.digest}, budget=budget)
    prepared = begun(job_id)
    gone = jobs.submit_evaluation(plans={"mine": "sha256:" + "0" * 64})

    assert "calibrating" not in {e.progress.stage for e in progress_of(jobs, job_id)}
    assert list(prepared.task.arms) == ["mine", "uniform", "random"]
    ranks = {module.name: module.rank for module in result.rank_map.modules}
    assert prepared.task.arms["mine"].plan(0).ranks == ranks
    with pytest.raises(PlanGone, match="'mine'") as error:
        begun(gone)
    assert error.value.code == "result_expired"


def test_an_evaluation_goes_backward_once(jobs: Jobs, begun, run_queue):
    """A calibration by default a second time, under labels of other rows."""
    calls = []
    run = torch.autograd.graph._engine_run_backward

    def count(*args, **options):
        calls.append(1)
        return run(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for module in (torch.autograd, torch.autograd.graph):
            patch.setattr(module, "_engine_run_backward", count)
        begun(jobs.submit_evaluation(calibration={"n_batches": 2, "head": "fresh"}))
        evaluated = len(calls)
        calls.clear()
        jobs.submit(calibration={"n_batches": 2, "head": "fresh"})
        run_queue()

    assert 0 < evaluated < len(calls)


def test_rates_at_which_runs_diverge_end_in_a_verdict(jobs: Jobs, run_queue):
    """Nothing is invented for runs without a loss: null in files and on the wire."""
    job_id = jobs.submit_evaluation(learning_rates=[9.0, 10.0], steps=12)
    run_queue()
    job = jobs.get(job_id).to_job()

    assert job.status == "succeeded", job.error
    assert "NaN" not in (folder_of(jobs, job_id) / "evaluation.json").read_text()
    assert json.loads(job.model_dump_json())["result"]["arms"][0]["name"] == "fim"


@pytest.mark.parametrize("while_", ["training", "waiting"])
def test_a_cancel_request_ends_it_between_steps(jobs: Jobs, begun, tmp_path, while_):
    """While it trains, or while it waits for runs that others are at."""
    job_id = jobs.submit_evaluation()
    prepared, runs = begun(job_id), Runs(jobs.store, job_id)

    def cancel(_: float) -> None:
        jobs.store.request_cancel(job_id)

    reporter = reporter_for(jobs, jobs.get(job_id))
    taker = RunTaker(
        runs, prepared.ground.settings, reporter, sleep=cancel, ask_for_hands=cancel
    )
    lacking = taker.lacking()
    spec = taker.claim(lacking)

    with pytest.raises(CancelRequested):  # noqa: PT012 - a loop, until it does
        if while_ == "training":
            taker.take(spec, lacking, prepared.task, tmp_path)
        for _ in range(9):
            taker.wait(lacking)
    assert runs.results() == {}
    assert runs.claimed() == ({} if while_ == "training" else {spec.key: f"{job_id}-1"})
