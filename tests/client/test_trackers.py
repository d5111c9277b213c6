"""Plans and evaluations told to W&B, offline, and to MLflow, in a folder: the real packages."""

import csv
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from fimlora_client.errors import JobNotFinished
from fimlora_client.integrations.facts import NothingToLog, facts_of
from fimlora_contract.jobs import Job
from support.scripted_service import job_as_json, scripted_service
from support.terminal import COMMAND, PACKAGES, CommandLine

PLAN, EVALUATION = (f"job_{letter * 23}" for letter in "ab")
PICTURE = b'<svg xmlns="http://www.w3.org/2000/svg"><text>rank map</text></svg>'
RANK_MAP = {
    "format": "1", "budget": {"unit": "rank", "value": 4, "limit": 8}, "method": "fim",
    "rule": "proportional", "r_min": 2, "r_max": 8, "scale": 2, "controls": {}, "provenance": {},
    "spent": {"ranks": 8, "parameters": 128},
    "modules": [
        {"name": f"layer.{n}.query", "d_in": 8, "d_out": 8, "layer": n, "kind": "query",
         "score": 0.5, "rank": rank, "alpha": 2 * rank, "parameters": 16 * rank}
        for n, rank in enumerate((3, 5))
    ],
    "signal": {"verdict": "none", "sentence": "uniform would do", "moved_by_labels": 0.25},
    "confidence": {
        "n_examples": 64, "n_resamples": 100, "level": 0.9, "expected_overlap": 0.75,
        "n_unresolved": 1, "standard_errors": [0.1, 0.2], "lowest_ranks": [2, 5],
        "highest_ranks": [4, 5], "shares": [0.5, 1.0],
    },
}  # fmt: skip
FOUND = {
    "verdict": {"code": "no_difference", "winner": "uniform", "sentence": "use uniform ranks"},
    "arms": [
        {"name": name, "best_rate": 0.001, "rates": [], "is_at_edge": False, "n_final": 3,
         "n_diverged": 0, "adapter_parameters": [128, 128], "trainable_parameters": 128,
         "seconds": 1.0, "metrics": {"loss": {"mean": loss, "spread": 0.01}}, "curve": []}
        for name, loss in (("fim", 0.5), ("uniform", 0.25))
    ],
    "differences": [
        {"arm": "fim", "reference": "uniform", "metric": "loss", "mean": 0.25, "low": -0.1,
         "high": 0.6, "p": 0.3, "p_holm": None, "n": 3, "n_better": 1}
    ],
    "levers": {"rate": 0.1, "ranks": 0.01, "sentence": "the rate moves more"},
    "n_runs": 18, "seconds": 60.0, "settings": {},
}  # fmt: skip


@pytest.fixture
def service():
    """A plan and an evaluation; statistics are among the files, and are too large to send."""
    with scripted_service() as service:
        files = {
            "rank_map.json": b"{}",
            "rank_map.svg": PICTURE,
            "statistics.safetensors": b"0",
        }
        service.add_result(PLAN, files, adapter_config={}, rank_map=RANK_MAP)
        service.add_result(EVALUATION, {"report.html": b"<p>"}, **FOUND)
        yield service


def digest_of(service, job_id):
    return service.answers[f"/jobs/{job_id}"][0]["result"]["digest"]


def run_script(code, service, folder, **environment):
    """A training script in a process of its own."""
    environment |= {"PYTHONPATH": PACKAGES, "FIMLORA_URL": service.url, "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, PLAN, EVALUATION],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


W_AND_B = """
import json, sys, wandb
from fimlora_client import Client
from fimlora_client.integrations.wandb import log_job
with wandb.init(project="reviews") as run:
    run.log({"loss": 1.0})
    assert [log_job(Client(), job_id) for job_id in sys.argv[1:]] == [run.id] * 2
    run.log({"loss": 0.5})
    found = {"step": run.step, "config": dict(run.config), "summary": dict(run.summary._as_dict())}
print(json.dumps(found, default=str))
"""


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_w_and_b_is_told_in_the_run_that_is_open(service, tmp_path):
    """Config, summary, tables, picture and artifact are in the offline run; no step is taken."""
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}

    found = run_script(W_AND_B, service, tmp_path, **offline)

    assert found["step"] == 2
    assert found["config"]["fimlora"]["plan"]["digest"] == digest_of(service, PLAN)
    assert found["config"]["fimlora"]["evaluation"]["verdict"] == "no_difference"
    assert found["summary"]["fimlora/parameters"] == 128
    assert found["summary"]["fimlora/expected_overlap"] == 0.75
    assert found["summary"]["fimlora/signal"] == "uniform would do"
    assert found["summary"]["fimlora/verdict"] == "use uniform ranks"
    assert found["summary"]["fimlora/fim/loss"] == 0.5
    (kept,) = tmp_path.glob("wandb/offline-run-*")
    tables = {
        p.name.split("_")[0]: json.loads(p.read_text()) for p in kept.rglob("*.table.json")
    }
    assert set(tables) == {"plan", "arms", "differences"}
    assert [row[3] for row in tables["plan"]["data"]] == [3, 5]
    (picture,) = kept.rglob("*.html")
    assert PICTURE in picture.read_bytes()
    (log,) = kept.glob("run-*.wandb")
    for word in (digest_of(service, PLAN), digest_of(service, EVALUATION), "rank_map.json"):
        assert word.encode() in log.read_bytes()
    assert b"statistics.safetensors" not in log.read_bytes()


