"""When the client tries again, and how long it waits before."""

import json

import pytest

from fimlora_client.calls import Answer
from fimlora_client.retries import RetryPolicy, is_retryable, retry_after_s

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("7", 7),
        ("1.5", 1.5),
        ("-3", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0),
        ("Tue, 99 Nov 2023 22:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header, seconds):
    """Both forms of the header work, the past means now, nonsense means nothing."""
    assert retry_after_s(header, now=NOW) == seconds


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_a_hint_is_never_undercut_and_is_capped(random):
    """The client comes back after the time it was told, but not after an hour."""
    policy = RetryPolicy(max_retry_after_s=60)

    assert 7 <= policy.pause(0, hint_s=7, random=random) <= 7.7
    assert 60 <= policy.pause(0, hint_s=3600, random=random) <= 66


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_pauses_double_up_to_a_limit(random):
    """Without a hint each pause is twice the last, half of it left to chance."""
    policy = RetryPolicy(first_delay_s=1, max_delay_s=4)

    pauses = [policy.pause(retry, hint_s=None, random=random) for retry in range(5)]

    for pause, upper in zip(pauses, [1, 2, 4, 4, 4], strict=True):
        assert upper / 2 <= pause <= upper


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (200, None, False),
        (400, "malformed_request", False),
        (404, "job_not_found", False),
        (408, None, True),
        (409, "idempotency_in_flight", True),
        (409, "job_not_finished", False),
        (409, None, False),
        (422, "validation_failed", False),
        (424, "model_not_found", False),
        (429, None, True),
        (500, "internal", True),
        (502, None, True),
        (503, "redis_unavailable", True),
    ],
)
def test_only_what_may_pass_by_itself_is_tried_again(status, code, expected):
    """A conflict is final, except that an equal request is being handled right now."""
    content = json.dumps({"code": code}).encode() if code else b"<html>"

    assert is_retryable(Answer(status, {}, content)) is expected


@pytest.mark.parametrize(("headers", "expected"), [({"retry-after": "60"}, True), ({}, False)])
def test_a_quota_is_waited_for_only_where_waiting_helps(headers, expected):
    """Open jobs end, stored bytes do not go away."""
    answer = Answer(429, headers, b'{"code": "quota_exceeded"}')

    assert is_retryable(answer) is expected
    assert is_retryable(Answer(429, headers, b'{"code": "rate_limited"}'))
