"""What the config of a LoRA adapter says of each module, and what it may not say.

Only plain LoRA is read: ``scale * B @ A`` is added to a weight. Whatever else a config switches
on is refused by name, and so is what a later PEFT may bring: silence would mean another
function than the one that was trained. Nothing here imports torch or PEFT.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fimlora.adapter.config import TASK_TYPES, dotted_ends
from fimlora.adapter.trained.patterns import first_keys, full_matches
from fimlora.errors import InvalidAdapter
from fimlora.whole_names import FULL_NAMES

# What a field means for the function of an adapter, where it is set to something.
_READ = frozenset(
    {
        *("peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha"),
        *("rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout", "bias"),
        *("modules_to_save", "init_lora_weights"),
    }
)
_HARMLESS = frozenset(
    {
        *("auto_mapping", "peft_version", "inference_mode", "runtime_config", "megatron_core"),
        *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        "ensure_weight_tying",
    }
)
_NAMES = {
    "use_dora": "DoRA",
    "lora_bias": "a bias that trains beside B",
    "layer_replication": "layers that are repeated",
    "target_parameters": "LoRA on parameters, such as fused experts",
    "trainable_token_indices": "single trained tokens",
    "alora_invocation_tokens": "activated LoRA",
}
# The others decompose the base weight by rank whenever the adapter is loaded.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_BIASES = ("none", "all", "lora_only")
_NAMES_MEANT = "a list of names or an expression"
_CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")
EMBEDDINGS = ("embed_tokens", "lm_head")  # saved beside LoRA where the vocabulary was resized
_MAX_SAVED = 1_000
_INIT = "init_lora_weights"
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The config of an adapter, seen to be plain LoRA.

    Attributes:
        fields: Its content.
    """

    fields: Mapping[str, Any]

    def ranks_and_scales(self, names: Sequence[str]) -> dict[str, tuple[int, float]]:
        """Read rank and effective scale of each module as PEFT does.

        Args:
            names: Full names of the modules that the adapter is on.

        Returns:
            Rank and scale per module name.

        Raises:
            InvalidAdapter: A rank or an alpha is none.
        """  # noqa: DOC502 - the helpers raise
        found: dict[str, dict[str, str]] = {}
        for field in ("rank_pattern", "alpha_pattern"):
            found[field] = first_keys(field, [*self._pattern(field)], names)
        return {name: self._rank_and_scale(name, found) for name in names}

    def unmatched(self, names: Sequence[str]) -> list[str]:
        """Find modules that PEFT would not adapt, so that their tensors would be left aside.

        Args:
            names: Full names of the modules that there are tensors of.

        Returns:
            Those that ``target_modules`` and its companions do not mean.
        """
        targets, excluded = (
            self.fields.get("target_modules"),
            self.fields.get("exclude_modules"),
        )
        meant = set(names)
        if isinstance(targets, str):
            if targets != "all-linear":
                meant = full_matches("target_modules", targets, names)
        else:
            wanted = set(targets or ())
            whole = {name for name in names if name in wanted}
            meant = {name for name in names if not wanted.isdisjoint(dotted_ends(name))}
            meant = whole | {name for name in meant if self._is_in_layers(name)}
        if isinstance(excluded, str):
            meant -= full_matches("exclude_modules", excluded, names)
        elif excluded:
            out = set(excluded)
            meant = {name for name in meant if out.isdisjoint(dotted_ends(name))}
        return [name for name in names if name not in meant]

    def means_parameter(self, name: str) -> bool:
        """Whether PEFT adapts a parameter of fused experts.

        Args:
            name: The parameter's full name.

        Returns:
            Whether ``target_parameters`` means it.
        """
        given = self.fields.get("target_parameters")
        return isinstance(given, list) and any(end in given for end in dotted_ends(name))

    def may_carry(self, name: str) -> bool:
        """Whether PEFT takes a tensor that is none of LoRA's.

        Args:
            name: Its name in the base model.

        Returns:
            Whether it is of a module that is trained in full.

        Raises:
            InvalidAdapter: ``modules_to_save`` has more names than can be looked at.
        """
        owners = name.split(".")[:-1]
        if any(part in EMBEDDINGS for part in owners):
            return True
        if self.fields.get("bias") not in {None, "none"} and name.endswith(".bias"):
            return True
        saved = self.saved
        if len(saved) > _MAX_SAVED:
            raise InvalidAdapter(f"modules_to_save has {len(saved)} names, over {_MAX_SAVED}")
        held = [".".join(owners[: i + 1]) for i in range(len(owners))]
        return any(holder.endswith(tuple(saved)) for holder in held)

    @property
    def saved(self) -> list[str]:
        """Ends of the names of modules that are trained in full."""
        saved = self.fields.get("modules_to_save") or []
        is_classifier = self.fields.get("task_type") in _CLASSIFIERS
        return [*saved, *(FULL_NAMES if is_classifier else ())]

    @property
    def names_targets_plainly(self) -> bool:
        """Whether ``target_modules`` alone says what is adapted, in names."""
        others = ("exclude_modules", "layers_to_transform")
        targets = self.fields.get("target_modules")
        return isinstance(targets, list) and not any(map(self.fields.get, others))

    def _pattern(self, field: str) -> Mapping[str, Any]:
        return self.fields.get(field) or {}

    def _rank_and_scale(
        self, name: str, found: Mapping[str, Mapping[str, str]]
    ) -> tuple[int, float]:
        key = found["rank_pattern"].get(name)
        rank = self.fields.get("r", 8) if key is None else self._pattern("rank_pattern")[key]
        if type(rank) is not int or rank < 1:
            raise InvalidAdapter(
                f"{name}: rank {rank!r:.40}; it must be a whole number above 0"
            )
        key = found["alpha_pattern"].get(name)
        alpha = self.fields.get("lora_alpha", 8)
        alpha = alpha if key is None else self._pattern("alpha_pattern")[key]
        if type(alpha) not in {int, float} or not 0 < alpha < 1e9:
            raise InvalidAdapter(f"{name}: alpha {alpha!r:.40}; it must be a number above 0")
        return rank, alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _is_in_layers(self, name: str) -> bool:
        layers, patterns = (
            self.fields.get("layers_to_transform"),
            self.fields.get("layers_pattern"),
        )
        if layers is None or layers == []:
            return True
        wanted = layers if isinstance(layers, list) else [layers]
        found = _LAYER.match(name)
        if patterns:
            given = [patterns] if isinstance(patterns, str) else patterns
            tried = (re.match(rf"(?:^|.*?\.){re.escape(p)}\.(\d+)\.", name) for p in given)
            found = next(filter(None, tried), None)
        return found is not None and int(found[1]) in wanted


