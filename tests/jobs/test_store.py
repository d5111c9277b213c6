"""The job record's compare-and-set rules, on a real Valkey."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from redis import Redis
from redis.exceptions import LockNotOwnedError

from fimlora_contract.jobs import AttemptEnd, JobError, JobKind, JobStatus, Progress, Stage
from fimlora_jobs import reaper
from fimlora_jobs.attempts import MAX_ATTEMPTS, attempts_in
from fimlora_jobs.counters import read_counters
from fimlora_jobs.job_filter import JobFilter
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.reaper import Reaped
from fimlora_jobs.store import ATTEMPTS_SHOWN, JobStore, RequestTaken, StaleAttempt


class ListTransport:
    """A queue that remembers what it was told; hand-written, no mock."""

    def __init__(self) -> None:
        self.queue: list[tuple[str, int]] = []

    def enqueue(self, job_id: str, attempt: int, *, at_front: bool = False) -> None:
        self.queue.insert(0 if at_front else len(self.queue), (job_id, attempt))

    def waiting(self) -> set[tuple[str, int]]:
        return set(self.queue)


@pytest.fixture(params=[False, True], ids=["bytes-client", "decoding-client"])
def store(redis_client: Redis, request: pytest.FixtureRequest) -> JobStore:
    if not request.param:
        return JobStore(redis_client)
    kwargs = dict(redis_client.get_connection_kwargs()) | {"decode_responses": True}
    return JobStore(Redis(unix_socket_path=kwargs["path"], decode_responses=True))


@pytest.fixture
def job_id(store: JobStore) -> str:
    id_ = store.new_id()
    store.create(id_, request={"budget": {"rank": 8}}, resolved={}, digest="sha256:00")
    return id_


def age(redis: Redis, store: JobStore, job_id: str, *, seconds: float) -> None:
    """Make a record look as if nothing had touched it for a while."""
    then = str(store.now_ms() - int(seconds * 1000))
    redis.hset(store.key("job", job_id), mapping={"updated_at": then, "lease_until": then})


def test_a_job_goes_from_queued_to_succeeded(store, job_id):
    """The ordinary life of a job, with its times and its history."""
    store.start(job_id, 1, worker="w")
    store.report(job_id, 1, Progress(stage=Stage.CALIBRATING, batch=3, n_batches=8))
    store.succeed(job_id, 1, {"digest": "d", "artifacts": []})

    record = store.get(job_id)
    assert record.status is JobStatus.SUCCEEDED
    assert record.json_field("progress")["batch"] == 3
    assert (
        record.fields["created_at"]
        <= record.fields["started_at"]
        <= record.fields["finished_at"]
    )
    assert [(e.type, e.status) for e in store.events(job_id)] == [
        ("status", "queued"),
        ("status", "running"),
        ("progress", "running"),
        ("status", "succeeded"),
    ]
    assert store.open_jobs() == {}


def test_creating_a_job_twice_changes_nothing(store, job_id):
    """A repeated request with the same id cannot reset a job that has begun."""
    store.start(job_id, 1, worker="w")

    again = store.create(job_id, request={}, resolved={}, digest="other")

    assert again.status is JobStatus.RUNNING
    assert again.request == {"budget": {"rank": 8}}


def test_an_attempt_is_started_once(store, job_id):
    """Of many workers that were handed the same attempt one starts it."""

    def start(worker: int) -> bool:
        try:
            store.start(job_id, 1, worker=str(worker))
        except StaleAttempt:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, range(8)))

    assert started.count(True) == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda store, id_: store.succeed(id_, 1, {}),
        lambda store, id_: store.fail(id_, 1, JobError(code="internal", detail="x")),
        lambda store, id_: store.report(id_, 1, Progress(stage=Stage.LOADING)),
        lambda store, id_: store.renew(id_, 1),
        lambda store, id_: store.requeue(id_, 1),
    ],
    ids=["succeed", "fail", "report", "renew", "requeue"],
)
def test_an_overtaken_attempt_writes_nothing(store, job_id, write):
    """A worker that was taken for dead finds itself fenced off."""
    store.start(job_id, 1, worker="old")
    store.requeue(job_id, 1)
    store.start(job_id, 2, worker="new")
    before = store.get(job_id).fields

    with pytest.raises(StaleAttempt, match="attempt 2, not in attempt 1"):
        write(store, job_id)

    assert store.get(job_id).fields == before


def test_a_final_state_is_sticky(store, job_id):
    """Nothing moves a job that has ended."""
    store.start(job_id, 1, worker="w")
    store.succeed(job_id, 1, {"digest": "d"})

    for write in (
        lambda: store.request_cancel(job_id),
        lambda: store.fail(job_id, 1, JobError(code="internal", detail="x")),
        lambda: store.requeue(job_id, 1),
    ):
        with pytest.raises(StaleAttempt):
            write()
    assert store.get(job_id).status is JobStatus.SUCCEEDED


def test_a_cancel_request_beats_a_late_success(store, job_id):
    """Once canceling, a job ends as canceled whatever its worker reports."""
    store.start(job_id, 1, worker="w")

    assert store.request_cancel(job_id) is JobStatus.CANCELING
    assert store.renew(job_id, 1) is JobStatus.CANCELING
    with pytest.raises(StaleAttempt):
        store.succeed(job_id, 1, {})
    store.fail(job_id, 1, JobError(code="internal", detail="x"))

    assert store.get(job_id).status is JobStatus.CANCELED


def test_a_queued_job_is_canceled_at_once(store, job_id):
    """No worker is needed to cancel what has not begun."""
    assert store.request_cancel(job_id) is JobStatus.CANCELED
    with pytest.raises(StaleAttempt):
        store.start(job_id, 1, worker="w")


def test_a_job_fails_after_its_last_attempt(store, job_id):
    """Counted attempts run out, uncounted ones do not."""
    store.start(job_id, 1, worker="w")
    store.requeue(job_id, 1, counted=False)
    for attempt in range(2, 2 + MAX_ATTEMPTS):
        store.start(job_id, attempt, worker="w")
        store.requeue(job_id, attempt)

    record = store.get(job_id)
    assert record.status is JobStatus.FAILED
    assert record.json_field("error")["code"] == "worker_lost"


def test_a_job_tells_how_its_attempts_ended(store, job_id):
    """Each with its reason, in the record and in its events; of very many the newest."""
    memory = JobError(code="out_of_memory_host", detail="no memory", retryable=True)
    ends = [
        ({}, "worker_lost", True, None),
        ({"error": memory}, "out_of_memory_host", True, "no memory"),
        ({"counted": False}, "handed_over", False, None),
        ({"counted": False, "reason": AttemptEnd.MADE_ROOM}, "made_room", False, None),
    ]
    for attempt, (given, *_) in enumerate(ends, start=1):
        store.start(job_id, attempt, worker="w")
        store.requeue(job_id, attempt, **given)

    job = store.get(job_id).to_job()
    assert [(e.reason, e.counted, e.detail) for e in job.earlier_attempts] == [
        tuple(said) for _, *said in ends
    ]
    assert [e.attempt for e in job.earlier_attempts] == [1, 2, 3, 4]
    assert [e.reason for e in store.events(job_id) if e.reason] == [said[1] for said in ends]

    for attempt in range(5, 60):
        store.requeue(job_id, attempt, counted=False)
    kept = store.get(job_id).earlier_attempts
    assert [e.attempt for e in kept] == list(range(60 - ATTEMPTS_SHOWN, 60))


def test_a_job_that_storage_refuses_five_times_in_a_row_fails(store, job_id):
    """Storage that is away ends the row, and a hand-over does not."""
    away = AttemptEnd.STORAGE_UNAVAILABLE
    error = JobError(code="storage_unavailable", detail="x", retryable=True)
    for attempt, (reason, is_refused) in enumerate(
        [
            *[(away, True)] * 4,
            (away, False),
            *[(away, True)] * 4,
            (AttemptEnd.HANDED_OVER, False),
        ],
        start=1,
    ):
        store.requeue(
            job_id, attempt, counted=False, reason=reason, error=error, is_refused=is_refused
        )
        assert store.get(job_id).status is JobStatus.QUEUED

    store.requeue(job_id, 11, counted=False, reason=away, error=error, is_refused=True)

    record = store.get(job_id)
    assert (record.status, record.failures) == (JobStatus.FAILED, 0)
    assert record.json_field("error")["code"] == "storage_unavailable"


def test_an_unknown_job_is_missing(store):
    """Every call on an unknown id says so."""
    for call in (
        lambda: store.get("job_x"),
        lambda: store.status_of("job_x"),
        lambda: store.start("job_x", 1, worker="w"),
        lambda: store.request_cancel("job_x"),
    ):
        with pytest.raises(JobMissing, match="job_x"):
            call()


def test_pages_run_from_newest_to_oldest_without_gaps(store):
    """Walking by cursor meets every job once."""
    ids = [store.new_id() for _ in range(7)]
    for id_ in ids:
        store.create(id_, request={}, resolved={}, digest="d")

    seen: list[str] = []
    while page := store.page(limit=3, before=seen[-1] if seen else None):
        seen += [record.id for record in page]

    assert seen == sorted(ids, reverse=True)


def test_a_page_of_one_kind_passes_over_the_others(store):
    """However many others lie between, and following the last id leaves no gap."""
    kinds = [JobKind.EVALUATION if n % 5 == 0 else JobKind.CALIBRATION for n in range(23)]
    ids = {kind: [] for kind in kinds}
    for n, kind in enumerate(kinds):
        id_ = f"job_{n:011x}{'0' * 12}"
        store.create(id_, kind=kind, request={}, resolved={}, digest="d")
        ids[kind].insert(0, id_)

    for kind, expected in ids.items():
        seen = []
        while page := store.page(
            limit=2, before=seen[-1] if seen else None, wanted=JobFilter(kind)
        ):
            seen += [record.id for record in page]

        assert seen == expected
    assert store.page(limit=2, wanted=JobFilter(JobKind.COMPARISON)) == []


def put(store, number, *, model="tiny", labels=None, revision=None):
    """A queued job of a model, with labels."""
    reference = {"source": "local", "name": model}
    if "/" in model:
        reference = {"source": "hub", "id": model, "revision": revision or "main"}
    request = {"base_model": reference, "metadata": labels or {}}
    id_ = f"job_{number:011x}{'0' * 12}"
    store.create(id_, request=request, resolved={}, digest="d")
    return id_


def test_a_page_has_only_the_jobs_that_are_wanted(store):
    """By status, labels and model, and by all of them at once."""
    mine = put(store, 1, labels={"team": "nlp", "run": "a=b"})
    other = put(store, 2, model="org/model", labels={"team": "nlp"})
    pinned = put(store, 3, model="org/model", revision="v1")
    store.request_cancel(other)

    def ids(**wanted):
        return [record.id for record in store.page(limit=9, wanted=JobFilter(**wanted))]

    assert ids() == [pinned, other, mine]
    assert ids(labels={"team": "nlp"}) == [other, mine]
    assert ids(labels={"team": "nlp", "run": "a=b"}) == [mine]
    assert ids(labels={"team": "vision"}) == []
    assert ids(model="tiny") == ids(model="local:tiny") == [mine]
    assert ids(model="org/model") == [pinned, other]
    assert ids(model="org/model@v1") == [pinned]
    assert ids(statuses=frozenset({JobStatus.CANCELED})) == [other]
    assert ids(statuses=frozenset({JobStatus.CANCELED}), model="tiny") == []
    assert ids(kind=JobKind.EVALUATION, model="tiny") == []


def test_jobs_in_a_status_that_ends_are_not_read_for_those_that_have_not_ended(
    store, monkeypatch
):
    """A page of running jobs is asked for every few seconds, and those that have ended are many."""
    every = [put(store, n, model="tiny" if n % 3 else "other") for n in range(20)]
    still_open = every[::4]
    for id_ in set(every) - set(still_open):
        store.request_cancel(id_)
    read, plain = [], store._read
    monkeypatch.setattr(
        store, "_read", lambda ids, fields: read.extend(ids) or plain(ids, fields)
    )

    seen, queued = [], frozenset({JobStatus.QUEUED, JobStatus.RUNNING})
    while page := store.page(
        limit=2, before=seen[-1] if seen else None, wanted=JobFilter(statuses=queued)
    ):
        seen += [record.id for record in page]

    assert seen == still_open[::-1]
    assert set(read) == set(still_open)
    wanted = JobFilter(statuses=queued, model="other")
    assert [r.id for r in store.page(limit=9, wanted=wanted)] == [every[12], every[0]]
    assert store.page(limit=9, wanted=wanted, owner="somebody") == []
    mixed = JobFilter(statuses=queued | {JobStatus.CANCELED})
    assert [r.id for r in store.page(limit=30, wanted=mixed)] == every[::-1]


def test_only_jobs_of_the_wanted_status_are_read(store, redis_client, monkeypatch):
    """Who looks for the one job that failed does not have thousands of others sent."""
    every = [put(store, n, model="tiny" if n % 3 else "other") for n in range(24)]
    for n, id_ in enumerate(every):
        if n % 4 == 1:
            store.request_cancel(id_)
        elif n % 4 == 2:
            store.start(id_, 1, worker="w")
    redis_client.hdel(store.key("job", every[5]), "kind")  # of before there were others
    redis_client.delete(store.key("job", every[9]))  # and one that is gone
    there = {id_: store.get(id_) for id_ in every if store.has(id_)}
    read, plain = [], store._read
    monkeypatch.setattr(
        store, "_read", lambda ids, fields: read.extend(ids) or plain(ids, fields)
    )

    some = [JobStatus.CANCELED, JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.FAILED]
    for statuses in [some[:1], some[1:2], some[:2], some[3:], some]:
        for kind, model in itertools.product([None, *JobKind], [None, "tiny"]):
            wanted = JobFilter(kind=kind, statuses=frozenset(statuses), model=model)
            expected = [id_ for id_ in there if wanted.matches(there[id_])][::-1]
            read.clear()

            assert [record.id for record in store.page(limit=50, wanted=wanted)] == expected
            of_them = replace(wanted, model=None)
            assert set(read) <= {id_ for id_ in there if of_them.matches(there[id_])}


def test_a_record_without_a_kind_is_a_calibration(store, redis_client, job_id):
    """Records of before there were others stay what they were."""
    redis_client.hdel(store.key("job", job_id), "kind")

    assert store.shown(job_id).to_job().kind is JobKind.CALIBRATION
    assert [r.id for r in store.page(limit=1, wanted=JobFilter(JobKind.CALIBRATION))] == [
        job_id
    ]


def test_only_calibrations_tell_how_long_one_takes(store, job_id):
    """The expected wait in the queue is that of calibrations."""
    evaluation = store.new_id()
    store.create(evaluation, kind=JobKind.EVALUATION, request={}, resolved={}, digest="e")
    for id_, measured in ((evaluation, 0), (job_id, 1)):
        store.start(id_, 1, worker="w")
        store.succeed(id_, 1, {"digest": "d", "artifacts": []})

        assert read_counters(store).n_measured == measured


def test_events_resume_behind_the_last_seen_one(store, job_id):
    """Reading on after an event id repeats nothing and misses nothing."""
    store.start(job_id, 1, worker="w")
    first = store.events(job_id, limit=1)

    rest = store.events(job_id, after=first[0].id)

    assert [e.status for e in first + rest] == ["queued", "running"]


def test_a_key_is_bound_to_its_first_request(store):
    """The second request with a key learns what the first one was."""
    assert store.claim_key("k", fingerprint="f1", job_id="job_1") == ("f1", "job_1")
    assert store.claim_key("k", fingerprint="f2", job_id="job_2") == ("f1", "job_1")


def test_one_look_finds_what_is_known_of_a_request(store, job_id):
    """Nothing at first; then the job to share, the result and the statistics, each by its key."""
    before = store.now_ms()
    nothing = store.look_up("sha256:aa", "sha256:ss")
    assert nothing.is_new
    assert before <= nothing.now_ms <= store.now_ms()

    store.create("job_2", request={}, resolved={}, digest="sha256:aa", in_place_of="")
    store.create("job_3", request={}, resolved={}, digest="sha256:cc")
    store.remember_result("sha256:aa", job_id)
    store.remember_statistics("sha256:ss", "job_3")

    found = store.look_up("sha256:aa", "sha256:ss")
    assert (found.shared, found.result, found.statistics) == ("job_2", job_id, "job_3")
    assert not found.is_new
    assert store.look_up("sha256:bb", "sha256:ss").statistics == "job_3"
    assert not store.look_up("sha256:bb", "sha256:ss").is_new


def test_a_new_job_is_counted_once(store, redis_client):
    """Making it again, or in a place that is taken, counts nothing."""
    fields = {"request": {}, "resolved": {}, "digest": "sha256:aa", "counted_as": "measured"}
    for _ in range(2):
        store.create("job_1", **fields, in_place_of="")
    with pytest.raises(RequestTaken):
        store.create("job_2", **fields, in_place_of="")

    assert redis_client.hgetall(store.key("cache_figures")) == {b"measured": b"1"}


def test_only_a_succeeded_job_answers_an_equal_request(store, job_id):
    """A remembered job that is not done does not count as a result."""
    store.remember_result("sha256:aa", job_id)
    assert store.find_result("sha256:aa") is None

    store.start(job_id, 1, worker="w")
    store.succeed(job_id, 1, {"digest": "d"})

    found = store.find_result("sha256:aa")
    assert found is not None
    assert found.id == job_id


def test_a_lock_is_held_by_one_and_only_given_back_by_its_holder(store, redis_client):
    """Who comes back after it ran out leaves its next holder alone."""
    first, second = (store.lock("a", ttl_s=60) for _ in "ab")
    assert first.acquire()
    assert not second.acquire()
    redis_client.delete(store.key("lock", "a"))  # as if it had run out
    assert second.acquire()

    with pytest.raises(LockNotOwnedError):
        first.release()

    assert second.owned()
    second.release()
    assert first.acquire()


def requeued_after(
    redis: Redis, store: JobStore, transport: ListTransport, job_id: str, *, seconds: float
) -> list[int]:
    """Let time pass, look once, and list the attempts that were queued by it."""
    age(redis, store, job_id, seconds=seconds)
    redis.delete(store.key("lock", "reaper"))
    reaped: list[Reaped] = []
    reaper.requeue_orphans(store, transport, on_reaped=reaped.append)
    return [r.attempt for r in reaped]


def test_the_reaper_queues_a_job_whose_lease_has_run_out(redis_client, store, job_id):
    """The next attempt of a lost job goes in front of the line."""
    transport = ListTransport()
    transport.enqueue("job_other", 1)
    store.start(job_id, 1, worker="dead")

    assert requeued_after(redis_client, store, transport, job_id, seconds=1) == [2]
    assert transport.queue == [(job_id, 2), ("job_other", 1)]


def test_the_reaper_queues_a_job_that_stays_in_no_list(redis_client, store, job_id):
    """Popped by a worker that died before it began: seen missing, then given up."""
    transport = ListTransport()

    assert requeued_after(redis_client, store, transport, job_id, seconds=1) == []
    assert requeued_after(redis_client, store, transport, job_id, seconds=5) == []
    assert requeued_after(redis_client, store, transport, job_id, seconds=16) == [2]


def test_a_job_popped_after_a_long_wait_keeps_its_attempt(redis_client, store, job_id):
    """However long it stood in line, its worker gets the whole grace to begin."""
    transport = ListTransport()
    transport.enqueue(job_id, 1)
    assert requeued_after(redis_client, store, transport, job_id, seconds=3600) == []

    transport.queue.clear()

    assert requeued_after(redis_client, store, transport, job_id, seconds=3600) == []
    assert store.start(job_id, 1, worker="w").status is JobStatus.RUNNING


def test_a_job_back_in_line_is_not_missing_any_more(redis_client, store, job_id):
    """Seen missing before it was queued, seen waiting, popped: the grace starts anew."""
    transport = ListTransport()
    requeued_after(redis_client, store, transport, job_id, seconds=1)
    transport.enqueue(job_id, 1)
    requeued_after(redis_client, store, transport, job_id, seconds=1)
    transport.queue.clear()

    assert requeued_after(redis_client, store, transport, job_id, seconds=3600) == []


def test_a_popped_job_is_held_before_it_is_started(redis_client, store, job_id):
    """A worker's parent holds the lease while the child still imports."""
    age(redis_client, store, job_id, seconds=3600)
    store.note_missing(job_id, 1, missing=True)
    store.renew(job_id, 1)
    redis_client.hset(store.key("job", job_id), "updated_at", "0")
    reaped: list[Reaped] = []

    reaper.requeue_orphans(store, ListTransport(), on_reaped=reaped.append)

    assert reaped == []


