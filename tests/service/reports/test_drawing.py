"""The process that draws: in time or not at all, and without a network."""

import socket
import threading
from xml.etree import ElementTree as ET

import pytest

from fimlora_contract.charts import chart, theme
from fimlora_service.reports.drawing import (
    MOST_PIXELS,
    NotDrawn,
    adapted,
    draw_charts,
    draw_png,
    scale_for,
)

SPENDING = [{"name": "plan", "parameters": 9, "whose": "plan"}]


def picture(width, height):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"/>'


@pytest.fixture
def listening():
    """A port that counts who connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connected = []

        def count():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connected.append(connection)
                connection.close()

        threading.Thread(target=count, daemon=True).start()
        yield server.getsockname()[1], connected


def test_charts_are_svg_with_both_themes():
    """Well-formed, with the light colours in their marks and the dark ones in a rule."""
    [svg] = draw_charts([chart("spending", {"spending": SPENDING})])

    light, dark = theme("light")["range"]["category"][0], theme("dark")["range"]["category"][0]
    ET.fromstring(svg)
    assert f'fill="{light}"' in svg.partition("</style>")[2]
    assert f'[fill="{light}"]{{fill:{dark}}}' in svg.partition("</style>")[0]


def test_nothing_is_fetched_whatever_a_specification_names(listening):
    """Neither data nor pictures: the drawing is refused."""
    port, connected = listening
    url = f"http://127.0.0.1:{port}/rows.json"
    image = {"data": {"values": [{"u": url}]}, "mark": "image",
             "encoding": {"url": {"field": "u"}, "x": {"value": 1}, "y": {"value": 1}}}  # fmt: skip
    embedding = picture(9, 9).replace("/>", f'><image href="{url}"/></svg>')

    for spec in ({"data": {"url": url}, "mark": "bar"}, image):
        with pytest.raises(NotDrawn):
            draw_charts([spec])
    with pytest.raises(NotDrawn):
        draw_png(embedding)

    assert not connected


def test_a_drawing_that_takes_too_long_is_ended():
    """The process goes, and the caller goes on without pictures."""
    with pytest.raises(NotDrawn):
        draw_charts([chart("spending", {"spending": SPENDING})], patience_s=0.01)


def test_nothing_to_draw_starts_no_process():
    """An evaluation of which nothing is known has no charts."""
    assert draw_charts([], patience_s=0) == []


@pytest.mark.parametrize(
    ("size", "scale"), [((300, 200), 2), ((4000, 4000), 1), ((8000, 8000), 0.5)]
)
def test_large_pictures_are_drawn_smaller(size, scale):
    """As many pixels as the limit has, and no more."""
    assert scale_for(picture(*size)) == pytest.approx(scale)
    assert size[0] * size[1] * scale_for(picture(*size)) ** 2 <= MOST_PIXELS * 1.001


def test_the_rule_for_dark_pages_stands_first():
    """Before all marks, inside of the picture."""
    assert adapted("<svg a><g/></svg>").startswith("<svg a><style>@media")
