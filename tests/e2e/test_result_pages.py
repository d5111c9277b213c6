"""Evaluations, two results side by side, pins and operation in a real browser and service."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Route, expect
from redis import Redis

from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.store import JobStore
from support.browser import Tab, new_tab, running_browser
from support.results import make_result, make_statistics
from support.service import make_model
from support.service_process import running_service
from support.valkey import running_valkey

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(80)]
PAGES = [
    "/#/evaluations",
    "/#/evaluations/{evaluation}",
    "/#/compare",
    "/#/compare?a={a}&b={b}",
    "/#/pins?name=task&tag=prod",
    "/#/operate",
]
ITS_OWN = "Failed to load resource"
OF_VEGA = "Channel size should not be used"  # for a dot that is larger than the others
PICTURES = os.environ.get("PAGE_PICTURES")  # a folder for pictures, to be looked at


@dataclass
class Stack:
    """A running service with two plans and an evaluation; a worker was played.

    Attributes:
        client: Of the service.
        url: Its address.
        ids: Of the jobs, by the name that addresses use.
        digests: Of the two plans.
    """

    client: httpx2.Client
    url: str
    ids: dict[str, str]
    digests: dict[str, str]


def arm(name: str, loss: float, rate: float) -> dict[str, Any]:
    """What the runs of an arm came to."""
    rates = [0.0005, 0.001, 0.002]
    return {
        "name": name, "best_rate": rate, "is_at_edge": rate in {rates[0], rates[-1]},
        "rates": [
            {"rate": r, "loss": loss + abs(r - rate) * 90, "n_diverged": 0} for r in rates
        ],
        "n_final": 5, "n_diverged": 0, "adapter_parameters": [82944, 82944],
        "trainable_parameters": 83712, "seconds": 41.5,
        "metrics": {
            "loss": {"mean": loss, "spread": 0.012},
            "accuracy": {"mean": 0.03125, "spread": 0.0442},
        },
        "curve": [[step, loss + 40 / (step + 20), 0.02] for step in (16, 32, 48, 64)],
    }  # fmt: skip


def difference(reference: str, mean: float) -> dict[str, Any]:
    """What ``fim`` has less or more than a control."""
    return {
        "arm": "fim", "reference": reference, "metric": "loss", "mean": mean,
        "low": mean - 0.014, "high": mean + 0.013, "p": 0.4, "p_holm": 0.8, "n": 5, "n_better": 3,
    }  # fmt: skip


FOUND = {
    "digest": "sha256:" + "cd" * 32,
    "artifacts": [],
    "verdict": {
        "code": "no_difference", "winner": "uniform",
        "sentence": "Use uniform ranks: on this task no plan is told apart from them.",
        "notes": ["The best rate of fim is the lowest of the grid."],
    },
    "arms": [arm("fim", 0.691, 0.0005), arm("uniform", 0.698, 0.001), arm("random", 0.7, 0.001)],
    "differences": [difference("uniform", -0.007), difference("random", -0.009)],
    "levers": {
        "rate": 0.024, "ranks": 0.009,
        "sentence": "The learning rate one step off costs 0.024 of loss; the ranks move 0.009.",
    },
    "n_runs": 24,
    "seconds": 996.0,
    "settings": {
        "n_steps": 64, "learning_rates": [0.001, 0.002], "tuning_seeds": [1000000],
    },
    "data": {"train_rows": 64, "eval_rows": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real server process and its store."""
    data_dir = tmp_path_factory.mktemp("pages") / "data"
    make_model(data_dir / "models" / "tiny")
    with (
        running_valkey() as redis_url,
        Redis.from_url(redis_url) as redis,
        running_service(data_dir, redis_url) as (client, _),
    ):
        client.timeout = 60
        store, body = JobStore(redis), {"base_model": "tiny", "budget": 8, "force": True}
        body["dataset"] = {"source": "inline", "rows": ROWS}
        ids, digests = {}, {}
        for seed, name in enumerate("ab"):
            ids[name] = client.post("/calibrate", json=body).json()["id"]
            result = make_result(data_dir, statistics=make_statistics(seed=seed))
            store.start(ids[name], 1, worker="w")
            store.succeed(ids[name], 1, result)
            Catalogue(store).file(store.get(ids[name]))
            digests[name] = result["digest"]
        ids["evaluation"] = client.post("/evaluations", json=body).json()["id"]
        store.start(ids["evaluation"], 1, worker="w")
        store.succeed(ids["evaluation"], 1, FOUND)
        pinned = client.put("/rank-patterns/task/prod", json={"job_id": ids["a"]})
        pinned.raise_for_status()
        yield Stack(client, str(client.base_url).rstrip("/"), ids, digests)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser, stack: Stack) -> Iterator[Tab]:
    with new_tab(browser, stack.url) as tab:
        yield tab


