"""Tensors and facts in one safetensors file that is whole or not there at all.

Written by hand, for memory: of 512 MiB in eight transposed tensors ``save_file`` of safetensors
takes 513 MiB more, this 129, as it copies one tensor at a time; so with tensors on a device.
Before version 0.8 ``save_file`` takes 512 MiB more for contiguous ones too, this 1. A checksum
over header and data stands in the header, so that a damaged file is told from a sound one,
which safetensors alone does not.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fimlora.model.safetensors_header import Header, TensorEntry, read_header

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
_CHUNK = 1 << 20  # bytes that are looked at together


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
        header = read_header(file)
        known, checksum = _known(header)
        tensors = {}
        for name, entry in header.tensors.items():
            if file.tell() != entry.start:
                raise ValueError(f"{name!r} is not where its header says")
            tensors[name] = _read(file, name, entry)
            checksum.update(_bytes_of(tensors[name]))
    _check(known, checksum.hexdigest())
    facts: dict[str, Any] = known["facts"]
    return tensors, facts


def open_tensors(path: Path) -> tuple["StoredTensors", dict[str, Any]]:
    """See that a file is what `write_tensors` wrote, and leave its tensors there.

    Args:
        path: The file.

    Returns:
        The tensors, each read when it is asked for, and the facts.

    Raises:
        ValueError: The file is cut off, damaged or something else.
    """  # noqa: DOC502 - the helpers raise
    with path.open("rb") as file:
        header = read_header(file)
        known, checksum = _known(header)
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    _check(known, checksum.hexdigest())
    facts: dict[str, Any] = known["facts"]
    return StoredTensors(path, header.tensors), facts


class StoredTensors(Mapping[str, Tensor]):
    """Tensors that stay in their file, of which memory holds those that somebody has asked for.

    Args:
        path: The file.
        entries: What its header says of each.
    """

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry]) -> None:
        self._path, self._entries = path, entries

    def __getitem__(self, name: str) -> Tensor:
        """Read one, into memory of its own."""
        entry = self._entries[name]
        with self._path.open("rb") as file:
            file.seek(entry.start)
            return _read(file, name, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _known(header: Header) -> tuple[dict[str, Any], Any]:
    """What was written beside the tensors, and a SHA-256 that has seen the header."""
    known: dict[str, Any] = json.loads(header.metadata.get("fimlora", "{}"))
    written = str(known.get("checksum"))
    return known, hashlib.sha256(
        header.content.replace(written.encode(), _NO_CHECKSUM.encode(), 1)
    )


def _check(known: Mapping[str, Any], found: str) -> None:
    if known.get("checksum") != found:
        raise ValueError("its content does not have the checksum it was written with")


def _read(file: BinaryIO, name: str, entry: TensorEntry) -> Tensor:
    """Read the tensor that begins where the file stands."""
    if entry.dtype not in _DTYPES:
        raise ValueError(f"{name!r} has dtype {entry.dtype!r}, which is never written")
    tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    memory = _bytes_of(tensor)
    if len(memory) != entry.stop - entry.start:
        raise ValueError(f"the size of {name!r} does not fit its shape")
    if file.readinto(memory) != len(memory):  # type: ignore[attr-defined]
        raise ValueError(f"{name!r} is not where its header says")
    return tensor


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
