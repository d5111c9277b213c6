"""Tensors of a safetensors file as NumPy arrays, read and written one at a time.

Written by hand, for memory and for ``BF16``: the ``save_file`` of safetensors takes all
tensors at once, and NumPy has no such type. A file here is as large as an adapter may be, and
what is computed of it in float64 is up to four times that. Nothing here imports torch.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.errors import InvalidAdapter
from fimlora.model.safetensors_header import Header, TensorEntry, read_header

Floats = NDArray[np.float64]
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
ITEMSIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_ALIGNMENT = 8  # of the header, as safetensors pads it
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        dtype: Its element type as a header names it.
        shape: Its sides.
        n_bytes: Its size.
        content: Gives its bytes, in pieces; called once, when its turn comes.
    """

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    content: Callable[[], Iterable[bytes]]


def read_entries(path: Path, *, max_header_bytes: int) -> Header:
    """Read what a file says of its tensors, without reading any.

    Args:
        path: The file.
        max_header_bytes: How long its header may be.

    Returns:
        The header, every tensor's bytes within the file and none shared.

    Raises:
        InvalidAdapter: It is no safetensors file, or not all of one.
    """
    try:
        with path.open("rb") as file:
            return read_header(file, max_bytes=max_header_bytes)
    except OSError as error:
        raise InvalidAdapter(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidAdapter(f"{path.name} is no sound safetensors file: {error}") from error


def read_floats(path: Path, name: str, entry: TensorEntry) -> Floats:
    """Read a tensor of floating-point numbers; each is a float64 exactly.

    Args:
        path: The file.
        name: The tensor's name, for errors.
        entry: What the file's header says of it, of a type in `FLOAT_TYPES`.

    Returns:
        The tensor.

    Raises:
        InvalidAdapter: A value is NaN or infinite.
    """
    values = widened(b"".join(read_bytes(path, entry)), entry.dtype).reshape(entry.shape)
    if not np.isfinite(values).all():
        raise InvalidAdapter(
            f"{name} has {int((~np.isfinite(values)).sum())} values that are NaN or infinite; "
            "its training diverged, or the file is damaged: take an earlier checkpoint"
        )
    return values


def read_bytes(path: Path, entry: TensorEntry) -> Iterator[bytes]:
    """Read a tensor as it is stored.

    Args:
        path: The file.
        entry: What its header says of the tensor.

    Yields:
        Its bytes, in pieces.
    """
    with path.open("rb") as file:
        file.seek(entry.start)
        left = entry.stop - entry.start
        while left > 0 and (piece := file.read(min(left, _CHUNK))):
            left -= len(piece)
            yield piece


def widened(content: bytes, dtype: str) -> Floats:
    """Read stored numbers.

    Args:
        content: Their bytes.
        dtype: Their type, of `FLOAT_TYPES`.

    Returns:
        The same numbers, flat.
    """
    if dtype == "BF16":  # the upper half of a float32
        bits = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64)
    return np.frombuffer(content, _NUMPY[dtype]).astype(np.float64)


def narrowed(values: Floats, dtype: str) -> bytes:
    """Store numbers, each rounded to the nearest one that the type has, ties to even.

    Args:
        values: The numbers.
        dtype: The type to store, of `FLOAT_TYPES`.

    Returns:
        Their bytes.

    Raises:
        InvalidAdapter: One is too large for the type.
    """
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
            # In uint32: what rounds beyond the largest number becomes infinity, as it should.
            stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            stored = np.ascontiguousarray(values, _NUMPY[dtype]).tobytes()
    if not np.isfinite(widened(stored, dtype)).all():
        raise InvalidAdapter(
            f"a value of {np.abs(values).max():g} is beyond {dtype}, the type of this adapter"
        )
    return stored


def new_floats(shape: tuple[int, ...], dtype: str, make: Callable[[], Floats]) -> NewTensor:
    """A tensor to be computed when it is written.

    Args:
        shape: Its sides.
        dtype: The type to store, of `FLOAT_TYPES`.
        make: Computes it.

    Returns:
        The tensor.
    """
    n_bytes = math.prod(shape) * ITEMSIZES[dtype]
    return NewTensor(dtype, shape, n_bytes, lambda: [narrowed(make(), dtype)])


def copied(path: Path, entry: TensorEntry) -> NewTensor:
    """A tensor of another file, as it is.

    Args:
        path: The other file.
        entry: What its header says of the tensor.

    Returns:
        The tensor.
    """
    size = entry.stop - entry.start
    return NewTensor(entry.dtype, entry.shape, size, lambda: read_bytes(path, entry))


def write_tensors(path: Path, tensors: Mapping[str, NewTensor]) -> None:
    """Write a file.

    Args:
        path: Where to; it must not exist.
        tensors: The tensors by name.
    """
    # As safetensors orders them, so that each begins where its type may.
    order = sorted(tensors, key=lambda name: (-ITEMSIZES.get(tensors[name].dtype, 1), name))
    with path.open("xb") as file:
        file.write(_header({name: tensors[name] for name in order}))
        for name in order:
            begin = file.tell()
            for piece in tensors[name].content():
                file.write(piece)
            assert file.tell() - begin == tensors[name].n_bytes, name


def _header(tensors: Mapping[str, NewTensor]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.n_bytes
        content[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
