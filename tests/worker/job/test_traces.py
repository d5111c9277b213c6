"""Traces of attempts, of which later ones are linked to those before."""

import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fimlora.measuring.resume.merge import split
from fimlora_jobs.runs import Runs
from fimlora_jobs.telemetry import Tracing
from fimlora_worker.errors import ModelMissing
from fimlora_worker.job.hands import lend_hand
from fimlora_worker.job.shards import Shards, versions
from fimlora_worker.job.tasks import run_attempt
from fimlora_worker.job.work_folders import progress_folder
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs


@pytest.fixture
def traced(jobs: Jobs, run_queue):
    """This process with traces on, and what it has made of them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    process = process_for(Settings())
    process.tracing = Tracing(provider)
    yield process, exporter
    process.tracing = Tracing()


def attempts(exporter: InMemorySpanExporter):
    return [span for span in exporter.get_finished_spans() if span.name == "attempt"]


def test_an_attempt_is_linked_to_those_before(jobs: Jobs, traced):
    """A job that was handed over can be followed from its last attempt to its first."""
    process, exporter = traced
    job_id = jobs.submit_long()
    process.is_draining = True
    assert run_attempt(job_id, 1) == "handed over"
    assert run_attempt(job_id, 2) == "handed over"
    process.is_draining = False
    jobs.store.request_cancel(job_id)
    assert run_attempt(job_id, 3) == "refused"

    first, second, third = attempts(exporter)
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert not first.links
    assert first.attributes["fimlora.end"] == "handed over"
    assert third.attributes["fimlora.end"] == "refused"
    assert len({span.context.trace_id for span in (first, second, third)}) == 3


def test_an_attempt_that_fails_has_its_error(jobs: Jobs, traced):
    """On its own span; the stage it failed in has ended, too."""
    _, exporter = traced
    job_id = jobs.submit()
    other = jobs.get(job_id).resolved
    other["base_model"]["digest"] = f"sha256:{0:064}"
    jobs.redis.hset(f"fimlora:job:{job_id}", "resolved", json.dumps(other))

    with pytest.raises(ModelMissing):
        run_attempt(job_id, 1)

    (span,) = attempts(exporter)
    assert not span.status.is_ok
    assert [event.name for event in span.events] == ["exception"]
    assert {s.name for s in exporter.get_finished_spans()} >= {"resolving"}


def test_what_a_hand_does_is_in_the_trace_of_the_attempt_that_leads(jobs: Jobs, traced):
    """So is the shard that it has measured."""
    process, exporter = traced
    rows = [{"text": f"w{n} w{n * 7 % 50} w{n % 5}"} for n in range(16)]
    job_id = jobs.submit(
        model="decoder",
        dataset={"source": "inline", "rows": rows},
        calibration={"n_batches": 4, "batch_size": 2, "shards": 2},
    )
    with process.tracing.attempt(job_id=job_id, attempt=1) as trace:
        jobs.store.start(job_id, 1, worker="leader", traceparent=trace.traceparent)
        folder = progress_folder(jobs.data_dir / "tmp", job_id)
        on = f"cpu float32 {versions()}"
        Shards(Runs(jobs.store, job_id, on), folder, split(4, 2)).publish(on=on)

        assert lend_hand(job_id, f"{job_id}-hand_1") == "measured"

    spans = {span.name: span for span in exporter.get_finished_spans()}
    leading, hand, measuring = (spans[name] for name in ("attempt", "hand", "calibrating"))
    assert hand.parent.span_id == leading.context.span_id
    assert measuring.parent.span_id == hand.context.span_id
    assert len({span.context.trace_id for span in (leading, hand, measuring)}) == 1
    assert hand.attributes["fimlora.shard"] == "0-2"
    assert hand.attributes["fimlora.end"] == "measured"


def test_what_no_trace_is_links_nothing(jobs: Jobs, traced):
    """What lies in a record may come from another version."""
    _, exporter = traced
    job_id = jobs.submit()
    jobs.redis.hset(f"fimlora:job:{job_id}", "traceparent", "nonsense")

    assert run_attempt(job_id, 1) == "succeeded"
    (span,) = attempts(exporter)
    assert not span.links


def test_a_process_that_ends_with_the_attempt_sends_it_before():
    """RQ ends such a process without a word to what would be done at its exit."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=60_000))

    with Tracing(provider, is_flushed=True).attempt(job_id="job_1") as trace:
        trace.enter_stage("resolving")
    sent = [span.name for span in exporter.get_finished_spans()]
    provider.shutdown()

    assert sent == ["resolving", "attempt"]