def shift_looks(redis: Redis, store: JobStore, *, seconds: float) -> None:
    """Make the last look be so long ago, and the looks before it without a gap."""
    then = store.now_ms() - int(seconds * 1000)
    redis.hset(store.key("looks"), mapping={"last": then, "again": then})


def one_term_later(redis: Redis, store: JobStore) -> None:
    """Make the looks go on for one term since the last gap."""
    now = store.now_ms()
    redis.hset(store.key("looks"), mapping={"last": now - 5000, "again": now - 21_000})


def test_leases_that_ran_out_while_the_store_was_away_get_a_term(redis_client, store, job_id):
    """Nobody could hold one, so none is taken for lost before its holder could say a word."""
    transport = ListTransport()
    store.start(job_id, 1, worker="alive")
    shift_looks(redis_client, store, seconds=60)

    assert requeued_after(redis_client, store, transport, job_id, seconds=40) == []
    assert requeued_after(redis_client, store, transport, job_id, seconds=41) == []
    assert store.renew(job_id, 1) is JobStatus.RUNNING


def test_what_is_lost_before_a_gap_is_found_a_term_after_it(redis_client, store, job_id):
    """The term is over, and nobody has said a word."""
    transport = ListTransport()
    store.start(job_id, 1, worker="dead")
    one_term_later(redis_client, store)

    assert requeued_after(redis_client, store, transport, job_id, seconds=60) == [2]


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_clock_that_is_set_takes_no_attempt_and_hides_none(
    redis_client, store, job_id, ahead_s
):
    """Set on, all leases seem over; set back, they seem to hold for an hour."""
    transport = ListTransport()
    store.start(job_id, 1, worker="w")
    shift_looks(redis_client, store, seconds=ahead_s)

    assert requeued_after(redis_client, store, transport, job_id, seconds=ahead_s) == []
    one_term_later(redis_client, store)
    assert requeued_after(redis_client, store, transport, job_id, seconds=ahead_s) == [2]


