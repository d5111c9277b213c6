"""Clients that submit, repeat, look, cancel and retry while something goes wrong.

What each does is drawn from a seed; when the others do something is not, so a seed repeats the
fault and its moment, not the race. No two requests are equal, of other trials either.
"""

import random
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from support.chaos.histories import Histories, Operation, lost, now
from support.chaos.job_register import FINAL, REFUSED

PATIENCE = httpx2.Timeout(4.0, connect=2.0)
# May have happened all the same: what was lost is the answer, or a part of the way.
UNCLEAR = {408, 429, 503, 507}
WEIGHTS = {"look": 10, "fetch": 4, "repeat": 3, "cancel": 1, "retry": 2}


@dataclass
class Known:
    """What clients tell each other, and what they put on record.

    Attributes:
        jobs: Jobs that have been acknowledged, with the status that was seen last.
        bodies: Requests by the idempotency key that they were submitted under.
        oddities: Answers that no client should ever get.
        is_calm: Whether nothing new is to be begun: what was begun shall end.
        webhook: Whom jobs name to be told of their end; nobody if empty.
    """

    seed: str
    webhook: str = ""
    histories: Histories = field(default_factory=Histories)
    jobs: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    oddities: list[str] = field(default_factory=list)
    is_calm: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lost: dict[str, list[float]] = field(default_factory=dict)

    def new_body(self, n_batches: int) -> dict[str, Any]:
        """A request that equals no other."""
        with self._lock:
            seed = secrets.randbits(31)
        told = {"webhook": self.webhook} if self.webhook else {}
        return told | {
            "base_model": "local:tiny",
            "dataset": {"source": "local", "name": "rows.jsonl"},
            "budget": 4,
            "calibration": {
                "n_batches": n_batches, "batch_size": 1, "seed": seed, "head": "fresh",
                "shards": "auto",  # where there are two workers they share it
            },
        }  # fmt: skip

    def saw(self, job: dict[str, Any]) -> None:
        """Remember a job as it was seen; an end is not forgotten for something older."""
        with self._lock:
            if self.jobs.get(job["id"]) not in FINAL:
                self.jobs[job["id"]] = job["status"]

    def lose(self, key: str, called: float) -> None:
        """Remember that a submission under a key may have made its job at any time from now."""
        with self._lock:
            self._lost.setdefault(key, []).append(called)

    def take_lost(self, key: str) -> list[float]:
        """When such submissions were made; told once."""
        with self._lock:
            return self._lost.pop(key, [])


