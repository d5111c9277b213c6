"""The sliders, the grid and the rows of charts in a real browser, held against API and contract."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect
from redis import Redis

from fimlora import Budget, compare, measure
from fimlora_contract.charts.rows import evaluation_rows, plan_rows
from fimlora_contract.comparison_requests import JobComparisonRequest
from fimlora_contract.comparisons import JobComparison
from fimlora_contract.methods import MethodName
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.store import JobStore
from support.browser import Tab, new_tab, running_browser
from support.experts import LINEAR, mixture, mixture_batches
from support.results import make_result, make_statistics, with_null_and_halves
from support.service import make_model
from support.service_process import running_service
from support.valkey import running_valkey

pytestmark = [pytest.mark.slow, pytest.mark.browser]
ROWS = [{"text": f"text {n}", "label": n % 2} for n in range(8)]
COLUMNS = ["q_proj", "v_proj", "down_proj"]  # of the made-up model, as the grid has them
# The functions of the page by name: a script of the build holds them and nothing else.
IN_PAGE = """
async ([name, found]) => {
  const script = await import(new URL(name, document.baseURI));
  return "arms" in found ? script.evaluationRows(found) : script.planRows(found);
}
"""
FOUND = {
    "arms": [
        {"name": name, "best_rate": 0.01, "curve": [[1, 0.9, None], [2, None, None], [3, 0.7, 0.1]],
         "rates": [{"rate": 0.01, "loss": 0.7}, {"rate": 0.02, "loss": None}]}
        for name in ("fim", "random", "uniform")
    ],
    "differences": [
        {"arm": "fim", "reference": "uniform", "metric": "loss", "mean": -0.1, "low": -0.2, "high": 0.1},
        {"arm": "fim", "reference": "uniform", "metric": "accuracy", "mean": 0.1, "low": 0.0, "high": 0.2},
        {"arm": "fim", "reference": "random", "metric": "loss", "mean": None, "low": None, "high": None},
    ],
}  # fmt: skip


@dataclass
class Stack:
    """A running service with a plan; a worker was played.

    Attributes:
        client: Of the service.
        url: Its address.
        job: The job's id.
        result: What the job has found.
    """

    client: httpx2.Client
    url: str
    job: str
    result: dict[str, Any]

    def plan(self, **asked: Any) -> dict[str, Any]:
        """The rank map that the API answers."""
        answer = self.client.post(f"/jobs/{self.job}/allocate", json=asked)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()["rank_map"]
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real server process and its store."""
    data_dir = tmp_path_factory.mktemp("what-if") / "data"
    make_model(data_dir / "models" / "tiny")
    with (
        running_valkey() as redis_url,
        Redis.from_url(redis_url) as redis,
        running_service(data_dir, redis_url) as (client, _),
    ):
        client.timeout = 60
        body = {
            "base_model": "tiny",
            "budget": 8,
            "dataset": {"source": "inline", "rows": ROWS},
        }
        job = client.post("/calibrate", json=body).json()["id"]
        store = JobStore(redis)
        store.start(job, 1, worker="w")
        result = make_result(data_dir, statistics=with_null_and_halves(make_statistics()))
        store.succeed(job, 1, result)
        Catalogue(store).file(store.get(job))
        yield Stack(client, str(client.base_url).rstrip("/"), job, result)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser, stack: Stack) -> Iterator[Tab]:
    with new_tab(browser, stack.url) as tab:
        yield tab


def sliders(tab: Tab, stack: Stack) -> tuple[Page, Locator]:
    """The page of the job, and its part with the sliders."""
    page = tab.open(f"/#/jobs/{stack.job}")
    part = page.get_by_role("region", name="What if")
    expect(part.get_by_label("Mean rank")).to_be_visible()
    return page, part


def expect_plan(part: Locator, rank_map: dict[str, Any]) -> None:
    """Ranks in the grid, parameters in the table, and the sentence are those of a rank map."""
    expect_ranks(part, rank_map)
    expect(part.get_by_text(rank_map["signal"]["sentence"])).to_be_visible()