def test_the_reaper_leaves_a_live_lease_alone(store, job_id):
    """A running job whose worker renews is not taken away."""
    store.start(job_id, 1, worker="alive")
    reaped: list[Reaped] = []

    reaper.requeue_orphans(store, ListTransport(), on_reaped=reaped.append)

    assert reaped == []
    assert store.get(job_id).attempt == 1


def test_the_reaper_leaves_a_lease_alone_that_is_renewed_while_it_looks(store, job_id):
    """It takes a while to look, and reads what time it is with the lease."""
    store.start(job_id, 1, worker="alive")
    reaped: list[Reaped] = []

    class SlowTransport(ListTransport):
        def waiting(self):
            time.sleep(0.01)
            store.renew(job_id, 1)
            return super().waiting()

    reaper.requeue_orphans(store, SlowTransport(), on_reaped=reaped.append)

    assert reaped == []


def test_two_reapers_do_not_look_at_once(store, redis_client, job_id):
    """The lock turns the second one away for a while."""
    store.start(job_id, 1, worker="dead")
    age(redis_client, store, job_id, seconds=60)
    transport, reaped = ListTransport(), list[Reaped]()

    for _ in range(3):
        reaper.requeue_orphans(store, transport, on_reaped=reaped.append)

    assert len(reaped) == 1


