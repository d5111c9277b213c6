"""The judge of histories: what is right passes, and every planted violation is found."""

import json
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.chaos.histories import Operation, lost, unseen
from support.chaos.job_register import JobRegister, KeyRegister
from support.chaos.linearizability import check
from support.chaos.told import told_wrongly, untold
from support.receiver import Receiver

JOB = JobRegister()


def op(kind: str, called: float, returned: float, *answer: object) -> Operation:
    return Operation("job", kind, called, returned, answer)


def commits(*changes: tuple[str, int]) -> list[Operation]:
    return [unseen("job", "commit", change) for change in changes]


SUBMITTED = op("submit", 0, 1, "queued", 1)
RAN = commits(("running", 1), ("succeeded", 1))
RAN_TWICE = commits(("running", 1), ("queued", 2), ("running", 2), ("succeeded", 2))
GOOD = {
    "ordinary life": [
        SUBMITTED, *RAN, op("read", 2, 3, "running", 1), op("read", 4, 5, "succeeded", 1),
        op("result", 6, 7, "sha256:a"),
    ],
    "two who look at once may see what was and what is": [
        SUBMITTED, *RAN, op("read", 2, 9, "succeeded", 1), op("read", 3, 8, "running", 1),
    ],
    "a lost worker": [
        SUBMITTED, *RAN_TWICE, op("read", 2, 3, "running", 1), op("read", 4, 5, "queued", 2),
        op("read", 6, 7, "succeeded", 2),
    ],
    "a submission whose answer was lost has happened": [
        lost("job", "submit", 0), *RAN, op("read", 2, 3, "succeeded", 1),
    ],
    "a cancel whose answer was lost happens later": [
        SUBMITTED, lost("job", "cancel", 2), *commits(("running", 1), ("canceled", 1)),
        op("read", 3, 4, "running", 1), op("read", 5, 6, "canceling", 1),
        op("read", 7, 8, "canceled", 1), op("retry", 9, 10),
    ],
    "a cancel whose answer was lost never happens": [
        SUBMITTED, lost("job", "cancel", 2), *RAN, op("read", 5, 6, "succeeded", 1),
    ],
    "refused as it had not ended": [
        SUBMITTED, *RAN, op("refused", 2, 3, "job_not_finished"), op("result", 4, 5, "sha256:a"),
    ],
}  # fmt: skip
BAD = {
    "a job that is lost": [
        SUBMITTED, op("read", 2, 3, "", 0),
    ],
    "a job that is lost after it has ended": [
        SUBMITTED, *RAN, op("read", 2, 3, "succeeded", 1), op("read", 4, 5, "", 0),
    ],
    "two successes": [
        SUBMITTED, *RAN, *commits(("succeeded", 1)),
    ],
    "a success of an attempt that was overtaken": [
        SUBMITTED, *commits(("running", 1), ("queued", 2), ("running", 2), ("succeeded", 1)),
    ],
    "another result": [
        SUBMITTED, *RAN, op("result", 2, 3, "sha256:a"), op("result", 4, 5, "sha256:b"),
    ],
    "a resurrection": [
        SUBMITTED, *RAN, *commits(("queued", 2)), op("read", 2, 3, "succeeded", 1),
    ],
    "a resurrection that only a client saw": [
        SUBMITTED, *RAN, op("read", 2, 3, "succeeded", 1), op("read", 4, 5, "running", 1),
    ],
    "a stale look after the end": [
        SUBMITTED, *RAN, op("result", 2, 3, "sha256:a"), op("refused", 4, 5, "job_not_finished"),
    ],
    "a stale look before the end": [
        SUBMITTED, *RAN_TWICE, op("read", 2, 3, "running", 2), op("read", 4, 5, "queued", 2),
    ],
    "a success that was accepted as canceled": [
        SUBMITTED, op("cancel", 2, 3), *RAN, op("read", 4, 5, "succeeded", 1),
    ],
    "canceled by nobody": [
        SUBMITTED, *commits(("running", 1), ("canceled", 1)), op("read", 2, 3, "canceled", 1),
    ],
    "a retry of a job that has succeeded": [
        SUBMITTED, *RAN, op("read", 2, 3, "succeeded", 1), op("retry", 4, 5),
    ],
    "an attempt that runs twice": [
        SUBMITTED, *commits(("running", 1), ("running", 1), ("succeeded", 1)),
    ],
    "a job that nobody submitted": [
        *RAN, op("read", 2, 3, "running", 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_a_single_copy_could_have_answered_holds(history):
    """The order that is found has every operation that has happened."""
    verdict = check(history, JOB)

    assert verdict.holds, verdict.stuck
    assert {op for op in history if op.sure} <= set(verdict.order)


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_a_planted_violation_is_found(history):
    """And what cannot be explained is named."""
    verdict = check(history, JOB)

    assert not verdict.holds
    assert set(verdict.stuck) <= set(history)


@pytest.mark.parametrize(("second", "holds"), [("job_1", True), ("job_2", False)])
def test_a_key_names_one_job(second, holds):
    """Lost answers in between name nothing."""
    history = [
        Operation("key", "submit", 0, 1, ("job_1",)),
        lost("key", "submit", 2),
        Operation("key", "submit", 3, 4, (second,)),
    ]

    assert check(history, KeyRegister()).holds is holds


operations = st.builds(
    lambda what, called, length: op(what[0], called, called + length, *what[1:]),
    st.sampled_from([
        ("submit", "queued", 1), ("read", "queued", 1), ("read", "running", 1), ("cancel",),
        ("read", "canceling", 1), ("read", "succeeded", 1), ("commit", "running", 1),
        ("commit", "succeeded", 1), ("refused", "job_not_finished"), ("result", "a"),
    ]),
    st.integers(0, 6),
    st.integers(1, 4),
)  # fmt: skip


def by_brute_force(history: list[Operation]) -> bool:
    """Whether any order at all respects the times and the model."""
    for order in permutations(history):
        if any(
            late.returned < early.called for i, early in enumerate(order) for late in order[i:]
        ):
            continue
        state: object = JOB.initial
        for operation in order:
            state = JOB.step(state, operation)
            if state is None:
                break
        else:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(st.lists(operations, max_size=4))
def test_it_judges_as_trying_every_order_does(drawn):
    """On short histories of any kind."""
    history = [op("submit", 0, 5, "queued", 1), *drawn]

    assert check(history, JOB).holds is by_brute_force(history)


def test_what_a_receiver_is_told_is_held_against_how_jobs_ended():
    """Again under the same id is fine; another end, another id and silence are not."""

    def notice(job_id, id_, status):
        body = json.dumps({"data": {"id": job_id, "status": status}}).encode()
        return "/", {"webhook-id": id_}, body

    receiver = Receiver("")
    receiver.got += [notice("job_a", "1", "succeeded")] * 2
    receiver.got += [notice("job_b", "2", "failed")]
    receiver.got += [notice("job_c", "3", "canceled"), notice("job_c", "4", "canceled")]
    ends = ["succeeded"] * 2 + ["canceled"] * 2
    jobs = {f"job_{x}": status for x, status in zip("abcd", ends, strict=True)}

    assert untold(receiver, jobs) == ["job_d"]
    assert [finding.thing for finding in told_wrongly(receiver, jobs)] == ["job_b", "job_c"]