class Client:
    """Does one thing at a time against one API after the other, and puts it on record."""

    def __init__(self, name: str, urls: Sequence[str], known: Known) -> None:
        self._name = name
        self._known = known
        self._https = [httpx2.Client(base_url=url, timeout=PATIENCE) for url in urls]
        self._n_calls = 0

    def close(self) -> None:
        """Let go of all connections."""
        for http in self._https:
            http.close()

    def submit(self, body: dict[str, Any], *, key: str = "") -> str:
        """Submit a request; answers the job's id, or nothing."""
        return self._make("/calibrate", key=key, json=body)

    def retry(self, job_id: str) -> str:
        """Retry a job that has failed or was canceled; answers the new one's id, or nothing."""
        key = f"again-{job_id}"
        called = now()
        new = self._make(f"/jobs/{job_id}/retry", key=key, refused_for=job_id)
        if new:
            self._add(Operation(job_id, "retry", called, now(), (), self._name))
        return new

    def look(self, job_id: str) -> str:
        """Look at a job; answers its status, or nothing."""
        called, answer = self._call("GET", f"/jobs/{job_id}")
        if answer is None:
            return ""
        if answer.status_code == 404:
            self._add(Operation(job_id, "read", called, now(), ("", 0), self._name))
            return ""
        return self._read(answer, called)

    def fetch(self, job_id: str) -> None:
        """Fetch a job's result."""
        called, answer = self._call("GET", f"/jobs/{job_id}/result")
        if answer is None:
            return
        if answer.status_code == 200:
            digest = answer.json()["digest"]
            self._add(Operation(job_id, "result", called, now(), (digest,), self._name))
        else:
            self._refused(job_id, answer, called)

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        called, answer = self._call("POST", f"/jobs/{job_id}/cancel")
        if answer is None:
            self._add(lost(job_id, "cancel", called, by=self._name))
        elif answer.is_success:
            job = answer.json()
            if job["status"] in {"canceling", "canceled"}:
                self._add(Operation(job_id, "cancel", called, now(), (), self._name))
            self._read(answer, called)
        else:
            self._refused(job_id, answer, called)

    def events(self, job_id: str) -> list[dict[str, Any]] | None:
        """A job's whole history as it is on record; ``None`` if it cannot be had now."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["id"] if found else "0"
            path = f"/jobs/{job_id}/events?after={after}&limit=500"
            _, answer = self._call("GET", path, headers={"Accept": "application/json"})
            if answer is None or answer.status_code != 200:
                return None
            page = answer.json()
            found += page["data"]
            if not page["data"] or not page.get("next_cursor"):
                return found

    def _make(self, path: str, *, key: str, refused_for: str = "", json: Any = None) -> str:
        headers = {"Idempotency-Key": key} if key else {}
        called, answer = self._call("POST", path, headers=headers, json=json)
        if answer is None:
            if key:
                self._known.lose(key, called)
                self._add(lost(key, "submit", called, by=self._name))
            return ""
        if not answer.is_success:
            self._refused(refused_for, answer, called)
            return ""
        job = answer.json()
        self._acknowledge(job, key, called)
        return str(job["id"])

    def _acknowledge(self, job: dict[str, Any], key: str, called: float) -> None:
        answered, shown = now(), (job["status"], job["attempt"])
        if key:
            self._add(Operation(key, "submit", called, answered, (job["id"],), self._name))
            for before in self._known.take_lost(key):
                self._add(lost(job["id"], "submit", before))
        self._add(Operation(job["id"], "submit", called, answered, shown, self._name))
        self._known.saw(job)

    def _read(self, answer: httpx2.Response, called: float) -> str:
        job, answered = answer.json(), now()
        shown = (job["status"], job["attempt"])
        self._add(Operation(job["id"], "read", called, answered, shown, self._name))
        if job.get("result"):
            digest = (job["result"]["digest"],)
            self._add(Operation(job["id"], "result", called, answered, digest, self._name))
        self._known.saw(job)
        return str(job["status"])

    def _refused(self, job_id: str, answer: httpx2.Response, called: float) -> None:
        code = answer.json().get("code", "")
        if code in REFUSED and job_id:
            self._add(Operation(job_id, "refused", called, now(), (code,), self._name))
        elif code != "idempotency_in_flight":
            self._odd(answer)

    def _call(
        self, method: str, path: str, **options: Any
    ) -> tuple[float, httpx2.Response | None]:
        self._n_calls += 1
        http = self._https[self._n_calls % len(self._https)]
        called = now()
        try:
            answer = http.request(method, path, **options)
        except httpx2.HTTPError:
            return called, None
        if answer.status_code in UNCLEAR:
            return called, None
        if answer.status_code >= 500:
            self._odd(answer)
            return called, None
        return called, answer

    def _odd(self, answer: httpx2.Response) -> None:
        request = answer.request
        text = f"{request.method} {request.url.path}: {answer.status_code} {answer.text[:300]}"
        self._known.oddities.append(text)

    def _add(self, *operations: Operation) -> None:
        self._known.histories.add(*operations)


class Person(threading.Thread):
    """One client at work until told to stop.

    Args:
        name: Who it is.
        urls: Where the APIs are.
        known: What all of them know.
        n_batches: Sizes of the jobs that it submits.
    """

    def __init__(
        self, name: str, urls: Sequence[str], known: Known, *, n_batches: Sequence[int]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._client = Client(name, urls, known)
        self._known = known
        self._draw = random.Random(f"{known.seed}-{name}")
        self._to_submit = list(n_batches)
        self._stop_asked = threading.Event()

    @property
    def is_served(self) -> bool:
        """Whether all that it wants to submit has been acknowledged, or given up."""
        return not self._to_submit

    def stop(self) -> None:
        """Let it finish what it is at, and wait for that."""
        self._stop_asked.set()
        self.join()
        self._client.close()

    def run(self) -> None:
        """Submit, and in between do what is drawn."""
        while self._to_submit:
            for _ in self._submissions(self._to_submit[0]):
                if self._stop_asked.wait(self._draw.uniform(0.05, 0.2)):
                    return
                self._do_something()
            self._to_submit.pop(0)
        while not self._stop_asked.wait(self._draw.uniform(0.1, 0.4)):
            self._do_something()

    def _submissions(self, n_batches: int) -> Iterator[None]:
        """Submit one request; under a key as often as it takes."""
        body = self._known.new_body(n_batches)
        key = f"{self.name}-{n_batches}-{secrets.token_hex(8)}"
        if self._draw.random() < 0.4:
            self._client.submit(body)
            yield
            return
        self._known.bodies[key] = body
        while not self._client.submit(body, key=key):
            yield
        yield

    def _do_something(self) -> None:
        known = dict(self._known.jobs)
        if not known:
            return
        (what,) = self._draw.choices(list(WEIGHTS), WEIGHTS.values())
        job_id = self._draw.choice(sorted(known))
        if what == "look":
            self._client.look(job_id)
        elif what == "fetch":
            self._client.fetch(job_id)
        elif what == "repeat" and self._known.bodies:
            key = self._draw.choice(sorted(self._known.bodies))
            self._client.submit(self._known.bodies[key], key=key)
        elif self._known.is_calm:
            return
        elif what == "cancel" and self._may_cancel(known):
            self._client.cancel(job_id)
        elif what == "retry" and known[job_id] in {"failed", "canceled"}:
            self._client.retry(job_id)

    def _may_cancel(self, known: dict[str, str]) -> bool:
        """At most every third job."""
        n_ended = sum(status in {"canceling", "canceled"} for status in known.values())
        return 3 * (n_ended + 1) <= len(known)
