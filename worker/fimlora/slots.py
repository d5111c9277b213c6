"""The buffers that weights are read into: where each lies, and how it is read there.

On a CUDA device a buffer has a pinned twin in host memory: files are read into the twin,
and a stream of its own copies it over while the compute stream works.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.alignment import ALIGNMENT
from fimlora.checkpoint import Checkpoint
from fimlora.errors import InvalidCheckpoint
from fimlora.sources import Source


@dataclass(frozen=True)
class Place:
    """Where a weight lies in its unit's buffer."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """See a buffer's bytes there as the weight."""
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


def lay_out(tensors: Mapping[str, Tensor]) -> dict[str, Place]:
    """Put tensors side by side.

    Args:
        tensors: Tensors by name; only dtypes and shapes are looked at.

    Returns:
        A place for each.
    """
    places: dict[str, Place] = {}
    end = 0
    for name, tensor in tensors.items():
        places[name] = Place(-(-end // ALIGNMENT) * ALIGNMENT, tensor.dtype, tensor.shape)
        end = places[name].end
    return places


@dataclass
class Slot:
    """A buffer, and the unit that is in it.

    Attributes:
        n_bytes: Its size.
        host: Where files are read to.
        device: Where the unit computes from; the same memory on a CPU.
        unit: The unit's name.
        filled: Done when the unit's weights are read; gives what to wait for on CUDA.
        replaced: What the model had in their stead.
    """

    n_bytes: int
    host: Tensor
    device: Tensor
    unit: str | None = None
    filled: "Future[Any] | None" = None
    replaced: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_size(cls, n_bytes: int, device: torch.device) -> "Slot":
        """Make an empty one.

        Args:
            n_bytes: Its size.
            device: Where units compute.

        Returns:
            The slot.
        """
        on_gpu = device.type == "cuda"
        host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        return cls(n_bytes, host, torch.empty_like(host, device=device) if on_gpu else host)

    def give_back(self) -> None:
        """Let go of the memory that units compute from, until `prepare`."""
        is_shared, self.device = self.host is self.device, self.device.new_empty(0)
        if is_shared:
            self.host = self.device

    def prepare(self) -> None:
        """See that there is memory for a unit."""
        if self.device.numel() < self.n_bytes:
            is_shared = self.host is self.device
            self.device = self.device.new_empty(self.n_bytes)
            if is_shared:
                self.host = self.device

    def copy_over(self, read: Iterable[Place], stream: Any, computed: Any) -> Any:
        """Copy the host's twin to the device, while it is being read.

        Args:
            read: Each place, as soon as the twin has it.
            stream: The CUDA stream to copy on.
            computed: When the buffer's last user is done.

        Returns:
            When the copy is done.
        """
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            for place in read:
                part = slice(place.start, place.end)
                self.device[part].copy_(self.host[part], non_blocking=True)
            copied = stream.record_event()
        copied.synchronize()  # the twin may be overwritten from here on
        return copied


class Reader:
    """Reads a model's weights from a checkpoint, by the names they have in the model."""

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, sources: Mapping[str, Source]
    ) -> None:
        self._model, self._checkpoint, self._sources = model, checkpoint, sources

    def fill(self, places: Mapping[str, Place], buffer: Tensor) -> Iterator[Place]:
        """Read weights into their places.

        Args:
            places: The places by name.
            buffer: The buffer, on the CPU.

        Yields:
            Each place, as soon as its weight is there.
        """
        done = set[str]()
        for name in places:
            if name not in done:
                read = self._read(self._sources[name], name, places, buffer)
                done |= read
                yield from (places[weight] for weight in read)

    def _read(
        self, source: Source, name: str, places: Mapping[str, Place], buffer: Tensor
    ) -> set[str]:
        """Read what a source gives into its places, and name those."""
        if source.converter is not None:
            made = source.convert(self._model, self._checkpoint.read)
            for weight, tensor in made.items():
                target = places[weight].view(buffer)
                check_shape(weight, tensor, target)
                target.copy_(tensor)
            return set(made)
        key = source.keys[-1]
        wanted, stored = places[name], self._checkpoint.tensors[key]
        target = wanted.view(buffer)
        if stored.dtype == wanted.dtype and stored.shape == wanted.shape:
            self._checkpoint.read_into(key, target.flatten().view(torch.uint8))
        else:
            tensor = self._checkpoint.read(key)
            check_shape(name, tensor, target)
            target.copy_(tensor)
        return {name}

    def read_whole(
        self, wanted: Mapping[str, Tensor], device: torch.device
    ) -> dict[str, Tensor]:
        """Read weights into memory of their own; tied ones share it.

        Args:
            wanted: What the model has in their stead, by name, with the shapes and dtypes
                that they are to have.
            device: Where they are to be.

        Returns:
            The weights by name.
        """
        made: dict[str, Tensor] = {}
        of_source: dict[int, Tensor] = {}
        for name, replaced in wanted.items():
            source = self._sources[name]
            if source.converter is not None and name not in made:
                made.update(source.convert(self._model, self._checkpoint.read))
            elif source.converter is None and id(source) not in of_source:
                read = self._checkpoint.read(source.keys[-1])
                of_source[id(source)] = read.to(device, replaced.dtype)
            tensor = made[name] if source.converter is not None else of_source[id(source)]
            check_shape(name, tensor, replaced)
            made[name] = tensor.to(device, replaced.dtype)
        return {name: made[name] for name in wanted}


def check_shape(name: str, tensor: Tensor, wanted: Tensor) -> None:
    """Refuse a weight of another shape than the model's.

    Args:
        name: The weight's name.
        tensor: The weight.
        wanted: A tensor of the model's shape.

    Raises:
        InvalidCheckpoint: The shapes differ.
    """
    if tensor.shape != wanted.shape:
        raise InvalidCheckpoint(
            f"the checkpoint gives {name!r} shape {tuple(tensor.shape)}; the model needs "
            f"{tuple(wanted.shape)}"
        )
