"""Patterns of models and datasets."""

import pytest

from fimlora_jobs.allow_lists import Allowed, AllowList, NotAllowed


@pytest.mark.parametrize(
    ("patterns", "allowed", "refused"),
    [
        ("", ["org/m", "local:m", "upload", "inline"], []),
        ("*", ["org/m", "local:m", "upload"], []),
        ("org/*", ["org/m", "org/a.b-c"], ["Org/m", "org2/m", "x/org", "local:org", "upload"]),
        ("org/m, local:*", ["org/m", "local:x"], ["org/m2", "org/M", "upload", "inline"]),
        ("*/*", ["org/m"], ["local:m", "upload"]),
        ("local:a-*, upload", ["local:a-1", "upload"], ["local:b", "inline", "a/upload"]),
    ],
)
def test_a_name_is_allowed_by_a_pattern(patterns, allowed, refused):
    """Each letter counts, and so does the source: no name of one is a name of another."""
    found = AllowList.of(patterns, setting="allowed_datasets")

    assert all(found.allows(name) for name in allowed)
    assert not any(found.allows(name) for name in refused)


@pytest.mark.parametrize(
    "wrong", ["org", "org/", "/m", "https://x/y", "org/m/x", "local:", "a b/c"]
)
def test_a_pattern_that_nothing_can_match_is_refused(wrong):
    """It would silently allow nothing; the message has the setting and what is allowed."""
    with pytest.raises(ValueError, match=r"FIMLORA_ALLOWED_MODELS has .*org/"):
        AllowList.of(f"org/x, {wrong}", setting="allowed_models")


def test_rows_are_no_models():
    """A model is neither uploaded nor in the request."""
    with pytest.raises(ValueError, match="upload"):
        AllowList.of("upload", setting="allowed_models")


@pytest.mark.parametrize("role", ["dataset", "retain", "eval_dataset"])
def test_every_dataset_of_a_request_counts(role):
    """Whatever it is for."""
    allowed = Allowed.of(models="", datasets="local:a")
    request = {
        "base_model": {"source": "hub", "id": "org/m"},
        "dataset": {"source": "local", "name": "a"},
        "retain": None,
    }
    allowed.check_request(request)

    with pytest.raises(NotAllowed, match="'org/rows'; allowed are local:a"):
        allowed.check_request(request | {role: {"source": "hub", "id": "org/rows"}})
