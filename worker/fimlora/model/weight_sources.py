"""Which tensors of a checkpoint each weight of a model is made of.

transformers renames, splits and fuses on loading (the experts of a mixture are one weight
in the model and many tensors on disk). Its own tables say how, and its own operations do it;
what is added here is knowing beforehand what a single weight needs, and what is left over.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from fimlora.errors import InvalidCheckpoint, MissingExtra
from fimlora.model.checkpoint import StoredTensor
from fimlora.model.drawn import is_left_out_of_files

Read = Callable[[str], Tensor]
# Buffers that older releases stored with the weights, and that a model computes by itself.
_STORED_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias|"
    r"num_batches_tracked|embed_positions\.(weights|_float_tensor))$"
)


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


def find_sources(
    model: nn.Module, keys: Iterable[str]
) -> tuple[dict[str, Source], dict[str, str]]:
    """Map a model's weights to a checkpoint's tensors, as ``from_pretrained`` would.

    Args:
        model: A transformers model; its weights may be on the meta device.
        keys: Names in the checkpoint.

    Returns:
        The source of each weight that has one, by the weight's name: a weight tied to
        another has the other's when it has none of its own. And the names in the checkpoint
        that no weight is made of, with what they would be called in the model.

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
    unread: dict[str, str] = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], prefix, wanted)
        if name not in wanted:
            unread[key] = name
            continue
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
    return {**_by_tied_weight(model, sources), **sources}, unread


@dataclass(frozen=True)
class FoundWeights:
    """What a checkpoint has of a model's weights.

    Attributes:
        sources: The source of each weight that it has, by the weight's name.
        missing: The weights that it lacks, one name for those that are tied.
    """

    sources: Mapping[str, Source]
    missing: tuple[str, ...]


def find_weights(
    model: nn.Module, tensors: Mapping[str, StoredTensor], *, redraws: bool
) -> FoundWeights:
    """See what a checkpoint has of a model: all of the base model, and no more of it.

    Args:
        model: As for `find_sources`.
        tensors: The checkpoint's tensors.
        redraws: Whether a head whose shape in the checkpoint is another counts as missing.

    Returns:
        Sources and missing weights.

    Raises:
        InvalidCheckpoint: It lacks weights of the base model, but for its pooler; it has some
            in other shapes; or it has some that the model does not read.
    """
    sources, unread = find_sources(model, tensors)
    _check_all_read(model, unread)
    misfits = _misfits(model, tensors, sources)
    if misfits and not redraws:
        name = min(misfits)
        raise InvalidCheckpoint(
            f"the checkpoint gives {name!r} shape {tensors[sources[name].keys[-1]].shape}; "
            f"the model needs {tuple(model.get_parameter(name).shape)}"
        )
    sources = {name: source for name, source in sources.items() if name not in misfits}
    named = list(model.named_parameters(remove_duplicate=False))
    present = {id(parameter) for name, parameter in named if name in sources}
    missing = [name for name, p in model.named_parameters() if id(p) not in present]
    _check_base_complete(model, missing)
    return FoundWeights(sources, tuple(missing))


def _misfits(
    model: nn.Module, tensors: Mapping[str, StoredTensor], sources: Mapping[str, Source]
) -> set[str]:
    """Names of the parameters that the checkpoint has in another shape."""
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in sources
        and sources[name].converter is None
        and tensors[sources[name].keys[-1]].shape != tuple(parameter.shape)
    }


def _base_prefix(model: nn.Module) -> str:
    """What names of the base model begin with; nothing where the model is one itself."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def _check_base_complete(model: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a checkpoint without which the base model would be drawn at random.

    Raises:
        InvalidCheckpoint: Names what is missing.
    """
    prefix = _base_prefix(model)
    absent = [
        name
        for name in missing
        if name.startswith(prefix)
        and "pooler" not in name.split(".")
        and not is_left_out_of_files(model, name)
    ]
    if absent:
        raise InvalidCheckpoint(
            f"the checkpoint lacks weights of {type(model).__name__}: {sorted(absent)[:5]}"
        )


def _check_all_read(model: nn.Module, unread: Mapping[str, str]) -> None:
    """Refuse a checkpoint of which the base model leaves a part unused.

    What lies beside the base model is another head, what lies right under it another pooler
    or tower; a weight inside one of its own modules belongs to a model of another shape.

    Raises:
        InvalidCheckpoint: Names what is not read.
    """
    ignored: Iterable[str] = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    prefix = _base_prefix(model)
    base = cast("nn.Module", getattr(model, prefix[:-1])) if prefix else model
    parts = {name for name, _ in base.named_children()}
    for key, name in unread.items():
        if _STORED_BUFFERS.search(key) or any(re.search(p, key) for p in ignored):
            continue
        # A base model is saved without the prefix, and may be read from a file that has one.
        inner = name.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.")
        if inner.partition(".")[0] in parts:
            raise InvalidCheckpoint(
                f"the checkpoint has {key!r}, which {type(model).__name__} does not read as its "
                "config describes it; give the config that the checkpoint was saved with "
                "(number of layers, biases)"
            )


def _by_tied_weight(model: nn.Module, sources: Mapping[str, Source]) -> dict[str, Source]:
    named = list(model.named_parameters(remove_duplicate=False))
    by_identity = {id(p): sources[name] for name, p in named if name in sources}
    return {name: by_identity[id(p)] for name, p in named if id(p) in by_identity}
