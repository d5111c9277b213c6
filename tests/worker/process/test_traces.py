"""Traces from a request to the worker's child, sent by real processes to a real receiver."""

import os
import subprocess
import sys

import pytest

from support.jobs import LABELLED, Jobs
from support.service_process import running_service, wait_until
from support.traces import attributes_of, receiving
from support.workers import running_worker

# The API comes with FastAPI and Redis' client; what makes and sends spans does not.
HEAVY = ("opentelemetry.sdk.trace", "opentelemetry.exporter")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker_processes")]
BODY = {
    "base_model": "local:tiny",
    "dataset": {"source": "inline", "rows": LABELLED},
    "budget": 4,
    "calibration": {"n_batches": 2, "batch_size": 4},
}


def test_an_attempt_is_linked_to_the_request_it_is_for(jobs: Jobs, valkey_url, tmp_path):
    """Each stage is a span, each batch an event; health checks are none of it."""
    with receiving() as received:
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with running_service(jobs.data_dir, valkey_url, **settings) as (client, _):
            client.get("/healthz")
            answer = client.post("/calibrate", json=BODY)
            assert answer.status_code == 202, answer.text
            wait_until(lambda: received.named("POST /calibrate"))
        log = tmp_path / "log"
        with running_worker(valkey_url, jobs.data_dir, log, "--burst", **settings) as worker:
            assert worker.wait(timeout_s=90) == 0
        assert jobs.get(answer.json()["id"]).status == "succeeded"
        wait_until(lambda: received.named("attempt"))

    (request,), (attempt,) = received.named("POST /calibrate"), received.named("attempt")
    assert [(link.trace_id, link.span_id) for link in attempt.links] == [
        (request.trace_id, request.span_id)
    ]
    assert attempt.trace_id != request.trace_id
    said = attributes_of(attempt)
    assert said["fimlora.job_id"] == answer.json()["id"]
    assert said["fimlora.request_id"] == answer.headers["X-Request-Id"]
    assert (said["fimlora.attempt"], said["fimlora.end"]) == (1, "succeeded")
    stages = [s for _, s in received.spans if s.parent_span_id == attempt.span_id]
    names = [span.name for span in sorted(stages, key=lambda s: s.start_time_unix_nano)]
    assert names == [
        "resolving", "loading", "fitting_head", "calibrating", "allocating", "writing",
        "committing",
    ]  # fmt: skip
    (calibrating,) = received.named("calibrating")
    assert [event.name for event in calibrating.events] == ["batch", "batch"]
    assert {process for process, _ in received.spans} == {"fimlora-service", "fimlora-worker"}
    assert not received.named("GET /healthz")
    (started,) = worker.lines("attempt.started")
    assert started["trace_id"] == attempt.trace_id.hex()


OFF = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}


@pytest.mark.parametrize(
    ("package", "module", "settings"),
    [("fimlora_service", "server", {}), ("fimlora_worker", "job.worker_process", OFF)],
)
def test_nothing_is_imported_where_no_traces_are_wanted(package, module, settings):
    """Neither by the service nor by a worker, not set or switched off."""
    script = (
        f"import sys; from {package}.settings import Settings; "
        f"assert not Settings.read().are_traces_wanted; import {package}.{module};"
        f"print([name for name in sys.modules if name.startswith({HEAVY})])"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)} | settings,
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout == "[]\n"
