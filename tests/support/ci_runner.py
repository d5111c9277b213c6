"""Run the shell steps of a composite action as GitHub's runner does, as far as ours need it."""

import operator
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
_COMPARISONS: dict[str, Callable[[str, str], bool]] = {"==": operator.eq, "!=": operator.ne}


@dataclass
class Run:
    """What came of a run.

    Attributes:
        outputs: Of the action.
        ran: Names of the shell steps that ran, with their exit codes.
        log: All that they wrote.
        summary: What the page of the run shows.
    """

    outputs: dict[str, str] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    log: str = ""
    summary: str = ""

    @property
    def failed(self) -> bool:
        """Whether the job would be red."""
        return any(self.ran.values())


class Action:
    """A composite action.

    Args:
        path: Its ``action.yml``.
        environ: What the runner gives every step.
        pull_request: Number of the request that it runs for; empty without.
    """

    def __init__(
        self, path: Path, environ: Mapping[str, str], *, pull_request: str = ""
    ) -> None:
        self._action: dict[str, Any] = yaml.safe_load(path.read_text())
        self._environ = environ
        self._github = {
            "github.action_path": str(path.parent),
            "github.event.pull_request.number": pull_request,
        }

    def run(self, folder: Path, **inputs: str) -> Run:
        """Run the steps in a folder, one after another."""
        declared = self._action["inputs"]
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        assert given.keys() <= declared.keys(), (
            f"unknown inputs: {given.keys() - declared.keys()}"
        )
        lacking = {n for n, i in declared.items() if i.get("required") and n not in given}
        assert not lacking, f"required inputs are missing: {lacking}"
        known = self._github | {
            f"inputs.{name}": given.get(name, entry.get("default", ""))
            for name, entry in declared.items()
        }
        run = Run()
        for step in self._action["runs"]["steps"]:
            if "run" in step and self._is_due(step.get("if", ""), known, run):
                self._step(step, folder, known, run)
        run.outputs = {
            name: _text(entry["value"], known)
            for name, entry in self._action["outputs"].items()
        }
        return run

    def _is_due(self, condition: str, known: Mapping[str, str], run: Run) -> bool:
        terms = [term.strip() for term in condition.split("&&")] if condition else []
        if run.failed and "always()" not in terms:
            return False
        return all(_holds(term, known) for term in terms if term != "always()")

    def _step(
        self, step: dict[str, Any], folder: Path, known: dict[str, str], run: Run
    ) -> None:
        assert "${{" not in step["run"], "an expression in a script runs what a stranger wrote"
        files = {name: folder / f".{name}" for name in ("output", "summary")}
        for file in files.values():
            file.write_text("")
        given = {name: _text(value, known) for name, value in step.get("env", {}).items()}
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=folder,
            env={
                **self._environ,
                "GITHUB_ACTION_PATH": self._github["github.action_path"],
                "GITHUB_OUTPUT": str(files["output"]),
                "GITHUB_STEP_SUMMARY": str(files["summary"]),
                **given,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        run.ran[step["name"]] = done.returncode
        run.log += done.stdout
        run.summary += files["summary"].read_text()
        for line in files["output"].read_text().splitlines():
            name, _, value = line.partition("=")
            known[f"steps.{step['id']}.outputs.{name}"] = value


def run_gitlab_job(path: Path, folder: Path, environ: Mapping[str, str]) -> tuple[int, str]:
    """Run the script of the only job of a template in one shell; answers code and log."""
    [job] = yaml.safe_load(path.read_text()).values()
    variables = {name: os.path.expandvars(str(v)) for name, v in job["variables"].items()}
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join([*job["before_script"], *job["script"]])],
        cwd=folder,
        env=variables | dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def _text(text: str, known: Mapping[str, str]) -> str:
    """A value with its expressions filled in: names, and alternatives with ``||``."""

    def fill(match: re.Match[str]) -> str:
        return next((v for v in (_value(t, known) for t in match[1].split(" || ")) if v), "")

    return _EXPRESSION.sub(fill, text)


def _value(term: str, known: Mapping[str, str]) -> str:
    if match := re.fullmatch(r"format\('(.*)', ([\w.]+)\)", term):
        return match[1].replace("{0}", known[match[2]])
    if match := re.fullmatch(r"'(.*)'", term):
        return match[1]
    if not term.startswith("steps."):
        assert term in known, f"{term} is not known to the runner"
    return known.get(term, "")


def _holds(term: str, known: Mapping[str, str]) -> bool:
    left, sign, right = term.split(" ")
    return _COMPARISONS[sign](_value(left, known), _value(right, known))
