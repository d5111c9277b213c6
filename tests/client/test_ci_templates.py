"""The steps of the GitHub action and the GitLab template, run by a shell on a real service."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from redis import Redis
from safetensors.numpy import save_file

from fimlora_client import Client
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.results.store import describe
from fimlora_jobs.store import JobStore
from fimlora_worker.job.signing import SigningKey, artifact_of
from support.ci_runner import Action, run_gitlab_job
from support.results import make_result, make_statistics
from support.service import ROWS, make_model
from support.service_process import running_service
from support.signing_keys import make_keys

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "clients" / "ci" / "github" / "action.yml"
TEMPLATE = ROOT / "clients" / "ci" / "gitlab" / "fimlora.gitlab-ci.yml"
FETCH, VERIFY = "Fetch the pattern, unless it is here", "Verify who signed the files"
GATE, SHOW = "Hold it against the baseline", "Show it on the pull request"
TRAINED = "Verify that the adapter is as planned"


@dataclass
class Comments:
    """A stand-in for the comments of a pull request, of GitHub and of GitLab."""

    url: str = ""
    bodies: dict[int, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    answer: int = 200


@pytest.fixture
def comments() -> Iterator[Comments]:
    """A server that keeps comments, one page of a hundred at a time."""
    kept = Comments()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            kept.asked.append(("GET", path))
            page = int(query.rpartition("=")[2])
            shown = sorted(kept.bodies.items())[100 * (page - 1) : 100 * page]
            self.reply([{"id": n, "body": body} for n, body in shown])

        def do_POST(self) -> None:
            kept.asked.append(("POST", self.path))
            self.keep(len(kept.bodies) + 1)

        def do_PATCH(self) -> None:
            kept.asked.append(("PATCH", self.path))
            self.keep(int(self.path.rpartition("/")[2]))

        def do_PUT(self) -> None:
            kept.asked.append(("PUT", self.path))
            self.keep(int(self.path.rpartition("/")[2]))

        def keep(self, number: int) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
            if kept.answer < 400:
                kept.bodies[number] = body
            self.reply({"id": number})

        def reply(self, value: object) -> None:
            kept.tokens.add(self.headers["Authorization"] or self.headers["Private-Token"])
            content = json.dumps(value).encode()
            self.send_response(kept.answer)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with _serving(Handler) as url:
        kept.url = url
        yield kept


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@dataclass
class Service:
    """A running service with two results.

    Attributes:
        url: Its address.
        jobs: The job behind each pin ``task:NAME``.
        public_key: Of who has signed them.
    """

    url: str
    jobs: dict[str, str]
    public_key: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, valkey_server: str) -> Iterator[Service]:
    """The real server process, which no test here changes; a worker is played by us."""
    folder = tmp_path_factory.mktemp("service")
    data_dir, keys = folder / "data", make_keys(folder / "keys")
    make_model(data_dir / "models" / "tiny")
    with (
        Redis.from_url(valkey_server) as redis,
        running_service(data_dir, valkey_server) as (http, _),
    ):
        redis.flushall()
        http.timeout = 60
        body = {
            "base_model": "local:tiny",
            "dataset": {"source": "inline", "rows": ROWS},
            "budget": 8,
            "force": True,
        }
        jobs = {}
        for seed, tag in enumerate(["prod", "next"]):
            job_id = http.post("/calibrate", json=body).json()["id"]
            result = _signed(data_dir, keys.private, seed=seed)
            store = JobStore(redis)
            store.start(job_id, 1, worker="w")
            store.succeed(job_id, 1, result)
            Catalogue(store).file(store.get(job_id))
            http.put(f"/rank-patterns/task/{tag}", json={"job_id": job_id}).raise_for_status()
            jobs[tag] = job_id
        yield Service(str(http.base_url), jobs, keys.public)
        redis.flushall()


def _signed(data_dir: Path, private_key: Path, *, seed: int) -> dict[str, object]:
    """A result with the signature that a worker puts beside it."""
    result = make_result(data_dir, statistics=make_statistics(seed=seed))
    folder = data_dir / "artifacts" / result["digest"].replace(":", "-")
    signature = SigningKey(private_key.read_text()).sign(result["digest"], describe(folder))
    files = [*result["artifacts"], artifact_of(signature).model_dump()]
    return result | {"artifacts": files, "signature": signature}


@pytest.fixture
def environ(tmp_path: Path, comments: Comments) -> dict[str, str]:
    """What a runner gives, with ``fimlora`` and ``python`` of this checkout on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, arguments in {"python": "", "fimlora": "-m fimlora_client.cli"}.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    packages = (str(ROOT / p) for p in ("clients/python", "service", "worker"))
    return {
        "PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "PYTHONPATH": os.pathsep.join(packages),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "GITHUB_API_URL": comments.url,
        "GITHUB_REPOSITORY": "owner/name",
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folder that the runner works in."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


@pytest.fixture
def trained(tmp_path: Path, service: Service) -> Callable[[str], Path]:
    """An adapter that was trained as a pin of the service plans."""

    def trained(tag: str) -> Path:
        with Client(service.url) as client:
            pattern = client.rank_patterns.pinned("task", tag).pattern
        folder = tmp_path / f"trained-{tag}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(pattern.adapter_config))
        tensors = {}
        for module in pattern.rank_map.modules:
            name = f"base_model.model.{module.name}"
            tensors[f"{name}.lora_A.weight"] = np.ones((module.rank, module.d_in), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.ones((module.d_out, module.rank), np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return trained


def test_the_action_verifies_what_was_trained(service, comments, environ, checkout, trained):
    """As the pinned plan says, or not, which fails it after the comment has both verdicts."""
    action = Action(ACTION, environ, pull_request="7")
    inputs = {"url": service.url, "pin": "task:next", "token": "a token"}

    right = action.run(checkout, adapter=str(trained("next")), **inputs)
    [alone] = comments.bodies.values()
    wrong = action.run(
        checkout,
        adapter=str(trained("prod")),
        baseline="task:prod",
        fail_above="100%",
        **inputs,
    )

    assert not right.failed, right.log
    assert (right.outputs["as-planned"], right.outputs["drifted"]) == ("true", "")
    assert alone.startswith("<!-- fimlora: task:next -->\n### LoRA adapter: `")
    assert "✅ **as planned**" in alone
    assert wrong.ran[TRAINED] == 6, wrong.log
    assert wrong.ran[GATE] == wrong.ran[SHOW] == 0
    assert wrong.outputs["as-planned"] == "false"
    [both] = comments.bodies.values()
    assert "✅ **no drift" in both
    assert "❌ **not as planned**" in both
    assert "| `rank` |" in both
    assert "❌ **not as planned**" in wrong.summary


def test_an_adapter_that_is_not_there_is_no_verdict(service, comments, environ, checkout):
    """The step fails with the client's sentence, and no comment speaks of an adapter."""
    run = Action(ACTION, environ, pull_request="7").run(
        checkout, url=service.url, pin="task:next", token="a token", adapter="-nowhere"
    )

    assert run.ran[TRAINED] == 1
    assert "give an adapter's or a Trainer's output folder" in run.log
    assert run.outputs["as-planned"] == ""
    assert comments.bodies == {}


def test_the_action_fetches_once_verifies_gates_and_comments(
    service, comments, environ, checkout
):
    """Drift fails it, after the comment; a second run sends no pattern and one comment stays."""
    action = Action(ACTION, environ, pull_request="7")
    inputs = {
        "url": service.url,
        "pin": "task:next",
        "format": "peft",
        "job": service.jobs["next"],
        "public_key": str(service.public_key),
        "baseline": "task:prod",
        "token": "a token",
    }

    drifted = action.run(checkout, fail_above="0.1%\n", **inputs)
    again = action.run(checkout, fail_above="ranks=100%\nscores=100%", **inputs)

    assert drifted.ran.get(GATE) == 6, drifted.log
    assert drifted.ran[VERIFY] == drifted.ran[SHOW] == 0, drifted.log
    assert (drifted.outputs["changed"], drifted.outputs["drifted"]) == ("true", "true")
    assert "❌ **drift: " in drifted.summary
    assert not again.failed, again.log
    assert (again.outputs["changed"], again.outputs["drifted"]) == ("false", "false")
    assert json.loads((checkout / "lora.json").read_text())["peft_type"] == "LORA"
    assert (checkout / "adapter" / "rank_map.json").is_file()
    [(number, body)] = comments.bodies.items()
    assert body.startswith("<!-- fimlora: task:next -->\n### LoRA ranks: `task:prod`")
    assert "✅ **no drift" in body
    assert "| layer |" in body
    assert comments.tokens == {"Bearer a token"}
    assert ("POST", "/repos/owner/name/issues/7/comments") in comments.asked
    assert comments.asked[-1] == ("PATCH", f"/repos/owner/name/issues/comments/{number}")


def test_without_a_token_or_baseline_the_action_only_fetches(
    service, comments, environ, checkout
):
    """Nobody is written to, nothing is compared, and the digest is told."""
    run = Action(ACTION, environ).run(checkout, url=service.url, pin="task:prod")

    assert not run.failed, run.log
    assert set(run.ran) == {"Install the client", FETCH}
    fetched = json.loads((checkout / "lora.json").read_text())
    told = {"digest": fetched["digest"], "changed": "true", "drifted": "", "as-planned": ""}
    assert run.outputs == told
    assert comments.asked == []


@pytest.mark.parametrize(
    ("change", "step", "code", "words"),
    [
        ({"pin": "task:none"}, FETCH, 3, "nothing is pinned"),
        ({"baseline": "task:none"}, GATE, 3, "nothing is pinned"),
        ({"baseline": "task:prod", "fail_above": "5"}, GATE, 2, "is no limit"),
        ({"pin": "$(touch hacked)`touch hacked`;touch hacked"}, FETCH, 2, "cannot be one"),
    ],
)
def test_what_goes_wrong_is_no_drift_and_no_success(
    service, environ, checkout, comments, change, step, code, words
):
    """The step fails with the client's own code and sentence, and no comment is made of it."""
    inputs = {"url": service.url, "pin": "task:next", "token": "a token"} | change

    run = Action(ACTION, environ, pull_request="7").run(checkout, **inputs)

    assert (run.ran[step], words in run.log) == (code, True), run.log
    assert "Traceback" not in run.log
    assert not (checkout / "hacked").exists()
    assert comments.bodies == {}


def test_files_that_another_result_signs_do_not_pass(service, environ, checkout):
    """A sound signature of another result than the one that the pin stands for."""
    run = Action(ACTION, environ).run(
        checkout,
        url=service.url,
        pin="task:prod",
        job=service.jobs["next"],
        public_key=str(service.public_key),
    )

    assert run.ran[VERIFY] == 6
    assert "and the pin stands for" in run.log


def test_a_comment_that_is_refused_fails_nothing_else(service, comments, environ, checkout):
    """Of a fork the token may not write; the gate has said what it has to say."""
    comments.answer = 403

    run = Action(ACTION, environ, pull_request="7").run(
        checkout, url=service.url, pin="task:next", baseline="task:next", token="a token"
    )

    assert not run.failed
    assert "answered with 403" in run.log
    assert "a token" not in run.log


def test_the_template_installs_nothing_that_was_not_named(environ, checkout):
    """A name on a package index may be anybody's."""
    (Path(environ["PATH"].partition(os.pathsep)[0]) / "fimlora").unlink()

    code, log = run_gitlab_job(TEMPLATE, checkout, environ)

    assert code == 1
    assert "set LORA_PACKAGE to what pip is to install" in log
    assert not any(checkout.iterdir())


def test_the_template_of_gitlab_does_the_same(service, comments, environ, checkout, trained):
    """In the plain shell of its image; the note is found behind a hundred others."""
    comments.bodies = dict.fromkeys(range(1, 105), "of somebody")
    given = environ | {
        "FIMLORA_URL": service.url,
        "LORA_PIN": "task:next",
        "LORA_JOB": service.jobs["next"],
        "LORA_PUBLIC_KEY": str(service.public_key),
        "LORA_BASELINE": "task:prod",
        "LORA_FAIL_ABOVE": "0.1%",
        "LORA_ADAPTER": str(trained("next")),
        "LORA_COMMENT_TOKEN": "a token",
        "CI_API_V4_URL": f"{comments.url}/api/v4",
        "CI_PROJECT_ID": "5",
        "CI_MERGE_REQUEST_IID": "9",
    }

    code, log = run_gitlab_job(TEMPLATE, checkout, given)
    loose = given | {"LORA_FAIL_ABOVE": "ranks=100% scores=100%"}
    again, second_log = run_gitlab_job(TEMPLATE, checkout, loose)
    other = loose | {"LORA_ADAPTER": str(trained("prod")), "LORA_COMMENT_TOKEN": ""}
    third, third_log = run_gitlab_job(TEMPLATE, checkout, other)

    assert (code, again) == (6, 0), log + second_log
    assert "not modified" in second_log
    assert (checkout / "fimlora.env").read_text().startswith("LORA_DIGEST=sha256:")
    assert len(comments.bodies) == 105
    assert "✅ **no drift" in comments.bodies[105]
    assert "✅ **as planned**" in comments.bodies[105]
    assert (third, "❌ **not as planned**" in third_log) == (6, True), third_log
    assert comments.asked[-1] == ("PUT", "/api/v4/projects/5/merge_requests/9/notes/105")
    assert comments.tokens == {"a token"}
