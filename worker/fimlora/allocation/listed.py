"""Target modules with what every plan of them asks for: names, costs and sizes as lists and arrays.

A slider asks for one plan after another of the same modules, and a model has up to a hundred
thousand: what depends on the modules alone is found once. Nothing here imports torch.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.naming import Naming
from fimlora.plan import TargetModule


class Listed(tuple[TargetModule, ...]):
    """Target modules, in the model's order; equal to a plain tuple of them."""

    @classmethod
    def of(cls, modules: Iterable[TargetModule]) -> "Listed":
        """Give what is one already as it is."""
        return modules if isinstance(modules, Listed) else cls(modules)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the modules alone."""
        return Listed, (tuple(self),)

    @cached_property
    def names(self) -> list[str]:
        """Their names."""
        return [module.name for module in self]

    @cached_property
    def families(self) -> dict[str, str]:
        """What each is part of, by name, of those for which that is known."""
        return {module.name: module.family for module in self if module.family is not None}

    @cached_property
    def naming(self) -> Naming:
        """Their names as solvers ask for them."""
        return Naming(self.names)

    @cached_property
    def costs(self) -> NDArray[np.int64]:
        """What one rank of each costs, in parameters."""
        return np.array([module.cost for module in self], dtype=np.int64)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The highest rank that each could have."""
        return np.array([m.d_in if m.d_in < m.d_out else m.d_out for m in self], dtype=np.int64)
