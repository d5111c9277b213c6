"""A job whose batches are shared: what hands measure, what is kept, and what it comes to."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from fimlora.errors import InvalidOption
from fimlora.measuring.resume.merge import ShardSums, split
from fimlora_contract.jobs import AttemptEnd, JobKind
from fimlora_contract.requests import CalibrationRequest
from fimlora_contract.workers import Hardware
from fimlora_jobs.reaper import give_up
from fimlora_jobs.results.store import STATISTICS, folder_name
from fimlora_jobs.runs import Runs
from fimlora_jobs.workers import WorkerRegistry
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.job.hands import OTHER_DEVICE, OTHER_PLACE, lend_hand
from fimlora_worker.job.shards import HEAD, Shards, n_shards_of, versions
from fimlora_worker.job.work_folders import progress_folder
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.process.presence import Presence
from fimlora_worker.settings import Settings
from support.jobs import Jobs

ON = f"cpu float32 {versions()}"
CALIBRATION = {"n_batches": 5, "batch_size": 4}


def folder_of(jobs: Jobs, job_id: str) -> Path:
    digest = jobs.get(job_id).json_field("result")["digest"]
    return jobs.data_dir / "artifacts" / folder_name(digest)


def led(jobs: Jobs, job_id: str, *, on: str = ON, n_shards: int = 2) -> Shards:
    """A job as it is while another worker leads, which measures nothing."""
    jobs.redis.delete("rq:queue:fimlora")
    jobs.store.start(job_id, 1, worker="leader")
    folder = progress_folder(jobs.data_dir / "tmp", job_id)
    shards = Shards(Runs(jobs.store, job_id, on), folder, split(5, n_shards))
    shards.publish(on=on)
    return shards


def hand_over(jobs: Jobs, job_id: str) -> None:
    """Let the next attempt lead."""
    give_up(jobs.store, jobs.transport, job_id, 1, counted=False, reason=AttemptEnd.HANDED_OVER)


@pytest.mark.parametrize("kind", [JobKind.CALIBRATION, JobKind.COMPARISON])
def test_shards_come_to_the_very_result_of_one_run(jobs: Jobs, run_queue, kind):
    """One worker alone measures them all; a head is fitted once, before the first."""
    whole, shared = (
        jobs.submit(kind=kind, calibration={**CALIBRATION, "shards": n}) for n in (1, 3)
    )
    run_queue()

    one, other = (jobs.get(job_id).to_job() for job_id in (whole, shared))
    assert (one.status, other.status) == ("succeeded", "succeeded"), other.error
    assert one.result.digest == other.result.digest
    n_shards = [
        jobs.get(job_id).json_field("result")["execution"]["n_shards"]
        for job_id in (whole, shared)
    ]
    assert n_shards == [1, 3]
    told = [event.progress for event in jobs.store.events(shared, limit=5000) if event.progress]
    stages = [progress.stage for progress in told]
    assert stages.count("fitting_head") >= 1
    assert stages.index("fitting_head") < stages.index("calibrating")
    of_shards = [progress for progress in told if progress.shards]
    done = [progress.batch for progress in of_shards]
    assert done == sorted(done)
    assert done[-1] == 5
    assert {progress.n_batches for progress in of_shards} == {5}
    assert {progress.shards.n_shards for progress in of_shards} == {3}
    assert not progress_folder(jobs.data_dir / "tmp", shared).exists()


def test_hands_measure_a_shard_each_and_the_leader_puts_them_together(
    jobs: Jobs, run_queue, caplog
):
    """They leave files and no event; the next attempt measures nothing again."""
    options = {"model": "decoder", "dataset": ROWS}
    shared = jobs.submit(calibration={**CALIBRATION, "shards": 2}, **options)
    shards = led(jobs, shared)
    version = jobs.store.version_of(shared)

    said = [lend_hand(shared, f"{shared}-hand_{n}") for n in range(3)]

    assert said == ["measured", "measured", "nothing left"]
    assert jobs.store.version_of(shared) == version
    assert shards.runs.claimed() == {}
    assert shards.runs.results().keys() == {"0-3", "3-5"}
    hand_over(jobs, shared)
    whole = jobs.submit(calibration=CALIBRATION, **options)
    with caplog.at_level("INFO", logger="fimlora_worker"):
        run_queue()
    assert not [record for record in caplog.records if record.msg == "shard.kept"]
    digests = [jobs.get(job_id).json_field("result")["digest"] for job_id in (whole, shared)]
    assert digests[0] == digests[1]
    assert (folder_of(jobs, shared) / STATISTICS).exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut off")])
def test_a_shard_whose_file_is_gone_is_measured_again_and_no_other(
    jobs: Jobs, run_queue, caplog, damage
):
    """Whatever became of it."""
    shared = jobs.submit(
        model="decoder", dataset=ROWS, calibration={**CALIBRATION, "shards": 2}
    )
    shards = led(jobs, shared)
    for n in range(2):
        assert lend_hand(shared, f"{shared}-hand_{n}") == "measured"
    damage(shards.folder / shards.runs.results()["0-3"]["file"])
    hand_over(jobs, shared)

    with caplog.at_level("INFO", logger="fimlora_worker"):
        run_queue()

    kept = [record.shard for record in caplog.records if record.msg == "shard.kept"]
    assert kept == ["0-3"]
    assert jobs.get(shared).status == "succeeded"


@pytest.mark.parametrize(
    "change",
    [
        lambda sums: replace(sums, batches=["0" * 64, *sums.batches[1:]]),
        lambda sums: replace(sums, identity={**sums.identity, "seed": -1}),
    ],
    ids=["other tokens", "other settings"],
)
def test_sums_of_another_run_are_set_aside_and_measured_again_by_the_leader(
    jobs: Jobs, run_queue, caplog, change
):
    """They say nothing of this one: no other shard is measured again, and none is lost or wrong."""
    options = {"model": "decoder", "dataset": ROWS}
    shared = jobs.submit(calibration={**CALIBRATION, "shards": 2}, **options)
    shards = led(jobs, shared)
    for n in range(2):
        assert lend_hand(shared, f"{shared}-hand_{n}") == "measured"
    file = shards.folder / shards.runs.results()["3-5"]["file"]
    foreign = ShardSums.load(file)
    change(replace(foreign, sums=dict(foreign.sums))).save(file)
    hand_over(jobs, shared)
    whole = jobs.submit(calibration=CALIBRATION, **options)

    with caplog.at_level("INFO", logger="fimlora_worker"):
        run_queue()

    said = {
        name: [r.shard for r in caplog.records if r.msg == f"shard.{name}"] for name in SAID
    }
    assert said == {"set_aside": ["3-5"], "kept": ["3-5"]}
    one, other = (jobs.get(job_id).to_job() for job_id in (whole, shared))
    assert (one.status, other.status) == ("succeeded", "succeeded"), other.error
    assert one.result.digest == other.result.digest


@pytest.mark.parametrize(
    ("on", "said"),
    [
        (f"cuda float32 {versions()}", OTHER_DEVICE),
        (f"cpu bfloat16 {versions()}", OTHER_PLACE),
        *(
            (f"cpu float32 {versions()}".replace(f"{package} ", f"{package} 0."), OTHER_PLACE)
            for package in ("fimlora", "torch", "transformers", "tokenizers")
        ),
    ],
)
def test_a_hand_that_would_come_to_other_sums_measures_nothing(jobs, run_queue, on, said):
    """Another device, dtype or version of what it measures by; the shard stays for others."""
    job_id = jobs.submit(
        model="decoder", dataset=ROWS, calibration={**CALIBRATION, "shards": 2}
    )
    shards = led(jobs, job_id, on=on)

    assert lend_hand(job_id, f"{job_id}-hand_1") == said
    assert (shards.runs.results(), shards.runs.claimed()) == ({}, {})


def test_a_hand_that_does_not_see_the_folder_measures_nothing(jobs: Jobs, run_queue):
    """What it left would not be found."""
    job_id = jobs.submit(
        model="decoder", dataset=ROWS, calibration={**CALIBRATION, "shards": 2}
    )
    shards = led(jobs, job_id)
    (shards.folder / HEAD).unlink()

    assert lend_hand(job_id, f"{job_id}-hand_1") == OTHER_PLACE
    assert shards.runs.results() == {}


@pytest.mark.parametrize(("n_others", "wanted"), [(0, 1), (2, 3), (9, 5)])
def test_auto_takes_as_many_as_there_are_workers_of_one_kind(
    jobs: Jobs, run_queue, n_others, wanted
):
    """And no more than batches; workers on another kind of device do not count."""
    registry = WorkerRegistry(jobs.store)
    for device in ("cuda", *("cpu",) * (1 + n_others)):
        hardware = Hardware(
            device=device, device_name=None, memory_bytes=1, host_memory_bytes=1
        )
        Presence(
            registry, name=f"{device}-{len(registry.living())}", hardware=hardware
        ).refresh()
    job_id = jobs.submit(
        model="decoder", dataset=ROWS, calibration={**CALIBRATION, "shards": "auto"}
    )
    run_queue(max_jobs=1)

    assert jobs.get(job_id).to_job().result.execution.n_shards == wanted


def test_auto_measures_in_one_run_what_cannot_be_measured_apart(jobs: Jobs, run_queue):
    """Methods that read no batch, and initial weights whose directions are updated in turn."""
    job_ids = [
        jobs.submit(calibration={**CALIBRATION, "shards": shards}, **options)
        for shards, options in (
            (2, {"allocation": {"method": "kappa"}}),
            ("auto", {"adapter": {"init": "eva"}}),
        )
    ]
    run_queue()

    for job_id in job_ids:
        job = jobs.get(job_id).to_job()
        assert job.status == "succeeded", job.error
        assert job.result.execution.n_shards == 1


def test_whole_gradients_of_a_large_model_are_not_held_by_shards(jobs: Jobs, run_queue):
    """One run takes them block after block: auto does that, and a number is refused by name."""
    asked = {"allocation": {"method": "gora"}, "model": "decoder", "dataset": ROWS}
    job_id = jobs.submit(calibration={**CALIBRATION, "shards": 2}, **asked)
    run_queue()
    assert jobs.get(job_id).to_job().result.execution.n_shards == 2

    request = CalibrationRequest.model_validate(
        {"base_model": "local:decoder", "dataset": ROWS, "budget": 4}
        | {"allocation": asked["allocation"], "calibration": {**CALIBRATION, "shards": 2}}
    )
    process = process_for(Settings())
    outline = torch.nn.Linear(64, 64)
    model = cast("BaseModel", SimpleNamespace(outline=lambda: outline))
    with pytest.raises(InvalidOption, match="shards=2: 'weight_gradient' is summed"):
        n_shards_of(request, model, 5, process, whole_bytes=4 * 64 * 64)
    auto = request.calibration.model_copy(update={"shards": "auto"})
    given = request.model_copy(update={"calibration": auto})
    assert n_shards_of(given, model, 5, process, whole_bytes=4 * 64 * 64) == 1


SAID = ("set_aside", "kept")
ROWS = {
    "source": "inline",
    "rows": [{"text": f"w{n} w{n * 7 % 50} w{n % 5} w{n % 9}"} for n in range(24)],
}
