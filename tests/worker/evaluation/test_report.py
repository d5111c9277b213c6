"""Page and picture: whole, self-contained, and with the figures of the judgement."""

import json
import math
from xml.etree import ElementTree as ET

import pytest

from fimlora_worker.evaluation.report.axis import Axis, axis_for
from fimlora_worker.evaluation.report.marks import signed
from fimlora_worker.evaluation.report.page import report_html
from fimlora_worker.evaluation.report.picture import report_svg
from fimlora_worker.evaluation.report.pictures import colour_of
from fimlora_worker.evaluation.verdict import judge
from support.evaluations import bowl, make_settings, run_all

SVG = "{http://www.w3.org/2000/svg}"
ODD = "fim<script>&\"'"


def data_of(surface=None, *, arms=("uniform", "random", "fim")):
    settings = make_settings(arms=arms)
    usual = bowl(dict.fromkeys(arms, 2e-3))

    def noisy(spec):
        return usual(spec) + 0.01 * math.sin(37 * spec.seed + 11 * len(spec.arm))

    judged = judge(settings, run_all(settings, surface or noisy))
    return json.loads(json.dumps(judged.to_json(), allow_nan=False))


def parse(page: str) -> ET.Element:
    """The page as a strict parser reads it, but for the three elements that never end."""
    body = page.removeprefix("<!doctype html>\n")
    for void in ('charset="utf-8">', 'initial-scale=1">'):
        body = body.replace(void, f"{void[:-1]}/>")
    return ET.fromstring(body)


def words(element: ET.Element) -> str:
    return " ".join(part.strip() for part in element.itertext())


def test_the_page_says_the_verdict_first_and_every_difference():
    """In the order of reading; no figure is left out."""
    data = data_of()

    found = words(parse(report_html({**data, "title": "Ours"})).find("body"))

    assert found.split("Differences in loss")[0].split() == [
        "Ours",
        *" ".join([data["verdict"]["sentence"], *data["verdict"]["notes"]]).split(),
    ]
    for difference in data["differences"]:
        for end in ("mean", "low", "high"):
            assert signed(difference[end]) in found
    assert data["levers"]["sentence"] in found
    assert "0.001, 0.002, 0.004, 0.008" in found


def test_nothing_is_fetched_and_no_name_becomes_markup():
    """No address, no script, whatever an arm or a title is called."""
    data = data_of(arms=("uniform", "random", ODD))
    for text in (report_html({**data, "title": ODD}), report_svg({**data, "title": ODD})):
        assert "<script" not in text
        assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "url(" not in text
    assert ODD in words(parse(report_html({**data, "title": ODD})))
    assert ODD in words(ET.fromstring(report_svg({**data, "title": ODD})))


def test_intervals_are_drawn_where_their_numbers_are():
    """The middle of the drawn line is the mean, and zero lies where the signs change."""
    data = data_of()
    svg = ET.fromstring(report_svg(data))
    zero = next(line for line in svg.iter(f"{SVG}line") if line.get("class") == "zero")
    bars = [
        line
        for line in svg.iter(f"{SVG}line")
        if line.get("class").startswith("solid") and line.get("y1") == line.get("y2")
    ]
    losses = [d for d in data["differences"] if d["metric"] == "loss"]

    assert len(bars) == len(losses)
    places = [
        (float(bar.get(end)) - float(zero.get("x1")), d[side])
        for bar, d in zip(bars, losses, strict=True)
        for end, side in (("x1", "low"), ("x2", "high"))
    ]
    scale = max(abs(place) for place, _ in places) / max(abs(value) for _, value in places)
    for place, value in places:
        assert place == pytest.approx(value * scale, abs=0.25)


def test_controls_have_colours_of_their_own():
    """Wherever they stand, and however many arms there are."""
    arms = [{"name": name} for name in ("a", "b", "c", "d", "e", "uniform", "random")]

    colours = {arm["name"]: colour_of({"arms": arms}, arm["name"]) for arm in arms}

    assert colours == {"a": 2, "b": 3, "c": 4, "d": 5, "e": 2, "uniform": 0, "random": 1}


@pytest.mark.parametrize("gone", [("fim",), ("uniform", "random", "fim")])
def test_arms_that_diverged_leave_gaps_and_no_numbers_that_are_none(gone):
    """Nothing of what is not known is drawn or written, also if that is everything."""
    usual = bowl(dict.fromkeys(("uniform", "random", "fim"), 2e-3))

    data = data_of(lambda spec: math.nan if spec.arm in gone else usual(spec))

    for text in (report_html(data), report_svg(data)):
        assert not any(word in text for word in ("nan", "None", "inf"))
    parse(report_html(data))
    ET.fromstring(report_svg(data))


@pytest.mark.parametrize("values", [[1.0], [0.0], [-3.0, -3.0], [1.0, 2.0], [1e-9, 3e-9]])
def test_axes_hold_their_values_with_room(values):
    axis = axis_for(values, start=10, end=110)

    places = [axis.at(value) for value in values]

    assert all(10 < place < 110 for place in places)
    assert 2 <= len(axis.ticks()) <= 11
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks())


def test_a_logarithmic_axis_has_equal_ratios_equally_long():
    axis = Axis(1e-3, 8e-3, 0, 300, is_log=True)

    assert [axis.at(rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3)] == [0, 100, 200, 300]


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.5, "+0.5000"), (-0.5, "\N{MINUS SIGN}0.5000"), (-1e-9, "0.0000"), (1e-9, "0.0000")],
)
def test_a_difference_that_rounds_to_zero_has_no_sign(value, written):
    assert signed(value) == written
