"""Every route of the service has a method in both clients, and a command."""

import asyncio
import contextlib
import json
import re
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from fimlora_client import ApiError, AsyncClient, Client, RetryPolicy
from fimlora_client.cli import app
from fimlora_client.cli.common.context import Connection
from fimlora_client.context import Context

OPENAPI = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
DIGEST = "sha256:" + "0" * 64
OPERATIONS = {
    operation["operationId"]: (verb.upper(), path)
    for path, verbs in OPENAPI["paths"].items()
    for verb, operation in verbs.items()
}
# How a user asks for each of them.
METHODS = {
    "calibrate": lambda c: c.calibrate(base_model="m", dataset="d", budget=8),
    "estimate": lambda c: c.estimate(base_model="m", dataset="d", budget=8),
    "list_jobs": lambda c: c.jobs.list(limit=5, cursor="job_0", tenant="acme"),
    "retrieve_job": lambda c: c.jobs.retrieve("job_1", wait=10),
    "cancel_job": lambda c: c.jobs.cancel("job_1"),
    "retry_job": lambda c: c.jobs.retry("job_1"),
    "delete_job": lambda c: c.jobs.delete("job_1"),
    "job_events": lambda c: c.jobs.history("job_1", after="1-0", limit=5),
    "job_webhooks": lambda c: c.jobs.webhooks("job_1"),
    "retrieve_result": lambda c: c.jobs.result("job_1"),
    "list_artifacts": lambda c: c.jobs.artifacts("job_1"),
    "retrieve_artifact": lambda c: c.jobs.download("job_1", "adapter"),
    "allocate_again": lambda c: c.jobs.allocate("job_1", budget=16),
    "sweep_job": lambda c: c.jobs.sweep("job_1", budget=8),
    "compare": lambda c: c.compare(base_model="m", dataset="d", budget=8),
    "compare_job": lambda c: c.jobs.compare("job_1", budget=8, methods=["fim", "uniform"]),
    "evaluate": lambda c: c.evaluate(base_model="m", dataset="d", budget=8),
    "list_evaluations": lambda c: c.evaluations.list(limit=5, cursor="job_0", tenant="acme"),
    "retrieve_evaluation": lambda c: c.evaluations.retrieve("job_1", wait=10),
    "retrieve_report": lambda c: c.jobs.report("job_1"),
    "retrieve_evaluation_report": lambda c: c.evaluations.report("job_1"),
    "retrieve_rank_map_picture": lambda c: c.jobs.rank_map_png("job_1"),
    "retrieve_dated_rank_map": lambda c: c.jobs.rank_map_svg("job_1"),
    "diff_jobs": lambda c: c.jobs.diff("job_1", "job_2"),
    "retrieve_rank_pattern": lambda c: c.rank_patterns.retrieve(DIGEST, format="axolotl"),
    "find_rank_pattern": lambda c: c.rank_patterns.find("m", "d", budget="bytes:900"),
    "retrieve_pinned_rank_pattern": lambda c: c.rank_patterns.pinned("sst2", "prod", etag="x"),
    "pin_rank_pattern": lambda c: c.rank_patterns.pin("sst2", "prod", digest=DIGEST),
    "list_pins": lambda c: c.rank_patterns.pins(limit=5, cursor="sst2:prod", tenant="acme"),
    "retrieve_pin_history": lambda c: c.rank_patterns.history("sst2", "prod"),
    "upload_dataset": lambda c: c.datasets.upload([{"text": "a"}]),
    "list_datasets": lambda c: c.datasets.list(tenant="acme"),
    "retrieve_dataset": lambda c: c.datasets.retrieve("ds_1"),
    "delete_dataset": lambda c: c.datasets.delete("ds_1"),
    "upload_adapter": lambda c: c.adapters.upload("trained"),
    "list_adapters": lambda c: c.adapters.list(tenant="acme"),
    "retrieve_adapter": lambda c: c.adapters.retrieve("ad_1"),
    "retrieve_adapter_file": lambda c: c.adapters.download("ad_2", "adapter"),
    "delete_adapter": lambda c: c.adapters.delete("ad_1"),
    "truncate_adapter": lambda c: c.adapters.truncate("ad_1", budget=8),
    "audit_adapter": lambda c: c.adapters.audit("ad_1", job_id="job_1"),
    "convert_adapter": lambda c: c.adapters.convert("ad_1", layout="C"),
    "list_models": lambda c: c.models.list(),
    "list_workers": lambda c: c.workers.list(),
    "show_cache": lambda c: c.cache.figures(),
    "evict_now": lambda c: c.cache.evict(),
    "readiness": lambda c: c.health(),
    "liveness": lambda c: c.liveness(),
    "version": lambda c: c.version(),
    "show_metrics": lambda c: c.metrics(),
    "create_key": lambda c: c.keys.create("ci", scopes=["read"], tenant="acme"),
    "list_keys": lambda c: c.keys.list(tenant="acme"),
    "retrieve_key": lambda c: c.keys.retrieve("k1"),
    "rotate_key": lambda c: c.keys.rotate("k1", grace_s=0),
    "revoke_key": lambda c: c.keys.revoke("k1"),
}


