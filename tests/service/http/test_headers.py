"""What the headers of a request say."""

import pytest

from fimlora_service.http.headers import wait_preference


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["wait=5"], 5),
        (['respond-async, WAIT="7"; strict'], 7),
        (["return=minimal", "wait = 8"], 8),
        (["wait=3, wait=9"], 3),
        (["wait=61"], 60),
        (["wait=0"], 0),
        (["wait=999999999999999999999"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=²"], None),
        (["wait"], None),
        (["await=5"], None),
        ([",;=,"], None),
    ],
    ids=str,
)
def test_what_is_not_understood_is_ignored(headers, seconds):
    """The first `wait` counts, up to a minute; a preference is never an error."""
    assert wait_preference(headers) == seconds
