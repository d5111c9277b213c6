"""What the environment says: mistakes are one sentence, and `fimlora config` shows the rest."""

import json
import os
import re
import subprocess
import sys

import pytest

COMMANDS = {
    "service": ["-m", "fimlora_service"],
    "worker": ["-m", "fimlora_worker"],
    "client": ["-m", "fimlora_client.cli", "jobs"],
    "up": ["-m", "fimlora_client.cli", "up", "--port", "0"],
}


def run(
    command: list[str], cwd: os.PathLike[str], **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment without names of ours but the given ones."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FIMLORA_")}
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, *command],
        env=kept | {"PYTHONPATH": path, "COLUMNS": "300", "NO_COLOR": "1"} | env,
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_name_ends_every_command(command, tmp_path):
    """EX_CONFIG tells a supervisor that starting again does not help."""
    done = run(COMMANDS[command], tmp_path, FIMLORA_DATA_DRI="x")

    assert done.returncode == os.EX_CONFIG
    assert "FIMLORA_DATA_DRI is no setting, did you mean FIMLORA_DATA_DIR?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("service", {"FIMLORA_PORT": "-1"}),
        ("worker", {"FIMLORA_DEVICE": "tpu"}),
        ("up", {"FIMLORA_DEVICE": "tpu"}),
        ("client", {"FIMLORA_API_KEY_FILE": "/nowhere/key"}),
    ],
)
def test_a_wrong_value_ends_the_command_that_reads_it(command, env, tmp_path):
    """Also where a child of `fimlora up` is the one that reads it."""
    done = run(COMMANDS[command], tmp_path, **env)

    assert done.returncode == os.EX_CONFIG
    assert next(iter(env)) in done.stderr
    assert "Traceback" not in done.stderr


CONFIG = ["-m", "fimlora_client.cli", "config"]


def test_config_shows_what_holds_and_where_it_comes_from(tmp_path):
    """In every process that would read it, without any secret."""
    secret = tmp_path / "secret"
    secret.write_text("whsec_czNjcmV0\n")
    env = {
        "FIMLORA_WEBHOOK_SECRET_FILE": str(secret), "HF_TOKEN": "hf_s3cret",
        "REDIS_URL": "redis://:s3cret@valkey:6379/0", "FIMLORA_TORCH_THREADS": "3",
    }  # fmt: skip

    done = run([*CONFIG, "--json"], tmp_path, **env)

    assert (done.returncode, done.stderr) == (0, "")
    assert "s3cret" not in done.stdout
    assert "czNjcmV0" not in done.stdout
    found = {
        process: {row["name"]: (row["value"], row["origin"]) for row in rows}
        for process, rows in json.loads(done.stdout).items()
    }
    assert set(found) == {"client", "service", "worker"}
    assert {f["REDIS_URL"] for f in found.values()} == {
        ("redis://:***@valkey:6379/0", "environment")
    }
    assert found["service"]["FIMLORA_WEBHOOK_SECRET"] == ("********", "file")
    assert found["worker"]["HF_TOKEN"] == ("********", "environment")
    assert found["worker"]["FIMLORA_TORCH_THREADS"] == ("3", "environment")
    assert found["service"]["FIMLORA_PORT"] == ("8000", "default")


def test_config_shows_what_is_wrong_beside_what_holds(tmp_path):
    """The table is there for the processes that could start."""
    done = run(CONFIG, tmp_path, FIMLORA_DEVICE="tpu", FIMLORA_PORT="8123")

    assert done.returncode == os.EX_CONFIG
    assert "worker: FIMLORA_DEVICE='tpu' cannot be used" in done.stderr
    assert re.search(r"FIMLORA_PORT +8123 +environment", done.stdout)
