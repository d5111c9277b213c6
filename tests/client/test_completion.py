"""Completion in a real bash: the script that the command shows, and what Tab offers."""

import os
import shutil
import subprocess

import pytest

from support.scripted_service import job_as_json, scripted_service
from support.terminal import COMMAND, PACKAGES

WHEN = "2026-01-01T00:00:00Z"
JOBS = [f"job_{letter * 23}" for letter in "ab"]


@pytest.fixture
def bash(tmp_path):
    """Press Tab behind a line; answers what is offered, and what was said on the way."""
    command = tmp_path / "bin" / "fimlora"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    command.chmod(0o755)
    environment = {
        "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": PACKAGES,
        "HOME": str(tmp_path),
    }  # fmt: skip

    def bash(line, url="http://127.0.0.1:9"):
        words = line.split(" ")
        script = f"""
            source <(_FIMLORA_COMPLETE=source_bash fimlora)
            [ "$(complete -p fimlora)" = "complete -o default -F _fimlora_completion fimlora" ]
            COMP_WORDS=({" ".join(repr(word) for word in words)})
            COMP_CWORD={len(words) - 1}
            _fimlora_completion fimlora
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            [shutil.which("bash"), "-c", script], env=environment | {"FIMLORA_URL": url},
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
        return done.stdout.split(), done.stderr

    return bash


@pytest.fixture
def service():
    with scripted_service() as service:
        service.answers["/jobs?limit=50"] = [
            {"data": [job_as_json(job_id, "running") for job_id in JOBS]}
        ]
        service.answers["/models"] = [
            {"data": [{"id": "minilm", "size": 1, "usable": True, "source": "local"}]}
        ]
        pins = [
            {"name": name, "tag": tag, "digest": f"sha256:{64 * 'a'}", "pinned_at": WHEN}
            for name, tag in (("reviews", "next"), ("reviews", "prod"), ("sst2", "prod"))
        ]
        service.answers["/pins?limit=100"] = [{"data": pins, "next_cursor": None}]
        yield service


def test_commands_options_and_methods_are_offered(bash):
    """None of them needs a service."""
    assert {"calibrate", "watch", "replan"} <= set(bash("fimlora ")[0])
    assert bash("fimlora cali")[0] == ["calibrate"]
    assert bash("fimlora calibrate --budget-")[0] == []  # hidden
    assert bash("fimlora calibrate --r-m")[0] == ["--r-min", "--r-max"]
    assert "spectral" in bash("fimlora calibrate m d --method sp")[0]
    assert "fim,spectral" in bash("fimlora compare m d --methods fim,sp")[0]


def test_what_the_service_has_is_offered(bash, service):
    """Jobs and models, those that begin with what is typed."""
    assert bash("fimlora show ", service.url)[0] == JOBS
    assert bash("fimlora watch job_a job_b", service.url)[0] == [JOBS[1]]
    assert bash("fimlora calibrate mi", service.url)[0] == ["minilm"]


def test_pins_are_offered_wherever_one_is_asked_for(bash, service):
    """By name and tag in one word, or by the name where the tag is the next word."""
    both = ["reviews:next", "reviews:prod"]
    assert bash("fimlora fetch --pin rev", service.url)[0] == both
    assert bash("fimlora verify trained --pin ss", service.url)[0] == ["sst2:prod"]
    assert bash("fimlora diff rev", service.url)[0] == both
    assert bash("fimlora export job_a", service.url)[0] == [JOBS[0]]
    assert bash("fimlora pin rev", service.url)[0] == ["reviews"]


def test_without_a_service_nothing_is_offered_and_nothing_said(bash):
    """No line of an error may appear in a prompt."""
    assert bash("fimlora show ") == ([], "")
