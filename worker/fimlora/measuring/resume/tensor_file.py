"""Tensors and facts in one safetensors file that is whole or not there at all.

Written by hand, for memory: of 512 MiB in eight transposed tensors ``save_file`` of safetensors
takes 513 MiB more, this 129, as it copies one tensor at a time; so with tensors on a device.
Before version 0.8 ``save_file`` takes 512 MiB more for contiguous ones too, this 1. A checksum
over header and data stands in the header, so that a damaged file is told from a sound one,
which safetensors alone does not.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_NO_CHECKSUM = "0" * 64
_ALIGNMENT = 8  # of the header, as safetensors pads it


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a file in one step: a crash at any time leaves the old one or the new one.

    Args:
        path: Where to; its folder must exist.
        tensors: Tensors on any device, by name.
        facts: Plain data to keep beside them.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            header = _header(tensors, facts, _NO_CHECKSUM)
            file.write(header)
            checksum = hashlib.sha256(header)
            for tensor in tensors.values():
                content = _bytes_of(tensor)
                checksum.update(content)
                file.write(content)
            file.seek(0)
            file.write(_header(tensors, facts, checksum.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU in memory of their own, and the facts.

    Raises:
        ValueError: The file is cut off, damaged or something else.
    """
    with path.open("rb") as file:
        content = _read_header(file)
        start, header = len(content), _parsed(content)
        known = json.loads(header.pop("__metadata__", {}).get("fimlora", "{}"))
        written = str(known.get("checksum"))
        without = content.replace(written.encode(), _NO_CHECKSUM.encode(), 1)
        checksum, tensors = hashlib.sha256(without), {}
        for name, dtype, shape, end in _entries(header):
            tensor = torch.empty(shape, dtype=_DTYPES[dtype])
            memory = _bytes_of(tensor)
            if file.readinto(memory) != len(memory) or file.tell() != start + end:
                raise ValueError(f"it ends inside {name!r}")
            checksum.update(memory)
            tensors[name] = tensor
        if file.read(1):
            raise ValueError("there is more in it than its header says")
    if known.get("checksum") != checksum.hexdigest():
        raise ValueError("its content does not have the checksum it was written with")
    facts: dict[str, Any] = known["facts"]
    return tensors, facts


def _header(tensors: Mapping[str, Tensor], facts: Mapping[str, Any], checksum: str) -> bytes:
    known = {"checksum": checksum, "facts": facts}
    header: dict[str, Any] = {"__metadata__": {"fimlora": json.dumps(known)}}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.itemsize
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _read_header(file: BinaryIO) -> bytes:
    """Read the length that opens the file, and as much behind it."""
    length = file.read(8)
    n_bytes = int.from_bytes(length, "little")
    if not 0 < n_bytes <= os.fstat(file.fileno()).st_size:
        raise ValueError("it has no header")
    return length + file.read(n_bytes)


def _parsed(header: bytes) -> dict[str, Any]:
    found = json.loads(header[8:])
    if not isinstance(found, dict):
        raise TypeError("its header is no object")
    return found


def _entries(header: Mapping[str, Any]) -> Iterator[tuple[str, str, list[int], int]]:
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if end - start != math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"the size of {name!r} does not fit its shape")
        yield name, entry["dtype"], entry["shape"], end


def _bytes_of(tensor: Tensor) -> memoryview:
    """View a tensor's memory; one on a device is copied over first."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
