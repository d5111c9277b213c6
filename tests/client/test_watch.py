"""Jobs that are watched to their end: exit codes, a service that is away, Ctrl-C."""

import re

import pytest

from fimlora_contract.jobs import JobError
from support.scripted_service import job_as_json, scripted_service
from support.terminal import CommandLine

A, B = (f"job_{letter * 23}" for letter in "ab")


@pytest.fixture
def service():
    with scripted_service() as service:
        yield service


def watching(service, *arguments, **options):
    environment = {"FIMLORA_URL": service.url, "CI": "true"}
    return CommandLine("watch", *arguments, environment=environment, **options)


def test_the_exit_code_is_that_of_the_worst_job(service):
    """All are followed to their end, also behind one that failed."""
    error = {"code": "out_of_memory_gpu", "detail": "the model does not fit"}
    service.answers[f"/jobs/{A}"] = [job_as_json(A, "failed", error=error)]
    service.answers[f"/jobs/{B}"] = [
        job_as_json(B, "queued"),
        job_as_json(B, "running", progress={"stage": "loading"}),
        job_as_json(B, "succeeded"),
    ]

    watch = watching(service, A, B)

    assert watch.end() == 4
    assert watch.output.splitlines() == [
        f"✗ {A} failed: out_of_memory_gpu: the model does not fit",
        f"{B}  queued",
        f"{B}  loading",
        f"✓ {B} succeeded",
    ]


def test_a_service_that_restarts_is_waited_for(service):
    """It says so once, and goes on where the job is then."""
    service.answers[f"/jobs/{A}"] = [job_as_json(A, "queued")]
    watch = watching(service, A)
    watch.wait_for("queued")

    service.stop()
    watch.wait_for("the service is away; trying again")
    service.answers[f"/jobs/{A}"] = [job_as_json(A, "succeeded")]
    service.start()

    assert watch.end() == 0
    assert watch.output.splitlines() == [
        f"{A}  queued", "  the service is away; trying again", f"✓ {A} succeeded"
    ]  # fmt: skip


def test_a_service_that_stays_away_is_given_up(service):
    """With the code for what has not ended, and how to go on."""
    service.answers[f"/jobs/{A}"] = [job_as_json(A, "queued")]
    watch = watching(service, A, "--patience", "0.5")
    watch.wait_for("queued")

    service.stop()

    assert watch.end() == 5
    assert f"fimlora watch {A}" in watch.output


def test_a_service_that_was_never_there_is_an_error(service):
    """At once: an address that is wrong does not become right."""
    service.stop()

    watch = watching(service, A)

    assert watch.end() == 1
    assert "error no answer from" in watch.output


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "log"])
def test_ctrl_c_leaves_the_job_running(service, on_terminal):
    """And says how to go on; nothing was sent but questions."""
    service.answers[f"/jobs/{A}"] = [job_as_json(A, "queued")]
    environment = {"FIMLORA_URL": service.url}
    watch = CommandLine("watch", A, on_terminal=on_terminal, environment=environment)
    watch.wait_for("queued")

    watch.interrupt()

    assert watch.end() == 130
    assert f"the job goes on; watch again with  fimlora watch {A}" in plain(watch.output)
    assert f"or stop one with  fimlora cancel {A}" in plain(watch.output)
    assert set(service.asked) == {f"/jobs/{A}"}


def plain(text):
    """Text without what colours it."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_without_a_job_all_open_ones_are_watched(run, rows, store):
    """On the real app, whose jobs run while the client would sleep."""
    request = ["calibrate", "tiny", rows, "--batches", "1", "--no-wait", "--budget"]
    ids = [run(*request, budget).stdout.strip() for budget in (3, 4)]
    ended = run(*request, 5).stdout.strip()
    store.start(ended, 1, worker="test")
    store.fail(ended, 1, JobError(code="internal", detail="it broke"))

    watched, again = run("watch"), run("watch")

    assert watched.exit_code == 0, watched.output
    assert [i for i in (*ids, ended) if f"{i} succeeded" in watched.stderr] == ids
    assert ended not in watched.stderr
    assert again.exit_code == 0
    assert "no job is open" in again.stderr


def test_an_unknown_job_is_not_found(run):
    assert run("watch", "job_none").exit_code == 3


def test_the_service_is_asked_for_open_jobs_alone(service):
    """Page by page, however many thousands have ended."""
    which = "status=queued&status=running&status=canceling"
    page_1, page_2 = f"/jobs?limit=100&{which}", f"/jobs?limit=100&cursor=c&{which}"
    first = {"object": "list", "data": [job_as_json(B, "queued")], "next_cursor": "c"}
    second = {"object": "list", "data": [job_as_json(A, "running")], "next_cursor": None}
    service.answers[page_1], service.answers[page_2] = [first], [second]
    for job_id in (A, B):
        service.answers[f"/jobs/{job_id}"] = [job_as_json(job_id, "succeeded")]

    watch = watching(service)

    assert watch.end() == 0
    assert watch.output.splitlines() == [f"✓ {A} succeeded", f"✓ {B} succeeded"]
    assert {path for path in service.asked if "?" in path} <= {*service.answers}
