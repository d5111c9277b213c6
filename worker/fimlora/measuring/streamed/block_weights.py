"""Weights of one unit at a time: two buffers, one computes while the other fills."""

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fimlora.errors import InvalidCheckpoint
from fimlora.measuring.streamed.buffers import Slot
from fimlora.memory.host import return_freed_memory
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.hooks import before_calls
from fimlora.model.skeleton import initialise_missing
from fimlora.model.weight_reader import Place, Reader, lay_out
from fimlora.model.weight_sources import find_sources, fitting_sources

# An embedding or head below this may lie beside two blocks: reading one of them again, and
# filling the heap anew, would cost more than the memory is worth.
_LARGE_END_BYTES = 2**28


class Weights:
    """Gives a skeleton its weights when they are needed, and takes them away again.

    The rest of the model (norms, poolers, small heads) is loaded once and stays; the
    embedding and the output head, which can each outweigh a block, are loaded when they
    run and let go with `release_ends`. Meanwhile something stands for them that has their
    device and no values: models ask for the device of their first parameter.

    Args:
        model: The skeleton.
        checkpoint: Its weights.
        units: Its units by name.
        device: Where they compute.
        redraws: Draw a head anew whose shape in the checkpoint is another.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        units: Mapping[str, nn.Module],
        device: torch.device,
        *,
        redraws: bool = False,
    ) -> None:
        self._model, self._device = model, device
        find = fitting_sources if redraws else find_sources
        self._sources = find(model, checkpoint.tensors)
        self._reader = Reader(model, checkpoint, self._sources)
        self._meta = dict(model.named_parameters(remove_duplicate=False))
        self._places = {unit: self._lay_out(unit) for unit in units}
        self._ends = self._find_ends(units)
        self._stand_ins = {n: self._stand_in(self._meta[n]) for n in self._names_in(self._ends)}
        n_bytes = max(p.end for places in self._places.values() for p in places.values())
        self._slots = [Slot.of_size(n_bytes, device) for _ in range(2)]
        self._current: Slot | None = None
        self._expected: str | None = None
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
            self.release_ends()
            with before_calls(self._ends, self._load_end):
                yield
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for name in self._stand_ins:
                self._set(name, self._meta[name])
            for slot in self._slots:
                self._unload(slot)

    def prefetch(self, unit: str) -> None:
        """Begin to read a unit into the buffer that is not in use.

        Args:
            unit: Its name.
        """
        self._expected = unit
        if all(slot.unit != unit for slot in self._slots):
            slot = next(slot for slot in self._slots if slot is not self._current)
            self._unload(slot)
            slot.prepare()
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

    def retire(self, unit: str) -> None:
        """Say that a unit does not run again soon: an end may take its memory.

        Args:
            unit: Its name; it is the one that was loaded last.
        """
        assert self._current is not None
        assert self._current.unit == unit
        self._current = self._expected = None

    def release_ends(self) -> None:
        """Let go of embedding and output head until they run again."""
        for name, stand_in in self._stand_ins.items():
            self._set(name, stand_in)

    def _lay_out(self, unit: str) -> dict[str, Place]:
        tensors = self._model.get_submodule(unit).state_dict(prefix=f"{unit}.")
        for name in tensors:
            if name not in self._sources and name in self._meta:
                raise InvalidCheckpoint(f"the checkpoint has no weights for {name!r}")
        return lay_out({name: t for name, t in tensors.items() if name in self._sources})

    def _find_ends(self, units: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Find the modules that are embedding or output head, or share a weight with one."""
        ends = [self._model.get_input_embeddings(), self._model.get_output_embeddings()]  # type: ignore[operator]
        of_ends = {id(p) for end in ends if end is not None for p in end.parameters()}
        return {
            name: module
            for name, module in self._model.named_modules()
            if any(id(p) in of_ends for p in module.parameters(recurse=False))
            and name not in units
            and self._names_in([name]) <= set(self._sources)
        }

    def _stand_in(self, weight: Tensor) -> Parameter:
        """One element that is seen as a whole weight; whoever computes with it gets NaN."""
        element = torch.full((), math.nan, dtype=weight.dtype, device=self._device)
        return Parameter(element.expand(weight.shape), requires_grad=False)

    def _names_in(self, modules: Iterable[str]) -> set[str]:
        prefixes = tuple(f"{module}." for module in modules)
        return {name for name in self._meta if name.startswith(prefixes)}

    def _fill(self, slot: Slot, unit: str, computed: Any) -> Any:
        """Read a unit, in the background; on CUDA, returns when its copy will be done."""
        read = self._reader.fill(self._places[unit], slot.host)
        if self._stream is not None:
            return slot.copy_over(read, self._stream, computed)
        for _ in read:
            pass
        return None

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
        if any(self._model.get_parameter(name) is self._stand_ins[name] for name in names):
            if max(self._meta[name].nbytes for name in names) >= _LARGE_END_BYTES:
                self._make_room()
            self._load_whole(names)

    def _make_room(self) -> None:
        """Let go of units that are kept only in case they are needed again."""
        for slot in self._slots:
            if slot is not self._current and slot.unit != self._expected:
                self._unload(slot)
                slot.give_back()
        return_freed_memory()

    def _load_whole(self, names: Iterable[str]) -> None:
        tensors = self._model.state_dict(keep_vars=True)
        wanted = {name: tensors[name] for name in names}
        for name, tensor in self._reader.read_whole(wanted, self._device).items():
            self._set(name, tensor)

    def _unload(self, slot: Slot) -> None:
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
