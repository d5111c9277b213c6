"""No secret leaves: a whole job with marked secrets, and a look at everything that is left of it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from security.routes import ROUTES
from support.hub import running_hub
from support.jobs import LABELLED
from support.model_folders import make_encoder
from support.receiver import Receiver, running_receiver
from support.service_process import running_service, wait_until
from support.valkey import running_valkey
from support.workers import running_worker

pytestmark = pytest.mark.slow
# Each would be found by itself wherever it is written.
CANARIES = {
    "admin key": "canary-admin-0f1e2d3c4b5a69788796",
    "hub token": "hf_canary0a1b2c3d4e5f60718293a4b5",
    "webhook secret": "canary-webhook-13579bdf02468ace",
    "redis password": "canary-redis-fedcba9876543210ab",
}
DEADLINE_S = 90.0


@dataclass
class Left:
    """What two jobs leave behind.

    Attributes:
        key: Of an ordinary key that was made for them.
        states: How they ended.
        answers: Body and headers of everything that was answered.
        redis: Everything that is on record.
        files: Content of every file of the data folder, and the logs, by path.
        sent: What the receiver of webhooks was sent.
    """

    key: str
    states: list[str]
    answers: list[str]
    redis: dict[bytes, bytes]
    files: dict[Path, bytes]
    sent: list[tuple[str, dict[str, str], bytes]]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """One job that succeeds on a model of the hub, and one that fails as the hub is away."""
    folder = tmp_path_factory.mktemp("secrets")
    data_dir = folder / "data"
    data_dir.mkdir()
    with running_valkey() as url, running_hub() as hub, running_receiver() as receiver:
        for name in ("model", "lost"):
            hub.add(f"org/{name}", make_encoder(folder / name))
        password = CANARIES["redis password"]
        redis = Redis.from_url(url)
        redis.config_set("requirepass", password)
        redis = Redis.from_url(url, password=password)
        environment = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": CANARIES["hub token"], "FIMLORA_LOG_LEVEL": "DEBUG",
        }  # fmt: skip
        secrets = environment | {
            "FIMLORA_ADMIN_KEY": CANARIES["admin key"],
            "FIMLORA_WEBHOOK_SECRET": CANARIES["webhook secret"],
            "FIMLORA_WEBHOOK_HOSTS": receiver.url,
        }
        locked = url.replace("unix://", f"unix://:{password}@")
        with running_service(data_dir, locked, **secrets) as (client, _):
            answers = Answers(client, receiver)
            key = answers.make_key()
            ids = [answers.submit(f"org/{name}") for name in ("model", "lost")]
            hub.repositories["model", "org/lost"].gated = True  # between its check and its job
            with running_worker(locked, data_dir, folder / "worker.log", **environment):
                states = [answers.wait(job_id) for job_id in ids]
            wait_until(lambda: len(receiver.got) == len(ids), seconds=DEADLINE_S)
            answers.ask_all(ids)
            return Left(
                key,
                states,
                answers.texts,
                dict(everything(redis)),
                files_in(folder),
                receiver.got,
            )


class Answers:
    """Asks with a key, and keeps all that is answered."""

    def __init__(self, client: httpx2.Client, receiver: Receiver) -> None:
        self.client = client
        self.receiver = receiver
        self.texts: list[str] = []

    def ask(
        self, method: str, path: str, *, key: str | None = None, **options
    ) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        answer = self.client.request(method, path, headers=headers, **options)
        self.texts.append(f"{answer.headers}\n{answer.content.decode('utf-8', 'replace')}")
        return answer

    def make_key(self) -> str:
        """An ordinary key; the one answer that may have a secret is not kept."""
        answer = self.ask("POST", "/keys", key=CANARIES["admin key"], json={"name": "canary"})
        self.texts.clear()
        self.key = str(answer.json()["key"])
        return self.key

    def submit(self, model: str) -> str:
        body = {
            "base_model": model,
            "dataset": {"source": "inline", "rows": LABELLED},
            "budget": 4,
            "calibration": {"n_batches": 2, "batch_size": 4},
            "webhook": f"{self.receiver.url}/told",
        }
        answer = self.ask("POST", "/calibrate", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def wait(self, job_id: str) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            job = self.ask("GET", f"/jobs/{job_id}", params={"wait": 5}).json()
            if job["status"] in {"succeeded", "failed"}:
                return str(job["status"])
            assert time.monotonic() < deadline, job

    def ask_all(self, ids: list[str]) -> None:
        """Every GET of each job, as both, and with a wrong key."""
        for route in ROUTES:
            if route.method != "GET":
                continue
            for job_id in ids:
                path = route.url(id=job_id, name="adapter_config.json")
                for key in (self.key, CANARIES["admin key"], f"{self.key}x"):
                    self.ask("GET", path, key=key)  # a stream ends with its job
        for name in ("rank_map.json", "statistics.safetensors", "adapter_model.safetensors"):
            self.ask("GET", f"/jobs/{ids[0]}/artifacts/{name}")


def everything(redis: Redis) -> Iterator[tuple[bytes, bytes]]:
    """Each key with all it holds."""
    for key in redis.scan_iter(count=1000):
        match redis.type(key):
            case b"string":
                yield key, redis.get(key)
            case b"hash":
                yield key, b"\n".join(b"%s=%s" % pair for pair in redis.hgetall(key).items())
            case b"list":
                yield key, b"\n".join(redis.lrange(key, 0, -1))
            case b"set":
                yield key, b"\n".join(redis.smembers(key))
            case b"zset":
                yield key, b"\n".join(redis.zrange(key, 0, -1))
            case b"stream":
                yield key, repr(redis.xrange(key)).encode()
            case other:
                pytest.fail(f"{key!r} is a {other!r}, which is not looked into")


def files_in(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def test_the_jobs_were_real(left: Left):
    """One succeeded, one failed, both were told of; there is something to look at."""
    names = {path.name for path in left.files}

    assert left.states == ["succeeded", "failed"]
    assert len(left.sent) == 2
    assert {"worker.log", "log", "adapter_config.json"} <= names
    assert len(left.redis) > 5
    assert any("fimlora_requests" in text or "# HELP" in text for text in left.answers)


@pytest.mark.parametrize("name", [*CANARIES, "an ordinary key"])
def test_a_secret_is_nowhere(left: Left, name: str):
    """Not in a log at its most talkative, on record, in a file, an answer, or what is sent."""
    secret = (CANARIES | {"an ordinary key": left.key})[name]
    marks = [secret, secret.rpartition("_")[2]]  # of a key its secret part as well
    for mark in map(str.encode, marks):
        assert [key for key, held in left.redis.items() if mark in key + held] == []
        assert [str(path) for path, content in left.files.items() if mark in content] == []
        assert [text for text in left.answers if mark in text.encode()] == []
        assert [sent for sent in left.sent if mark in repr(sent).encode()] == []


def test_what_failed_says_why_without_an_address_or_a_path(left: Left):
    """A person reads it; the hub's address and the data folder are the operator's."""
    told = b"".join(body for _, _, body in left.sent).decode()

    assert "model_gated" in told
    assert "127.0.0.1" not in told
    assert str(next(iter(left.files)).parent.parent) not in told
