"""What ranks must keep to besides the budget and its bounds: ties, menus, and rules per type.

They are kept as they were asked for and stand on the plan, so that whoever solves it anew (a
bootstrap, the null of a signal) abides by the same. Nothing here imports torch.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from fimlora.errors import InvalidOption

GROUP_PRESETS = ("type", "fused", "layer")
# Powers of two up to the widest layers, and what vLLM allots buffers for (`vllm/config/lora.py`).
RANK_MENUS = {
    "powers-of-two": tuple(2**i for i in range(14)),
    "vllm": (1, 8, 16, 32, 64, 128, 256, 320, 512),
}
Groups = str | Iterable[Collection[str]]


@dataclass(frozen=True, slots=True)
class TypeRule:
    """What the modules of one type keep to.

    Attributes:
        r_min: Their lowest rank, in place of the plan's.
        r_max: Their highest rank, in place of the plan's.
        share: The share of the budget that they get together, above 0 and at most 1.
    """

    r_min: int | None = None
    r_max: int | None = None
    share: int | float | None = None


@dataclass(frozen=True, slots=True)
class Constraints:
    """What every rule and every control keeps to.

    An entry that names modules is a name, an ending of names after a dot such as ``q_proj``, or
    either with ``*`` for any characters. ``family:`` and the name of a family, as
    ``family:vision``, names the modules of that family of a model that has several.

    Attributes:
        multiple_of: Every rank is a multiple of this.
        rank_menu: The ranks that are allowed, in rising order; empty for any.
        groups: Modules tied to one rank: the name of one of `GROUP_PRESETS`, or for each group
            the entries that name its modules.
        per_type: Rule by the entry that names the modules of a type.
        max_lora_rank: The highest rank that a server allows, which caps every ceiling.
    """

    multiple_of: int = 1
    rank_menu: tuple[int, ...] = ()
    groups: str | tuple[tuple[str, ...], ...] = ()
    per_type: Mapping[str, TypeRule] = field(default_factory=dict)
    max_lora_rank: int | None = None

    def __post_init__(self) -> None:
        _check_rank("multiple_of", self.multiple_of)
        if self.max_lora_rank is not None:
            _check_rank("max_lora_rank", self.max_lora_rank)
        if self.rank_menu:
            _check_menu(self.rank_menu)
            if self.multiple_of != 1:
                raise InvalidOption(
                    f"multiple_of={self.multiple_of} beside a rank_menu: a menu has all ranks "
                    "there are; give one of both"
                )
        _check_groups(self.groups)
        for name, rule in self.per_type.items():
            _check_rule(name, rule)

    @classmethod
    def of(
        cls,
        *,
        multiple_of: int = 1,
        rank_menu: str | Iterable[int] = (),
        groups: Groups = (),
        per_type: Mapping[str, TypeRule | Mapping[str, Any]] | None = None,
        max_lora_rank: int | None = None,
    ) -> "Constraints":
        """Read constraints as people give them.

        Args:
            multiple_of: Every rank is a multiple of this.
            rank_menu: The ranks that are allowed, or the name of one of `RANK_MENUS`.
            groups: The name of one of `GROUP_PRESETS`, or collections of entries.
            per_type: Rules by entry, as objects or as mappings.
            max_lora_rank: The highest rank that a server allows.

        Returns:
            The constraints.

        Raises:
            InvalidOption: One is outside what is allowed.
        """  # noqa: DOC502 - the helpers raise
        return cls(
            multiple_of=multiple_of,
            rank_menu=_menu(rank_menu),
            groups=groups if isinstance(groups, str) else tuple(map(_entries, groups)),
            per_type={name: _rule(name, rule) for name, rule in (per_type or {}).items()},
            max_lora_rank=max_lora_rank,
        )

    def type_bounds(self, entry: str, general: tuple[int, int]) -> tuple[int, int]:
        """The bounds of a type: its own go before the general ones, which make room for them.

        Args:
            entry: What names its modules.
            general: Lowest and highest rank of modules without a rule.

        Returns:
            Lowest and highest rank, but for what a server allows.

        Raises:
            InvalidOption: Its floor is above what the server allows.
        """
        rule, cap = self.per_type[entry], self.max_lora_rank
        if rule.r_min is not None and cap is not None and rule.r_min > cap:
            raise InvalidOption(
                f"per_type[{entry!r}]: r_min={rule.r_min} is above max_lora_rank={cap}"
            )
        low, high = general
        if rule.r_min is not None:
            low, high = rule.r_min, max(high, rule.r_min)
        if rule.r_max is not None:
            low, high = min(low, rule.r_max), rule.r_max
        return low, high

    def without_floors(self, highest: int) -> "Constraints":
        """The same without the floors of types, whose ceilings stay where they are.

        Args:
            highest: The highest rank of modules without a rule.

        Returns:
            The constraints.
        """
        rules = {
            entry: TypeRule(r_max=self.type_bounds(entry, (1, highest))[1], share=rule.share)
            for entry, rule in self.per_type.items()
        }
        return replace(self, per_type=rules)

    def to_json(self) -> dict[str, Any]:
        """As plain data for a rank map."""
        return {
            "multiple_of": self.multiple_of,
            "rank_menu": list(self.rank_menu),
            "groups": self.groups
            if isinstance(self.groups, str)
            else list(map(list, self.groups)),
            "per_type": {name: asdict(rule) for name, rule in sorted(self.per_type.items())},
            "max_lora_rank": self.max_lora_rank,
        }


def _menu(given: str | Iterable[int]) -> tuple[int, ...]:
    if not isinstance(given, str):
        return tuple(given)
    if given not in RANK_MENUS:
        raise InvalidOption(
            f"rank_menu={given!r}; allowed are a list of ranks, {', '.join(RANK_MENUS)}"
        )
    return RANK_MENUS[given]


def _entries(group: Any) -> tuple[str, ...]:
    """Entries of a group; a text would be taken apart letter by letter."""
    if isinstance(group, str):
        raise InvalidOption(
            f"groups holds {group!r}, which is no group; give lists of names such as "
            f'[["q_proj", "k_proj"]], or one of {", ".join(GROUP_PRESETS)}'
        )
    return tuple(group)


def _rule(name: str, given: Any) -> TypeRule:
    if isinstance(given, TypeRule):
        return given
    try:
        return TypeRule(**given)
    except TypeError:
        raise InvalidOption(
            f"per_type[{name!r}]={given!r}; it may have r_min, r_max and share"
        ) from None


def _check_rank(name: str, value: Any, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise InvalidOption(f"{name}={value!r}: it must be an integer of at least {least}")


def _check_menu(menu: tuple[Any, ...]) -> None:
    is_whole = all(type(rank) is int and rank > 0 for rank in menu)
    if not is_whole or any(a >= b for a, b in pairwise(menu)):
        raise InvalidOption(
            f"rank_menu={list(menu)}: it must list integers of at least 1 in rising order"
        )


def _check_groups(groups: Any) -> None:
    if isinstance(groups, str):
        if groups not in GROUP_PRESETS:
            raise InvalidOption(
                f"groups={groups!r}; allowed are lists of names, {', '.join(GROUP_PRESETS)}"
            )
        return
    if odd := [entry for group in groups for entry in group if not isinstance(entry, str)]:
        raise InvalidOption(f"groups holds {odd[0]!r}; modules are named by text")


def _check_rule(name: str, rule: TypeRule) -> None:
    given = f"per_type[{name!r}]"
    if rule.r_min is not None:
        _check_rank(f"{given}: r_min", rule.r_min, 0)
    if rule.r_max is not None:
        _check_rank(f"{given}: r_max", rule.r_max)
    if rule.r_min is not None and rule.r_max is not None and rule.r_min > rule.r_max:
        raise InvalidOption(f"{given}: r_min={rule.r_min} is above r_max={rule.r_max}")
    share: Any = rule.share
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if share is not None and not (is_number and 0 < share <= 1):
        raise InvalidOption(f"{given}: share={share!r}; it must be above 0 and at most 1")


def shares_of(per_type: Mapping[str, TypeRule]) -> dict[str, float]:
    """The shares that types ask for.

    Args:
        per_type: Rule by type.

    Returns:
        Share by type, of those that have one.

    Raises:
        InvalidOption: They add up to more than the whole budget.
    """
    shares = {name: rule.share for name, rule in per_type.items() if rule.share is not None}
    if (total := math.fsum(shares.values())) > 1 + 1e-9:
        raise InvalidOption(
            f"the shares of per_type add up to {total:g}; together they may have at most 1: "
            f"{shares}"
        )
    return shares