def test_the_reaper_asks_the_server_a_few_times_however_many_jobs_wait(redis_client, store):
    """Ten thousand waiting jobs must not cost ten thousand round trips every few seconds."""
    transport = ListTransport()
    for n in range(300):
        store.create(f"job_{n:023x}", request={}, resolved={}, digest="sha256:00")
        transport.enqueue(f"job_{n:023x}", 1)
    before = reads(redis_client)

    reaper.requeue_orphans(store, transport, on_reaped=lambda reaped: None)

    assert reads(redis_client) - before < 20


def reads(redis: Redis) -> int:
    """How often the server's sockets were read."""
    return int(redis.info("stats")["total_reads_processed"])


ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


def test_inline_rows_are_kept_apart_until_the_job_succeeds(store):
    """The worker reads them; whoever looks at the job reads their number."""
    id_ = store.new_id()
    request = {"dataset": {"source": "inline", "rows": ROWS}}
    shown = store.create(id_, request=request, resolved={}, digest="sha256:00")

    assert shown.shown_request == {"dataset": {"source": "inline", "n_rows": 2}}
    assert "rows" not in store.shown(id_).fields
    assert store.get(id_).request == request
    store.start(id_, 1, worker="w")
    store.succeed(id_, 1, {"digest": "d", "artifacts": []})
    assert store.get(id_).request == {"dataset": {"source": "inline", "n_rows": 2}}


def test_every_visible_change_raises_the_version(store, job_id):
    """An answer that was made from a record holds as long as its version."""
    versions = [store.version_of(job_id)]
    store.start(job_id, 1, worker="w")
    versions.append(store.version_of(job_id))
    store.report(job_id, 1, Progress(stage=Stage.CALIBRATING, batch=3, n_batches=8))
    versions.append(store.version_of(job_id))
    store.renew(job_id, 1)
    assert store.version_of(job_id) == versions[-1]
    store.succeed(job_id, 1, {"digest": "d", "artifacts": []})
    versions.append(store.version_of(job_id))

    assert versions == sorted(set(versions))


def test_what_somebody_else_queued_is_passed_over():
    """An id that is not ours must not end the reaper."""
    assert attempts_in([b"job_1-2", "job_3-1", b"theirs", b"a-b"]) == {
        ("job_1", 2),
        ("job_3", 1),
    }