def expect_ranks(part: Locator, rank_map: dict[str, Any]) -> None:
    """Ranks in the grid and parameters in the table are those of a rank map."""
    part.get_by_label("Show").select_option("Rank")
    ranks = {(m["layer"], m["name"].rpartition(".")[2]): m["rank"] for m in rank_map["modules"]}
    for layer, row in enumerate(part.get_by_role("grid").locator("tbody tr").all()):
        expect(row.get_by_role("gridcell")).to_have_text(
            [str(ranks[layer, column]) for column in COLUMNS]
        )
    table = part.get_by_role("table", name="Parameters of the plan and its controls")
    controls = rank_map["controls"]
    draws = [each["parameters"] for name, each in controls.items() if name != "uniform"]
    spent = {
        "this plan": [rank_map["spent"]["parameters"]],
        "uniform": [controls["uniform"]["parameters"]],
        f"random, {len(draws)} draws": draws,
    }
    for name, amounts in spent.items():
        header = part.page.get_by_role("rowheader", name=name, exact=True)
        row = table.get_by_role("row").filter(has=header)
        for amount in {min(amounts), max(amounts)}:
            expect(row).to_contain_text(f"{amount:,}")


def test_every_method_of_the_contract_can_be_tried(tab, stack):
    """In its order; also those that a job must have recorded something for."""
    _, part = sliders(tab, stack)

    offered = part.get_by_label("Method").locator("option").all_text_contents()

    assert offered == list(get_args(MethodName))


def test_a_slider_shows_what_the_api_answers(tab, stack):
    """By keys: the budget, then a floor of its own, and back to the job's plan."""
    _, part = sliders(tab, stack)
    budget = part.get_by_label("Mean rank")
    for _ in range(4):
        budget.press("ArrowRight")
    expect_plan(part, stack.plan(budget=12))
    expect(part.locator("[data-chart=types] svg").first).to_be_visible()

    part.get_by_label("Lowest rank").press("ArrowRight")
    expect_plan(part, stack.plan(budget=12, allocation={"r_min": 7}))
    budget.press("Home")
    expect(part.get_by_role("alert")).to_contain_text("7")

    part.get_by_role("button", name="Back to the job's plan").click()
    expect(part.get_by_role("alert")).to_have_count(0)
    expect(part.get_by_text("This is the job's plan")).to_be_visible()
    tab.check(expected="Failed to load resource")


def test_a_draft_alone_shows_the_whole_plans_ranks(tab, stack):
    """While the slider moves there is nothing else; what is not known yet is said to follow."""
    page, part = sliders(tab, stack)

    def drafts_only(route: Route) -> None:
        if route.request.headers.get("prefer"):
            route.continue_()

    page.route("**/allocate", drafts_only)
    budget = part.get_by_label("Mean rank")
    for _ in range(3):
        budget.press("ArrowRight")

    rank_map = stack.plan(budget=11)
    expect_ranks(part, rank_map)
    expect(part.get_by_text("follows when the slider rests")).to_be_visible()
    for view, wanted in {
        "Score over the mean": lambda m: m["score"] / mean_score(rank_map),
        "Difference from uniform": lambda m: m["rank"] - uniform_rank(rank_map, m),
    }.items():
        part.get_by_label("Show").select_option(view)
        first = rank_map["modules"][0]
        shown = part.get_by_role("gridcell").first.inner_text().replace("\N{MINUS SIGN}", "-")
        assert float(shown) == pytest.approx(wanted(first), rel=0.06)
    tab.check()


def mean_score(rank_map: dict[str, Any]) -> float:
    return fmean(module["score"] for module in rank_map["modules"])


def uniform_rank(rank_map: dict[str, Any], module: dict[str, Any]) -> int:
    return int(rank_map["controls"]["uniform"]["pattern"][module["name"]])


