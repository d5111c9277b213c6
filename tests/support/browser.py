"""A real Chromium, and what a page must not do in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    expect,
    sync_playwright,
)

PATIENCE_MS = 60_000  # for machines with much else to do
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Heard before any script of the page runs.
LISTEN = """
window.refusedByPolicy = [];
addEventListener("securitypolicyviolation", (event) =>
  refusedByPolicy.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
FINDINGS = "axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations)"


def chromium() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_browser() -> None:
    """Skip a test where there is no browser, unless the machine promises to have one."""
    if chromium() is None:
        if os.environ.get("FIMLORA_REQUIRE_BROWSER") == "1":
            pytest.fail(f"FIMLORA_REQUIRE_BROWSER=1, but none of {NAMES} is in PATH")
        pytest.skip(f"needs one of {NAMES} in PATH")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start the browser; it ends with the block."""
    playwright: Playwright
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """A page that is looked at, with all that it should not have said.

    Attributes:
        page: Where to click.
        said: Errors and warnings of the console, and faults of scripts.
        elsewhere: Addresses of other services that it asked.
    """

    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.add_init_script(LISTEN)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.said.append(f"fault: {error}"))
        self.page.on("request", self._watch)

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.said.append(f"{message.type}: {message.text}")

    def _watch(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self, address: str) -> Page:
        """Go to a page of the service, anew."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.url}{address}")
        return self.page

    def check(self, *, expected: str | None = None) -> None:
        """See that nothing was refused by the policy, went wrong, or was asked elsewhere.

        Args:
            expected: Part of a message of the console that belongs to the test.
        """
        refused = self.page.evaluate("window.refusedByPolicy")
        unexpected = [text for text in self.said if expected is None or expected not in text]

        assert refused == []
        assert unexpected == []
        assert self.elsewhere == []

    def violations(self) -> list[str]:
        """What axe says against the page as it is, each with an element that shows it."""
        self.page.evaluate(AXE)
        found = self.page.evaluate(FINDINGS)
        return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]

    def overhang(self) -> int:
        """Pixels by which the page is wider than what is seen."""
        return int(self.page.evaluate(WIDER))


@contextmanager
def new_tab(browser: Browser, url: str, **options: Any) -> Iterator[Tab]:
    """A tab with a session and a storage of its own."""
    context: BrowserContext = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Tab(context.new_page(), url)
    finally:
        context.close()
