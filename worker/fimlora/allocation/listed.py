"""Target modules with what every plan of them asks for: names, costs and sizes as lists and arrays.

A slider asks for one plan after another of the same modules, and a model has up to a hundred
thousand: what depends on the modules alone is found once. Nothing here imports torch.
"""

from collections.abc import Iterable
from functools import cached_property
from operator import attrgetter
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
        costs = np.add(*self._shapes)
        if {*map(attrgetter("n_experts"), self), *map(attrgetter("experts"), self)} <= {None}:
            return costs
        return costs * np.array([module.n_trained for module in self], dtype=np.int64)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The highest rank that each could have."""
        return np.minimum(*self._shapes)

    @cached_property
    def _shapes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Features in and out."""
        d_in, d_out = (map(attrgetter(name), self) for name in ("d_in", "d_out"))
        return (
            np.fromiter(d_in, dtype=np.int64, count=len(self)),
            np.fromiter(d_out, dtype=np.int64, count=len(self)),
        )
