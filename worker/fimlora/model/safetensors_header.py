"""What the header of a safetensors file says of its tensors, checked against the file's size.

The one reader of headers, for whoever opens such a file by hand: not a byte of a tensor is
read, nor the file mapped. Nothing here imports torch.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100 << 20  # the format's own limit
MAX_TENSORS = 1 << 18  # of one file, each of which is a brace and two brackets
MAX_SIDE = 1 << 40  # no tensor is that long; what is multiplied stays a sensible number
MAX_SIDES = 64  # nor has one so many; their product is made of whole numbers of any length
_LENGTH_BYTES = 8  # of the header's length, which opens the file
_ITEMSIZES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
# What a header raises that is JSON, but not of this form.
_UNSOUND = (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says of a tensor.

    Attributes:
        dtype: Name of its element type, such as ``BF16``.
        itemsize: Bytes of an element; ``None`` where that is no whole number or not known.
        shape: Its sides.
        start: Its first byte in the file.
        stop: The byte behind its last one.
    """

    dtype: str
    itemsize: int | None
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file.

    Attributes:
        content: Its bytes, those of its length included; the tensors' begin behind them.
        tensors: What it says of each tensor, by name.
        metadata: What else is written in it.
    """

    content: bytes
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, Any]


def read_header(file: BinaryIO, *, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read the header that opens a safetensors file.

    Args:
        file: The file, at its beginning; it is left where its tensors begin.
        max_bytes: How long the header may be.

    Returns:
        The header.

    Raises:
        ValueError: It is no such file, or not all of it; the message says why.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    content = _read_content(file, n_bytes, max_bytes)
    if content.count(b"{") > MAX_TENSORS or content.count(b"[") > 2 * MAX_TENSORS:
        raise ValueError(f"its header tells of more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(content[_LENGTH_BYTES:])
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = {name: _entry(found, len(content)) for name, found in header.items()}
    except _UNSOUND as error:
        raise ValueError(f"its header is none: {error!r}") from error
    _check_places(tensors, begin=len(content), end=n_bytes)
    return Header(content, MappingProxyType(tensors), metadata)


def _check_places(tensors: Mapping[str, TensorEntry], *, begin: int, end: int) -> None:
    """Refuse tensors that overlap, leave holes, or take other bytes than their shapes do."""
    position = begin
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            raise ValueError(f"tensor {name!r} begins at byte {entry.start}, not {position}")
        size = math.prod(entry.shape) * (entry.itemsize or 0)
        if entry.itemsize and entry.stop - entry.start != size:
            raise ValueError(
                f"tensor {name!r} takes {entry.stop - entry.start} bytes, not {size}"
            )
        position = entry.stop
    if position != end:
        raise ValueError(f"its tensors end at byte {position} of {end}")


def sound_shape(sides: Any) -> tuple[int, ...]:
    """Read a shape as a header states it.

    Args:
        sides: Its sides, which may be anything that JSON can say.

    Returns:
        The shape.

    Raises:
        ValueError: No tensor can have it.
    """
    if len(sides) > MAX_SIDES:
        raise ValueError(f"a shape of {len(sides)} sides")
    shape = tuple(int(side) for side in sides)
    if not all(0 <= side < MAX_SIDE for side in shape):
        raise ValueError(f"shape {shape}")
    return shape


def _read_content(file: BinaryIO, n_bytes: int, max_bytes: int) -> bytes:
    length = file.read(_LENGTH_BYTES)
    size = int.from_bytes(length, "little")
    if len(length) < _LENGTH_BYTES or not size:
        raise ValueError("it has no header")
    if size > max_bytes:
        raise ValueError(f"its header of {size} bytes is over {max_bytes}")
    if _LENGTH_BYTES + size > n_bytes:
        raise ValueError("its header is longer than the file")
    return length + file.read(size)


def _entry(found: Any, n_header_bytes: int) -> TensorEntry:
    start, stop = map(int, found["data_offsets"])
    if not 0 <= start <= stop:
        raise ValueError(f"it states the bytes {start} to {stop}")
    dtype = str(found["dtype"])
    return TensorEntry(
        dtype=dtype,
        itemsize=_ITEMSIZES.get(dtype),
        shape=sound_shape(found["shape"]),
        start=n_header_bytes + start,
        stop=n_header_bytes + stop,
    )
