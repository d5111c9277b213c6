"""The page in a real browser, on the real stack: Valkey, service, worker, a small model."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from playwright.sync_api import Browser, Page, Route, expect

from support.browser import Tab, new_tab, running_browser
from support.jobs import LABELLED, write_jsonl
from support.model_folders import make_decoder, make_encoder
from support.service_process import running_service
from support.valkey import running_valkey
from support.workers import running_worker

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PHONE = {"width": 360, "height": 740}
PAGES = [
    "/", "/#/new", "/#/jobs/{job}", "/#/jobs/job_00000000000000000000000", "/#/evaluations",
    "/#/compare", "/#/pins", "/#/operate", "/#/nowhere",
]  # fmt: skip
LANGUAGE_TRAINERS = {
    "TRL": "trl", "Axolotl": "axolotl", "LLaMA-Factory": "llama-factory", "ms-swift": "ms-swift",
    "Unsloth": "unsloth",
}  # fmt: skip
# What axe has against Swagger UI itself, whose elements are not ours to change.
OF_SWAGGER = {
    "nested-interactive", "heading-order", "select-name", "label", "scrollable-region-focusable",
    "region",  # its heading stands outside its own main, and no landmark may be around that
}  # fmt: skip
# Answers that are no success are told of by the browser itself.
ITS_OWN = "Failed to load resource"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to upload, beside a data folder with the model ``tiny``."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "data" / "models").mkdir(parents=True)
    make_encoder(folder / "data" / "models" / "tiny")
    make_decoder(folder / "data" / "models" / "decoder")
    write_jsonl(folder / "rows.jsonl", LABELLED)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[httpx2.Client]:
    """A client of the stack."""
    data = folder / "data"
    with (
        running_valkey() as redis_url,
        running_service(data, redis_url) as (client, _),
        running_worker(redis_url, data, folder / "worker.log"),
    ):
        yield client


@pytest.fixture(scope="module")
def url(service: httpx2.Client) -> str:
    return str(service.base_url).rstrip("/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser, url: str) -> Iterator[Tab]:
    with new_tab(browser, url) as tab:
        yield tab


@pytest.fixture(scope="module")
def job(service: httpx2.Client) -> str:
    """A calibration that has succeeded."""
    return str(calibrated(service, base_model="tiny", rows=LABELLED)["id"])


def calibrated(
    service: httpx2.Client, *, base_model: str, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """A calibration of a small model that has succeeded."""
    body = {
        "base_model": base_model,
        "dataset": {"source": "inline", "rows": rows},
        "budget": 4,
        "calibration": {"n_batches": 2, "batch_size": 4},
        "metadata": {"run": "first"},
    }
    job: dict[str, Any] = service.post("/calibrate", json=body).json()
    for _ in range(4):
        job = service.get(f"/jobs/{job['id']}", params={"wait": 60}, timeout=90).json()
        if job["status"] not in ("queued", "running"):
            break
    assert job["status"] == "succeeded", job
    return job


def fill(page: Page, folder: Path, *, budget: str = "8") -> None:
    """Fill the form for the small model and a file of rows."""
    page.get_by_label("Base model").fill("tiny")
    page.get_by_label("Upload a file of rows").set_input_files(folder / "rows.jsonl")
    expect(page.get_by_label("Dataset")).to_have_value(re.compile(r"ds_[0-9a-f]{32}"))
    expect(page.get_by_text("rows.jsonl is uploaded")).to_be_visible()
    assert page.get_by_label("Upload a file of rows").input_value().endswith("rows.jsonl")
    page.get_by_label("Budget").fill(budget)
    page.get_by_text("Bounds, target modules").click()
    page.get_by_label("Batches").fill("4")
    page.get_by_label("Labels").fill("run=nightly")


def test_a_calibration_is_asked_for_watched_and_downloaded(browser, url, service, folder):
    """From the form to the files, without reading a page anew; the list sees it too."""
    with new_tab(browser, url) as tab, new_tab(browser, url) as other:
        listed = other.open("/")
        page = tab.open("/#/new")
        fill(page, folder)
        expect(page.get_by_text("Measured by a worker")).to_be_visible()
        page.get_by_role("button", name="Start").click()

        expect(page).to_have_url(re.compile(r"#/jobs/job_[0-9a-f]{23}$"))
        state = page.get_by_role("region", name="State")
        expect(state.get_by_text("succeeded")).to_be_visible(timeout=240_000)
        expect(page.get_by_role("heading", name="Signal and confidence")).to_be_visible()
        job_id = page.url.rpartition("/")[2]
        row = listed.get_by_role("row").filter(has_text=job_id)
        expect(row.get_by_text("succeeded")).to_be_visible()
        expect(row).to_contain_text("run=nightly")

        for name in ("adapter_config.json", "rank_map.svg"):
            with page.expect_download() as saved:
                page.get_by_role("button", name=f"Download {name}").click()
            answer = service.get(f"/jobs/{job_id}/artifacts/{name}")
            content = Path(saved.value.path()).read_bytes()
            assert hashlib.sha256(content).digest() == hashlib.sha256(answer.content).digest()
            assert saved.value.suggested_filename == name
        page.get_by_text("Events (").click()
        expect(page.get_by_role("cell", name="calibrating")).to_be_visible()
        tab.check()
        other.check()


def test_what_is_shown_to_train_with_loads_and_is_the_trainers_own(tab, service, job):
    """The model by its real name, the head with its classes; and the words of the API for tools."""
    page = tab.open(f"/#/jobs/{job}")
    used = page.get_by_role("tabpanel")
    result = service.get(f"/jobs/{job}/result").json()
    facts = result["rank_map"]["provenance"]

    n_classes = len({row["label"] for row in LABELLED})
    assert result["adapter_config"]["base_model_name_or_path"] is None
    expect(used).to_contain_text(f'from_pretrained("BASE_MODEL", num_labels={n_classes})')
    expect(used).to_contain_text('the model that is "tiny" here')
    expect(used).to_contain_text(
        f"fimlora --url {str(service.base_url).rstrip('/')} fetch {job}"
    )
    expect(used).to_contain_text(f"from transformers import {facts['model_class']}")
    expect(used).not_to_contain_text('from_pretrained("tiny"')
    for tool in LANGUAGE_TRAINERS:
        expect(page.get_by_role("tab", name=tool)).to_have_count(0)
    expect(
        page.get_by_text("train language models, and this plan is for a classifier")
    ).to_be_visible()
    page.get_by_role("tab", name="vLLM").click()
    expect(used).to_contain_text(
        "Not for this plan: vLLM serves no adapter with modules_to_save"
    )
    expect(used.get_by_role("alert")).to_have_count(0)
    tab.check(expected="422")


def test_a_language_model_is_shown_to_every_trainer(tab, service, folder):
    """In the words of the API."""
    rows = [{"text": row["text"]} for row in LABELLED]
    job = calibrated(service, base_model="decoder", rows=rows)
    page = tab.open(f"/#/jobs/{job['id']}")
    used = page.get_by_role("tabpanel")

    for tool, words_of in LANGUAGE_TRAINERS.items():
        page.get_by_role("tab", name=tool).click()
        path = f"/rank-patterns/{job['result']['digest']}"
        words = service.get(path, params={"format": words_of}).text
        expect(used.locator("pre")).to_have_text(words.rstrip())
    expect(page.get_by_text("train language models, and this plan is")).to_have_count(0)
    tab.check()


def test_what_is_shown_for_a_decoder_that_classifies_runs_on_a_batch(
    tab, service, folder, tmp_path, monkeypatch
):
    """Its head reads the last token before padding, so that the model must know which that is."""
    job = calibrated(service, base_model="decoder", rows=LABELLED)
    page = tab.open(f"/#/jobs/{job['id']}")
    text = page.get_by_role("tabpanel").locator("pre").inner_text()
    (tmp_path / "adapter").mkdir()
    found = service.get(f"/jobs/{job['id']}/artifacts/adapter_config.json")
    (tmp_path / "adapter/adapter_config.json").write_bytes(found.content)
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}

    exec(text.replace('"BASE_MODEL"', repr(str(folder / "data/models/decoder"))), made)
    short, long = LABELLED[0]["text"].split()[0], LABELLED[0]["text"]
    batch = made["tokenizer"]([short, long], padding=True, return_tensors="pt")
    alone = made["tokenizer"]([short], return_tensors="pt")

    model = made["model"].eval()
    with torch.no_grad():
        padded = model(**batch).logits[0]
        assert torch.allclose(padded, model(**alone).logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("report.html", b"<!doctype"), ("rank_map-{day}.png", b"\x89PNG"),
        ("rank_map-{day}.svg", b"<svg"),
    ],
)  # fmt: skip
def test_the_report_and_the_picture_are_taken_away(tab, service, job, name, begins):
    """They are made on request, beside the files of the result; a picture names its day."""
    day = service.get(f"/jobs/{job}").json()["created_at"][:10]
    name = name.format(day=day)
    page = tab.open(f"/#/jobs/{job}")
    with page.expect_download() as saved:
        page.get_by_role("button", name=f"Download {name}").click()

    assert saved.value.suggested_filename == name
    content = Path(saved.value.path()).read_bytes()
    assert content.lower().startswith(begins.lower())
    assert name.endswith(".png") or day.encode() in content
    tab.check()


def test_what_an_estimate_says_to_mind_is_shown(tab, folder):
    """Such as what of images and sounds is counted, and what is not."""

    def with_note(route: Route) -> None:
        answer = route.fetch()
        estimate = answer.json()
        estimate["memory"]["note"] = "sounds are counted by their longest"
        route.fulfill(response=answer, json=estimate)

    tab.page.route("**/estimate", with_note)
    page = tab.open("/#/new")
    fill(page, folder)

    expect(page.get_by_text("sounds are counted by their longest")).to_be_visible()
    tab.check()


def test_nothing_is_tried_again_where_it_cannot_help(tab):
    """A job that is not there is not there a second time."""
    page = tab.open("/#/jobs/job_00000000000000000000000")

    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    tab.check(expected=ITS_OWN)


def test_what_the_api_refuses_is_told_beside_the_field(tab, folder):
    """Before anything is sent for good, in the words of the API."""
    page = tab.open("/#/new")
    fill(page, folder, budget="0")
    budget = page.get_by_label("Budget")
    expect(budget).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#budget-error")).not_to_be_empty()

    budget.fill("8")
    expect(budget).not_to_have_attribute("aria-invalid", "true")
    page.get_by_label("Base model").fill("tinny")
    expect(page.get_by_label("Base model")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#model-error")).to_contain_text("tinny")
    tab.check(expected=ITS_OWN)


def test_jobs_are_filtered(tab, job):
    """By the API, and by words; the address keeps the filter."""
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    page = tab.open("/#/jobs?status=failed")
    expect(page.get_by_text("fits the filter")).to_be_visible()

    page.get_by_label("Status").select_option("succeeded")
    page.get_by_label("Base model").select_option("tiny")
    page.get_by_label("Search").fill("run=first tiny")
    expect(page.get_by_role("link", name=job)).to_be_visible()
    expect(page).to_have_url(re.compile(r"q=run%3Dfirst\+tiny"))
    wanted = ("status=succeeded", "label=run%3Dfirst", "model=tiny")
    assert any(all(each in url for each in wanted) for url in asked)
    page.get_by_label("Search").fill("run=second")
    expect(page.get_by_role("link", name=job)).to_be_hidden()
    page.get_by_label("Search").fill("no such job")
    expect(page.get_by_role("link", name=job)).to_be_hidden()
    tab.check()


def test_all_of_it_is_reached_by_keys(tab, folder, job):
    """Past the navigation, into it, through the form and the tabs of the snippets."""
    page = tab.open("/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()

    page.get_by_role("link", name="Calibrate").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="New calibration")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("tiny")
    page.keyboard.press("Tab")
    page.keyboard.type("nothing-there")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Dataset")).to_have_attribute("aria-invalid", "true")

    page = tab.open(f"/#/jobs/{job}")
    page.get_by_role("tab", name="PEFT").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="HF Trainer")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_contain_text("VerifyPlan")
    tab.check(expected=ITS_OWN)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_for_everybody(browser, url, job, theme):
    """Axe has nothing against it, and a phone shows it without scrolling to the side."""
    with new_tab(browser, url, color_scheme=theme, reduced_motion="reduce") as tab:
        for address in PAGES:
            page = tab.open(address.format(job=job))
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            page.wait_for_load_state("networkidle" if "nowhere" in address else "load")
            expect(page.get_by_text("Reading …")).to_have_count(0)
            for details in page.locator("summary").all():
                details.click()

            assert tab.violations() == [], address
            page.set_viewport_size(PHONE)
            assert tab.overhang() <= 0, address
            page.set_viewport_size({"width": 1280, "height": 720})
            tab.check(expected=ITS_OWN)


def test_a_page_that_is_left_asks_for_nothing_more(tab, job):
    """Until the next one is there it keeps its own parameters, and nothing is not found."""
    page = tab.open(f"/#/jobs/{job}")
    expect(page.get_by_role("heading", name="Files", exact=True)).to_be_visible()
    page.get_by_role("link", name="Calibrate").click()
    expect(page.get_by_role("heading", name="New calibration")).to_be_focused()
    page.go_back()
    expect(page.get_by_role("heading", name="Files", exact=True)).to_be_visible()
    tab.check()


def test_the_theme_is_chosen_and_kept(tab):
    """Whatever the system says. Without keys there is nothing to sign in to."""
    page = tab.open("/")
    expect(page.get_by_role("button", name="Sign in")).to_have_count(0)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_label("Theme").select_option("Dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()

    assert dark != light
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_the_reference_works_without_a_network(tab):
    """All of it from this service, under its policy."""
    page = tab.open("/docs")
    expect(page.get_by_text("/calibrate", exact=True)).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="GET /healthz", exact=False).first.click()
    expect(page.get_by_role("button", name="Try it out")).to_be_visible()
    tab.check()


def test_the_reference_is_read_by_everybody(tab):
    """Its colours are ours, closed and open; how its elements are nested is not."""
    page = tab.open("/docs")
    expect(page.get_by_text("/calibrate", exact=True)).to_be_visible(timeout=240_000)
    for name in (None, "POST /calibrate", "Try it out"):
        if name:
            page.get_by_role("button", name=name, exact=False).first.click()
            shown = "Execute" if name == "Try it out" else "Try it out"
            expect(page.get_by_role("button", name=shown)).to_be_visible()

        found = [each for each in tab.violations() if each.partition(":")[0] not in OF_SWAGGER]
        assert found == [], name


def test_with_keys_the_page_asks_for_one(browser, url, service, job):
    """The last test of this file: the service stays closed behind it."""
    made = service.post("/keys", json={"name": "page", "scopes": ["admin"]})
    assert made.status_code == 201, made.text
    with new_tab(browser, url) as tab:
        page = tab.open("/")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert tab.violations() == []
        page.get_by_label("API key").fill("fim_not_a_key")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("API key")

        page.get_by_label("API key").fill(made.json()["key"])
        page.get_by_role("main").get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name=job).click()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download adapter_config.json").click()
        assert Path(saved.value.path()).stat().st_size > 100
        page.reload()
        expect(page.get_by_role("heading", name="Files", exact=True)).to_be_visible()

        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        tab.check(expected=ITS_OWN)