def test_ranks_of_three_digits_are_shown_to_the_last(tab, stack):
    """Neither a difference nor the ends of the colours is rounded."""
    page, part = sliders(tab, stack)

    def much_wider(route: Route) -> None:
        answer = route.fetch()
        if route.request.headers.get("prefer"):
            draft = answer.json()
            earlier = [m["rank"] for m in stack.result["rank_map"]["modules"]]
            route.fulfill(
                response=answer, json=draft | {"ranks": [rank + 1377 for rank in earlier]}
            )

    page.route("**/allocate", much_wider)
    part.get_by_label("Mean rank").press("ArrowRight")

    expect(part.get_by_role("gridcell").first).to_have_text("+1377")
    expect(part.locator(".legend")).to_contain_text("+1377")
    part.get_by_label("Show").select_option("Rank")
    highest = max(m["rank"] for m in stack.result["rank_map"]["modules"]) + 1377
    expect(part.locator(".legend span").last).to_have_text(str(highest))
    tab.check()


def test_charts_keep_to_their_room_however_long_the_labels(tab, stack):
    """A wide name of a type takes its place from the plot, and cuts no layer off."""
    page = tab.page

    def with_long_names(route: Route) -> None:
        answer = route.fetch()
        text = answer.text().replace("down_proj", "a_very_long_name_of_a_projection")
        route.fulfill(response=answer, body=text)

    page.route(f"**/jobs/{stack.job}", with_long_names)
    tab.open(f"/#/jobs/{stack.job}")

    for name in ("ranks", "scores", "types"):
        picture = page.locator(f"[data-chart={name}]").locator(
            ".scroll", has=page.locator("svg")
        )
        expect(picture.first).to_contain_text("a_very_long_name")
        wide = picture.first.evaluate("(place) => [place.scrollWidth, place.clientWidth]")
        assert wide[0] <= wide[1], name
    tab.check()


def test_a_mixture_says_what_its_experts_saw(tab, stack):
    """A row for what shares a router; experts that saw nothing are counted."""
    seen = {
        "model.layers.0.mlp.experts.gate_up_proj": {"tokens": [5, 0, 1200], "fisher": [0.25, 0, 0.75]},
        "model.layers.0.mlp.experts.down_proj": {"tokens": [5, 0, 1200], "fisher": [0.75, 0, 0.25]},
        "model.layers.1.mlp.experts.down_proj": {"tokens": [400, 405, 400]},
    }  # fmt: skip

    def with_experts_seen(route: Route) -> None:
        answer = route.fetch()
        job = answer.json()
        job["result"]["rank_map"]["provenance"]["experts"] = seen
        route.fulfill(response=answer, json=job)

    tab.page.route(f"**/jobs/{stack.job}", with_experts_seen)
    page = tab.open(f"/#/jobs/{stack.job}")

    part = page.get_by_role("region", name="Experts")
    expect(part).to_contain_text("1 of 6 experts saw no token")
    rows = part.get_by_role("row").filter(has=page.get_by_role("rowheader"))
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("model.layers.0.mlp.experts")
    expect(rows.first.get_by_role("cell")).to_contain_text(["3", "", "0", "1,200", "1", ""])
    expect(rows.first.get_by_role("img", name="at most 50.0 % in one expert")).to_be_visible()
    expect(rows.last.get_by_role("img")).to_have_count(1)
    expect(part.get_by_role("columnheader", name="Train")).to_have_count(0)
    tab.check()


def test_a_mixture_says_which_experts_train(tab, stack):
    """Where some do, with their share of the tokens; a layer without a selection trains all."""
    names = [f"model.layers.{layer}.mlp.experts.down_proj" for layer in (0, 1)]

    def with_experts_selected(route: Route) -> None:
        answer = route.fetch()
        job = answer.json()
        rank_map = job["result"]["rank_map"]
        rank_map["provenance"]["experts"] = {
            name: {"tokens": [5, 15, 60, 20]} for name in names
        }
        rank_map["modules"][0] |= {"name": names[0], "n_experts": 4, "experts": [1, 2]}
        route.fulfill(response=answer, json=job)

    tab.page.route(f"**/jobs/{stack.job}", with_experts_selected)
    page = tab.open(f"/#/jobs/{stack.job}")

    part = page.get_by_role("region", name="Experts")
    expect(part).to_contain_text("6 of 8 experts train")
    rows = part.get_by_role("row").filter(has=page.get_by_role("rowheader"))
    expect(rows.first.get_by_role("cell")).to_contain_text(
        ["4", "", "5", "60", "0", "1-2", "75.0 %"]
    )
    expect(rows.last.get_by_role("cell")).to_contain_text(
        ["4", "", "5", "60", "0", "all", "100.0 %"]
    )
    tab.check()


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    """What a job answers of a mixture whose experts are selected: the engine's own comparison."""
    statistics = measure(
        mixture("mixtral"), mixture_batches(), target_modules=[LINEAR],
        target_parameters="all", estimator="exact",
    )  # fmt: skip
    found = compare(
        statistics, Budget("parameters", 6000), methods=["fim", "uniform"], r_min=1,
        experts={"select": "routed", "share": 0.5},
    )  # fmt: skip
    answer = JobComparison.model_validate(found.to_json() | {"job_id": "job_1"})
    return answer.model_dump(mode="json")


