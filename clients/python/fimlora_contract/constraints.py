"""What ranks are to keep to besides a budget and its bounds: ties, a menu, rules per type."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fimlora_contract.base import RequestModel, json_kind

GROUP_PRESETS = ("type", "fused", "layer")
RANK_MENUS = ("powers-of-two", "vllm")
MOST_RANKS, MOST_TYPES = 64, 64
MOST_GROUPS, MOST_ENTRIES, MAX_ENTRY_CHARS = 1024, 4096, 256
# Each is looked up in all names of a model, where a plain entry is found at once.
MOST_PATTERNS = 64
_WILD = frozenset("*?[")

Entry = Annotated[str, Field(min_length=1, max_length=MAX_ENTRY_CHARS)]
Groups = Literal["type", "fused", "layer"] | list[list[Entry]]
RankMenu = Literal["powers-of-two", "vllm"] | list[Annotated[int, Field(ge=1, le=8192)]]


class TypeRule(RequestModel):
    """What the modules of one type keep to."""

    r_min: Annotated[
        Annotated[int, Field(ge=0, le=4096)] | None,
        Field(description="Their lowest rank, in place of that of the plan."),
    ] = None
    r_max: Annotated[
        Annotated[int, Field(ge=1, le=8192)] | None,
        Field(description="Their highest rank, in place of that of the plan."),
    ] = None
    share: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(description="The share of the budget that they get together."),
    ] = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.r_min is not None and self.r_max is not None and self.r_min > self.r_max:
            raise ValueError(f"r_min={self.r_min} is above r_max={self.r_max}")
        return self


class ExpertSelection(RequestModel):
    """Which experts of a mixture train: in each layer, for all its projections together."""

    select: Annotated[
        Literal["routed", "fisher", "random"],
        Field(
            description="By the tokens that the router gave them, by their Fisher information, or "
            "at random from allocation.seed: the control of both, which takes as many per layer."
        ),
    ]
    share: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(description="This share of the experts of each layer, rounded up."),
    ] = None
    coverage: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Field(
            description="In place of share: as few experts as have this share of the layer's "
            "tokens, or of its Fisher information."
        ),
    ] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.share is None) == (self.coverage is None):
            raise ValueError("give exactly one of share and coverage")
        return self


def check_groups(value: Any) -> Any:
    """Refuse what ties nothing, in one sentence for both forms.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    allowed = (
        f"must be one of {', '.join(GROUP_PRESETS)}, or a list of groups such as "
        '[["q_proj", "k_proj"]]'
    )
    if isinstance(value, str) and value in GROUP_PRESETS:
        return value
    if not isinstance(value, list):
        given = repr(value) if isinstance(value, str) else json_kind(value)
        raise ValueError(f"{allowed}; it is {given}")
    if len(value) > MOST_GROUPS:
        raise ValueError(f"must have at most {MOST_GROUPS} groups; it has {len(value)}")
    for number, group in enumerate(value, 1):
        if not isinstance(group, list) or not group:
            kind = "empty" if group == [] else json_kind(group)
            raise ValueError(f"{allowed}; its group {number} is {kind}")
        for entry in group:
            if not isinstance(entry, str) or not 1 <= len(entry) <= MAX_ENTRY_CHARS:
                raise ValueError(
                    f"group {number} must have names of 1 to {MAX_ENTRY_CHARS} characters"
                )
    entries = [entry for group in value for entry in group]
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"must have at most {MOST_ENTRIES} names; it has {len(entries)}")
    check_patterns(entries)
    return value


def check_menu(value: Any) -> Any:
    """Refuse what is no list of ranks in rising order, in one sentence for both forms.

    Raises:
        ValueError: Says what was given and what is allowed.
    """
    if isinstance(value, str) and value in RANK_MENUS:
        return value
    is_list = isinstance(value, list) and all(type(rank) is int for rank in value)
    if not is_list:
        given = repr(value) if isinstance(value, str) else json_kind(value)
        raise ValueError(
            f"must be one of {', '.join(RANK_MENUS)}, or a list of whole ranks in rising order; "
            f"it is {given}"
        )
    if len(value) > MOST_RANKS:
        raise ValueError(f"must have at most {MOST_RANKS} ranks; it has {len(value)}")
    if value != sorted(set(value)) or not all(1 <= rank <= 8192 for rank in value):
        raise ValueError(f"must have ranks from 1 to 8192 in rising order; it is {value}")
    return value


def check_patterns(entries: list[str]) -> None:
    """Refuse more patterns than a service looks up for one request.

    Raises:
        ValueError: There are too many.
    """
    n = sum(not _WILD.isdisjoint(entry) for entry in entries)
    if n > MOST_PATTERNS:
        raise ValueError(
            f"must have at most {MOST_PATTERNS} entries with *, ? or [; it has {n}"
        )


def check_types(value: dict[str, TypeRule]) -> dict[str, TypeRule]:
    """Refuse shares that add up to more than the budget.

    Raises:
        ValueError: They do.
    """
    check_patterns(list(value))
    total = sum(rule.share for rule in value.values() if rule.share is not None)
    if total > 1 + 1e-9:
        raise ValueError(f"shares add up to {total:g}; together they may have at most 1")
    return value


AnyGroups = Annotated[Groups, BeforeValidator(check_groups, json_schema_input_type=Groups)]
AnyMenu = Annotated[RankMenu, BeforeValidator(check_menu, json_schema_input_type=RankMenu)]
