"""Read single tensors of a safetensors checkpoint straight into memory of one's own.

Not by the safetensors library, which maps files into memory: mapped pages count as resident while they are in use, and a page that comes
in during compute stalls it. A read goes into the buffer it is meant for, whatever the file's
size, and releases the interpreter meanwhile.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from fimlora.errors import InvalidCheckpoint
from fimlora.model.safetensors_header import read_header

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
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
        file: The shard.
        offset: Its first byte in that file.
        dtype: Its element type.
        shape: Its shape.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

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
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(tensors)
        self.reads: Counter[str] = Counter()
        self._n_readers, self._part_bytes = n_readers, part_bytes
        self._pool = ThreadPoolExecutor(n_readers, thread_name_prefix="fimlora-read")

    def read_into(self, name: str, memory: Tensor) -> None:
        """Read a tensor's bytes.

        Args:
            name: Its name in the checkpoint.
            memory: A flat uint8 tensor of its size, on the CPU.

        Raises:
            InvalidCheckpoint: The file is cut off.
        """  # noqa: DOC502 - a part raises
        stored = self.tensors[name]
        self.reads[name] += 1
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
        stored = self.tensors[name]
        memory = torch.empty(stored.n_bytes, dtype=torch.uint8)
        self.read_into(name, memory)
        return memory.view(stored.dtype).view(stored.shape)


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