def test_selected_experts_are_held_against_random_ones(tab, stack, compared):
    """Asked with the plan's own settings and method; the table has what the command prints."""
    experts = {"select": "routed", "share": 0.5}
    asked = []

    def with_selection(route: Route) -> None:
        answer = route.fetch()
        job = answer.json()
        job["request"]["allocation"] = {"method": "fim", "r_min": 1, "experts": experts}
        route.fulfill(response=answer, json=job)

    def answer_comparison(route: Route) -> None:
        asked.append(JobComparisonRequest.model_validate(route.request.post_data_json))
        route.fulfill(json=compared)

    tab.page.route(f"**/jobs/{stack.job}", with_selection)
    tab.page.route(f"**/jobs/{stack.job}/compare", answer_comparison)
    page = tab.open(f"/#/jobs/{stack.job}")
    page.get_by_role("button", name="Compare with random experts").click()

    rows = page.get_by_role("region", name="Experts").get_by_role("row")
    rows = rows.filter(has=page.get_by_role("rowheader"))
    expect(rows).to_have_count(2)
    for row, found in zip(rows.all(), compared["experts"], strict=True):
        expect(row.get_by_role("rowheader")).to_have_text(found["select"])
        expect(row).to_contain_text(f"{found['selected']} of {found['experts']}")
        expect(row).to_contain_text(f"{100 * found['tokens']:.1f} %")
        expect(row).to_contain_text(f"{found['methods'][0]['parameters']:,}")
    (request,) = asked
    assert request.methods == ["fim", "uniform"]
    assert request.allocation.experts.model_dump(exclude_none=True) == experts
    assert request.allocation.r_min == 1
    assert tab.violations() == []
    tab.check()


