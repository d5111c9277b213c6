"""Read single tensors of a safetensors checkpoint straight into memory of one's own.

Not by the safetensors library, which maps files into memory: mapped pages count as resident while they are in use, and a page that comes
in during compute stalls it. A read goes into the buffer it is meant for, whatever the file's
size, and releases the interpreter meanwhile.

A quantised checkpoint is read as the weights that it stands for: see `fimlora.model.packed_parts`.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from fimlora.errors import InvalidCheckpoint
from fimlora.model.packed_parts import (
    PackedWeight,
    UnreadablePacking,
    quantisation_of,
    unpacked_view,
)
from fimlora.model.safetensors_header import read_header
from fimlora.model.unpacking import unpack, unpacked_dtype

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# One core copies from the file cache more slowly than a bus takes it over to a GPU; half of
# the cores are left to compute.
_READERS = max(1, min(8, (os.cpu_count() or 1) // 2))
_PART_BYTES = 2**24
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
if hasattr(torch, "float8_e8m0fnu"):
    _DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: The shard.
        offset: Its first byte in that file.
        dtype: Its element type; of a packed weight, that which it is unpacked to.
        shape: Its shape; of a packed weight, that which it stands for.
        packed: What it is packed into, if it is.
        is_turned: Whether it is read with its sides the other way round than it is packed.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    packed: PackedWeight | None = None
    is_turned: bool = False

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """The tensors of a folder as transformers saves it, in one file or in shards.

    Args:
        folder: The folder.
        n_readers: How many threads read parts of one tensor.
        part_bytes: What a thread reads of it at least.

    Attributes:
        tensors: Where each one lies, by its name in the checkpoint.
        reads: How often each one was read.
    """

    def __init__(
        self, folder: Path, *, n_readers: int = _READERS, part_bytes: int = _PART_BYTES
    ) -> None:
        tensors: dict[str, StoredTensor] = {}
        for file in _shards(folder):
            tensors.update(_stored_tensors(file))
        self._stored = tensors
        self.reads: Counter[str] = Counter()
        self._n_readers, self._part_bytes = n_readers, part_bytes
        self._pool = ThreadPoolExecutor(n_readers, thread_name_prefix="fimlora-read")
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(self._unpacked(folder))

    @property
    def is_packed(self) -> bool:
        """Whether it is quantised."""
        return any(tensor.packed is not None for tensor in self.tensors.values())

    def turn(self, names: Iterable[str]) -> None:
        """Read packed weights with inputs first, as some models hold them and no packer does.

        Args:
            names: Their names in the checkpoint; those that are not packed stay as they are.
        """
        turned = {
            name: replace(tensor, shape=tensor.shape[::-1], is_turned=True)
            for name in names
            if (tensor := self.tensors[name]).packed is not None and not tensor.is_turned
        }
        self.tensors = MappingProxyType({**self.tensors, **turned})

    def read_into(self, name: str, memory: Tensor) -> None:
        """Read a tensor's bytes.

        Args:
            name: Its name in the checkpoint; it is not packed.
            memory: A flat uint8 tensor of its size, on the CPU.

        Raises:
            InvalidCheckpoint: The file is cut off.
        """  # noqa: DOC502 - a part raises
        self.reads[name] += 1
        self._read_stored(name, memory)

    def _read_stored(self, name: str, memory: Tensor) -> None:
        stored = self._stored[name]
        view = memoryview(cast("bytearray", memory.numpy()))
        size = max(self._part_bytes, -(-stored.n_bytes // self._n_readers))
        starts = range(0, stored.n_bytes, size)

        def read_part(start: int) -> None:
            with stored.file.open("rb", buffering=0) as file:
                file.seek(stored.offset + start)
                part = view[start : start + size]
                while part:  # one call reads 2 GiB at most
                    n = file.readinto(part)
                    if not n:
                        raise InvalidCheckpoint(f"{stored.file} ends inside tensor {name!r}")
                    part = part[n:]

        if len(starts) > 1:
            list(self._pool.map(read_part, starts))  # raises what a part raised
        else:
            for start in starts:
                read_part(start)

    def read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own.

        Args:
            name: Its name in the checkpoint.

        Returns:
            The tensor, on the CPU, in the dtype it is stored in.
        """
        packed = self.tensors[name].packed
        self.reads[name] += packed is None
        if packed is None:
            return self._stored_tensor(name)
        made = unpack(packed, self._part)
        return made.T.contiguous() if self.tensors[name].is_turned else made

    def _part(self, name: str) -> Tensor:
        """Read a part of a packed weight."""
        self.reads[name] += 1
        return self._stored_tensor(name)

    def _stored_tensor(self, name: str) -> Tensor:
        stored = self._stored[name]
        memory = torch.empty(stored.n_bytes, dtype=torch.uint8)
        self._read_stored(name, memory)
        return memory.view(stored.dtype).view(stored.shape)

    def _unpacked(self, folder: Path) -> dict[str, StoredTensor]:
        """The tensors, with weights in the stead of what they are packed into."""
        config = _config_of(folder)
        headers = {name: (_NAMES[t.dtype], t.shape) for name, t in self._stored.items()}
        try:
            if (quantisation := quantisation_of(config)) is None:
                return self._stored
            view = unpacked_view(
                headers, quantisation, lambda name: self._stored_tensor(name).numpy().tobytes()
            )
        except UnreadablePacking as error:
            raise InvalidCheckpoint(f"{folder} cannot be read: {error}") from error
        weights = {name: self._stored[name] for name in view.plain}
        for name, packed in view.packed.items():
            first = self._stored[packed.parts["weight"]]
            weights[name] = replace(
                first, dtype=unpacked_dtype(packed), shape=packed.shape, packed=packed
            )
        return weights


def _config_of(folder: Path) -> Mapping[str, Any]:
    """The folder's ``config.json``; empty where there is none, or it says nothing."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _shards(folder: Path) -> list[Path]:
    """The files that ``from_pretrained`` reads: one file goes before an index beside it."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InvalidCheckpoint(f"{folder / _INDEX} is no shard index: {error}") from error
        if outside := [name for name in names if Path(name).name != name]:
            raise InvalidCheckpoint(f"{folder / _INDEX} names a file elsewhere: {outside[0]!r}")
        return [folder / name for name in names]
    raise InvalidCheckpoint(f"{folder} has neither {_SINGLE} nor {_INDEX}")


def _stored_tensors(file: Path) -> dict[str, StoredTensor]:
    try:
        with file.open("rb") as opened:
            tensors = read_header(opened).tensors
        return {
            name: StoredTensor(file, entry.start, _DTYPES[entry.dtype], entry.shape)
            for name, entry in tensors.items()
        }
    except KeyError as error:
        raise InvalidCheckpoint(_refusal(file, f"dtype {error} is not known")) from error
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(_refusal(file, str(error))) from error


def _refusal(file: Path, why: str) -> str:
    return f"cannot read {file} as safetensors: {why}"
