"""Build the documentation site into build/site: ``make site``.

The pages are laid into build/pages as they lie in the repository, so that one relative link is
right on the site and beside the code. Zensical refuses links to pages and headings that are
not there; this refuses links to files that are not, and whatever would be fetched from
elsewhere.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from api_page import api_page

ROOT = Path(__file__).parents[1]
PAGES = (
    "*.md", "docs/**/*.md", "benchmarks/*.md", "docker/**/*.md", "clients/**/*.md",
)  # fmt: skip
# What pages link to or show.
FILES = (
    "LICENSE", "docs/*.json", "docs/**/*.svg", "docs/**/*.png", "docs/assets/*",
    "benchmarks/*.py", "benchmarks/results/**/*.*", "clients/ci/**/*", "clients/examples/**/*",
)  # fmt: skip
NO_RUN = re.compile(r"^( *```\w+) no-run=\"[^\"]*\"", flags=re.MULTILINE)
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


def main(root: Path = ROOT) -> int:
    """Lay the pages, build, and look at what was built; the status says whether all is right."""
    pages = root / "build/pages"
    lay_pages(root, pages)
    (pages / "docs/api.md").write_text(api_page(pages / "docs/openapi.json"), encoding="utf-8")
    site = root / "build/site"
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run([*command, "-f", root / "mkdocs.yml"], cwd=root, check=False)
    faults = sorted(set(faults_of(site)))
    sys.stderr.write("".join(f"{fault}\n" for fault in faults))
    return built.returncode or bool(faults)


def lay_pages(root: Path, into: Path) -> None:
    """Copy pages and what they link to; fences lose the word that is for the tests alone."""
    shutil.rmtree(into, ignore_errors=True)
    for pattern in (*PAGES, *FILES):
        for file in filter(Path.is_file, root.glob(pattern)):
            target = into / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".md":
                text = file.read_text(encoding="utf-8")
                target.write_text(NO_RUN.sub(r"\1", text), encoding="utf-8")
            else:
                shutil.copyfile(file, target)


def faults_of(site: Path) -> Iterator[str]:
    """Links of built pages to files that are not there, and what is fetched from elsewhere."""
    for page in site.rglob("*.html"):
        here = page.relative_to(site)
        for tag, name, value in references(page):
            address = urlsplit(value)
            if address.netloc and FETCHED.get(tag) == name:
                yield f"{here}: {tag} is fetched from {value}"
            if address.scheme or address.netloc or not address.path:
                continue
            folder = site if address.path.startswith("/") else page.parent
            target = folder / unquote(address.path).lstrip("/")
            if not (target.is_file() or (target / "index.html").is_file()):
                yield f"{here}: {value} is not there"
    for sheet in site.rglob("*.css"):
        for value in re.findall(r"url\([\"']?((?:https?:)?//[^)\"']+)", sheet.read_text()):
            yield f"{sheet.relative_to(site)}: fetches {value}"


def references(page: Path) -> set[tuple[str, str, str]]:
    """The tags of a page with an attribute that names another file, and its value."""
    found: set[tuple[str, str, str]] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.update(
                (tag, name, value) for name, value in attrs if name in {"src", "href"} and value
            )

    Reader().feed(page.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    sys.exit(main())
