"""Read a model's weights from a checkpoint: into their slices in a buffer, or whole."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fimlora.errors import InvalidCheckpoint, InvalidOption
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.drawn import draw_weights
from fimlora.model.weight_sources import FoundWeights, Source, find_sources, find_weights

# As torch's own allocator has it.
ALIGNMENT = 64


@dataclass(frozen=True)
class WeightSlice:
    """Where a weight lies in a buffer."""

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


def lay_out(tensors: Mapping[str, Tensor]) -> dict[str, WeightSlice]:
    """Put tensors side by side.

    Args:
        tensors: Tensors by name; only dtypes and shapes are looked at.

    Returns:
        A slice for each.
    """
    slices: dict[str, WeightSlice] = {}
    end = 0
    for name, tensor in tensors.items():
        slices[name] = WeightSlice(-(-end // ALIGNMENT) * ALIGNMENT, tensor.dtype, tensor.shape)
        end = slices[name].end
    return slices


class WeightReader:
    """Reads a model's weights from a checkpoint, by the names they have in the model.

    Args:
        model: The model, or its skeleton.
        checkpoint: Its weights.
        sources: What each of them is made from.
        drawn: Those that the checkpoint lacks.

    Attributes:
        names: The weights that the checkpoint has.
        drawn: Those that it lacks, as `fimlora.model.drawn.draw_weights` gives them.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        sources: Mapping[str, Source],
        drawn: Mapping[str, Tensor],
    ) -> None:
        self._model, self._checkpoint, self._sources = model, checkpoint, sources
        self.drawn = drawn
        self.names = {*sources, *drawn}

    def fill(self, slices: Mapping[str, WeightSlice], buffer: Tensor) -> Iterator[WeightSlice]:
        """Read weights into their slices.

        Args:
            slices: The slices by name.
            buffer: The buffer, on the CPU.

        Yields:
            Each slice, as soon as its weight is there.
        """
        done = set[str]()
        for name in slices:
            if name in self.drawn:
                slices[name].view(buffer).copy_(self.drawn[name])
                yield slices[name]
            elif name not in done:
                read = self._read(self._sources[name], name, slices, buffer)
                done |= read
                yield from (slices[weight] for weight in read)

    def _read(
        self, source: Source, name: str, slices: Mapping[str, WeightSlice], buffer: Tensor
    ) -> set[str]:
        """Read what a source gives into its slices, and name those."""
        if source.converter is not None:
            made = source.convert(self._model, self._checkpoint.read)
            for weight, tensor in made.items():
                target = slices[weight].view(buffer)
                check_shape(weight, tensor, target)
                target.copy_(tensor)
            return set(made)
        key = source.keys[-1]
        wanted, stored = slices[name], self._checkpoint.tensors[key]
        target = wanted.view(buffer)
        is_as_wanted = stored.dtype == wanted.dtype and stored.shape == wanted.shape
        if is_as_wanted and stored.packed is None:
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
            if name in self.drawn:
                tensor = self.drawn[name]
                made[name] = of_source.setdefault(id(tensor), tensor.to(device))
                continue
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


def find_in(checkpoint: Checkpoint, model: nn.Module, *, redraws: bool) -> FoundWeights:
    """See what a checkpoint has of a model, packed weights lying as the model has them.

    Args:
        checkpoint: Its weights; where the model has inputs first, packed ones are turned.
        model: A skeleton.
        redraws: Whether a head whose shape in the checkpoint is another counts as missing.

    Returns:
        Sources and missing weights.
    """
    if checkpoint.is_packed:
        checkpoint.turn(_inputs_first(model, checkpoint))
    return find_weights(model, checkpoint.tensors, redraws=redraws)


def open_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    seed: int,
    redraws: bool,
    instead: Mapping[str, Tensor] = {},
) -> WeightReader:
    """Get ready to read a model's weights, and draw those that the checkpoint lacks.

    Args:
        model: A skeleton.
        checkpoint: Its weights.
        seed: Seed of what is drawn.
        redraws: Draw a head anew whose shape in the checkpoint is another.
        instead: Of what is drawn, parameters to have instead, by name.

    Returns:
        The reader.

    Raises:
        InvalidOption: One of these is not drawn, or has another shape.
    """
    found = find_in(checkpoint, model, redraws=redraws)
    drawn = draw_weights(model, found.missing, seed=seed)
    for name, tensor in instead.items():
        if name not in drawn or drawn[name].shape != tensor.shape:
            raise InvalidOption(
                f"head weight {name!r} {tuple(tensor.shape)} is none that the checkpoint lacks: "
                f"{ {n: tuple(t.shape) for n, t in drawn.items()} }"
            )
        drawn[name] = tensor.to(drawn[name].dtype)
    return WeightReader(model, checkpoint, found.sources, drawn)


def _inputs_first(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """The tensors of maps whose weights are (I, O), as in GPT-2."""
    maps = [name for name, module in model.named_modules() if isinstance(module, Conv1D)]
    if not maps:
        return []
    sources, _ = find_sources(model, checkpoint.tensors)
    wanted = (f"{name}.weight" for name in maps)
    return [key for name in wanted if name in sources for key in sources[name].keys]
