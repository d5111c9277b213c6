"""Fields of a ``config.json`` that would make transformers fetch code or other weights, and run them.

A model is its configuration and its safetensors. How attention is computed is the machine's
choice: `eager` and `sdpa` come with transformers, any other name is looked for among installed
packages, or on the hub, and a name like ``org/repo`` is fetched and run.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fimlora_jobs.models.refusal import ModelRefused

BUILT_IN = frozenset({None, "eager", "sdpa"})
CHOICES = frozenset(
    f"{before}{what}_implementation{behind}"
    for before in ("", "_")
    for what in ("attn", "experts")
    for behind in ("", "_internal")
)
EXPERTS = frozenset({None, "eager", "grouped_mm", "batched_mm"})
# Refused whatever they say, unless that is nothing.
FORBIDDEN = {
    "use_kernels": "kernels are fetched from the hub",
    "kernel_config": "kernels are fetched from the hub",
    "allow_all_kernels": "kernels are fetched from the hub",
    "use_pretrained_backbone": "other weights are fetched",
    "transformers_weights": "weights are read from the files that this service has checked",
}


def check_no_code(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that names code or weights from elsewhere.

    Args:
        config: The content of a ``config.json``.

    Raises:
        ModelRefused: Names the field, where it is and what is allowed.
    """
    for path, field, value in _fields(config):
        where = ".".join((*path, field))
        if field in CHOICES:
            _check_choice(where, field, value)
        elif field in FORBIDDEN and value:
            raise ModelRefused(
                f"its config.json has {where}, by which {FORBIDDEN[field]}; remove the field"
            )


def _check_choice(where: str, field: str, value: Any) -> None:
    allowed = EXPERTS if "experts" in field else BUILT_IN
    names = value.values() if isinstance(value, Mapping) else [value]
    for name in names:
        if not (name is None or isinstance(name, str)) or name not in allowed:
            raise ModelRefused(
                f"its config.json has {where}={str(name)[:60]!r}, which would run code that is "
                f"no part of transformers; allowed are {sorted(filter(None, allowed))}: remove "
                "the field"
            )


def _fields(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Every field at any depth, in lists too, with the names of what it lies in."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), config)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, Mapping):
            for field, value in part.items():
                yield path, str(field), value
                waiting.append(((*path, str(field)), value))
        elif isinstance(part, list):
            waiting.extend((path, inner) for inner in part)
