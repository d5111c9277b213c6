"""Names of the environment that are known, and secrets in files."""

import os

import pytest

from fimlora_contract.environment import (
    SettingsError,
    check_names,
    hide_password,
    read_secret,
)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FIMLORA_WEBHOOK_HOST", "did you mean FIMLORA_WEBHOOK_HOSTS?"),
        ("FIMLORA_DATADIR", "did you mean FIMLORA_DATA_DIR?"),
        ("FIMLORA_WEBHOOK_SECRET_FILES", "did you mean FIMLORA_WEBHOOK_SECRET_FILE?"),
        ("fimlora_prot", "did you mean FIMLORA_PORT?"),
        ("FIMLORA_QQQQQQ", "FIMLORA_QQQQQQ is no setting;"),
    ],
)
def test_a_name_that_nobody_reads_is_refused(name, said):
    """It would change nothing, and nobody would be told."""
    with pytest.raises(SettingsError) as refused:
        check_names({"FIMLORA_DATA_DIR": "/data", name: "hidden value"})

    assert name in str(refused.value)
    assert said in str(refused.value)
    assert "hidden value" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FIMLORA_PORT_8000_TCP_ADDR", "10.0.0.7"),
        ("FIMLORA_SERVICE_SERVICE_HOST", "10.0.0.7"),
        ("FIMLORA_SERVICE_SERVICE_PORT_HTTP", "8000"),
        ("FIMLORA_WEB_PORT", "tcp://10.0.0.7:8000"),
        ("FIMLORA_TAG", "v1"),
        ("PATH", "/bin"),
    ],
)
def test_what_others_set_is_no_mistake(name, value):
    """Kubernetes describes every service to every container, compose has names of its own."""
    check_names({name: value})


def test_a_secret_is_read_from_its_file(tmp_path):
    """The newline that an editor leaves at the end is no part of it; others are."""
    path = tmp_path / "secret"
    path.write_text(" two\nlines \r\n")

    assert read_secret({"X_FILE": str(path)}, "X") == " two\nlines "
    assert read_secret({"X_FILE": str(path), "X": ""}, "X") == " two\nlines "
    assert read_secret({"X_FILE": "", "X": "plain"}, "X") == "plain"
    assert read_secret({}, "X") is None


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        (None, {}, "X_FILE names a file that cannot be read: No such file or directory"),
        (b"", {}, "X_FILE names a file that is empty"),
        (b" \n", {}, "X_FILE names a file that is empty"),
        (b"\xff\xfe", {}, "X_FILE names a file that cannot be read: it is no text"),
        (b"s3cret", {"X": "s3cret"}, "X and X_FILE are both given; unset one of them"),
    ],
)
def test_a_secret_that_cannot_be_had_is_named_and_not_shown(tmp_path, content, more, said):
    """An empty secret would be no secret, and of two nobody knows which one holds."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError) as refused:
        read_secret({"X_FILE": str(path), **more}, "X")

    assert str(refused.value) == said


def test_a_folder_in_place_of_a_secret_is_refused(tmp_path):
    """Docker makes a folder where the file to mount is missing."""
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_secret({"X_FILE": os.fspath(tmp_path)}, "X")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://me:secret@redis.test:6380/1", "rediss://me:***@redis.test:6380/1"),
        ("redis://:secret@redis.test", "redis://:***@redis.test"),
        ("unix:///run/s", "unix:///run/s"),
    ],
)
def test_a_password_is_never_shown(url, shown):
    """The terminal is not a place for secrets."""
    assert hide_password(url) == shown
