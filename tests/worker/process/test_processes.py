"""The worker as an operator runs it: isolation mode, hub references, settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fimlora_contract.environment import environment_name
from fimlora_worker.settings import Settings
from support.hub import Hub
from support.jobs import LABELLED, Jobs
from support.model_folders import make_encoder
from support.workers import PYTHONPATH, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker_processes")]


def test_isolation_mode_runs_each_job_in_a_new_interpreter(jobs: Jobs, valkey_url, tmp_path):
    """Slow, but nothing of one job is left for the next; the queue is worked off."""
    job_ids = [jobs.submit(), jobs.submit(budget=5)]
    log = tmp_path / "log"
    with running_worker(
        valkey_url, jobs.data_dir, log, "--burst", FIMLORA_WORKER_ISOLATION="process"
    ) as worker:
        assert worker.wait(timeout_s=90) == 0

    assert [jobs.get(id_).status for id_ in job_ids] == ["succeeded", "succeeded"]
    assert worker.count("model.load") == 2


def test_hub_references_are_loaded_at_their_commit(jobs: Jobs, hub: Hub, valkey_url, tmp_path):
    """Model by snapshot, dataset by `datasets`, both from the commit on record.

    The worker starts in a folder that holds other folders of the same names; they are not
    what it opens.
    """
    model = hub.add("org/model", make_encoder(tmp_path / "m"))
    rows = "".join(json.dumps(row) + "\n" for row in LABELLED)
    dataset = hub.add("org/data", {"train.jsonl": rows, "README.md": "# data"}, kind="dataset")
    for name in ("org/model", "org/data"):
        decoy = tmp_path / "cwd" / name
        decoy.mkdir(parents=True)
        (decoy / "train.jsonl").write_text('{"evil": 1}\n')
    job_id = jobs.submit_resolved(
        base_model={"source": "hub", "id": "org/model"},
        dataset={"source": "hub", "id": "org/data"},
        resolved={
            "base_model": {
                "source": "hub", "id": "org/model", "revision": model.commit,
                "digest": f"sha256:{model.commit}",
            },
            "dataset": {
                "source": "hub", "id": "org/data", "revision": dataset.commit,
                "digest": f"sha256:{dataset.commit}", "fields": None,
            },
        },
    )  # fmt: skip
    with running_worker(
        valkey_url, jobs.data_dir, tmp_path / "log", "--burst",
        cwd=tmp_path / "cwd", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"),
    ) as worker:  # fmt: skip
        assert worker.wait(timeout_s=90) == 0

    job = jobs.get(job_id).to_job()
    assert job.error is None
    assert job.status == "succeeded"
    assert job.result.adapter_config["base_model_name_or_path"] == "org/model"
    asked = [line for line in hub.requests if "/resolve/" in line]
    assert asked
    assert all(model.commit in line or dataset.commit in line for line in asked)
    stages = [e.progress.stage for e in jobs.store.events(job_id) if e.progress]
    assert "downloading" in stages


def test_a_child_is_replaced_after_its_last_job(jobs: Jobs, valkey_url, tmp_path):
    """It says so with its answer; the next job finds a fresh one, and nothing is lost."""
    job_ids = [jobs.submit(), jobs.submit()]
    with running_worker(
        valkey_url, jobs.data_dir, tmp_path / "log", "--burst", FIMLORA_RECYCLE_AFTER_JOBS="1"
    ) as worker:
        assert worker.wait(timeout_s=90) == 0

    assert [jobs.get(id_).attempt for id_ in job_ids] == [1, 1]
    assert [jobs.get(id_).status for id_ in job_ids] == ["succeeded", "succeeded"]
    assert worker.count("model.load") == 2


def test_a_relative_data_folder_stays_where_it_was(monkeypatch, tmp_path):
    """A child leaves the current folder, but not the data folder named from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIMLORA_DATA_DIR", "data")
    before = Settings()
    before.leave_working_folder()

    assert list(Path.cwd().iterdir()) == []
    assert Settings() == before
    assert before.data_dir == tmp_path / "data"


def test_what_is_not_a_workers_is_not_handed_down(jobs: Jobs, valkey_url, tmp_path):
    """Whoever starts a worker by hand may have the service's secrets in the environment."""
    secrets = {"FIMLORA_WEBHOOK_SECRET": "s3cret-1", "FIMLORA_WEBHOOK_SECRET_FILE": "s3cret-2"}
    with running_worker(valkey_url, jobs.data_dir, tmp_path / "log", **secrets) as worker:
        jobs.wait_final(jobs.submit())
        environment = Path(f"/proc/{worker.child_pid}/environ").read_text()

    assert "s3cret" not in environment
    assert "FIMLORA_DATA_DIR" in environment


def test_help_lists_every_setting_and_needs_no_server():
    """A beginner sees what can be set, and its default."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fimlora_worker", "--help"],
        env={"PYTHONPATH": PYTHONPATH, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "REDIS_URL" in done.stdout
    for name in Settings.model_fields:
        assert environment_name(Settings, name) in done.stdout


def test_a_child_reads_the_settings_of_its_parent(monkeypatch, tmp_path):
    """What was given to the parent in code reaches the child by environment."""
    given = Settings(redis_url="unix:///tmp/x", data_dir=tmp_path, stall_s=7.5)
    for name, value in given.child_environment().items():
        monkeypatch.setenv(name, value)

    assert Settings() == given
