"""A job's model is measured where it fits; only the record of the job says where that was."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from fimlora_contract.jobs import Job, JobError
from fimlora_contract.reaper import give_up
from fimlora_worker.process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs
from support.model_folders import make_tokenizer

TEXT = [f"w{n} w{n + 1} w{n + 2}" for n in range(16)]
ROWS = {
    "text": [{"text": t} for t in TEXT],
    "labels": [{"text": t, "label": n % 3} for n, t in enumerate(TEXT)],
    "numbers": [{"text": t, "label": n / 8} for n, t in enumerate(TEXT)],
}


def submit(jobs: Jobs, model: str, rows: str, executor: str, **request) -> str:
    calibration = {"batch_size": 4, "n_batches": 3, "executor": executor}
    return jobs.submit(
        model=model,
        dataset={"source": "inline", "rows": ROWS[rows]},
        calibration=calibration,
        **request,
    )


def ended(jobs: Jobs, job_id: str) -> Job:
    return jobs.get(job_id).to_job()


def n_loads() -> int:
    return process_for(Settings()).models.n_loads


@pytest.mark.parametrize(
    ("model", "rows", "request_"),
    [
        ("tiny", "labels", {"adapter": {"weights": True}}),
        ("tiny", "numbers", {"target_modules": "all-linear"}),
        ("decoder", "labels", {"adapter": {"weights": True, "layout": "C"}}),
        ("decoder", "text", {"allocation": {"rule": "spectral", "r_min": 0}}),
    ],
    ids=["encoder with a new head", "regression", "decoder with a new head", "spectra"],
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


@pytest.mark.parametrize(
    ("kills", "executor", "wanted"),
    [
        (1, "auto", ("resident", 1)),
        (2, "auto", ("streamed", 1)),
        (2, "resident", ("resident", 1)),
    ],
)
def test_an_attempt_after_a_kill_needs_less(jobs: Jobs, run_queue, kills, executor, wanted):
    """A process that took too much is killed and cannot adapt by itself."""
    job_id = submit(jobs, "tiny", "labels", executor)
    kill = JobError(code="out_of_memory_host", detail="killed", retryable=True)
    lost = JobError(code="worker_lost", detail="lost", retryable=True)
    for attempt in range(kills):
        give_up(jobs.store, jobs.transport, job_id, attempt + 1, error=kill)
    give_up(jobs.store, jobs.transport, job_id, kills + 1, error=lost, counted=False)
    run_queue()

    execution = ended(jobs, job_id).result.execution
    assert (execution.executor, execution.micro_batch_size) == wanted


@pytest.mark.parametrize(
    ("request_", "code"),
    [({"budget": {"parameters": 10}}, "budget_infeasible"),
     ({"target_modules": ["q_projj"]}, "validation_failed")],
    ids=["budget", "module"],
)  # fmt: skip
def test_a_request_that_cannot_be_met_streams_nothing(jobs: Jobs, run_queue, request_, code):
    """Names and budget are checked on the model's outline, before a block is read."""
    job_id = submit(jobs, "tiny", "labels", "streamed", **request_)
    run_queue()

    events = [e.progress.stage for e in jobs.store.events(job_id) if e.progress]
    assert ended(jobs, job_id).error.code == code
    assert "calibrating" not in events


@contextmanager
def memory_for(n_bytes: int) -> Iterator[None]:
    """Allow this process so many bytes more than it has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = int(dict(line.split(":", 1) for line in lines)["VmData"].split()[0]) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def deep(jobs: Jobs, model_folders: Path, tmp_path: Path) -> int:
    """Register a model of many small blocks, ``deep``; answers its size."""
    config = transformers.LlamaConfig(
        vocab_size=55, hidden_size=256, num_hidden_layers=24, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=1024, max_position_embeddings=64,
        bos_token_id=2, eos_token_id=4, pad_token_id=None,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if "norm" in name else 0.01)
    (jobs.data_dir / "models").unlink()
    (jobs.data_dir / "models").mkdir()
    model.save_pretrained(jobs.data_dir / "models" / "deep")
    make_tokenizer(eos_token="[EOS]").save_pretrained(jobs.data_dir / "models" / "deep")
    (jobs.data_dir / "models" / "decoder").symlink_to(model_folders / "decoder")
    return sum(p.numel() * 4 for p in model.parameters())


def prepare(jobs: Jobs, run_queue) -> None:
    """Let this process load whatever torch loads on first use: it is no weight."""
    for executor in ("resident", "streamed"):
        submit(jobs, "decoder", "text", executor)
    run_queue()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does")
def test_a_model_that_does_not_fit_is_streamed_unless_it_must_not_be(
    jobs: Jobs, run_queue, deep
):
    """Under a limit of half its weights; forced to be resident, the job says what it lacked."""
    prepare(jobs, run_queue)
    forced = submit(jobs, "deep", "text", "resident")
    chosen = submit(jobs, "deep", "text", "auto")

    with memory_for(deep // 2):
        run_queue()

    error = ended(jobs, forced).error
    assert error.code == "out_of_memory_host"
    assert error.detail.startswith("the model does not fit; stream it, ")
    assert "was asked for when " in error.detail
    assert ended(jobs, chosen).error is None
    assert ended(jobs, chosen).result.execution.executor == "streamed"
    assert len(process_for(Settings()).models) == 0  # the small one has made room


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does")
def test_a_model_that_only_seemed_to_fit_is_streamed_after_all(jobs: Jobs, run_queue, deep):
    """Its weights fit, but not beside the file that they are loaded from."""
    prepare(jobs, run_queue)
    loads = n_loads()
    job_id = submit(jobs, "deep", "text", "auto")

    with memory_for(deep * 3 // 2):
        run_queue()

    assert ended(jobs, job_id).error is None
    assert ended(jobs, job_id).result.execution.executor == "streamed"
    assert n_loads() == loads + 1  # it was tried
    assert process_for(Settings()).models.largest_bytes < deep
