"""Fused experts while they are recorded: each expert's matrix by itself, and as one in the end.

Symbols: E experts of a parameter, O output features, N examples, R rank.

B of fused experts is that of all of them side by side, so its Fisher information is the sum of
theirs. What is kept of it does not grow with the width of the model: one number per expert.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fimlora.model.experts.fused import slice_name
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

Array = NDArray[Any]
# Of each expert that some token has reached, in order, and the place of each among all of them.
Fold = Callable[[Sequence[Array], Sequence[int], int], Array]


class ExpertSlices:
    """The target modules with fused experts taken apart.

    Args:
        modules: The target modules.

    Attributes:
        slices: What is recorded: linear maps as they are, and every expert's matrix.
        names: Names of the matrices of experts.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        self._modules = tuple(modules)
        apart = [_slices_of(module) for module in modules]
        self.slices = [each for some in apart for each in some]
        self.names = frozenset(
            each.name
            for module, some in zip(modules, apart, strict=True)
            if module.n_experts is not None
            for each in some
        )
        owners = [i for i, some in enumerate(apart) for _ in some]
        self._owners = torch.tensor(owners, dtype=torch.long)

    def sum_checks(self, checks: Tensor) -> Tensor:
        """Add up numbers of slices, one for each module.

        Args:
            checks: A number per slice.

        Returns:
            A number per module; it is finite iff those of its slices are.
        """
        if not self.names:
            return checks
        sums = checks.new_zeros(len(self._modules))
        return sums.index_add_(0, self._owners.to(checks.device), checks)

    def fold(self, groups: Groups) -> Groups:
        """Put together what was recorded of the experts of a parameter.

        Args:
            groups: Arrays by group and slice; groups of parts have longer names.

        Returns:
            Arrays by group and module; a parameter has none where no token reached an expert.
        """
        if not self.names:
            return groups
        return {group: self._folded(group, found) for group, found in groups.items()}

    def _folded(self, group: str, found: Mapping[str, Array]) -> dict[str, Array]:
        # Where a group is empty, its name may be one that nobody folds.
        fold = _FOLDS.get(group.rpartition(".")[2])
        whole: dict[str, Array] = {}
        for module in self._modules:
            if module.n_experts is None:
                if module.name in found:
                    whole[module.name] = found[module.name]
                continue
            names = [slice_name(module.name, e) for e in range(module.n_experts)]
            reached = [e for e, name in enumerate(names) if name in found]
            if reached and fold is not None:
                arrays = [found[names[e]] for e in reached]
                whole[module.name] = fold(arrays, reached, module.n_experts)
        return whole


def _slices_of(module: TargetModule) -> list[TargetModule]:
    if module.n_experts is None:
        return [module]
    return [
        replace(module, name=slice_name(module.name, e), n_experts=None)
        for e in range(module.n_experts)
    ]


def _row_each(arrays: Sequence[Array], reached: Sequence[int], n_experts: int) -> Array:
    """The sum over an expert's first axis: (E) of (O), (E R) of (O R)."""
    rows = np.zeros((n_experts, *arrays[0].shape[1:]))
    rows[list(reached)] = [array.sum(axis=0) for array in arrays]
    return rows


def _sum(arrays: Sequence[Array], reached: Sequence[int], n_experts: int) -> Array:  # noqa: ARG001
    total: Array = np.sum(arrays, axis=0)
    return total


def _spectrum(
    arrays: Sequence[Array],
    reached: Sequence[int],  # noqa: ARG001
    n_experts: int,  # noqa: ARG001
) -> Array:
    """Root of the sum of squares: a rank of the parameter is one of every expert's matrix."""
    root: Array = np.sqrt(np.square(arrays).sum(axis=0))
    return root


def _largest(arrays: Sequence[Array], reached: Sequence[int], n_experts: int) -> Array:  # noqa: ARG001
    largest: Array = np.max(arrays, axis=0)
    return largest


_FOLDS: Mapping[str, Fold] = {
    "row_energies": _row_each,
    "batch_energies": _row_each,
    "squared_gradients": _row_each,
    "expert_tokens": _row_each,
    "example_energies": _sum,
    "mean_energies": _sum,
    "spectra": _spectrum,
    # No expert's leading energy is further off than this share of it, so neither is their sum.
    "spectrum_errors": _largest,
}
