"""The documentation site: built strictly, whole, searched in a browser, nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
COPIED = ("docs", "benchmarks", "docker", "clients/agents", "clients/ci", "clients/examples")


def entries(nav):
    """The pages of a navigation, in order."""
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from entries(value)
        else:
            yield value


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What the site is made from, in a folder of its own."""
    root = tmp_path_factory.mktemp("copy")
    for folder in filter(lambda name: (ROOT / name).is_dir(), COPIED):
        shutil.copytree(
            ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in [*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "mkdocs.yml"]:
        shutil.copy(file, root)
    return root


def build(root: Path) -> subprocess.CompletedProcess[str]:
    """What ``make site`` runs."""
    command = [sys.executable, root / "docs/build_site.py"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def site(copy) -> Path:
    built = build(copy)
    assert built.returncode == 0, built.stdout + built.stderr
    return copy / "build/site"


def test_every_page_is_in_the_navigation():
    """A page that nobody is led to is read by nobody. Decisions have a list of their own."""
    told = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    records = (ROOT / "docs/decisions/README.md").read_text()
    told += {f"docs/decisions/{name}" for name in re.findall(r"\((\d+-.*?\.md)\)", records)}
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")}

    assert len(told) == len(set(told))
    assert there - set(told) == set()


def test_it_is_whole(site):
    """The API with every route, and every word that is for the tests alone taken out."""
    api = (site / "docs/api.html").read_text()

    assert 'id="post-calibrate"' in api
    assert 'id="calibrationrequest"' in api
    assert not [p for p in site.rglob("*.html") if "no-run=" in p.read_text()]


FAULTS = {
    "[x](nowhere.md)": "page does not exist",
    "[x](cli.md#nowhere)": "anchor does not exist",
    "[x](nowhere.json)": "nowhere.json is not there",
    "[x](images)": "images is not there",  # a folder of files is no page
    '<script src="https://cdn.example.org/x.js"></script>': "script is fetched from",
    '<img src="//cdn.example.org/x.png">': "img is fetched from",
}


def test_what_is_wrong_ends_the_build(tmp_path):
    """Each fault is named, and the status is not 0."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md"))
    page = "\n\n".join(["# One", "[x](cli.md#one)", *FAULTS])
    (tmp_path / "docs/cli.md").write_text(page)
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings | {"nav": ["docs/cli.md"]}))

    built = build(tmp_path)

    told = re.sub(r"\x1b\[[\d;]*m", "", built.stdout + built.stderr)
    assert built.returncode != 0
    assert [fault for fault in FAULTS.values() if fault not in told] == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.slow
def test_pages_opened_as_files_are_searched_without_the_internet(site):
    """Typed into the real page: results appear, and no request leaves the disk."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.locator("button:has-text('Search')").first.click()
        page.locator("input").last.wait_for(state="attached")
        page.keyboard.type("troubleshooting", delay=20)
        page.locator("a[href*='troubleshooting.html'] >> nth=-1").wait_for(state="visible")
        typed = [field.input_value() for field in page.locator("input[type=text]").all()]
        browser.close()

    assert "troubleshooting" in typed or typed == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
