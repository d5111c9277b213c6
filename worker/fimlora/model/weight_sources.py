"""Which tensors of a checkpoint each weight of a model is made of.

transformers renames, splits and fuses on loading (the experts of a mixture are one weight
in the model and many tensors on disk). Its own tables say how, and its own operations do it;
what is added here is knowing beforehand what a single weight needs.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fimlora.errors import MissingExtra
from fimlora.model.checkpoint import StoredTensor

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Source:
    """What one weight, or a few that are stored together, are made of.

    Attributes:
        weights: Their names in the model.
        keys: Names in the checkpoint, in the order the conversion wants them.
        patterns: The conversion's pattern that each key fits; empty for a plain copy.
        converter: transformers' conversion; ``None`` for a plain copy.
    """

    weights: tuple[str, ...]
    keys: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    converter: Any = None

    def convert(self, model: nn.Module, read: Read) -> Mapping[str, Tensor]:
        """Make the weights.

        Args:
            model: The model they are for.
            read: Reads a tensor of the checkpoint.

        Returns:
            The weights by name.
        """
        converter = deepcopy(self.converter)
        for key, pattern in zip(self.keys, self.patterns, strict=True):
            converter.add_tensor(self.weights[0], key, pattern, lambda key=key: read(key))
        made = converter.convert(self.weights[0], model=model, config=model.config)
        return {n: v[0] if isinstance(v, list) else v for n, v in made.items()}


def find_sources(model: nn.Module, keys: Iterable[str]) -> dict[str, Source]:
    """Map a model's weights to a checkpoint's tensors, as ``from_pretrained`` would.

    Args:
        model: A transformers model; its weights may be on the meta device.
        keys: Names in the checkpoint.

    Returns:
        The source of each weight that has one, by the weight's name. A weight tied to
        another has the other's when it has none of its own.

    Raises:
        MissingExtra: transformers is too old to tell.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError as error:
        raise MissingExtra("streaming needs transformers 5 or newer") from error
    tables: Any = model
    transforms = get_model_conversion_mapping(tables)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
    prefix, wanted = tables.base_model_prefix, model.state_dict()
    sources: dict[str, Source] = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name not in wanted:
            continue  # a head that this model does not have
        converter = by_pattern.get(pattern) if pattern is not None else None
        source = sources.get(name)
        if source is None or converter is None:
            targets = converter.target_patterns if converter else [name]
            weights = tuple(name.replace(targets[0], other) for other in targets)
            source = Source(weights if converter else (name,), converter=converter)
            sources.update(dict.fromkeys(source.weights, source))
        source.keys.append(key)
        if converter is not None and pattern is not None:
            source.patterns.append(pattern)
    return {**_by_tied_weight(model, sources), **sources}


def fitting_sources(model: nn.Module, tensors: Mapping[str, StoredTensor]) -> dict[str, Source]:
    """Map weights to tensors of their own shape; a head for other labels has no source then.

    Args:
        model: As for `find_sources`.
        tensors: The checkpoint's tensors.

    Returns:
        The source of each weight that has one.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {
        name: source
        for name, source in find_sources(model, tensors).items()
        if source.converter is not None
        or name not in shapes
        or tensors[source.keys[-1]].shape == shapes[name]
    }


def _by_tied_weight(model: nn.Module, sources: Mapping[str, Source]) -> dict[str, Source]:
    named = list(model.named_parameters(remove_duplicate=False))
    by_identity = {id(p): sources[name] for name, p in named if name in sources}
    return {name: by_identity[id(p)] for name, p in named if id(p) in by_identity}
