"""GET /jobs/{id}/events."""

import threading
import time

import pytest

from fimlora_contract.jobs import Progress, Stage
from fimlora_service.jobs.event_stream import wants_page


def parse(stream: str) -> list[dict[str, str]]:
    """The events of a stream, comments left out."""
    blocks = [block for block in stream.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_the_history_of_a_finished_job_is_told_and_ends(http, job_id, succeed):
    """The stream closes after the final event."""
    succeed(job_id)

    answer = http.get(f"/jobs/{job_id}/events")

    assert answer.headers["Content-Type"].startswith("text/event-stream")
    first, *events = parse(answer.text)
    assert first == {"retry": "2000"}
    assert [event["event"] for event in events] == ["status"] * 3
    assert '"status":"succeeded"' in events[-1]["data"]


def test_events_arrive_while_the_job_runs(http, job_id, store, succeed):
    """A follower sees the start, is kept alive in silence, and sees the end."""
    threading.Timer(0.4, succeed, [job_id]).start()

    answer = http.get(f"/jobs/{job_id}/events")

    assert ": keep-alive\n\n" in answer.text
    assert len(parse(answer.text)) == 4
    assert '"status":"succeeded"' in answer.text


def test_a_stream_goes_on_behind_the_last_event_seen(http, job_id, store, succeed):
    """Reconnecting with Last-Event-ID repeats nothing and loses nothing."""
    succeed(job_id)
    ids = [event.id for event in store.events(job_id)]

    answer = http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": ids[0]})
    at_end = http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": ids[-1]})

    assert [event["id"] for event in parse(answer.text)[1:]] == ids[1:]
    assert parse(at_end.text)[1:] == []


def test_a_page_is_given_to_who_asks_for_json(http, job_id, store):
    """Pages follow one another to the last event, whether or not the job has ended."""
    store.start(job_id, 1, worker="w")
    for batch in range(3):
        store.report(job_id, 1, Progress(stage=Stage.CALIBRATING, batch=batch))

    seen, after = [], "0"
    while after:
        page = http.get(
            f"/jobs/{job_id}/events",
            params={"after": after, "limit": 2},
            headers={"Accept": "application/json"},
        ).json()
        seen += page["data"]
        after = page["next_cursor"]

    assert [event["type"] for event in seen] == ["status"] * 2 + ["progress"] * 3
    assert [event["id"] for event in seen] == [event.id for event in store.events(job_id)]


def test_an_empty_last_event_id_is_none(http, job_id, store, succeed):
    """What an event source sends that has seen no id yet: the stream begins at the start."""
    succeed(job_id)

    answer = http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": ""})

    assert answer.status_code == 200
    assert len(parse(answer.text)[1:]) == len(store.events(job_id))


@pytest.mark.parametrize("id_", ["x", "-1", "1-", "9" * 30, "0-0; DROP"])
def test_a_last_event_id_of_another_make_is_refused(http, job_id, id_):
    """It never reaches Redis."""
    answer = http.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": id_})

    assert answer.status_code == 422


def test_an_unknown_job_has_no_stream(http):
    """A problem document, not an empty stream."""
    assert http.get("/jobs/job_0/events").json()["code"] == "job_not_found"


def test_streams_and_long_polls_leave_room_for_others(http, job_id, succeed):
    """Many waiting clients block nobody: the service answers as fast as without them."""
    waiters = [
        threading.Thread(target=http.get, args=[f"/jobs/{job_id}?wait=3"]) for _ in range(30)
    ] + [threading.Thread(target=http.get, args=[f"/jobs/{job_id}/events"]) for _ in range(30)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.2)

    began = time.monotonic()
    for _ in range(5):
        assert http.get(f"/jobs/{job_id}").status_code == 200
    took = time.monotonic() - began
    succeed(job_id)
    for waiter in waiters:
        waiter.join()

    assert took < 2.0


@pytest.mark.parametrize(
    "accept", ["image/png", "text/html, application/xml;q=0.9", ";", "json"]
)
def test_another_format_is_not_acceptable(http, job_id, accept):
    """406 names the two there are."""
    answer = http.get(f"/jobs/{job_id}/events", headers={"Accept": accept})

    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    assert "text/event-stream" in answer.json()["detail"]


@pytest.mark.parametrize(
    "accept",
    [
        "application/json",
        "Application/JSON;q=0.5, image/png",
        "application/*",
        "application/json, */*",
    ],
)
def test_a_page_is_acceptable_in_any_spelling(http, job_id, accept):
    """Types are compared without regard to case, and one of several is enough."""
    assert http.get(f"/jobs/{job_id}/events", headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        ("text/event-stream", False),
        ("*/*", False),
        ("application/json, text/plain, */*", True),
        ("application/json, text/event-stream", False),
        ("application/json, text/event-stream;q=0.5", True),
        ("application/json;q=0.5, text/event-stream", False),
        ("text/event-stream;q=0, application/json", True),
        ("application/json;q=0, */*", False),
    ],
)
def test_a_client_gets_what_it_likes_best(accept, is_page):
    """By weight; 0 means: on no account."""
    assert wants_page(accept) is is_page


@pytest.mark.parametrize("accept", ["application/json;q=0", "text/event-stream;q=0, */*"])
def test_what_a_client_excludes_it_does_not_get(http, job_id, accept):
    """406, as if it had not been named."""
    answer = http.get(f"/jobs/{job_id}/events", headers={"Accept": accept})

    assert answer.status_code == 406