def test_a_comparison_shows_plans_pairs_and_experts(tab, stack, compared):
    """What the command prints of it, on the page of the job."""
    result = {"digest": "sha256:1", "artifacts": [], "comparison": compared}

    def as_comparison(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(
            response=answer, json=answer.json() | {"kind": "comparison", "result": result}
        )

    tab.page.route(f"**/jobs/{stack.job}", as_comparison)
    page = tab.open(f"/#/jobs/{stack.job}")

    part = page.get_by_role("region", name="Plans side by side")
    for name, header in (
        ("What the plan of each method spends", [row["method"] for row in compared["methods"]]),
        ("How alike the plans of two methods are", [pair["a"] for pair in compared["pairs"]]),
        ("Selected experts beside random ones", ["routed", "random"]),
    ):
        table = part.get_by_role("table", name=name)
        expect(table.get_by_role("rowheader")).to_have_text(header)
    overlap = f"{100 * compared['pairs'][0]['overlap']:.1f} %"
    expect(part.get_by_role("cell", name=overlap)).to_be_visible()
    expect(page.get_by_role("heading", name="Rank map")).to_have_count(0)
    assert tab.violations() == []
    tab.check()


def test_families_are_grids_of_their_own(tab, stack):
    """A model of two towers: each under its name, without the other's columns."""

    def with_families(route: Route) -> None:
        answer = route.fetch()
        job = answer.json()
        for module in job["result"]["rank_map"]["modules"]:
            module["family"] = "vision" if module["layer"] == 0 else "language"
        route.fulfill(response=answer, json=job)

    tab.page.route(f"**/jobs/{stack.job}", with_families)
    page = tab.open(f"/#/jobs/{stack.job}")

    part = page.get_by_role("region", name="Rank map of the job's plan")
    expect(part.get_by_role("heading", level=3)).to_have_text(["vision", "language"])
    grids = part.get_by_role("grid")
    expect(grids).to_have_count(2)
    expect(grids.first.locator("tbody tr")).to_have_count(1)
    ranks = [m["rank"] for m in stack.result["rank_map"]["modules"] if m["layer"] == 0]
    expect(grids.first.get_by_role("gridcell")).to_have_text([str(rank) for rank in ranks])
    colour = grids.first.get_by_role("gridcell").first.evaluate(
        "(cell) => getComputedStyle(cell).backgroundColor"
    )
    assert colour in {"rgb(222, 235, 247)", "rgb(198, 219, 239)", "rgb(166, 205, 228)",
        "rgb(133, 188, 219)", "rgb(100, 169, 211)", "rgb(43, 117, 179)", "rgb(26, 98, 165)",
        "rgb(8, 77, 150)", "rgb(8, 48, 107)"}  # fmt: skip
    tab.check()


def test_shards_of_a_running_job_are_told(tab, stack):
    """Beside the batches, which are counted over all of them."""
    progress = {
        "stage": "measuring", "batch": 3, "n_batches": 8, "seconds_left": None,
        "shards": {"done": 1, "n_shards": 4, "at_once": 2},
    }  # fmt: skip

    def running(route: Route) -> None:
        answer = route.fetch()
        job = answer.json() | {"status": "running", "result": None, "progress": progress}
        route.fulfill(response=answer, json=job | {"finished_at": None})

    tab.page.route(f"**/jobs/{stack.job}", running)
    tab.page.route("**/events", lambda route: route.fulfill(status=503))
    page = tab.open(f"/#/jobs/{stack.job}")

    state = page.get_by_role("region", name="State")
    expect(state).to_contain_text("3 of 8 batches")
    expect(state).to_contain_text("1 of 4 shards, 2 at work")
    tab.check(expected="Failed to load resource")


def test_a_drag_asks_one_question_at_a_time_and_ends_at_the_last(tab, stack):
    """However fast the mouse is: what is passed while an answer is out is left out."""
    page, part = sliders(tab, stack)
    out: set[Request] = set()
    together = []

    def asked(request: Request) -> None:
        if request.headers.get("prefer"):
            out.add(request)
            together.append(len(out))

    def answered(request: Request) -> None:
        out.discard(request)

    page.on("request", asked)
    page.on("requestfinished", answered)
    page.on("requestfailed", answered)
    budget = part.get_by_label("Mean rank")
    budget.scroll_into_view_if_needed()
    box = budget.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 5, y)
    page.mouse.down()
    for step in range(60):
        page.mouse.move(box["x"] + 5 + (box["width"] - 10) * step / 60, y)
    page.mouse.up()

    value = int(budget.input_value())
    assert value > 16
    expect_plan(part, stack.plan(budget=value))
    assert max(together) == 1
    tab.check()


def test_rows_out_of_view_are_drawn_when_there_is_time_or_they_are_seen(tab, stack):
    """A slider moves what is seen at once; nothing stays as it was."""
    page = tab.page
    page.set_viewport_size({"width": 1280, "height": 420})
    page.add_init_script(
        "window.rested = []; window.requestIdleCallback = (work) => rested.push(work)"
    )
    page, part = sliders(tab, stack)
    budget = part.get_by_label("Mean rank")
    budget.evaluate("(slider) => slider.scrollIntoView({ block: 'end' })")
    cells = part.get_by_role("gridcell")
    expect(cells.first).not_to_be_in_viewport()

    budget.press("ArrowRight")
    table = part.get_by_role("table", name="Parameters of the plan and its controls")
    rank_map = stack.plan(budget=9)
    expect(table).to_contain_text(f"{rank_map['spent']['parameters']:,}")
    before = {str(m["rank"]) for m in stack.result["rank_map"]["modules"]}
    assert set(cells.all_inner_texts()) <= before  # still the ranks of the job's plan

    cells.first.scroll_into_view_if_needed()
    expect(cells.first).to_have_text(re.compile(r"^(0|[+\u2212]\d+)$"))

    budget.evaluate("(slider) => slider.scrollIntoView({ block: 'end' })")
    expect(cells.first).not_to_be_in_viewport()
    budget.press("ArrowRight")
    rank_map = stack.plan(budget=10)
    expect(table).to_contain_text(f"{rank_map['spent']['parameters']:,}")
    page.wait_for_function("rested.length > 0")
    page.wait_for_timeout(300)
    page.evaluate("rested.splice(0).forEach((work) => work())")
    earlier = {m["name"]: m["rank"] for m in stack.result["rank_map"]["modules"]}
    moved = [m["rank"] - earlier[m["name"]] for m in rank_map["modules"]]
    shown = [text.replace("\N{MINUS SIGN}", "-") for text in cells.all_inner_texts()]
    assert sorted(map(int, shown)) == sorted(moved)
    tab.check()


