"""The built page is that of the sources, and its first page is small."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fimlora_service.web.files import STATIC

ROOT = Path(__file__).parents[3]
# The same lists are in `web/tools/sources.ts`, which writes down what a build was made from.
INPUTS = (
    "web/src", "web/tools", "web/index.html", "web/docs.html", "web/package.json",
    "web/package-lock.json", "web/svelte.config.js", "web/tsconfig.json", "web/vite.config.ts",
    "clients/python/fimlora_contract/charts",
)  # fmt: skip
MADE = "web/src/lib/schema.ts"
FIRST_PAGE_BYTES = 60 * 1024


def files_in(path: Path) -> Iterator[Path]:
    """A file, or all files below a folder."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    elif path.exists():
        yield path


def sources() -> dict[str, bytes]:
    """What decides what the page is, by name."""
    files = (file for name in INPUTS for file in files_in(ROOT / name))
    found = {file.relative_to(ROOT).as_posix(): file.read_bytes() for file in files}
    return {n: found[n] for n in sorted(found) if n != MADE and not n.endswith((".py", ".pyc"))}


def digest_of(files: dict[str, bytes]) -> str:
    """One digest over names and contents."""
    lines = (f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_build_is_of_these_sources():
    """Whoever changes a source runs `make web`, and commits what it writes."""
    built = json.loads((STATIC / "sources.json").read_text())
    found = sources()

    assert len(found) > 20
    assert (len(found), digest_of(found)) == (built["files"], built["sha256"]), "run make web"


@pytest.mark.parametrize("name", ["web/src/App.svelte", "web/package-lock.json"])
def test_a_changed_source_changes_the_digest(name):
    """So that the comparison above can fail."""
    found = sources()

    assert digest_of(found | {name: found[name] + b"\n"}) != digest_of(found)


def imported(script: str) -> set[str]:
    """Files that a script imports as it begins."""
    return set(re.findall(r"""(?:from|import)\s*["']\./([^"']+)["']""", script))


def first_page(chunk: str) -> set[str]:
    """Files that are fetched before the page of a chunk is shown."""
    index = (STATIC / "index.html").read_text()
    assets = set(re.findall(r"""(?:src|href)="\./assets/([^"]+)""", index))
    scripts = [*(name for name in assets if name.endswith(".js")), chunk]
    while scripts:
        script = scripts.pop()
        new = imported((STATIC / "assets" / script).read_text()) - assets
        assets |= new | {script}
        scripts += [name for name in new if name.endswith(".js")]
    # Styles of a chunk are named in the map of what it needs, which the entry has.
    entry = "".join((STATIC / "assets" / n).read_text() for n in assets if n.endswith(".js"))
    stem = chunk.split("-", maxsplit=1)[0]
    return assets | set(re.findall(rf"assets/({stem}-[\w-]+\.css)", entry))


def test_the_first_page_is_small():
    """The list of jobs: page, scripts and styles, as a browser fetches them."""
    (chunk,) = (path.name for path in (STATIC / "assets").glob("Jobs-*.js"))
    names = first_page(chunk)
    files = [STATIC / "index.html", *(STATIC / "assets" / name for name in names)]

    size = sum(len(gzip.compress(file.read_bytes(), 9)) for file in files)

    assert any(name.startswith("index-") and name.endswith(".css") for name in names)
    assert 10_000 < size <= FIRST_PAGE_BYTES
    assert not any(name.startswith("docs-") for name in names)


def test_nothing_is_fetched_from_elsewhere():
    """No CDN: pages name files of their own only, and neither script nor style of their text."""
    for path in STATIC.glob("*.html"):
        text = path.read_text()
        named = re.findall(r"""(?:src|href)="([^"]+)""", text)

        assert named
        assert all(address.startswith("./assets/") for address in named)
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]* src=)", text)


def test_the_licences_of_what_is_bundled_are_told():
    """Each package is named with its licence, as most of them ask for."""
    text = (STATIC / "licenses.md").read_text()

    for name in ("svelte", "openapi-fetch", "swagger-ui-dist"):
        assert re.search(rf"^## {name} - \S+ \((MIT|Apache-2\.0)\)$", text, re.MULTILINE), name