def keep(tab: Tab, name: str) -> None:
    """Keep a picture where somebody wants to look."""
    if PICTURES:
        tab.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_an_evaluation_says_its_verdict_first(tab, stack):
    """From the list to the page; the charts have their numbers, and the larger lever is named."""
    page = tab.open("/#/evaluations")
    expect(page.get_by_role("row").filter(has_text=stack.ids["evaluation"])).to_contain_text(
        "Use uniform ranks"
    )
    page.get_by_role("link", name=stack.ids["evaluation"]).click()

    headings = page.get_by_role("heading", level=2)
    expect(headings.first).to_have_text(FOUND["verdict"]["sentence"])
    expect(page.get_by_text("The learning rate was the larger lever.")).to_be_visible()
    arms = page.get_by_role("table", name="What the runs of each arm came to")
    expect(arms.get_by_role("row").filter(has_text="fim")).to_contain_text("0.691 ± 0.012")
    expect(arms.get_by_role("row").filter(has_text="uniform")).to_contain_text("use this")
    expect(arms.get_by_role("row").filter(has_text="uniform")).to_contain_text("3.1 ± 4.4 %")
    done = page.get_by_role("region", name="How it was done")
    expect(done).to_contain_text("0.0005, 0.001, 0.002 (added to the grid: 0.0005)")
    expect(done).to_contain_text(re.compile(r"Tuning seeds\s*1000000"))
    expect(
        page.get_by_text("the lowest one whose loss is within 2 % of the least")
    ).to_be_visible()
    for name in ("differences", "curves", "rates"):
        expect(page.locator(f"[data-chart={name}] svg").first).to_be_visible()
    tab.check(expected=OF_VEGA)


def test_an_evaluation_is_asked_for(tab, stack):
    """What the API refuses is a sentence; what it takes is a page that follows."""
    page = tab.open("/#/evaluations")
    page.get_by_role("button", name="New evaluation").click()
    form = page.get_by_role("form", name="New evaluation")
    form.get_by_label("Base model").fill("tinny")
    form.get_by_label("Dataset").fill("ds_" + "0" * 32)
    form.get_by_role("button", name="Start").click()
    expect(form.get_by_role("alert")).to_contain_text("ds_" + "0" * 32)

    rows = stack.client.post(
        "/datasets", content="\n".join(f'{{"text": "text {n}", "label": {n % 2}}}' for n in range(80)),
        headers={"Content-Type": "application/jsonl"},
    ).json()  # fmt: skip
    form.get_by_label("Dataset").fill(rows["id"])
    form.get_by_role("button", name="Start").click()
    expect(form.get_by_role("alert")).to_contain_text("tinny")

    form.get_by_label("Base model").fill("tiny")
    form.get_by_role("button", name="Start").click()
    expect(page.get_by_text("Waiting for a worker")).to_be_visible()
    tab.check(expected=ITS_OWN)


def test_two_results_are_compared_beside_noise(tab, stack):
    """Chosen by keys; shares and noise are those of the API, and the grid has every change."""
    page = tab.open("/#/compare")
    for label, name in {"Before": "a", "After": "b"}.items():
        page.get_by_role("combobox", name=label).fill(stack.ids[name])
        page.keyboard.press("Enter")

    path = f"/jobs/{stack.ids['a']}/diff/{stack.ids['b']}"
    drift = stack.client.get(path).json()["drift"]
    shown = page.get_by_role("table", name="Drift beside noise")
    ranks = shown.get_by_role("row").filter(has_text="ranks")
    expect(ranks).to_contain_text(f"{100 * drift['share_moved']:.1f} %")
    expect(ranks).to_contain_text(f"{100 * drift['rank_noise']:.1f} %")
    grid = page.get_by_role("grid", name="Rank map after: difference from before")
    maps = [stack.client.get(f"/jobs/{stack.ids[n]}/result").json()["rank_map"] for n in "ab"]
    before, after = ([m["rank"] for m in each["modules"]] for each in maps)
    changes = [b - a for a, b in zip(before, after, strict=True)]  # layer by layer
    expect(grid.get_by_role("gridcell")).to_have_text(
        [f"+{n}" if n > 0 else f"\N{MINUS SIGN}{-n}" if n else "0" for n in changes]
    )
    expect(page).to_have_url(re.compile(rf"a={stack.ids['a']}&b={stack.ids['b']}"))

    page.get_by_role("button", name="Swap").click()
    expect(page.get_by_role("combobox", name="Before")).to_have_value(stack.ids["b"])
    page.get_by_role("combobox", name="Before").fill("job_00000000000000000000000")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    tab.check(expected=ITS_OWN)


