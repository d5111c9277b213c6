"""The page and the reference as they are served."""

import gzip
import re

import pytest

from fimlora_service.web.files import STATIC, PageFiles

ASSETS = sorted(path.name for path in (STATIC / "assets").iterdir())
PAGES = ["/", "/docs"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_asked_for_again_each_time_and_answered_by_its_tag(http, path):
    """A new version is seen at once, the same one is not sent twice."""
    first = http.get(path)
    again = http.get(path, headers={"If-None-Match": first.headers["etag"]})

    assert first.status_code == 200
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" not in again.headers  # the copy keeps its own


def test_every_file_that_a_page_names_is_there_and_kept(http):
    """Under names with a digest, so for ever."""
    named = {
        name
        for path in PAGES
        for name in re.findall(r'="\./(assets/[^"]+)', http.get(path).text)
    }

    assert len(named) >= 5
    for name in named:
        answer = http.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "max-age=31536000, immutable"


@pytest.mark.parametrize(
    ("ending", "media_type"),
    [(".js", "text/javascript"), (".css", "text/css"), (".svg", "image/svg+xml")],
)
def test_a_file_says_what_it_is(http, ending, media_type):
    """A browser that may not guess would refuse it otherwise."""
    name = next(asset for asset in ASSETS if asset.endswith(ending))

    assert http.get(f"/assets/{name}").headers["content-type"] == f"{media_type}; charset=utf-8"


def test_who_takes_gzip_gets_it(http):
    """Each form has its own tag, and a cache between us keeps them apart."""
    name = next(asset for asset in ASSETS if asset.startswith("index-"))
    plain = http.get(f"/assets/{name}", headers={"Accept-Encoding": "identity"})
    with http.stream("GET", f"/assets/{name}", headers={"Accept-Encoding": "gzip"}) as small:
        sent = b"".join(small.iter_raw())

    assert small.headers["content-encoding"] == "gzip"
    assert gzip.decompress(sent) == plain.content
    assert len(sent) < len(plain.content)
    assert small.headers["etag"] != plain.headers["etag"]
    assert "Accept-Encoding" in plain.headers["vary"]


def test_head_is_answered_without_a_body(http):
    """As on every route."""
    answer = http.head("/")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("*/*", "text/html"),
        ("application/json", "application/json"),
        ("application/json, text/html;q=0.5", "application/json"),
    ],
)
def test_a_program_may_have_json(http, accept, kind):
    """What it asks for decides."""
    answer = http.get("/", headers={"Accept": accept})

    assert answer.headers["content-type"].startswith(kind)
    assert "Accept" in answer.headers.get_list("vary")[-1]


def test_json_says_where_to_go_on(http):
    """Its addresses are there."""
    links = http.get("/", headers={"Accept": "application/json"}).json()

    assert links["service"] == "fimlora"
    assert http.get(links["openapi"]).json()["info"]["version"] == links["version"]
    assert http.get(links["docs"]).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/assets/nothing.js", "/assets/", "/assets/..%2findex.html", "/assets/%2e%2e/sources.json",
     "/sources.json", "/index.html", "/redoc", "/v1/", "/v1/docs", "/assets/..%5c..%5capp.py"],
)  # fmt: skip
def test_nothing_else_is_served(http, path):
    """What is unknown stays a problem document."""
    answer = http.get(path)

    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


@pytest.mark.parametrize("path", [*PAGES, f"/assets/{ASSETS[0]}"])
def test_other_methods_are_told_which_there_are(http, path):
    """A form of another page that is sent here does nothing."""
    answer = http.post(path)

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_the_page_runs_its_own_scripts_and_asks_this_service_only(http):
    """Neither text nor evaluation becomes a script or a style."""
    policy = http.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    assert rules == {
        "default-src": "'none'", "base-uri": "'none'", "form-action": "'none'",
        "frame-ancestors": "'none'", "script-src": "'self'", "style-src": "'self'",
        "connect-src": "'self'", "img-src": "'self' data: blob:",
    }  # fmt: skip


def test_with_keys_the_page_is_open_and_the_data_is_not(http):
    """It asks for the key itself."""
    made = http.post("/keys", json={"name": "first", "scopes": ["admin"]})
    assert made.status_code == 201

    assert http.get("/").status_code == 200
    assert http.get(f"/assets/{ASSETS[0]}").status_code == 200
    assert http.get("/jobs").status_code == 401


def test_a_folder_without_a_build_has_no_page(tmp_path):
    """A checkout whose build is gone answers that there is no such route."""
    assert PageFiles(tmp_path).get("index.html") is None


def test_a_file_that_an_update_took_away_is_missing_and_what_was_read_is_kept(tmp_path):
    """Another version installed under a running service is no failure of it."""
    for name in ("index.html", "docs.html"):
        (tmp_path / name).write_text(name)
    files = PageFiles(tmp_path)
    read = files.get("index.html")
    for path in tmp_path.iterdir():
        path.unlink()

    assert read is not None
    assert files.get("index.html") is read
    assert files.get("docs.html") is None


def test_agents_are_told_what_this_is(http):
    """In plain text, without a key; every route that it names is one."""
    answer = http.get("/llms.txt")
    routes = {
        re.sub(r"\{\w+\}", "{}", path) for path in http.get("/openapi.json").json()["paths"]
    }
    named = re.findall(r"`(?:GET|POST) (/[^`? ]+)", answer.text)

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(named) >= 6
    for path in named:
        known = re.sub(r"\{\w+\}", "{}", path.replace("adapter_config.json", "{name}"))
        assert known in routes
    for address in re.findall(r"\]\((/[^)]*)\)", answer.text):
        assert http.get(address).status_code == 200
