"""Reports and pictures that are drawn on request: whole, self-contained, and never a fault."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fimlora.adapter.rank_map_picture import render_svg
from fimlora.plan import RankPlan
from fimlora_jobs.catalogue import Catalogue
from support.results import make_result, make_statistics, with_null_and_halves

ODD = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """A page's text, its tags, and everything that it names as an address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"src", "href", "srcset"}]

    def handle_data(self, data):
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def planned(http, body, store, data_dir):
    """Play a worker that finishes a calibration; the function takes what `make_result` takes."""

    def run(*, change=None, **options):
        job = http.post("/calibrate", json=body | {"force": True} | (change or {})).json()
        store.start(job["id"], 1, worker="w")
        result = make_result(data_dir, **options)
        store.succeed(job["id"], 1, result)
        Catalogue(store).file(store.get(job["id"]))
        return job["id"], result

    return run


def test_a_report_says_everything_of_a_plan_and_fetches_nothing(http, planned):
    """Signal first, every rank, the charts, how to use it, digests; no script and no address."""
    statistics = with_null_and_halves(make_statistics())
    job_id, result = planned(
        change={"metadata": {"team": ODD}}, statistics=statistics, method="fim"
    )

    answer = http.get(f"/v1/jobs/{job_id}/report")

    page = Page(answer.text)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-disposition"].startswith("inline")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert result["rank_map"]["signal"]["sentence"] in page.text
    for warning in result["rank_map"]["warnings"]:
        assert warning["message"] in page.text
    for module in result["rank_map"]["modules"]:
        assert f"{module['name']} {module['rank']} " in page.text
    for digest in (result["digest"], *(a["digest"] for a in result["artifacts"])):
        assert digest in page.text
    assert f"fimlora fetch {job_id}" in page.text
    assert ODD in page.text
    assert "script" not in page.tags
    assert len(page.addresses) == 6  # the map and five charts
    assert all(each.startswith("data:image/svg+xml;base64,") for each in page.addresses)
    pictures = [base64.b64decode(each.partition(",")[2]).decode() for each in page.addresses]
    assert "<script" not in "".join(pictures)
    day = http.get(f"/jobs/{job_id}").json()["created_at"][:10]
    assert day in page.text
    assert day in pictures[0]
    assert all("prefers-color-scheme" in picture for picture in pictures)


def test_a_report_says_what_families_get_and_what_experts_saw(http, planned):
    """A model of towers and a mixture: tables of their own."""
    statistics = make_statistics()
    modules = tuple(
        replace(module, family="vision" if i % 2 else "language")
        for i, module in enumerate(statistics.modules)
    )
    job_id, _ = planned(statistics=replace(statistics, modules=modules))
    seen = {"layers.0.experts.up": {"tokens": [5, 0, 1200], "fisher": [0.25, 0.0, 0.75]}}
    with_experts, _ = planned(facts={"experts": seen})

    families, experts = (
        Page(http.get(f"/jobs/{each}/report").text).text for each in (job_id, with_experts)
    )

    assert "Where the parameters lie, by family" in families
    assert re.search(r"language \d+ .* vision \d+ ", families)
    assert "by family" not in experts
    assert "layers.0.experts.up 3 0 1,200 1 75.0%" in experts
    assert "Tokens by expert" not in families
    assert "One rank is planned for all experts of a projection" in experts


def test_a_report_says_which_experts_train(http, planned):
    """With their share of the tokens; where none are named, all do."""
    statistics = make_statistics()
    some, whole = (module.name for module in statistics.modules[:2])
    modules = tuple(
        replace(module, n_experts=4, experts=(0, 1, 3) if module.name == some else None)
        for module in statistics.modules
    )
    seen = {name: {"tokens": [5, 15, 60, 20]} for name in (some, whole)}
    job_id, result = planned(
        statistics=replace(statistics, modules=modules), facts={"experts": seen}
    )

    page = Page(http.get(f"/jobs/{job_id}/report").text).text

    assert result["rank_map"]["modules"][0]["experts"] == [0, 1, 3]
    assert "One rank is planned for those experts of a projection that train." in page
    assert f"{some} 4 5 60 0 0-1, 3 40.0%" in page
    assert f"{whole} 4 5 60 0 all 100.0%" in page


def test_a_report_says_where_no_expert_trains(http, planned):
    """A projection with tokens that is no target of the plan beside one that is."""
    statistics = make_statistics()
    some, other = statistics.modules[0].name, "layers.9.experts.down"
    modules = (
        replace(statistics.modules[0], n_experts=4, experts=(0,)),
        *statistics.modules[1:],
    )
    seen = {name: {"tokens": [5, 15, 60, 20]} for name in (some, other)}
    job_id, _ = planned(
        statistics=replace(statistics, modules=modules), facts={"experts": seen}
    )

    page = Page(http.get(f"/jobs/{job_id}/report").text).text

    assert f"{some} 4 5 60 0 0 5.0%" in page
    assert f"{other} 4 5 60 0 none 0.0%" in page