def test_other_experts_are_a_difference(tab, stack):
    """Beside equal ranks: in the heading, as a share, and by module."""

    def with_other_experts(route: Route) -> None:
        answer = route.fetch()
        diff = answer.json()
        diff["drift"] |= {"n_other_experts": 1, "share_of_experts_moved": 0.5}
        diff["modules"][0] |= {"experts_a": [0, 1, 2, 7], "experts_b": [3]}
        route.fulfill(response=answer, json=diff)

    tab.page.route("**/diff/*", with_other_experts)
    page = tab.open(f"/#/compare?a={stack.ids['a']}&b={stack.ids['b']}")

    expect(page.get_by_role("heading", name="other experts train in 1")).to_be_visible()
    share = page.get_by_role("row").filter(has_text="experts that train")
    expect(share).to_contain_text("50.0 %")
    expect(share).to_contain_text("noise is not known")
    changed = page.get_by_role("table", name="Ranks before and after, by module")
    expect(changed.get_by_role("row").nth(1)).to_contain_text("0-2, 7")
    tab.check()


def test_a_pin_is_looked_up_and_moved(tab, stack):
    """All are listed; its history grows; a name that nothing is pinned to may be given one."""
    page = tab.open("/#/pins")
    pins = page.get_by_role("table", name="All pins")
    pins.get_by_role("link", name="task:prod").click()
    expect(page.get_by_role("heading", name="History of task:prod")).to_be_visible()
    page.get_by_label("Show or make a pin").fill("other:prod")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("alert")).to_contain_text("nothing is pinned as other/prod")
    history = page.get_by_role("table", name="History of other:prod")
    for job in ("a", "b"):
        page.get_by_placeholder("job_… or sha256:…").fill(stack.ids[job])
        page.get_by_role("button", name="Pin", exact=True).click()
        expect(history.get_by_role("row").nth(1)).to_contain_text(stack.digests[job])

    expect(history.get_by_role("row")).to_have_count(3)
    expect(history.get_by_role("row").nth(1)).to_contain_text("now")
    row = pins.get_by_role("row").filter(has_text="other:prod")
    expect(row).to_contain_text(stack.digests["b"][:19])
    tab.check(expected=ITS_OWN)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pages_are_for_everybody(browser, stack, theme):
    """Axe has nothing against them, and a phone shows them without scrolling to the side."""
    with new_tab(browser, stack.url, color_scheme=theme, reduced_motion="reduce") as tab:
        for index, address in enumerate(PAGES):
            tab.page.set_viewport_size(DESK)
            page = tab.open(address.format(**stack.ids))
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            for words in ("Reading …", "Comparing …"):
                expect(page.get_by_text(words)).to_have_count(0)
            page.wait_for_load_state("networkidle")
            keep(tab, f"{theme}-{index}")

            assert tab.violations() == [], address
            page.set_viewport_size(PHONE)
            keep(tab, f"{theme}-{index}-phone")
            assert tab.overhang() <= 0, address
            tab.check(expected=OF_VEGA)


def test_keys_are_made_rotated_and_revoked(tab, stack):
    """The last test: from the first key on nobody comes in without one. A secret is told once."""
    page = tab.open("/#/operate")
    expect(page.get_by_text("No worker is there")).to_be_visible()
    expect(page.get_by_role("table", name="What is kept")).to_contain_text("Results")
    form = page.get_by_role("form", name="New key")
    form.get_by_label("Name").fill("first")
    expect(form.get_by_label("admin")).to_be_checked()  # or nobody could make the second
    form.get_by_role("button", name="Make a key").click()
    secret = page.get_by_label("Secret of first").input_value()
    headers = {"Authorization": f"Bearer {secret}"}
    assert stack.client.get("/keys").status_code == 401
    [listed] = stack.client.get("/keys", headers=headers).json()["data"]
    assert listed["name"] == "first"
    keep(tab, "secret")
    page.get_by_role("button", name="I have it").click()
    expect(page.get_by_label("Secret of first")).to_have_count(0)

    form = page.get_by_role("form", name="New key")
    form.get_by_label("Name").fill("ci")
    expect(form.get_by_label("admin")).not_to_be_checked()
    form.get_by_role("button", name="Make a key").click()
    before = page.get_by_label("Secret of ci").input_value()
    page.get_by_role("button", name="Rotate ci").click()
    expect(page.get_by_label("Secret of ci")).not_to_have_value(before)
    page.get_by_role("button", name="Revoke ci").click()
    page.get_by_role("button", name="Revoke ci for good").click()
    expect(page.get_by_text("ci is revoked.")).to_be_visible()
    names = [key["name"] for key in stack.client.get("/keys", headers=headers).json()["data"]]
    assert names == ["first"]
    tab.check(expected=ITS_OWN)
