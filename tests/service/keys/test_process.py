"""Keys on the real server process: from the first one on, by the command line."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from fimlora_client.cli import app
from fimlora_service.keys.pepper import PepperFile
from support.service import make_model
from support.service_process import running_service


@pytest.mark.slow
def test_from_the_first_key_on_nobody_is_answered_without(tmp_path, valkey_url, monkeypatch):
    """Made on this machine, sent by `FIMLORA_API_KEY`, rotated and revoked by its command."""
    make_model(tmp_path / "models" / "tiny")
    with running_service(tmp_path, valkey_url) as (http, _):
        url = str(http.base_url).rstrip("/")
        monkeypatch.setenv("FIMLORA_URL", url)

        def run(*words: str, key: str = ""):
            return CliRunner().invoke(app, list(words), env={"FIMLORA_API_KEY": key})

        assert run("jobs").exit_code == 0
        admin = run("keys", "create", "me", "--scopes", "admin").stdout.strip()
        assert run("jobs").exit_code == 1
        assert "API key" in run("jobs").stderr
        assert run("models", key=admin).exit_code == 0

        made = run("keys", "create", "ci", "--tenant", "acme", "--scopes", "read", key=admin)
        ci = made.stdout.strip()
        key_id = ci.split("_")[1]
        assert run("jobs", key=ci).exit_code == 0
        assert "scope admin" in run("keys", key=ci).stderr
        listed = run("keys", key=admin).stdout
        assert key_id in listed
        assert "acme" in listed
        assert ci not in listed

        new = run("keys", "rotate", key_id, "--grace", "1h", key=admin).stdout.strip()
        assert new != ci
        assert [run("jobs", key=key).exit_code for key in (ci, new)] == [0, 0]
        assert run("keys", "revoke", key_id, key=admin).exit_code == 0
        assert [run("jobs", key=key).exit_code for key in (ci, new)] == [1, 1]
        assert run("keys", "revoke", key_id, key=admin).exit_code == 3
        log = (tmp_path / "log").read_text()
        assert not any(key in log for key in (admin, ci, new))


@pytest.mark.parametrize("words", [["--expires-in", "soon"], ["--scopes", "root"]])
def test_a_wrong_option_is_wrong_usage(words):
    """Before anything is sent."""
    result = CliRunner().invoke(
        app, ["--url", "http://127.0.0.1:9", "keys", "create", "x", *words]
    )

    assert result.exit_code == 2


def test_all_who_come_first_find_one_pepper(tmp_path):
    """Or the keys of all but one would be good for nothing."""
    files = [PepperFile(tmp_path / "keys") for _ in range(16)]

    with ThreadPoolExecutor(16) as pool:
        peppers = set(pool.map(PepperFile.read_or_make, files))

    assert len(peppers) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["pepper"]
