"""A budget in one word, as people write it: ``8``, ``250k``, ``8_000_000``, ``1%``, ``64MB``.

Requests, look-ups and commands read it by this one function, so that a word that one of them
takes means the same to all.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fimlora_contract.base import RequestModel, json_kind

BudgetUnit = Literal["rank", "parameters", "fraction", "bytes"]
BUDGET_UNITS: tuple[BudgetUnit, ...] = ("rank", "parameters", "fraction", "bytes")
HIGHEST_MEAN_RANK = 4096
SPELLINGS = (
    "8 (mean rank), 250k, 8M, 2G or 8_000_000 (trainable parameters), 1% (of the base model's "
    "parameters), 64MB or 64MiB (bytes of A and B)"
)
# What a budget may end with: the unit that it is in then, and what one of it is.
SUFFIXES: dict[str, tuple[BudgetUnit, Decimal]] = {
    "k": ("parameters", Decimal(10**3)),
    "m": ("parameters", Decimal(10**6)),
    "g": ("parameters", Decimal(10**9)),
    "%": ("fraction", Decimal("0.01")),
    "kb": ("bytes", Decimal(10**3)),
    "mb": ("bytes", Decimal(10**6)),
    "gb": ("bytes", Decimal(10**9)),
    "kib": ("bytes", Decimal(2**10)),
    "mib": ("bytes", Decimal(2**20)),
    "gib": ("bytes", Decimal(2**30)),
}
LONGEST = 64
TEXT = re.compile(
    r"((?P<unit>rank|parameters|fraction|bytes):)?"
    r"(?P<amount>[0-9]{1,3}(_[0-9]{3}){1,4}|[0-9]{1,15}(\.[0-9]{1,12})?|\.[0-9]{1,12})"
    r" ?(?P<suffix>[A-Za-z%]{0,3})"
)


def read_budget(text: str) -> dict[str, Any]:
    """A budget in one word as the fields of a request: one unit and its amount.

    Digits alone are a mean rank; what has ``_`` between its digits is a number of parameters.
    ``parameters:8M`` and the like name the unit.

    Raises:
        ValueError: The text is none; the message names what is.
    """
    found = TEXT.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if found is None or found["suffix"].lower() not in {"", *SUFFIXES}:
        raise ValueError(f"is no budget; write {SPELLINGS}")
    plain: BudgetUnit = "parameters" if "_" in found["amount"] else "rank"
    meant, factor = SUFFIXES.get(found["suffix"].lower(), (found["unit"] or plain, Decimal(1)))
    if found["unit"] not in {None, meant}:
        raise ValueError(f"names two units, {found['unit']} and {meant}; write {SPELLINGS}")
    amount = Decimal(found["amount"].replace("_", "")) * factor
    if meant == "fraction":
        if amount > 1:
            raise ValueError("is more than 100% of the base model's parameters")
        return {"fraction": float(amount)}
    if amount != int(amount):
        raise ValueError(f"is no whole number of {_plural(meant)}; write {SPELLINGS}")
    if meant == "rank":
        check_mean_rank_is_one(int(amount))
    return {meant: int(amount)}


def check_mean_rank_is_one(rank: int) -> None:
    """Refuse a number alone that can only have been meant as something else.

    Raises:
        ValueError: No mean rank is so high.
    """
    if rank > HIGHEST_MEAN_RANK:
        raise ValueError(
            f"is too high: a number alone is the mean rank, at most {HIGHEST_MEAN_RANK}; parameters are "
            "written 250k, 8M or 8_000_000"
        )


def budget_words(fields: dict[str, Any]) -> str:
    """A budget for people, with the unit that was understood."""
    unit = next(unit for unit in BUDGET_UNITS if fields.get(unit) is not None)
    amount = fields[unit]
    if unit == "rank":
        return f"mean rank {amount}"
    if unit == "fraction":
        return f"{100 * amount:.10g} % of the base model's parameters"
    return f"{amount:,} {unit}" + (" of A and B" if unit == "bytes" else "")


def _plural(unit: str) -> str:
    return "ranks" if unit == "rank" else unit


class Budget(RequestModel):
    """What the plan may spend; exactly one of the four units is given."""

    rank: Annotated[int, Field(ge=1, le=HIGHEST_MEAN_RANK)] | None = None
    parameters: Annotated[int, Field(ge=1, le=10**13)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    bytes: Annotated[
        Annotated[int, Field(ge=1, le=10**14)] | None,
        Field(description="Bytes of the LoRA matrices A and B, unpadded."),
    ] = None
    bytes_per_parameter: Literal[2, 4] = 4

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [unit for unit in BUDGET_UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            raise ValueError(
                f"budget names {given or 'no unit'}; give exactly one of {list(BUDGET_UNITS)}"
            )
        return self

    @property
    def unit(self) -> BudgetUnit:
        """The unit that was given."""
        return next(unit for unit in BUDGET_UNITS if getattr(self, unit) is not None)

    @property
    def value(self) -> float:
        """The amount in that unit."""
        return float(getattr(self, self.unit))


def expand_budget(value: Any) -> Any:
    """Turn a bare integer, the mean rank, or a budget in one word into a budget object.

    Raises:
        ValueError: The value is none of these and no object.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        check_mean_rank_is_one(value)
        return {"rank": value}
    if isinstance(value, str):
        return read_budget(value)
    if isinstance(value, dict | Budget):
        return value
    raise ValueError(
        "must be an integer (the mean rank), an object with exactly one of "
        f"{list(BUDGET_UNITS)}, or text: {SPELLINGS}; it is {json_kind(value)}"
    )


AnyBudget = Annotated[
    Budget, BeforeValidator(expand_budget, json_schema_input_type=int | str | Budget)
]
