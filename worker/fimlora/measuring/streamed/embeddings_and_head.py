"""The embeddings and the output head, which can each outweigh a block: there when they run."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fimlora.measuring.streamed.model_tensors import names_in, put, put_from
from fimlora.model.weight_reader import WeightReader


class EmbeddingsAndHead:
    """Loads the weights of a model's embeddings and output head, and lets go of them again.

    Meanwhile something stands for them that has their device and no values: models ask for
    the device of their first parameter.

    Args:
        model: A skeleton.
        blocks: Names of its blocks; one that is also an embedding is none here.
        reader: Reads its weights.
        device: Where they are to be.

    Attributes:
        modules: The modules that are one of them, or share a weight with one.
        names: The names of their weights.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Collection[str],
        reader: WeightReader,
        device: torch.device,
    ) -> None:
        self._model, self._reader, self._device = model, reader, device
        self._meta = dict(model.named_parameters(remove_duplicate=False))
        self._names = self._names_by_module(blocks, reader.names)
        self.modules = {name: model.get_submodule(name) for name in self._names}
        self.names = set[str]().union(*self._names.values())
        self._stand_ins = {name: self._stand_in(self._meta[name]) for name in self.names}

    def release(self) -> None:
        """Let go of all of them until they are loaded again."""
        for name, stand_in in self._stand_ins.items():
            put(self._model, name, stand_in)

    def restore(self) -> None:
        """Put back what the skeleton had."""
        for name in self.names:
            put(self._model, name, self._meta[name])

    def is_away(self, module: str) -> bool:
        """Say whether a module has to be loaded before it runs."""
        return any(
            self._model.get_parameter(name) is self._stand_ins[name]
            for name in self._names[module]
        )

    def largest_weight(self, module: str) -> int:
        """Give the bytes of a module's largest weight."""
        return max(self._meta[name].nbytes for name in self._names[module])

    def load(self, module: str) -> None:
        """Read a module's weights."""
        put_from(self._reader, self._model, self._names[module], self._device)

    def _names_by_module(
        self, blocks: Collection[str], present: Collection[str]
    ) -> dict[str, set[str]]:
        """Find which weights of embeddings and head a module needs when it is called.

        One that has a block inside is still running when they are let go of, so what it
        needs stays.

        Returns:
            Names of weights by the name of a module, where all of them may go.
        """
        shared = {id(p) for end in _ends(self._model) for p in end.parameters()}
        found = {
            name: {n for n in names_in([name], self._meta) if id(self._meta[n]) in shared}
            for name, module in self._model.named_modules()
            if any(id(p) in shared for p in module.parameters(recurse=False))
        }
        around = {name for name in found if any(b.startswith(f"{name}.") for b in blocks)}
        kept = {id(self._meta[n]) for name in around for n in found[name]}
        return {
            name: names
            for name, names in found.items()
            if name not in {*blocks, *around}
            and names <= set(present)
            and kept.isdisjoint(id(self._meta[n]) for n in names)
        }

    def _stand_in(self, weight: Tensor) -> Parameter:
        """One element that is seen as a whole weight; whoever computes with it gets NaN."""
        element = torch.full((), math.nan, dtype=weight.dtype, device=self._device)
        return Parameter(element.expand(weight.shape), requires_grad=False)


def _ends(model: Any) -> Iterator[nn.Module]:
    """The embedding and the head; what a model does not name stays in memory."""
    for give in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            end = give()
        except NotImplementedError:
            continue
        if isinstance(end, nn.Module):
            yield end
