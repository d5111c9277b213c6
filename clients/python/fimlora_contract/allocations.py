"""How a budget is shared: the method, its bounds and what ranks keep to."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fimlora_contract.base import RequestModel, is_unknown
from fimlora_contract.constraints import (
    MOST_TYPES,
    AnyGroups,
    AnyMenu,
    Entry,
    ExpertSelection,
    TypeRule,
    check_types,
)
from fimlora_contract.methods import BY_SPECTRA, AskedMethod


class Allocation(RequestModel):
    """How the budget is shared."""

    method: Annotated[
        AskedMethod,
        Field(
            description="What ranks are shared by; docs/methods.md says what each looks at. All but "
            "fim and the two controls, uniform and random, are experimental: not shown to beat "
            "uniform."
        ),
    ] = "fim"
    aggregation: Literal["mean", "max", "l2"] = "mean"
    r_min: Annotated[
        Annotated[int, Field(ge=0, le=4096)] | None,
        Field(description="At least 1; 0 only with a method by spectra, for modules left out."),
    ] = None
    r_max: Annotated[int, Field(ge=1, le=8192)] | None = None
    multiple_of: Annotated[int, Field(ge=1, le=256)] = 1
    n_layers: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Field(
            description="How many layers a method by layers chooses; half of them if left out. "
            "r_min and r_max are of the modules in these layers then."
        ),
    ] = None
    rank_menu: Annotated[
        AnyMenu,
        Field(
            description="The ranks that are allowed, rising; or powers-of-two, or vllm: what that "
            "server allots. In place of multiple_of. What it misses of the budget is unspent."
        ),
    ] = []
    groups: Annotated[
        AnyGroups,
        Field(
            description="Modules that get one common rank: for each group a list of names, dotted "
            "endings, or either with * for any characters; or type: those of one kind over all "
            "layers; fused: what servers pack, q/k/v, gate/up and the experts of one layer; layer."
        ),
    ] = []
    per_type: Annotated[
        dict[Entry, TypeRule],
        AfterValidator(check_types),
        Field(
            max_length=MOST_TYPES,
            description="Floor, ceiling and share of the budget for the modules that a name, a "
            "dotted ending or a pattern with * names, or `family:` and the name of a family. The "
            "controls keep to them as well.",
        ),
    ] = {}
    max_lora_rank: Annotated[
        Annotated[int, Field(ge=1, le=8192)] | None,
        Field(description="The highest rank that a server allows: it caps every ceiling."),
    ] = None
    experts: Annotated[
        ExpertSelection | None,
        Field(
            exclude_if=is_unknown,
            description="Of a mixture, which experts train. A budget in parameters counts these "
            "alone. Of fused experts initial weights alone say which they are, so a job writes "
            "them: adapter.weights. Null: all experts.",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.r_min is not None and self.r_max is not None and self.r_min > self.r_max:
            raise ValueError(f"r_min={self.r_min} is above r_max={self.r_max}")
        if self.rank_menu and self.multiple_of != 1:
            raise ValueError("multiple_of beside a rank_menu: a menu has all ranks there are")
        self._check_floors()
        return self

    def _check_floors(self) -> None:
        """Refuse a floor of 0 where no module may be left out, and one that a server forbids."""
        floors = {
            f"per_type[{name!r}].r_min": rule.r_min for name, rule in self.per_type.items()
        }
        for name, floor in {"r_min": self.r_min, **floors}.items():
            if floor == 0 and self.method not in BY_SPECTRA:
                raise ValueError(
                    f"{name}=0 with method {self.method}: it must be at least 1; only method "
                    f"{' or '.join(BY_SPECTRA)} may leave modules out"
                )
            if floor is not None and floor > (self.max_lora_rank or floor):
                raise ValueError(f"{name}={floor} is above max_lora_rank={self.max_lora_rank}")
