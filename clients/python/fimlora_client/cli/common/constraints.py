"""Options for what ranks are to keep to, as the contract has them."""

from typing import Any

import typer

from fimlora_client.cli.common.inputs import pairs_of
from fimlora_contract.constraints import GROUP_PRESETS, RANK_MENUS


def constraints_of(
    groups: list[str] | None,
    rank_menu: str | None,
    per_type: list[str] | None,
    max_lora_rank: int | None,
) -> dict[str, Any]:
    """Fields of an allocation; of those that were given."""
    found = {
        "groups": _groups(groups),
        "rank_menu": _menu(rank_menu),
        "per_type": _types(per_type),
        "max_lora_rank": max_lora_rank,
    }
    return {name: value for name, value in found.items() if value is not None}


def experts_of(given: str | None) -> dict[str, Any]:
    """Which experts train: how they are selected, and a share of them or what they are to cover."""
    if given is None:
        return {}
    select, _, amount = given.partition(":")
    key, _, value = amount.rpartition("=")
    try:
        return {"experts": {"select": select, key or "share": float(value)}}
    except ValueError:
        raise typer.BadParameter(
            f"--experts {given}: give SELECT:SHARE such as routed:0.25, or SELECT:coverage=0.8; "
            "SELECT is routed, fisher or random"
        ) from None


def _groups(given: list[str] | None) -> str | list[list[str]] | None:
    if not given:
        return None
    presets = [group for group in given if group in GROUP_PRESETS]
    if presets and len(given) > 1:
        raise typer.BadParameter(f"--group {presets[0]} says it all; give no other with it")
    return presets[0] if presets else [_split(group) for group in given]


def _menu(given: str | None) -> str | list[int] | None:
    if given is None or given in RANK_MENUS:
        return given
    if not all(rank.isdecimal() for rank in _split(given)):
        raise typer.BadParameter(
            f"--rank-menu {given}: give ranks with commas between, or one of "
            f"{', '.join(RANK_MENUS)}"
        )
    return [int(rank) for rank in _split(given)]


def _types(given: list[str] | None) -> dict[str, dict[str, float]] | None:
    if not given:
        return None
    found: dict[str, dict[str, float]] = {}
    for text in given:
        name, _, rules = text.rpartition(":")  # that of a family has a colon itself
        pairs = pairs_of("--per-type", "NAME:KEY=VALUE,...", rules.split(",")) or {}
        try:
            found[name] = {
                key: float(value) if key == "share" else int(value)
                for key, value in pairs.items()
            }
        except ValueError:
            raise typer.BadParameter(
                f"--per-type {text}: r_min and r_max are whole numbers, share is one up to 1"
            ) from None
    return found


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]