# What a user types for each of them, or why there is no command.
COMMANDS = {
    "calibrate": ["calibrate", "m", "org/d", "--budget", "8"],
    "estimate": ["calibrate", "m", "org/d", "--budget", "8", "--estimate"],
    "list_jobs": ["jobs", "--tenant", "acme"],
    "retrieve_job": ["show", "job_1"],
    "cancel_job": ["cancel", "job_1"],
    "retry_job": ["retry", "job_1"],
    "delete_job": ["delete", "job_1"],
    "job_events": ["events", "job_1"],
    "job_webhooks": ["webhooks", "job_1"],
    "retrieve_result": "`fimlora show` prints the whole job with its result",
    "list_artifacts": ["artifacts", "job_1"],
    "retrieve_report": ["report", "job_1", "--output", "report.html"],
    "retrieve_evaluation_report": "`fimlora report` writes it, as an evaluation is a job",
    "retrieve_rank_map_picture": ["report", "job_1", "--output", "rank_map.png"],
    "retrieve_dated_rank_map": ["report", "job_1", "--output", "rank_map-dated.svg"],
    "retrieve_artifact": ["fetch", "job_1", "--output", "adapter"],
    "allocate_again": ["plan", "job_1", "--budget", "16"],
    "sweep_job": ["sweep", "job_1", "--budget", "8"],
    "compare": ["compare", "m", "org/d", "--budget", "8"],
    "compare_job": ["compare", "job_1", "--budget", "8", "--methods", "fim,uniform"],
    "evaluate": ["evaluate", "m", "org/d", "--budget", "8"],
    "list_evaluations": "`fimlora jobs --kind evaluation` lists them",
    "retrieve_evaluation": "`fimlora show` prints any job with what it found",
    "diff_jobs": "`fimlora diff` holds two rank maps side by side here, of jobs or of files",
    "retrieve_rank_pattern": ["fetch", "job_1", "--format", "peft"],
    "find_rank_pattern": ["fetch", "--model", "m", "--dataset", "d", "--budget", "8"],
    "retrieve_pinned_rank_pattern": ["fetch", "--pin", "sst2:prod"],
    "pin_rank_pattern": ["pin", "sst2", "prod", "job_1"],
    "retrieve_pin_history": ["pins", "history", "sst2", "prod"],
    "list_pins": ["pins"],
    "upload_dataset": ["datasets", "upload", "rows.jsonl"],
    "list_datasets": ["datasets"],
    "retrieve_dataset": ["datasets", "show", "ds_1"],
    "delete_dataset": ["datasets", "delete", "ds_1"],
    "upload_adapter": ["adapters", "upload", "trained"],
    "list_adapters": ["adapters"],
    "retrieve_adapter": ["adapters", "show", "ad_1"],
    "retrieve_adapter_file": ["adapters", "download", "ad_2", "--output", "adapter"],
    "delete_adapter": ["adapters", "delete", "ad_1"],
    "truncate_adapter": "`fimlora truncate` does it here, without a service",
    "audit_adapter": "`fimlora audit` does it here, without a service",
    "convert_adapter": "`fimlora convert` does it here, without a service",
    "list_models": ["models"],
    "list_workers": ["workers"],
    "show_cache": ["cache"],
    "evict_now": ["cache", "--evict"],
    "readiness": ["status"],
    "liveness": "`fimlora status` asks for readiness, which says more",
    "version": ["status"],
    "create_key": ["keys", "create", "ci", "--scopes", "read", "--tenant", "acme"],
    "list_keys": ["keys", "list", "--tenant", "acme"],
    "retrieve_key": "`fimlora keys` lists all that is known of each",
    "rotate_key": ["keys", "rotate", "k1", "--grace", "0s"],
    "revoke_key": ["keys", "revoke", "k1"],
    "show_metrics": "Prometheus reads them, `fimlora status` is for people",
}
FILE = {"name": "a.json", "digest": DIGEST, "size": 1, "media_type": "x/y"}
RANK_MAP = {
    "format": "fimlora.rank_map/1", "budget": {"unit": "rank", "value": 8}, "rule": "uniform",
    "r_min": 4, "r_max": 16, "scale": 2, "spent": {}, "controls": {}, "provenance": {},
    "modules": [],
}  # fmt: skip
RESULT = {"digest": DIGEST, "adapter_config": {}, "rank_map": RANK_MAP, "artifacts": [FILE]}
JOB = {
    "id": "job_1", "status": "succeeded", "attempt": 1, "created_at": 0, "request": {},
    "resolved": {}, "result": RESULT,
}  # fmt: skip
# What has to be answered so that the client gets as far as the route in question.
ANSWERS = {
    "/jobs/job_1": JOB,
    "/jobs/job_1/artifacts": {"data": [FILE]},
    "/adapters/ad_2": {"id": "ad_2", "source": "upload", "size": 1, "files": [FILE]},
    "/readyz": {"status": "ok"},
}


