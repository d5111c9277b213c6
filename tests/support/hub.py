"""A stand-in model hub: the HTTP routes that huggingface_hub and datasets really call.

Repositories are put in by tests and served from memory. Point ``HF_ENDPOINT`` (in a child
process) or ``HfApi(endpoint=...)`` / ``snapshot_download(endpoint=...)`` at ``hub.url``.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LONGEST_SILENCE_S = 30
Kind = Literal["model", "dataset"]
ID = r"(?P<id>[^/]+/[^/]+)"
API = re.compile(rf"^/api/(?P<kind>model|dataset)s/{ID}(/(?P<what>revision|tree|paths-info)/(?P<rev>[^/]+)(/(?P<path>.*))?)?$")  # fmt: skip
FILE = re.compile(rf"^/(?P<kind>datasets/)?{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)$")


def git_oid(data: bytes) -> str:
    """The id git gives these bytes; the hub uses it as the ETag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """One repository at one commit.

    Attributes:
        files: Content by path.
        gated: Whether its files are refused to everybody.
        private: Whether it says of itself that not everybody may read it.
        revisions: Names of the one commit, besides its hash.
        card: The metadata at the head of its README, as the hub reads it.
    """

    id: str
    kind: Kind
    files: dict[str, bytes]
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)
    private: bool = False
    card: dict[str, Any] | None = None

    @property
    def commit(self) -> str:
        """A hash that changes whenever a file does."""
        oids = {path: git_oid(data) for path, data in self.files.items()}
        text = json.dumps([self.kind, self.id, oids], sort_keys=True)
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the tree route lists it."""
        data = self.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below a path."""
        prefix = f"{under}/" if under else ""
        paths = [p for p in sorted(self.files) if p.startswith(prefix)]
        depths = {p: p.removeprefix(prefix).split("/") for p in paths}
        folders = sorted({
            prefix + "/".join(parts[:n])
            for parts in depths.values()
            for n in range(1, len(parts) if recursive else min(2, len(parts)))
        })  # fmt: skip
        listed = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in folders]
        return listed + [self.entry(p) for p in paths if recursive or len(depths[p]) == 1]

    def info(self) -> dict[str, Any]:
        """The repository as the info route describes it."""
        siblings = [
            {"rfilename": p, "size": len(d), "blobId": git_oid(d)}
            for p, d in sorted(self.files.items())
        ]
        return {
            "_id": "0" * 24, "id": self.id, "sha": self.commit, "siblings": siblings,
            "private": self.private, "gated": "manual" if self.gated else False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": [], "author": self.id.split("/")[0],
            "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
        } | ({"cardData": self.card} if self.card else {})  # fmt: skip


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Hub:
    """A running stand-in.

    Attributes:
        url: Its endpoint.
        requests: Every request line so far, such as ``HEAD /org/m/resolve/main/x``.
        whole: Paths of the files that were asked for as a whole.
        broken: While true every request is answered with status 500.
        answering: While it is not set, no request is answered, for half a minute at most.
    """

    url: str
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    broken: bool = False
    answering: threading.Event = field(default_factory=_set_event)

    def add(
        self,
        id: str,
        files: Mapping[str, bytes | str] | Path,
        *,
        kind: Kind = "model",
        gated: bool = False,
        revisions: tuple[str, ...] = ("main",),
    ) -> Repository:
        """Publish files (or all files of a folder) as a repository."""
        if isinstance(files, Path):
            found = (p for p in files.rglob("*") if p.is_file())
            files = {str(p.relative_to(files)): p.read_bytes() for p in found}
        data = {p: c.encode() if isinstance(c, str) else c for p, c in files.items()}
        repository = Repository(id, kind, data, gated, revisions)
        self.repositories[kind, id] = repository
        return repository


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.answering.wait(LONGEST_SILENCE_S)
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length).decode()
        try:
            if self.hub.broken:
                raise _Refused(500, "Broken")
            self._route()
        except _Refused as refused:
            self._send(refused.status, b"{}", {"X-Error-Code": refused.code})

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 -- names that http.server looks up

    def _route(self) -> None:
        url = urlsplit(self.path)
        if match := API.match(url.path):
            self._api(match, parse_qs(url.query))
        elif match := FILE.match(url.path):
            self._file(match)
        else:
            raise _Refused(404, "NotFound")

    def _find(self, match: re.Match[str], kind: str) -> Repository:
        repository = self.hub.repositories.get((kind, unquote(match["id"])))
        if repository is None:
            raise _Refused(404, "RepoNotFound")
        revision = unquote(match["rev"] or "main")
        if revision not in {*repository.revisions, repository.commit}:
            raise _Refused(404, "RevisionNotFound")
        return repository

    def _api(self, match: re.Match[str], query: Mapping[str, list[str]]) -> None:
        repository = self._find(match, match["kind"])
        answer: Any = repository.info()
        if match["what"] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in {"true", "1"}
            answer = repository.tree(unquote(match["path"] or ""), recursive=recursive)
            if match["path"] and not answer:
                raise _Refused(404, "EntryNotFound")
        elif match["what"] == "paths-info":
            answer = self._paths_info(repository)
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _paths_info(self, repository: Repository) -> list[dict[str, Any]]:
        wanted = {path.strip("/") for path in parse_qs(self._body).get("paths", [])}
        listed = repository.tree("", recursive=True)
        return [entry for entry in listed if entry["path"] in wanted]

    def _file(self, match: re.Match[str]) -> None:
        repository = self._find(match, "dataset" if match["kind"] else "model")
        headers = {"X-Repo-Commit": repository.commit}
        if repository.gated:
            raise _Refused(401, "GatedRepo")
        data = repository.files.get(unquote(match["path"]))
        if data is None:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
            return
        headers |= {"ETag": f'"{git_oid(data)}"', "Accept-Ranges": "bytes"}
        span = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range") or "")
        if span is None:
            if self.command == "GET":
                self.hub.whole.append(unquote(match["path"]))
            self._send(200, data, headers)
            return
        first, last = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(206, data[first : last + 1], headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port of this machine."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub = handler.hub = Hub(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty stand-in hub."""
    with running_hub() as running:
        yield running
