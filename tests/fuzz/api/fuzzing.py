"""Requests made from the API's own description, to the real service, and what is wrong then.

Each operation by itself, then sequences of operations that hand on what an answer names. No
answer may be a 5xx, or have a status, a content type, a header or a body that is not documented.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from redis import Redis

from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.store import JobStore
from support.hub import running_hub
from support.results import make_result
from support.service import ROWS, as_jsonl, make_model
from support.service_process import running_service
from support.valkey import running_valkey

ROOT = Path(__file__).parents[3]
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance", "unsupported_method",
    "allow_header_conformance",
)  # fmt: skip
BODY = {"base_model": "local:tiny", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8}
KEY = "the operator's key, for this run only"
SETTINGS = {
    "FIMLORA_ADMIN_KEY": KEY, "FIMLORA_POLL_INTERVAL_S": "0.02", "FIMLORA_KEEP_ALIVE_S": "0.1",
    "HF_TOKEN": "",
}  # fmt: skip
N_RESULTS = 20  # some are deleted on the way
N_OPERATIONS = 50  # about


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        n_cases: How many requests were made.
        faults: What was wrong; empty after a good run.
        report: What schemathesis says.
    """

    n_cases: int
    faults: list[str]
    report: str


def fuzz(*, cases: int, folder: Path, thorough: bool, seed: int | None = None) -> Outcome:
    """Make at least so many requests, and judge every answer.

    Args:
        cases: How many, roughly.
        folder: For what the service keeps and what is reported.
        thorough: Whether each keyword of each schema is gone through first, which alone makes
            thousands.
        seed: Decides which; the same ones each time without it.
    """
    data_dir, report = folder / "data", folder / "report.json"
    data_dir.mkdir()
    config = folder / "schemathesis.toml"
    given = configuration(each=cases // N_OPERATIONS, seed=seed, report=report)
    config.write_text(given)
    phases = ["examples", *(["coverage"] if thorough else []), "fuzzing", "stateful"]
    with prepared_service(data_dir) as (address, known):
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
            str(ROOT / "docs" / "openapi.json"), "--url", address, "--no-color",
            "--phases", ",".join(phases),
        ]  # fmt: skip
        environment = os.environ | {"FIMLORA_FUZZ_KNOWN": json.dumps(known)}
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        log = (data_dir / "log").read_text()
    return judged(done, report=report, log=log)


def judged(done: subprocess.CompletedProcess[str], *, report: Path, log: str) -> Outcome:
    """What came of a run, by its report and by the service's log."""
    if not report.exists():
        return Outcome(0, ["schemathesis reports nothing"], done.stdout + done.stderr)
    found = json.loads(report.read_text())
    faults = [f"{f['title']}: {', '.join(f['operations'])}" for f in found["failures"]]
    faults += [str(error["title"]) for error in found["errors"]]
    faults += [line for line in log.splitlines() if '"level": "error"' in line]
    if "Traceback" in log:
        faults.append("a traceback in the service's log")
    if not found["complete"]:
        faults.append(f"it stopped: {found['stop_reason']}")
    return Outcome(found["test_cases"]["generated"], faults, done.stdout + done.stderr)


@contextmanager
def prepared_service(folder: Path) -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """A service with something of every kind in it: its address, and what is there by name."""
    make_model(folder / "models" / "tiny")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "rows.jsonl").write_bytes(as_jsonl(ROWS))
    with (
        running_valkey() as url,
        running_hub() as hub,
        running_service(folder, url, HF_ENDPOINT=hub.url, **SETTINGS) as (client, _),
        Redis.from_url(url) as redis,
    ):
        client.headers["authorization"] = f"Bearer {KEY}"
        yield str(client.base_url), fill(client, JobStore(redis), folder)


def fill(client: httpx2.Client, store: JobStore, folder: Path) -> dict[str, list[Any]]:
    """Put jobs, results, a dataset and a pin there, and play the worker."""
    queued, running, *ended = (
        client.post("/calibrate", json=BODY | {"force": True}).raise_for_status().json()["id"]
        for _ in range(N_RESULTS + 2)
    )
    result = make_result(folder)
    store.start(running, 1, worker="w")
    for job_id in ended:
        store.start(job_id, 1, worker="w")
        store.succeed(job_id, 1, result)
        Catalogue(store).file(store.get(job_id))
    rows, kind = as_jsonl(ROWS), {"content-type": "application/jsonl"}
    upload = (
        client.post("/datasets", content=rows, headers=kind).raise_for_status().json()["id"]
    )
    client.put("/rank-patterns/sst2/prod", json={"job_id": ended[0]}).raise_for_status()
    names = [artifact["name"] for artifact in result["artifacts"]]
    return {
        "jobs.id": [queued, running, *ended], "jobs.other": ended, "jobs.name": names,
        "evaluations.id": [queued, ended[0]], "datasets.id": [upload, "rows.jsonl"],
        "rank-patterns.name": ["sst2"], "rank-patterns.tag": ["prod"],
        "rank-patterns.digest": [result["digest"]], "body.job_id": ended,
        "body.base_model": ["local:tiny", {"source": "local", "name": "tiny"}],
        "body.dataset": ["local:rows.jsonl", BODY["dataset"]], "body.budget": [2, 4, 8],
    }  # fmt: skip


def configuration(*, each: int, seed: int | None, report: Path) -> str:
    """The file that schemathesis reads.

    Args:
        each: How many cases each operation gets by itself.
        seed: Decides which; the same ones each time without it.
        report: Where the report goes.
    """
    checks = "".join(f"[checks.{name}]\nenabled = true\n" for name in CHECKS)
    seeded = "" if seed is None else f"seed = {seed}"
    return f"""
{seeded}
hooks = "{Path(__file__).with_name("hooks.py")}"
continue-on-failure = true
request-timeout = 30
max-stream-events = 3
[reports.json]
path = "{report}"
[generation]
max-examples = {each}
deterministic = {str(seed is None).lower()}
database = "none"
[cache]
enabled = false
[headers]
Authorization = "Bearer {KEY}"
[checks]
enabled = false
{checks}"""
