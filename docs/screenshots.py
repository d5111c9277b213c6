"""Take the pictures of the page in docs/images: ``python -m docs.screenshots``.

A stack is started, MiniLM is calibrated and evaluated on docstrings of the standard library, and a
real browser looks at what came of it. What was measured is kept in build/screenshots, so that another
round takes the pictures only. Needs the extras test and worker, MiniLM (the extra demo) and Chromium.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from demo.base_model import find_minilm
from demo.docstrings import build_rows, write_jsonl
from demo.stack import running_stack
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from fimlora_client import Client
from fimlora_client.cli.common.folders import link

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
DATA_DIR = ROOT / "build/screenshots"
MODEL, LABELS = "minilm", {"team": "docs"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 390, "height": 844}
N_COLOURS = 256  # of a picture of flat areas and letters: less than half of the bytes
PATIENCE_MS = 60_000
# Small: some minutes on two cores. What a verdict says of so few runs, it says itself.
EVALUATION = {
    "methods": ["fim"], "seeds": 3, "steps": 24, "batch_size": 8, "learning_rates": [2e-3, 1e-2],
    "eval_rows": 96,
}  # fmt: skip


def main() -> int:
    """Measure what is not known yet, then take every picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", help="A stack that runs already and has MiniLM as minilm.")
    url = parser.parse_args().url
    with stack(url) as at, Client(at) as client, browser() as running:
        dataset, jobs, evaluation = results(client)
        take_all(running, at, dataset, jobs, evaluation)
    return 0


@contextmanager
def stack(url: str | None) -> Iterator[str]:
    """The stack that is given, or one of our own."""
    if url:
        yield url
        return
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    link(DATA_DIR / "models", MODEL, find_minilm())
    with running_stack(DATA_DIR) as running:
        yield running.url


@contextmanager
def browser() -> Iterator[Browser]:
    """The browser of this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(f"needs one of {', '.join(BROWSERS)} in PATH")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def results(client: Client) -> tuple[str, list[str], str]:
    """The dataset, two calibrations of other rows, and an evaluation: asked for, or known already."""
    rows = build_rows()
    datasets = []
    for name, some in (("docstrings", rows), ("docstrings-new", rows[len(rows) // 2 :])):
        file = DATA_DIR / f"{name}.jsonl"
        DATA_DIR.mkdir(parents=True, exist_ok=True)
        write_jsonl(some, file)
        datasets.append(client.datasets.upload(file).id)
    jobs = [
        client.calibrate(
            base_model=MODEL, dataset=dataset, budget=8, target_modules="all-linear", metadata=LABELS
        )
        for dataset in datasets
    ]  # fmt: skip
    for job in jobs:
        job.wait(timeout=1800)
    evaluation = client.evaluate(
        base_model=MODEL, dataset=datasets[0], budget=8, metadata=LABELS, **EVALUATION
    )
    evaluation.wait(timeout=3600)
    return datasets[0], [job.id for job in jobs], evaluation.id


def take_all(
    browser: Browser, url: str, dataset: str, jobs: list[str], evaluation: str
) -> None:
    """Every picture of docs/images."""
    first, second = jobs
    with opened(browser, f"{url}/#/jobs/{first}", "Profiles") as page:
        take(page, "page-job")
        slider = page.get_by_role("slider", name="Mean rank")
        slider.fill("12")
        page.get_by_text("modules have another rank").wait_for()
        part = page.get_by_role("region", name="Another budget")
        part.get_by_label("Show").select_option(label="Difference from the job's plan")
        page.get_by_text("Answered in").wait_for()
        page.wait_for_timeout(1500)  # until what is said of a plan at rest has come
        save(part.screenshot(), "what-if")
    with opened(browser, f"{url}/#/jobs/{first}", "Profiles", color_scheme="dark") as page:
        take(page, "page-job-dark")
    low = {"width": 1200, "height": 560}
    with opened(browser, f"{url}/#/new", "New calibration", viewport=low) as page:
        page.get_by_label("Base model").fill(MODEL)
        page.get_by_label("Dataset", exact=True).fill(dataset)
        page.get_by_label("Budget").fill("8")
        page.get_by_role("heading", name="What this would do").wait_for()
        page.wait_for_timeout(500)
        take(page, "page-new")
    with opened(browser, f"{url}/#/compare?a={first}&b={second}", "modules") as page:
        page.get_by_role("heading", name="have other ranks").wait_for()
        take(page, "compare")
    where = f"{url}/#/evaluations/{evaluation}"
    with opened(browser, where, "Which lever") as page:
        take(page, "page-evaluation")
    with opened(browser, where, "Which lever", viewport=PHONE, device_scale_factor=1.5) as page:
        take(page, "page-evaluation-phone")


@contextmanager
def opened(
    browser: Browser,
    address: str,
    heading: str,
    *,
    viewport: dict[str, int] | None = None,
    **options: object,
) -> Iterator[Page]:
    """A page whose charts are drawn, without the blinking of what moves."""
    context = browser.new_context(
        viewport=viewport or {"width": 1200, "height": 960}, reduced_motion="reduce", **options
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("heading", name=heading).first.wait_for()
    page.wait_for_timeout(1500)
    yield page
    context.close()


def take(page: Page, name: str) -> None:
    """What is seen without scrolling."""
    save(page.screenshot(), name)


def save(png: bytes, name: str) -> None:
    """Write a picture with as few colours as do."""
    picture = Image.open(BytesIO(png)).convert("RGB")
    few = picture.quantize(
        N_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    file = IMAGES / f"{name}.png"
    few.save(file, optimize=True)
    sys.stdout.write(f"{file.relative_to(ROOT)} {file.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    sys.exit(main())
