"""Runs of an evaluation: claimed by one, finished once, gone with their job."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from redis import Redis

from fimlora_contract.jobs import JobKind
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.runs import TRAINING, Runs
from fimlora_jobs.store import BESIDE, JobStore


@pytest.fixture(params=[False, True], ids=["bytes-client", "decoding-client"])
def runs(redis_client: Redis, request: pytest.FixtureRequest) -> Runs:
    kwargs = redis_client.get_connection_kwargs()
    redis = Redis(unix_socket_path=kwargs["path"], decode_responses=request.param)
    store = JobStore(redis)
    job_id = store.new_id()
    store.create(job_id, kind=JobKind.EVALUATION, request={}, resolved={}, digest="d")
    return Runs(store, job_id)


def test_each_run_is_claimed_by_one(runs):
    """Ten workers at once share out the runs, in the order they are wanted."""
    wanted = [f"final:fim:0.001:{n}" for n in range(7)]
    with ThreadPoolExecutor(10) as pool:
        claimed = list(pool.map(lambda n: runs.claim(wanted, holder=f"w{n}"), range(10)))

    assert sorted(filter(None, claimed)) == wanted
    assert claimed.count(None) == 3
    assert runs.claimed() == {run: f"w{n}" for n, run in enumerate(claimed) if run}


def test_a_claim_of_the_dead_runs_out(runs):
    """Held on to, it does not; then it is another's, and the first one's hold is nothing."""
    assert runs.claim(["a"], holder="first", for_ms=60) == "a"
    assert runs.hold("first") == 1
    time.sleep(0.08)
    assert runs.claim(["a"], holder="second") is None

    runs.hold("first", for_ms=1)
    time.sleep(0.01)
    assert runs.claimed() == {}
    assert runs.claim(["a"], holder="second") == "a"
    assert runs.hold("first") == 0
    assert runs.claimed() == {"a": "second"}


def test_a_result_of_no_use_is_anybodys_again(runs):
    """Once it is discarded, and not before; others stay."""
    for run in ("a", "b"):
        runs.keep(run, {"file": run})
    assert runs.claim(["a", "b"], holder="w") is None

    runs.discard("a")

    assert runs.results() == {"b": {"file": "b"}}
    assert runs.claim(["a", "b"], holder="w") == "a"


def test_how_far_runs_are_is_noted_by_the_hardware_they_are_on(runs):
    """The last note of each counts; that of other hardware is not seen."""
    here, there = replace(runs, on="cpu float32"), replace(runs, on="cuda bfloat16")
    for n_done in (1, 5):
        here.note("a", n_done)
    there.note("a", 9)

    assert (here.noted(), there.noted()) == ({"a": 5}, {"a": 9})


def test_what_is_given_back_can_be_claimed_at_once(runs):
    """Only what the giver had."""
    runs.claim(["a"], holder="first")
    runs.claim(["b"], holder="second")

    assert runs.release("first") == 1
    assert runs.claimed() == {"b": "second"}
    assert runs.claim(["b", "a"], holder="third") == "a"


def test_a_result_is_kept_once(runs):
    """A late one changes nothing, and a finished run is nobody's to claim."""
    runs.claim(["a", "b"], holder="first")

    assert runs.keep("a", {"loss": 0.5}) is True
    assert runs.keep("a", {"loss": 9.0}) is False
    assert runs.results() == {"a": {"loss": 0.5}}
    assert runs.claimed() == {}
    assert runs.claim(["a", "b"], holder="second") == "b"


def test_runs_on_other_hardware_are_not_seen(runs):
    """Neither results nor claims; each may train the same run."""
    here, there = (replace(runs, on=on) for on in ("cpu float32", "cuda float32"))
    for each in (here, there):
        assert each.claim(["a", "b"], holder=each.on) == "a"
        assert each.keep("a", {"on": each.on}) is True
    there.claim(["b"], holder="other")

    assert here.results() == {"a": {"on": "cpu float32"}}
    assert there.results() == {"a": {"on": "cuda float32"}}
    assert (here.claimed(), there.claimed()) == ({}, {"b": "other"})
    runs.prepare({"fim": []}, on=here.on)
    assert (runs.prepared(), runs.prepared_on()) == ({"fim": []}, "cpu float32")


def test_a_retry_goes_on_from_what_was_finished(runs):
    """Plans and results are taken over, claims are not, and nothing that is there is lost."""
    again = Runs(runs.store, runs.store.new_id())
    runs.store.create(
        again.job_id, kind=JobKind.EVALUATION, request={}, resolved={}, digest="e"
    )
    runs.prepare({"arms": {"fim": [1, 2]}})
    runs.claim(["a"], holder="first")
    runs.keep("b", {"loss": 0.5})

    again.adopt(runs.job_id)
    again.adopt(runs.job_id)

    assert again.prepared() == {"arms": {"fim": [1, 2]}}
    assert again.results() == {"b": {"loss": 0.5}}
    assert again.claimed() == {}


def test_runs_that_were_trained_in_another_way_are_not_taken_over(runs):
    """Results of two ways of training are not paired."""
    again = Runs(runs.store, runs.store.new_id())
    runs.store.create(
        again.job_id, kind=JobKind.EVALUATION, request={}, resolved={}, digest="e"
    )
    runs.keep("b", {"loss": 0.5})
    earlier = {"plans": {}, "on": "", "training": TRAINING - 1}
    runs.store.redis.set(runs.store.key("plans", runs.job_id), json.dumps(earlier))

    again.adopt(runs.job_id)

    assert (again.prepared(), again.results()) == (None, {})


def test_nothing_is_left_of_a_job_that_is_not_there(runs):
    """Whatever comes after it was deleted."""
    runs.prepare({})
    runs.keep("b", {"loss": 0.5})
    gone = Runs(runs.store, runs.store.new_id())

    gone.prepare({})
    gone.note_failed_hand()
    gone.adopt(runs.job_id)

    left = [gone.store.redis.exists(gone.store.key(name, gone.job_id)) for name in BESIDE]
    assert left == [0] * len(BESIDE)


def test_everything_goes_with_the_job(runs):
    """A late result of a job that was deleted is dropped, too."""
    runs.prepare({})
    runs.claim(["a"], holder="first")
    runs.keep("b", {"loss": 0.5})
    runs.store.request_cancel(runs.job_id)
    runs.store.delete(runs.job_id)

    with pytest.raises(JobMissing):
        runs.keep("a", {"loss": 0.5})
    left = [runs.store.redis.exists(runs.store.key(name, runs.job_id)) for name in BESIDE]
    assert left == [0] * len(BESIDE)
    assert runs.prepared() is None
