"""The scripts that a Redis server carries out, on a real Valkey."""

import re
from importlib.resources import files

import pytest

from fimlora_jobs.store import JobStore

SCRIPTS = sorted((files("fimlora_jobs") / "lua").iterdir(), key=lambda file: file.name)


def test_a_server_that_has_forgotten_the_scripts_is_given_them_again(redis_client):
    """A restart or a failover forgets them in the middle of a job."""
    store = JobStore(redis_client)
    store.create("job_1", request={}, resolved={}, digest="sha256:00")

    redis_client.script_flush()

    assert store.create("job_1", request={}, resolved={}, digest="sha256:00").id == "job_1"
    assert store.join("job_1").fields["requests"] == "2"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_a_script_says_what_it_is_given(script):
    """Every key and argument that the text uses stands in the list at its top, and no other."""
    text = script.read_text(encoding="utf-8")
    comment = "\n".join(line for line in text.splitlines() if line.startswith("--"))
    code = text.replace(comment, "")
    listed = set(re.findall(r"^-- ((?:KEYS|ARGV)\[\d+)", comment, re.MULTILINE))

    assert set(re.findall(r"(?:KEYS|ARGV)\[\d+", code)) <= listed
    assert "-- Returns " in comment