def test_the_grid_is_walked_by_keys(tab, stack):
    """One cell is a stop of the tab key; arrows and Home and End go on from it, and it is told."""
    page = tab.open(f"/#/jobs/{stack.job}")
    part = page.get_by_role("region", name="Rank map of the job's plan")
    grid = part.get_by_role("grid")
    modules = {m["name"]: m for m in stack.result["rank_map"]["modules"]}
    part.get_by_label("Show").focus()
    page.keyboard.press("Tab")

    path = {
        "ArrowDown": (1, 0), "ArrowRight": (1, 1), "End": (1, 2), "PageDown": (3, 2),
        "ArrowUp": (2, 2), "Home": (2, 0), "ArrowLeft": (2, 0), "PageUp": (0, 0),
    }  # fmt: skip
    for key, (layer, column) in path.items():
        page.keyboard.press(key)
        (name,) = (n for n in modules if f".{layer}." in n and n.endswith(COLUMNS[column]))
        cell = grid.locator("tbody tr").nth(layer).get_by_role("gridcell").nth(column)
        expect(cell).to_be_focused()
        expect(cell).to_have_text(str(modules[name]["rank"]))
        expect(part.locator(".said")).to_contain_text(
            f"layer {layer}, {COLUMNS[column]}: rank {modules[name]['rank']}"
        )
    page.keyboard.press("Shift+Tab")
    expect(part.get_by_label("Show")).to_be_focused()
    tab.check()


def with_experts(rank_map: dict[str, Any]) -> dict[str, Any]:
    """Two experts in place of each matrix of a block, a second tower, and a module outside."""
    modules = []
    for index, module in enumerate(rank_map["modules"]):
        tower = "encoder" if index % 2 else "decoder"
        for expert in range(2):
            kind = f"experts.{expert}.{module['kind']}"
            name = f"{tower}.layers.{module['layer']}.{kind}"
            modules.append(
                module | {"name": name, "kind": kind, "rank": module["rank"] + expert}
            )
    modules.append(modules[0] | {"name": "pooler.dense", "kind": "pooler.dense", "layer": None})
    return rank_map | {"modules": modules, "confidence": None}


def scored_nothing(rank_map: dict[str, Any]) -> dict[str, Any]:
    """No score and no uniform control."""
    modules = [module | {"score": 0.0} for module in rank_map["modules"]]
    controls = {n: c for n, c in rank_map["controls"].items() if n != "uniform"}
    return rank_map | {"modules": modules, "controls": controls}


def test_page_and_contract_draw_the_same_rows(tab, stack):
    """Of plans and of an evaluation: the page, reports and notebooks show one thing."""
    tab.open("/")
    (script,) = (Path(__file__).parents[2] / "service/fimlora_service/web/static/assets").glob(
        "chart_rows-*.js"
    )
    rank_map = stack.result["rank_map"]
    assert rank_map["confidence"] is not None
    for each in (rank_map, with_experts(rank_map), scored_nothing(rank_map), FOUND):
        expected = evaluation_rows(each) if "arms" in each else plan_rows(each)
        drawn = tab.page.evaluate(IN_PAGE, [f"assets/{script.name}", each])
        assert list(drawn) == list(expected)
        for name, rows in expected.items():
            assert rows
            assert drawn[name] == [pytest.approx(row) for row in rows], name
