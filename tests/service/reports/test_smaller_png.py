"""Pictures packed once more have the same pixels."""

import struct
import zlib

import pytest
import vl_convert

from fimlora_service.reports.smaller_png import smaller_png

FIELDS = "".join(
    f'<rect x="{20 * x}" y="{9 * y}" width="18" height="7" rx="2" fill="#{x}{y}8{y}f{x}"/>'
    for x in range(9)
    for y in range(9)
)
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 90">{FIELDS}</svg>'


def parts(png):
    """Name and content of each part, whose sum of control is checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, found = 8, []
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        data, checked = png[at + 8 : at + 8 + size], png[at + 8 + size : at + 12 + size]
        assert zlib.crc32(name + data) == int.from_bytes(checked, "big")
        found.append((name, data))
        at += 12 + size
    return found


def pixels(png):
    """Lines of bytes, by the two filters that there are, byte by byte."""
    found = dict(parts(png))
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    raw = zlib.decompress(b"".join(data for name, data in parts(png) if name == b"IDAT"))
    lines, size = [], 4 * width
    for at in range(0, len(raw), size + 1):
        line = bytearray(raw[at + 1 : at + 1 + size])
        assert raw[at] in {0, 1}
        for i in range(4, size) if raw[at] else ():
            line[i] = (line[i] + line[i - 4]) % 256
        lines.append(bytes(line))
    assert len(lines) == height
    return lines


@pytest.mark.parametrize("scale", [1, 2, 0.7])
def test_the_pixels_are_the_same_in_a_fraction_of_the_bytes(scale):
    """Of a map of coloured fields, with rounded corners over nothing."""
    before = vl_convert.svg_to_png(SVG, scale=scale)

    after = smaller_png(before)

    assert pixels(after) == pixels(before)
    assert len({*pixels(after)}) > 1
    assert len(after) < len(before) / 2
    kept = [name for name, _ in parts(before) if name not in {b"IDAT", b"IEND"}]
    assert [name for name, _ in parts(after)] == [*kept, b"IDAT", b"IEND"]


def test_what_is_of_another_kind_is_left_alone():
    """Another depth, or another filter of lines."""
    before = vl_convert.svg_to_png(SVG)
    grey = before[:24] + b"\x08\x00" + before[26:]
    found = dict(parts(before))
    raw = bytearray(zlib.decompress(found[b"IDAT"]))
    raw[0] = 4
    packed = zlib.compress(bytes(raw))
    other = b"".join(
        struct.pack(">I4s", len(data), name) + data + bytes(4)
        for name, data in ((b"IHDR", found[b"IHDR"]), (b"IDAT", packed), (b"IEND", b""))
    )

    assert smaller_png(grey) == grey
    assert smaller_png(before[:8] + other) == before[:8] + other
