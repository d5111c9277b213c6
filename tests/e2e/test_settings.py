"""Mistakes in the environment end every command with one sentence."""

import os
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
