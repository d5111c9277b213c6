"""Seeded damage: to bytes anywhere in a file, and to what JSON says."""

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

LENGTHS = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
)
# Spelled in the text itself, as no value of Python stands for them.
RAW = {
    "@huge@": "9" * 5000,
    "@float@": "1e999",
    "@nan@": "NaN",
    "@minus@": "-Infinity",
    "@deep@": "[" * 3000 + "]" * 3000,
    "@deepest@": "[" * 200_000,
    "@half@": '"\\ud800"',
    "@zero@": '"\\u0000"',
    "@bad@": '"\\x"',
    "@many@": "[" + ",".join(["[]"] * 20_000) + "]",
}
ODD = (
    None, True, False, 0, 1, -1, 2, 3, 2**31, -(2**31), 2**53 + 1, 2**63, 2**64, 10**30, 0.0, -0.0,
    0.5, 1.5, 1e308, 5e-324, "", "a", " ", "0", "none", "../x", "/etc/passwd", "https://evil.example",
    "x" * 300, "\x00", "é" * 40, "{{ 1 }}", "(a+)+$", [], [[]], [None], ["a"], [1, 2], {}, {"": 1},
    {"a": {"b": {}}}, *RAW,
)  # fmt: skip
Damage = Callable[[Random, bytes], bytes]


def damaged_bytes(random: Random, data: bytes, *, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes of a file's bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_DAMAGES)(random, data)
        if others and random.random() < 0.15:
            data = _spliced(random, data, random.choice(others))
    return data


def damaged_json(random: Random, value: Any) -> bytes:
    """One to three changes of what JSON says, written down; now and then its bytes as well."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _changed(random, value)
    text = json.dumps(value)
    for mark, spelled in RAW.items():
        text = text.replace(f'"{mark}"', spelled)
    data = text.encode()
    return damaged_bytes(random, data) if random.random() < 0.2 else data


def _changed(random: Random, value: Any) -> Any:
    """Change one place, the deeper ones as likely as those above."""
    places = list(_places(value))
    if not places:
        return random.choice(ODD)
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x" * 400, "", "\x00", "__class__", "auto_map"))] = holder[
                key
            ]
        case 1 if isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[key])] * random.choice((1, 3, 50)))
        case 2:
            other, of_other = random.choice(places)
            holder[key] = copy.deepcopy(other.get(of_other)) if isinstance(other, dict) else 0
        case 3 if isinstance(holder[key], int | float):
            holder[key] = random.choice((-1, 0, 2, 10, 1000)) * holder[key] + random.choice(
                (0, 1)
            )
        case 4:
            holder[key] = [holder[key]] if random.random() < 0.5 else {"a": holder[key]}
        case _:
            holder[key] = random.choice(ODD)
    return value


def _places(value: Any) -> Any:
    """Every key of every object and list inside."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if not isinstance(holder, dict | list):
            continue
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            waiting.append(holder[key])


def _place(random: Random, data: bytes) -> int:
    """A place in a file, more often near an end: that is where formats keep their heads."""
    spread = random.choice((len(data), 64, 512))
    place = random.randrange(max(1, min(spread, len(data))))
    return place if random.random() < 0.5 else max(0, len(data) - 1 - place)


def _flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        changed[_place(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwritten(random: Random, data: bytes) -> bytes:
    place, byte = (
        _place(random, data),
        random.choice((b"\x00", b"\xff", b"\x80", b'"', b"{", b"\n")),
    )
    length = random.choice((1, 4, 16))
    return data[:place] + byte * length + data[place + length :]


def _lengthened(random: Random, data: bytes) -> bytes:
    """Put an extreme number where a length may stand, of either width, or as a varint."""
    place, number = _place(random, data), random.choice(LENGTHS)
    width = random.choice((1, 2, 4, 8))
    written = (number % (1 << 8 * width)).to_bytes(width, random.choice(("little", "big")))
    if random.random() < 0.3:
        written = b"\xff" * random.choice((1, 4, 9)) + b"\x0f"
    return data[:place] + written + data[place + len(written) :]


def _cut(random: Random, data: bytes) -> bytes:
    return (
        data[: random.randrange(len(data) + 1)]
        if random.random() < 0.5
        else data[_place(random, data) :]
    )


def _left_out(random: Random, data: bytes) -> bytes:
    place = _place(random, data)
    return data[:place] + data[place + random.choice((1, 2, 8, 100)) :]


def _repeated(random: Random, data: bytes) -> bytes:
    place, length = _place(random, data), random.choice((1, 4, 40, 400))
    return (
        data[:place] + data[place : place + length] * random.choice((2, 3, 200)) + data[place:]
    )


def _spliced(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(random, data)] + other[_place(random, other) :]


_DAMAGES: tuple[Damage, ...] = (
    _flipped, _flipped, _overwritten, _lengthened, _cut, _left_out, _repeated,
)  # fmt: skip