def check_lora_config(fields: Mapping[str, Any]) -> LoraConfig:
    """See that a config is one of plain LoRA.

    Args:
        fields: The content of ``adapter_config.json``.

    Returns:
        The config.

    Raises:
        InvalidAdapter: It is of another kind, or switches on what is not plain LoRA.
    """
    check_kind(fields)
    for field, meaning in unplain_fields(fields).items():
        if field == _INIT:
            raise InvalidAdapter(
                f"{field}={fields[field]!r:.40} {meaning}; convert it first, with PEFT's "
                "save_pretrained(path_initial_model_for_weight_conversion=...)"
            )
        what = f", which is {meaning}" if meaning else ""
        raise InvalidAdapter(
            f"{field!r:.60} is set{what}: only plain LoRA is read, where scale * B @ A is all "
            "that is added to a weight; merge such an adapter, or train without"
        )
    return LoraConfig(fields)


def unplain_fields(fields: Mapping[str, Any]) -> dict[str, str]:
    """Find what a config switches on that is not plain LoRA.

    Args:
        fields: The content of ``adapter_config.json``.

    Returns:
        What it means by field, empty where that is not known.
    """
    found = {
        field: _NAMES.get(field, "")
        for field, value in fields.items()
        if value and field not in _READ | _HARMLESS
    }
    init = fields.get(_INIT, True)
    if not any(init is known or init == known for known in _PLAIN_INITIALISATIONS):
        found[_INIT] = "changes the base weights by rank at every load"
    return found


def check_kind(fields: Mapping[str, Any]) -> None:
    """Refuse what is not LoRA, and fields that PEFT could not read.

    Args:
        fields: The content of ``adapter_config.json``.

    Raises:
        InvalidAdapter: The type or the task of the adapter is another one, or a field is of
            another kind.
    """
    kind = fields.get("peft_type")
    if kind == "ADALORA":
        raise InvalidAdapter(
            "peft_type 'ADALORA' has a third factor and a mask of ranks; make plain LoRA of it "
            "first: convert with layout B or C does"
        )
    if kind != "LORA":
        raise InvalidAdapter(f"peft_type {kind!r:.40}; only LORA is read")
    for field, (is_sound, meaning) in _KINDS.items():
        if fields.get(field) is not None and not is_sound(fields[field]):
            raise InvalidAdapter(f"{field} is {_kind(fields[field])}; it must be {meaning}")


def _is_names(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(entry, str) for entry in given)


def _is_share(given: Any) -> bool:
    return type(given) in {int, float} and 0 <= given < 1


def _is_layers(given: Any) -> bool:
    layers = given if isinstance(given, list) else [given]
    return all(type(layer) is int for layer in layers)


# Of fields that are set; what is asked besides stands where they are read.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task_type": (lambda given: given in TASK_TYPES, f"one of {', '.join(TASK_TYPES)}"),
    "bias": (lambda given: given in _BIASES, f"one of {', '.join(_BIASES)}"),
    "lora_dropout": (_is_share, "a number from 0 to below 1"),
    "base_model_name_or_path": (lambda given: isinstance(given, str), "text"),
    "revision": (lambda given: isinstance(given, str), "text"),
    "use_rslora": (lambda given: isinstance(given, bool), "true or false"),
    "fan_in_fan_out": (lambda given: isinstance(given, bool), "true or false"),
    "rank_pattern": (lambda given: isinstance(given, dict), "an object"),
    "alpha_pattern": (lambda given: isinstance(given, dict), "an object"),
    "target_modules": (lambda given: isinstance(given, str) or _is_names(given), _NAMES_MEANT),
    "exclude_modules": (lambda given: isinstance(given, str) or _is_names(given), _NAMES_MEANT),
    "layers_pattern": (lambda given: isinstance(given, str) or _is_names(given), _NAMES_MEANT),
    "layers_to_transform": (_is_layers, "whole numbers"),
    "modules_to_save": (_is_names, "a list of names"),
}


def _kind(value: Any) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "a list of other things"
        case _:
            return f"{value!r:.40}"
