"""Nothing that a job leaves on record says where things lie: its error, its events, its attempts."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fimlora_jobs.attempts import rq_job_id
from fimlora_worker.process.leases import Leases
from support.jobs import LABELLED, Jobs, write_jsonl


def cut_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def broken(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(content) and None


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


MODELS = {
    "cut weights": cut_weights,
    "no weights": no_weights,
    "weights that are none": broken("model.safetensors", b"\xff" * 64),
    "config that is none": broken("config.json", b"{"),
    "config of no kind": broken("config.json", b'{"model_type": "nothing"}'),
    "tokenizer that is none": broken("tokenizer.json", b"\xff"),
    "no tokenizer": without("tokenizer.json"),
    "index of shards that are not there": broken("model.safetensors.index.json", b"{}"),
}
DATA = {
    "rows.jsonl": b'{"text": "w1"',
    "utf.jsonl": b"\xff\xfe",
    "rows.parquet": b"PAR1" + b"\0" * 64 + b"PAR1",
    "short.parquet": b"PAR1",
    "rows.csv": b'text,label\n"w1',
    "empty.jsonl": b"",
}


@pytest.fixture
def own_models(jobs: Jobs, model_folders: Path) -> Path:
    """Models that may be spoiled."""
    (jobs.data_dir / "models").unlink()
    (jobs.data_dir / "models").mkdir()
    shutil.copytree(model_folders / "tiny", jobs.data_dir / "models" / "tiny")
    return jobs.data_dir / "models"


def on_record(jobs: Jobs) -> str:
    """All that is kept of jobs under our own keys."""
    found = []
    for key in jobs.redis.scan_iter("fimlora:*", count=1000):
        match jobs.redis.type(key):
            case b"hash":
                found.append(repr(jobs.redis.hgetall(key)))
            case b"stream":
                found.append(repr(jobs.redis.xrange(key)))
            case b"string":
                found.append(repr(jobs.redis.get(key)))
            case b"list":
                found.append(repr(jobs.redis.lrange(key, 0, -1)))
    return "\n".join(found)


def check(jobs: Jobs, tmp_path: Path) -> None:
    text = on_record(jobs)
    assert "detail" in text
    for mark in (str(jobs.data_dir), str(tmp_path), "/tmp", "site-packages", "Traceback"):
        assert mark not in text, mark


def test_whatever_is_wrong_with_a_model(jobs: Jobs, run_queue, own_models, tmp_path):
    """Each failure comes from another library, with its own words."""
    ids = {}
    for name, spoil in MODELS.items():
        folder = own_models / name.replace(" ", "-")
        shutil.copytree(own_models / "tiny", folder)
        spoil(folder)
        ids[name] = jobs.submit(model=folder.name, calibration={"n_batches": 1})

    run_queue()

    assert {jobs.get(job_id).status for job_id in ids.values()} <= {"failed", "succeeded"}
    assert sum(jobs.get(job_id).status == "failed" for job_id in ids.values()) >= 6
    check(jobs, tmp_path)


def test_whatever_is_wrong_with_rows(jobs: Jobs, run_queue, tmp_path):
    """Files, and a folder that is gone when the worker looks."""
    ids = []
    for name, content in DATA.items():
        (jobs.data_dir / "datasets" / name).write_bytes(content)
        ids.append(jobs.submit(dataset={"source": "local", "name": name}))
    write_jsonl(jobs.data_dir / "datasets" / "gone.jsonl", LABELLED)
    ids.append(jobs.submit(dataset={"source": "local", "name": "gone.jsonl"}))
    (jobs.data_dir / "datasets" / "gone.jsonl").unlink()

    run_queue()

    assert {jobs.get(job_id).status for job_id in ids} == {"failed"}
    check(jobs, tmp_path)


def test_whatever_ends_an_attempt(jobs: Jobs, run_queue, tmp_path, monkeypatch):
    """A storage that refuses, a process that is lost."""
    monkeypatch.setenv("FIMLORA_STORAGE_PATIENCE_S", "0")
    (jobs.data_dir / "artifacts").write_text("in the way")  # no folder can be made there
    job_id = jobs.submit(calibration={"n_batches": 1})
    run_queue(max_jobs=2)
    jobs.store.start(jobs.submit(budget=5), 1, worker="w")
    Leases(jobs.store, jobs.transport, grace_s=1).lost(rq_job_id(job_id, 1), signal.SIGKILL)

    check(jobs, tmp_path)
