"""Weights of one unit at a time: two buffers, one computes while the other fills.

On a CUDA device each buffer has a pinned twin in host memory: files are read into the
twin, and a stream of its own copies it over while the compute stream works.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fimlora.checkpoint import Checkpoint
from fimlora.errors import InvalidCheckpoint
from fimlora.hooks import before_calls
from fimlora.skeleton import initialise_missing
from fimlora.sources import Source, find_sources

_ALIGNMENT = 64  # as torch's own allocator; matrix kernels may round otherwise elsewhere


@dataclass(frozen=True)
class _Place:
    """Where a weight lies in its unit's buffer."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    def view(self, buffer: Tensor) -> Tensor:
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.start : self.start + n_bytes].view(self.dtype).view(self.shape)


@dataclass
class _Slot:
    """One of the two buffers, and the unit that is in it."""

    host: Tensor
    device: Tensor
    unit: str | None = None
    filled: "Future[Any] | None" = None
    replaced: dict[str, Tensor] = field(default_factory=dict)


class Weights:
    """Gives a skeleton its weights when they are needed, and takes them away again.

    The rest of the model (norms, poolers, small heads) is loaded once and stays; the
    embedding and the output head, which can each outweigh a block, are loaded when they
    run and let go with `release_ends`.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        units: Mapping[str, nn.Module],
        device: torch.device,
    ) -> None:
        self._model, self._checkpoint, self._device = model, checkpoint, device
        self._sources = find_sources(model, checkpoint.tensors)
        self._meta = dict(model.named_parameters(remove_duplicate=False))
        self._places = {unit: self._lay_out(unit) for unit in units}
        self._ends = self._find_ends(units)
        self._slots = [self._new_slot() for _ in range(2)]
        self._current: _Slot | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fimlora-prefetch")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def attached(self, *, seed: int) -> Iterator[None]:
        """Give the model its rest, and its ends whenever they run, inside the block.

        Args:
            seed: Seed of weights that the checkpoint lacks, such as a fresh head's.

        Yields:
            None. Reading has stopped when the block ends, also when it raises.
        """
        try:
            self._load_rest(seed)
            with before_calls(self._ends, self._load_end):
                yield
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self.release_ends()
            for slot in self._slots:
                self._unload(slot)

    def prefetch(self, unit: str) -> None:
        """Begin to read a unit into the buffer that is not in use.

        Args:
            unit: Its name.
        """
        if all(slot.unit != unit for slot in self._slots):
            slot = next(slot for slot in self._slots if slot is not self._current)
            self._unload(slot)
            slot.unit = unit
            computed = None
            if self._device.type == "cuda":  # the last user of this buffer may still run
                computed = torch.cuda.current_stream(self._device).record_event()
            slot.filled = self._pool.submit(self._fill, slot, unit, computed)

    def load(self, unit: str) -> None:
        """Put a unit's weights into the model; those of the one before last go.

        Args:
            unit: Its name.
        """
        self.prefetch(unit)
        slot = next(slot for slot in self._slots if slot.unit == unit)
        assert slot.filled is not None
        copied = slot.filled.result()
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        self._current = slot
        if not slot.replaced:
            for name, place in self._places[unit].items():
                slot.replaced[name] = self._set(name, place.view(slot.device))

    def release_ends(self) -> None:
        """Let go of embedding and output head until they run again."""
        for name in self._names_in(self._ends):
            self._set(name, self._meta[name])

    def _lay_out(self, unit: str) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        start = 0
        for name, tensor in (
            self._model.get_submodule(unit).state_dict(prefix=f"{unit}.").items()
        ):
            if name not in self._sources and name in self._meta:
                raise InvalidCheckpoint(f"the checkpoint has no weights for {name!r}")
            if name in self._sources:
                places[name] = _Place(start, tensor.dtype, tensor.shape)
                n_bytes = tensor.numel() * tensor.itemsize
                start += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        return places

    def _find_ends(self, units: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        ends = [self._model.get_input_embeddings(), self._model.get_output_embeddings()]  # type: ignore[operator]
        found = {n: m for n, m in self._model.named_modules() if any(m is end for end in ends)}
        return {
            name: module
            for name, module in found.items()
            if name not in units and self._names_in([name]) <= set(self._sources)
        }

    def _names_in(self, modules: Iterable[str]) -> set[str]:
        prefixes = tuple(f"{module}." for module in modules)
        return {name for name in self._meta if name.startswith(prefixes)}

    def _new_slot(self) -> _Slot:
        ends = [
            place.start + math.prod(place.shape) * place.dtype.itemsize
            for places in self._places.values()
            for place in places.values()
        ]
        on_gpu = self._device.type == "cuda"
        host = torch.empty(max(ends), dtype=torch.uint8, pin_memory=on_gpu)
        return _Slot(host, torch.empty_like(host, device=self._device) if on_gpu else host)

    def _fill(self, slot: _Slot, unit: str, computed: Any) -> Any:
        """Read a unit, in the background; on CUDA, returns when its copy will be done."""
        places, done = self._places[unit], set[str]()
        for name in places:
            if name not in done:
                done |= self._read(self._sources[name], name, places, slot.host)
        if self._stream is None:
            return None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            slot.device.copy_(slot.host, non_blocking=True)
            copied = self._stream.record_event()
        copied.synchronize()  # the twin may be overwritten from here on
        return copied

    def _read(
        self, source: Source, name: str, places: Mapping[str, _Place], buffer: Tensor
    ) -> set[str]:
        """Read what a source gives into its places, and name those."""
        if source.converter is not None:
            made = source.convert(self._model, self._checkpoint.read)
            for weight, tensor in made.items():
                self._copy(weight, tensor, places[weight].view(buffer))
            return set(made)
        wanted, stored = places[name], self._checkpoint.tensors[source.keys[-1]]
        target = wanted.view(buffer)
        if stored.dtype == wanted.dtype and stored.shape == wanted.shape:
            self._checkpoint.read_into(source.keys[-1], target.flatten().view(torch.uint8))
        else:
            self._copy(name, self._checkpoint.read(source.keys[-1]), target)
        return {name}

    @staticmethod
    def _copy(name: str, tensor: Tensor, target: Tensor) -> None:
        if tensor.shape != target.shape:
            raise InvalidCheckpoint(
                f"the checkpoint gives {name!r} shape {tuple(tensor.shape)}; the model needs "
                f"{tuple(target.shape)}"
            )
        target.copy_(tensor)

    def _load_rest(self, seed: int) -> None:
        inside = {name for places in self._places.values() for name in places}
        rest = [
            name
            for name in self._model.state_dict()
            if name not in inside | self._names_in(self._ends)
        ]
        missing = {name for name in rest if name in self._meta and name not in self._sources}
        if missing:
            initialise_missing(self._model, missing, seed=seed)
        for buffer_name, buffer in list(self._model.named_buffers()):
            self._set(buffer_name, buffer.to(self._device))
        for name in missing:
            self._set(name, self._model.get_parameter(name).to(self._device))
        self._load_whole([name for name in rest if name in self._sources])

    def _load_end(self, module: str) -> None:
        names = self._names_in([module])
        if any(self._model.get_parameter(name).is_meta for name in names):
            self._load_whole(names)

    def _load_whole(self, names: Iterable[str]) -> None:
        """Read weights into memory of their own; tied ones share it."""
        made: dict[str, Tensor] = {}
        of_source: dict[int, Tensor] = {}
        for name in names:
            source = self._sources[name]
            if source.converter is not None and name not in made:
                made.update(source.convert(self._model, self._checkpoint.read))
            elif source.converter is None and id(source) not in of_source:
                of_source[id(source)] = self._checkpoint.read(source.keys[-1])
            tensor = made[name] if source.converter is not None else of_source[id(source)]
            wanted = self._model.state_dict(keep_vars=True)[name]
            if tensor.shape != wanted.shape:
                self._copy(name, tensor, torch.empty_like(wanted, device="cpu"))
            self._set(name, tensor.to(self._device, wanted.dtype))

    def _unload(self, slot: _Slot) -> None:
        if slot.filled is not None and not slot.filled.cancelled():
            slot.filled.exception()  # a wrong guess may still be on its way in
        for name, tensor in slot.replaced.items():
            self._set(name, tensor)
        slot.unit, slot.filled = None, None
        slot.replaced.clear()

    def _set(self, name: str, tensor: Tensor) -> Tensor:
        """Put a tensor under a name; gives what was there."""
        owner, _, leaf = name.rpartition(".")
        module = self._model.get_submodule(owner)
        if leaf in module._buffers:  # noqa: SLF001 - no setter takes both kinds
            replaced, module._buffers[leaf] = module._buffers[leaf], tensor  # noqa: SLF001
        else:
            replaced = module._parameters[leaf]  # noqa: SLF001
            if not isinstance(tensor, Parameter):
                tensor = Parameter(tensor, requires_grad=False)
            module._parameters[leaf] = tensor  # noqa: SLF001
        assert replaced is not None
        return replaced
