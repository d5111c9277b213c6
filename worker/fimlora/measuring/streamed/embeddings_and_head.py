"""The embeddings and the output head, which can each outweigh a block: there when they run."""

import math
from collections.abc import Collection

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
        self.modules = {
            name: module
            for name, module in self._sharing_modules().items()
            if name not in blocks and names_in([name], self._meta) <= reader.names
        }
        self.names = names_in(self.modules, self._meta)
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
            for name in self._names_of(module)
        )

    def largest_weight(self, module: str) -> int:
        """Give the bytes of a module's largest weight."""
        return max(self._meta[name].nbytes for name in self._names_of(module))

    def load(self, module: str) -> None:
        """Read a module's weights."""
        put_from(self._reader, self._model, self._names_of(module), self._device)

    def _names_of(self, module: str) -> set[str]:
        return names_in([module], self._meta)

    def _sharing_modules(self) -> dict[str, nn.Module]:
        both = [self._model.get_input_embeddings(), self._model.get_output_embeddings()]  # type: ignore[operator]
        shared = {id(p) for one in both if isinstance(one, nn.Module) for p in one.parameters()}
        return {
            name: module
            for name, module in self._model.named_modules()
            if any(id(p) in shared for p in module.parameters(recurse=False))
        }

    def _stand_in(self, weight: Tensor) -> Parameter:
        """One element that is seen as a whole weight; whoever computes with it gets NaN."""
        element = torch.full((), math.nan, dtype=weight.dtype, device=self._device)
        return Parameter(element.expand(weight.shape), requires_grad=False)
