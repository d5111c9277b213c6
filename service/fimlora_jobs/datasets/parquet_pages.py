"""How large the pages of a Parquet file are once unpacked, told by their headers.

The reader unpacks a page whole, and a few kilobytes may unpack to gigabytes: its footer need
not say so, but the header in front of each page must, or the reader refuses the page. A header
is a struct in Thrift's compact protocol, of which no more is read here than its numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

UNCOMPRESSED, COMPRESSED, N_VALUES = 2, 3, 1
DATA, DICTIONARY, DATA_2 = 5, 7, 8
MAX_DEPTH = 8
MAX_HEADER_BYTES = 16 << 20
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY = range(1, 9)
STRUCT = 12


class DamagedPage(ValueError):
    """What stands there is no header of a page."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says of itself.

    Attributes:
        size: Bytes once unpacked.
        n_values: Values it holds.
        is_dictionary: Whether these are values that other pages refer to.
    """

    size: int
    n_values: int
    is_dictionary: bool


def read_pages(file: BinaryIO, *, start: int, end: int) -> Iterator[Page]:
    """What each page of a column chunk says of itself.

    Args:
        file: The Parquet file.
        start: First byte of the chunk.
        end: The byte after its last one.

    Raises:
        DamagedPage: A header cannot be read, or its page reaches beyond the chunk.
    """
    if start < 0:
        raise DamagedPage("a column starts before the file")
    file.seek(start)
    position = start
    while position < end:
        header = _read_struct(file, 0)
        unpacked, packed = header.get(UNCOMPRESSED), header.get(COMPRESSED)
        if not isinstance(unpacked, int) or not isinstance(packed, int):
            raise DamagedPage("a page states no sizes")
        position = file.tell() + packed
        if unpacked < 0 or packed < 0 or position > end:
            raise DamagedPage("a page reaches beyond its column")
        yield Page(unpacked, _values_of(header), DICTIONARY in header)
        file.seek(position)


def _values_of(header: dict[int, Any]) -> int:
    for kind in (DATA, DATA_2, DICTIONARY):
        inner = header.get(kind)
        if isinstance(inner, dict) and isinstance(inner.get(N_VALUES), int):
            return int(inner[N_VALUES])
    return 0


def _read_struct(file: BinaryIO, depth: int) -> dict[int, Any]:
    if depth > MAX_DEPTH:
        raise DamagedPage("the header of a page is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while kind := _byte(file):
        step, kind = kind >> 4, kind & 15
        number = number + step if step else _zigzag(_varint(file))
        fields[number] = _read_value(file, kind, depth)
    return fields


def _read_value(file: BinaryIO, kind: int, depth: int) -> Any:
    if kind in {TRUE, FALSE}:
        return kind == TRUE
    if kind == BYTE:
        return _byte(file)
    if kind in {I16, I32, I64}:
        return _zigzag(_varint(file))
    if kind in {DOUBLE, BINARY}:
        return _skip(file, 8 if kind == DOUBLE else _varint(file))
    if kind == STRUCT:
        return _read_struct(file, depth + 1)
    raise DamagedPage(f"the header of a page holds a value of kind {kind}")


def _byte(file: BinaryIO) -> int:
    read = file.read(1)
    if not read:
        raise DamagedPage("the header of a page is cut off")
    return read[0]


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 64:
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
        shift += 7
    raise DamagedPage("the header of a page holds an endless number")


def _zigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _skip(file: BinaryIO, n_bytes: int) -> None:
    if n_bytes > MAX_HEADER_BYTES:
        raise DamagedPage("the header of a page is too long")
    file.seek(n_bytes, 1)