ML_FLOW = """
import json, sys, mlflow
from fimlora_client import Client
from fimlora_client.integrations.mlflow import log_job
with mlflow.start_run() as run:
    assert [log_job(Client(), job_id) for job_id in sys.argv[1:]] == [run.info.run_id] * 2
kept = mlflow.get_run(run.info.run_id)
folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path="kept")
print(json.dumps({"params": kept.data.params, "metrics": kept.data.metrics,
                  "tags": kept.data.tags, "folder": folder}))
"""


@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_mlflow_is_told_in_the_run_that_is_active(service, tmp_path):
    """Parameters, metrics, tags and artifacts are read back from its store."""
    store = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/ml", "MLFLOW_ALLOW_FILE_STORE": "true"}

    found = run_script(ML_FLOW, service, tmp_path, **store)

    assert found["params"]["fimlora.plan.method"] == "fim"
    assert found["params"]["fimlora.evaluation.winner"] == "uniform"
    assert found["metrics"]["fimlora/ranks"] == 8
    assert found["metrics"]["fimlora/uniform/loss"] == 0.25
    assert found["tags"]["fimlora.plan.digest"] == digest_of(service, PLAN)
    assert found["tags"]["fimlora.evaluation.verdict"] == "use uniform ranks"
    kept = tmp_path / "kept" / "fimlora"
    assert (kept / "plan" / "rank_map.svg").read_bytes() == PICTURE
    assert not (kept / "plan" / "statistics.safetensors").exists()
    rows = list(csv.DictReader((kept / "plan" / "plan.csv").read_text().splitlines()))
    assert [(row["module"], row["rank"], row["lowest_rank"]) for row in rows] == [
        ("layer.0.query", "3", "2"), ("layer.1.query", "5", "5"),
    ]  # fmt: skip


@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed")
def test_the_command_makes_a_run_of_its_own(service, tmp_path):
    """And prints its id; the job's id is the name of the run."""
    store = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/ml", "MLFLOW_ALLOW_FILE_STORE": "true"}
    environment = store | {"FIMLORA_URL": service.url, "CI": "true"}

    log = CommandLine("log", EVALUATION, "--to", "mlflow", environment=environment)

    assert log.end() == 0, log.output
    assert f"mlflow was told of {EVALUATION}" in log.output
    (name,) = tmp_path.glob("ml/0/*/tags/mlflow.runName")
    assert name.read_text() == EVALUATION
    assert name.parents[1].name in log.output


def test_a_package_that_is_not_installed_is_named(service, tmp_path):
    """With the extra that brings it: asked of an interpreter that has none of the two."""
    for tracker in ("wandb", "mlflow"):
        hidden = f"import sys; sys.modules[{tracker!r}] = None; "
        main = "from fimlora_client.cli import main; main()"
        command = [COMMAND[0], "-c", hidden + main]
        environment = {"FIMLORA_URL": service.url}

        log = CommandLine(
            "log", PLAN, "--to", tracker, command=command, environment=environment
        )

        assert log.end() == 1
        assert f"pip install 'fimlora[{tracker}]'" in log.output


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (job_as_json(PLAN, "running"), JobNotFinished),
        (job_as_json(PLAN, "succeeded", kind="comparison"), NothingToLog),
    ],
)
def test_a_job_without_findings_is_refused(job, error):
    with pytest.raises(error, match=PLAN):
        facts_of(Job.model_validate(job))