class Recorder:
    """A service that notes what it is asked and refuses nearly everything."""

    def __init__(self):
        self.requests = []

    def answer(self, request):
        self.requests.append(request)
        if known := ANSWERS.get(request.url.path):
            return httpx2.Response(200, json=known)
        return httpx2.Response(418, text="a teapot")


def write_files(folder):
    """What there is to upload."""
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    (folder / "trained").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "trained" / name).write_text("{}")


def blocking(ask, transport, context):
    with httpx2.Client(transport=transport, base_url="http://fimlora.test") as http:
        ask(Client(http=http, context=context))


def asynchronous(ask, transport, context):
    async def run():
        async with httpx2.AsyncClient(transport=transport, base_url="http://f.test") as http:
            await ask(AsyncClient(http=http, context=context))

    asyncio.run(run())


@pytest.fixture(params=[blocking, asynchronous])
def requests_of(request, tmp_path, monkeypatch):
    """What a client sends when it is asked for something."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)

    def play(ask):
        recorder = Recorder()
        context = Context(RetryPolicy(max_retries=0))
        with contextlib.suppress(ApiError):
            request.param(ask, httpx2.MockTransport(recorder.answer), context)
        return recorder.requests

    return play


def is_for(operation, request):
    """Whether a request is for an operation, and asks for nothing that it does not know."""
    verb, path = OPERATIONS[operation]
    known = OPENAPI["paths"][path][verb.lower()].get("parameters", [])
    return (
        request.method == verb
        and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path)
        and set(request.url.params) <= {p["name"] for p in known if p["in"] == "query"}
    )


def test_every_operation_has_a_method_and_a_command():
    """A route without one is a route that users of the client cannot reach."""
    assert set(METHODS) == set(OPERATIONS)
    assert set(COMMANDS) == set(OPERATIONS)


@pytest.mark.parametrize("operation", METHODS)
def test_a_method_asks_for_its_route(requests_of, operation):
    """Method, path and query are those of the service's own description."""
    assert is_for(operation, requests_of(METHODS[operation])[-1])


@pytest.mark.parametrize("operation", [o for o, c in COMMANDS.items() if isinstance(c, list)])
def test_a_command_asks_for_its_route(operation, tmp_path, monkeypatch, terminal):
    """Among other things it needs to know."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    recorder = Recorder()
    http = httpx2.Client(
        transport=httpx2.MockTransport(recorder.answer), base_url="http://fimlora.test"
    )
    client = Client(http=http, context=Context(RetryPolicy(max_retries=0)))

    with http:
        CliRunner().invoke(app, COMMANDS[operation], obj=Connection(connect=lambda: client))

    assert any(is_for(operation, request) for request in recorder.requests)