def test_a_report_is_the_same_every_time(http, planned):
    """Its tag spares a second fetch; a fresh service draws the same bytes."""
    job_id, _ = planned()

    first = http.get(f"/jobs/{job_id}/report")
    again = http.get(f"/jobs/{job_id}/report", headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status_code, again.content) == (304, b"")
    assert "no-cache" in first.headers["cache-control"]


def test_a_rank_map_comes_as_png(http, planned):
    """A picture of the size that the vectors have, twice as fine."""
    job_id, _ = planned()

    answer = http.get(f"/jobs/{job_id}/rank_map.png")
    svg = http.get(f"/jobs/{job_id}/artifacts/rank_map.svg")

    width = int.from_bytes(answer.content[16:20], "big")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG\r\n\x1a\n")
    assert width == 2 * int(re.search(r'width="(\d+)"', svg.text)[1])


def test_a_rank_map_comes_dated_and_its_kept_file_stays_as_it_is(http, planned):
    """One plan has one file on every day; who looks at it is told the day, model and data."""
    job_id, result = planned()
    day = http.get(f"/jobs/{job_id}").json()["created_at"][:10]

    dated = http.get(f"/v1/jobs/{job_id}/rank_map.svg")
    kept = http.get(f"/jobs/{job_id}/artifacts/rank_map.svg")
    again = http.get(
        f"/jobs/{job_id}/rank_map.svg", headers={"If-None-Match": dated.headers["ETag"]}
    )

    assert dated.status_code == 200, dated.text
    assert dated.headers["content-type"].startswith("image/svg+xml")
    assert dated.headers["content-disposition"] == f'inline; filename="rank_map-{job_id}.svg"'
    assert "sandbox" in dated.headers["content-security-policy"]
    assert (again.status_code, again.content) == (304, b"")
    assert day in dated.text
    assert day not in kept.text
    named = next(a["digest"] for a in result["artifacts"] if a["name"] == "rank_map.svg")
    assert kept.headers["ETag"] == f'"{named}"'
    plan = RankPlan.from_json(result["rank_map"])
    assert kept.text == render_svg(plan)
    assert dated.text == render_svg(plan, dated=day)


def test_pictures_are_shown_and_data_is_kept(http, planned):
    """An SVG opens where it is clicked, under a policy without scripts; JSON is downloaded."""
    job_id, _ = planned()

    picture = http.get(f"/jobs/{job_id}/artifacts/rank_map.svg")
    data = http.get(f"/jobs/{job_id}/artifacts/rank_map.json")

    assert picture.headers["content-disposition"] == 'inline; filename="rank_map.svg"'
    assert "sandbox" in picture.headers["content-security-policy"]
    assert data.headers["content-disposition"] == 'attachment; filename="rank_map.json"'


@pytest.mark.parametrize("path", ["report", "rank_map.png", "rank_map.svg"])
def test_what_is_not_finished_has_no_report(http, job_id, path):
    """409 with the reason, as for the result itself; 404 for who is unknown."""
    assert http.get(f"/jobs/{job_id}/{path}").json()["code"] == "job_not_finished"
    assert http.get(f"/jobs/job_none/{path}").status_code == 404


def test_a_plan_of_no_modules_is_told_without_pictures(http, job_id, succeed):
    """A record that another version wrote is no fault of who looks at it."""
    succeed(job_id)

    report = http.get(f"/jobs/{job_id}/report")
    picture = http.get(f"/jobs/{job_id}/rank_map.png")

    assert report.status_code == 200
    assert "The plan has no modules." in report.text
    assert (picture.status_code, picture.json()["code"]) == (404, "no_pattern")


def test_a_plan_with_too_many_cells_is_told_in_tables(http, planned):
    """Drawing is bounded by what is drawn, not by patience."""
    statistics = make_statistics(n_layers=900, width=4)
    job_id, _ = planned(statistics=statistics, budget=2)

    report = http.get(f"/jobs/{job_id}/report")
    picture = http.get(f"/jobs/{job_id}/rank_map.png")

    assert report.status_code == 200
    assert "drawn up to 2,500 cells, of 2,700" in Page(report.text).text
    assert "And 200 more, in rank_map.json." in Page(report.text).text
    assert (picture.status_code, picture.json()["code"]) == (404, "no_pattern")
    assert "rank_map.json" in picture.json()["detail"]
