"""Whether a checkpoint has as many layers as its configuration says.

A stack of layers is a name with a number after it, such as ``model.layers.0``. Which number of
the configuration counts it is certain for the usual stacks only; of others nothing is said.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fimlora_jobs.models.config_numbers import LAYERS
from fimlora_jobs.models.config_parts import parts_of, text_parts
from fimlora_jobs.models.refusal import ModelRefused

Shapes = Mapping[str, tuple[int, ...]]
# Their checkpoints hold a layer once that runs several times.
SHARE_LAYERS = frozenset({"albert", "hrm_text"})
REPEATED = re.compile(r"\.(\d+)(?=\.)")
STACK = re.compile(
    r"(?P<stack>(?:[A-Za-z_]\w*\.)*(?:layers|layer|blocks?|h|attentions))\.(?P<number>\d{1,8})\."
)
# Of each half of an encoder-decoder, before what both may have.
OF_HALF = {
    "encoder": ("encoder_layers", "num_encoder_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
# Names of what reads text in a model of several parts, and stacks that nothing is put before.
TEXT = frozenset({"language_model", "text_model", "text_decoder", "llm"})
BARE = frozenset({
    "layers", "h", "model.layers", "transformer.h", "transformer.blocks", "gpt_neox.layers",
})  # fmt: skip
# Layers that predict tokens further ahead stand after the others, and are not loaded.
AHEAD = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
COUNTS_AHEAD = re.compile(r"nextn|mtp")


def check_layers(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse a configuration with more or fewer layers than its checkpoint.

    Args:
        config: The content of a ``config.json``.
        shapes: Shape of each weight by name.

    Raises:
        ModelRefused: Names the field, what it says and what there is.
    """
    if config.get("model_type") in SHARE_LAYERS:
        return
    _check_any(config, shapes)
    longest = dict[tuple[str, int], int]()
    for stack, numbers in _stacks(shapes).items():
        counted = _count_of(stack, config)
        if counted is None:
            continue
        own = [number for number, is_ahead in numbers.items() if not is_ahead]
        n_layers = max(own, default=-1) + 1
        longest[counted] = max(n_layers, longest.get(counted, 0))
        key, asked = counted
        # As many as are said to be ahead may stand there without a mark of it.
        n_unmarked = max(0, _n_ahead(config) - (len(numbers) - len(own)))
        if sum(number >= asked for number in own) > n_unmarked:
            raise ModelRefused(
                f"{_other(key, asked, n_layers)} ({stack}.0 to {stack}.{n_layers - 1}), of which "
                f"the last {n_layers - asked} would not be loaded; state {key}={n_layers}, or "
                "give the weights that belong to this config.json"
            )
    for (key, asked), n_layers in longest.items():
        if asked > n_layers:
            raise ModelRefused(_other(key, asked, n_layers))


def _check_any(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Whatever a stack is called, some number goes as far as the configuration."""
    numbers = [int(n) for name in shapes for n in REPEATED.findall(name) if len(n) < 9]
    halves = {key for keys in OF_HALF.values() for key in keys}
    for part in text_parts(config) if numbers else ():
        if halves & part.keys():
            continue  # what both have is left over from elsewhere
        for key in LAYERS:
            asked = part.get(key)
            if isinstance(asked, int) and asked > max(numbers) + 1:
                raise ModelRefused(_other(key, asked, max(numbers) + 1))


def _other(key: str, asked: int, n_layers: int) -> str:
    return (
        f"its config.json has {key}={asked}; its checkpoint has weights for {n_layers} layers"
    )


def _stacks(shapes: Shapes) -> dict[str, dict[int, bool]]:
    """By name of a stack: the numbers in it, each with whether it predicts further ahead."""
    stacks: dict[str, dict[int, bool]] = {}
    for name in shapes:
        if found := STACK.match(name):
            numbers, number = stacks.setdefault(found["stack"], {}), int(found["number"])
            is_ahead = bool(AHEAD.search(name, found.end() - 1))
            numbers[number] = numbers.get(number, False) or is_ahead
    return stacks


def _count_of(stack: str, config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The field that counts the layers of a stack, and what it says; ``None`` in doubt."""
    half = next((word for word in stack.split(".") if word in OF_HALF), "")
    part = _part_of(stack, half, config)
    if part is None:
        return None
    keys = (*OF_HALF.get(half, ()), *LAYERS)
    return next(((k, part[k]) for k in keys if type(part.get(k)) is int and part[k]), None)


def _part_of(stack: str, half: str, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The part of a configuration that describes a stack."""
    if isinstance(inner := config.get(half), Mapping):
        return inner
    parts = [p for key, p in config.items() if _is_part(key, p)]
    if not parts:
        return config
    if stack not in BARE and not TEXT.intersection(stack.split(".")):
        return None  # an eye, an ear, or what lies between
    return text_parts(config)[-1]


def _is_part(key: str, value: Any) -> bool:
    is_named = key.endswith("_config") or key in OF_HALF
    return isinstance(value, Mapping) and (is_named or "model_type" in value)


def _n_ahead(config: Mapping[str, Any]) -> int:
    """Layers that the configuration says are for tokens further ahead."""
    said: Iterator[Any] = (
        value
        for part in parts_of(config)
        for key, value in part.items()
        if COUNTS_AHEAD.search(key)
    )
    return max((value for value in said if type(value) is int), default=0)
