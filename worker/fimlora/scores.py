"""Scores: what methods make of statistics, and all that ranks are allocated by.

They are small where statistics may be large. The rules by which that is done are named here,
as both sides go by them. Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule

RULES = ("proportional", "spectral", "layers", "uniform", "random")
Spectra = Mapping[str, Sequence[float] | NDArray[np.float64]]  # by module name


@dataclass(frozen=True, slots=True)
class Scores:
    """How much each target module matters.

    Attributes:
        modules: The target modules, in the model's order.
        by_module: Score per module name, finite and not negative; only their ratios count.
        spectra: Singular values per module name, in any order: what the rule ``spectral``
            takes in place of scores.
        by_layer: Score per layer, by the name of its block: what the rule ``layers`` chooses by
            where a layer's score is more than the sum of those of its modules.
        base_parameters: Parameters of the base model; only a ``fraction`` budget needs them.
        provenance: Facts about the measurement, to be kept with a plan.
        not_targeted: Reason by name of what was meant to be a target but is none.
        rule: The rule that ranks are shared by if no other is asked for.
        method: The method that made them; ``None`` for numbers of one's own.
    """

    modules: Sequence[TargetModule]
    by_module: Mapping[str, float] = field(default_factory=dict)
    spectra: Spectra = field(default_factory=dict)
    by_layer: Mapping[str, float] = field(default_factory=dict)
    base_parameters: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    not_targeted: Mapping[str, str] = field(default_factory=dict)
    rule: str = "proportional"
    method: str | None = None


def check_rule(rule: str) -> None:
    """Refuse a rule that nobody knows.

    Args:
        rule: Its name.

    Raises:
        InvalidOption: It is none of `RULES`.
    """
    if rule not in RULES:
        raise InvalidOption(f"rule {rule!r} is unknown; expected one of {', '.join(RULES)}")
