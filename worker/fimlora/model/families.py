"""To which family a module belongs: its tower, and the kind of mixer that it is part of.

A model that sees or hears is made of towers, each with a configuration of its own that says what
it reads; what stands between them connects them. A hybrid mixes sequences in several ways. Where
neither is so, there is one family, and nothing is said.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fimlora.plan import BLOCK_INDEX, TOWERS, TargetModule

LANGUAGE, VISION, AUDIO, CONNECTOR = TOWERS
# What a part of a configuration is called, and what a model says that it reads.
_PARTS = {
    "text": LANGUAGE, "vision": VISION, "image": VISION, "audio": AUDIO, "qformer": CONNECTOR,
}  # fmt: skip
_READS = {
    "text": LANGUAGE, "image": VISION, "video": VISION, "audio": AUDIO,
    "input_ids": LANGUAGE, "pixel_values": VISION, "input_features": AUDIO, "input_values": AUDIO,
}  # fmt: skip
_BRIDGES = ("merger", "connector", "projector", "resampler")
# Kinds by what classes and attributes are called, the first that fits; the first four mix sequences.
_KINDS = (
    ("linear_attention", ("delta", "linearatt", "linear_att", "lightning")),
    ("ssm", ("mamba", "ssm", "recurrent")),
    ("conv", ("shortconv",)),
    ("attention", ("attention", "attn")),
    ("mlp", ("mlp", "feedforward", "feed_forward", "ffn")),
)
_MIXERS = frozenset(name for name, _ in _KINDS[:4])
_HEADS = re.compile(r"(Text|Language)?(Pre[Tt]rainedModel|Model|For\w+)$")

Modules = Mapping[str, nn.Module]


def with_families(
    model: nn.Module, modules: Modules, targets: Sequence[TargetModule]
) -> tuple[TargetModule, ...]:
    """Say of target modules which family they belong to, where the model has several.

    Args:
        model: The base model.
        modules: All its modules by name, as they were before PEFT touched it.
        targets: The target modules.

    Returns:
        The same modules, each with its family or, where there is one family only, without.
    """
    if not isinstance(model, PreTrainedModel):
        return tuple(targets)
    towers = _Towers(model, modules)
    kinds = _Kinds(modules, towers)
    if not towers.several and not kinds.mixed:
        return tuple(targets)
    return tuple(replace(m, family=_family(m.name, towers, kinds)) for m in targets)


def _family(name: str, towers: "_Towers", kinds: "_Kinds") -> str:
    tower = towers.of(name)
    kind = kinds.of(name) if tower in kinds.mixed else None
    return tower if kind is None else f"{tower}.{kind}"


class _Towers:
    """The towers of a model.

    Args:
        model: The base model.
        modules: All its modules by name.

    Attributes:
        several: Whether there is more than one.
    """

    def __init__(self, model: PreTrainedModel, modules: Modules) -> None:
        self._modules = modules
        self._ends = _ends_of(model)
        self._parts = {
            key: type(part) for key, part in _parts_of(model.config) if key is not None
        }
        self._whole = type(model.config)
        self._models = {n: m for n, m in modules.items() if isinstance(m, PreTrainedModel)}
        self._tower: dict[str, str | None] = {}
        for name in reversed(self._models):  # those inside of it come first
            self._tower[name] = self._tower_at(name)
        self.several = len({tower for tower in self._tower.values() if tower}) > 1

    def of(self, name: str) -> str:
        """Tower of a module: that of the model around it, or what connects several."""
        if not self.several:
            return LANGUAGE if self._tower.get("") is None else str(self._tower[""])
        for around in _around(name):
            if around in self._tower:
                tower = self._tower[around]
                if tower is None:
                    return LANGUAGE if self._is_end(name) else CONNECTOR
                is_bridge = tower in {VISION, AUDIO} and self._is_bridge(name, around)
                return CONNECTOR if is_bridge else tower
        return LANGUAGE

    def class_name(self, name: str) -> str:
        """What the class of the model around a module is called."""
        around = next((each for each in _around(name) if each in self._models), None)
        return "" if around is None else type(self._models[around]).__name__

    def _tower_at(self, name: str) -> str | None:
        """What a model reads; ``None`` of one that is made of towers."""
        module = self._models[name]
        start = f"{name}." if name else ""
        inside = {
            tower
            for n, tower in self._tower.items()
            if n.startswith(start) and tower is not None
        } - {CONNECTOR}
        part = self._part_of(module.config) if name else None
        if part is not None:
            return part
        own = _reads(module)
        return own if own is not None and inside <= {own} else None

    def _part_of(self, config: Any) -> str | None:
        """Which part of the whole configuration a model was made of, as that calls it."""
        kind = type(config)
        keys = [key for key, part in self._parts.items() if part is kind is not self._whole]
        found = {tower for key in keys for stem, tower in _PARTS.items() if stem in key}
        return found.pop() if len(found) == 1 else None

    def _is_end(self, name: str) -> bool:
        """Whether a module is an embedding of tokens or a head over them, or inside of one."""
        return any(id(self._modules.get(each)) in self._ends for each in (name, *_around(name)))

    def _is_bridge(self, name: str, tower: str) -> bool:
        inside = (n for n in (name, *_around(name)) if n and len(n) >= len(tower))
        return any(
            stem in text.lower()
            for n in inside
            for text in (type(self._modules.get(n)).__name__, n.rpartition(".")[2])
            for stem in _BRIDGES
        )


class _Kinds:
    """The kinds of mixer that modules are part of.

    Args:
        modules: All modules of a model by name.
        towers: Its towers.

    Attributes:
        mixed: The towers that mix sequences in more than one way.
    """

    def __init__(self, modules: Modules, towers: _Towers) -> None:
        self._modules, self._towers = modules, towers
        self._found: dict[str, str | None] = {}
        mixers: dict[str, set[str]] = {}
        for name in modules:
            if BLOCK_INDEX.search(name) and (kind := self._own_kind(name)) in _MIXERS:
                mixers.setdefault(towers.of(name), set()).add(str(kind))
        self.mixed = {tower for tower, found in mixers.items() if len(found) > 1}

    def of(self, name: str) -> str | None:
        """Kind of what a module is part of, inside its block."""
        match = BLOCK_INDEX.search(name)
        if match is None:
            return None
        inside = [n for n in _around(name) if len(n) >= match.end()]
        if any(_is_of_experts(n, self._modules.get(n)) for n in inside):
            return "experts"
        return next((kind for n in inside if (kind := self._own_kind(n)) is not None), None)

    def _own_kind(self, name: str) -> str | None:
        """Kind of a module that has others inside, if it is one."""
        if name not in self._found:
            module = self._modules.get(name)
            is_whole = module is not None and any(True for _ in module.children())
            is_block = name.rpartition(".")[2].isdecimal()
            self._found[name] = self._kind(name, module) if is_whole and not is_block else None
        return self._found[name]

    def _kind(self, name: str, module: nn.Module | None) -> str | None:
        own = type(module).__name__
        # The model's name may hold any of these words, as that of Falcon Mamba does.
        family = _HEADS.sub("", self._towers.class_name(name))
        said = (own[_n_common(own, family) :], name.rpartition(".")[2])
        for text in said:
            for kind, stems in _KINDS:
                if any(stem in text.lower() for stem in stems):
                    return kind
        return "ssm" if hasattr(module, "A_log") else None


def _n_common(left: str, right: str) -> int:
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_of_experts(name: str, module: nn.Module | None) -> bool:
    return "expert" in name.rpartition(".")[2] or hasattr(module, "experts")


def _around(name: str) -> Iterator[str]:
    """Names of the modules around one, the nearest first; the last is that of the model."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _parts_of(config: Any, key: str | None = None) -> Iterator[tuple[str | None, Any]]:
    """A configuration and the parts inside of it, by what they are called."""
    yield key, config
    for name in getattr(config, "sub_configs", None) or ():
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig) and part is not config:
            yield from _parts_of(part, name)


def _reads(model: PreTrainedModel) -> str | None:
    """The one thing that a model says it reads; ``None`` if it reads several."""
    said = model.input_modalities
    found = {_READS.get(each) for each in ((said,) if isinstance(said, str) else said)}
    first = _READS.get(model.main_input_name)
    if (
        found == {LANGUAGE} and first is not None
    ):  # which is said of every model that says nothing
        return first
    return found.pop() if len(found) == 1 else None


def _ends_of(model: PreTrainedModel) -> set[int]:
    """Identities of the embeddings of tokens and of the heads over them."""
    found = set[int]()
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        for give in (module.get_input_embeddings, module.get_output_embeddings):
            try:
                end = give()
            except (NotImplementedError, AttributeError):
                continue
            found |= {id(end)} if isinstance(end, nn.Module) else set()
    return found
