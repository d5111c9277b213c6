"""The largest and the smallest singular value of every module's weight; no data enters.

They are read as eigenvalues of the weight's Gram matrix in float64, which takes a part of the time
of a decomposition. Squared, values that are 1e8 apart drown in its rounding, and so would in that
of any weight that is stored in float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fimlora.errors import NumericalFailure
from fimlora.measuring.recording.derived import Derived
from fimlora.measuring.recording.quantity import SeenCall
from fimlora.model.plain_weight import plain_weight
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups

_REACHED = "weights reached"


class WeightCondition(Derived):
    """Both ends of the weights' spectra, of the modules that a run has reached.

    Where no example is read at all, that is all of them.
    """

    reads_labels: ClassVar[bool] = False

    def __init__(self) -> None:
        self._reached: set[str] = set()
        self._ends: dict[str, NDArray[np.float64]] = {}

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:  # noqa: ARG002
        """Note that a module is used."""
        self._reached.add(name)

    def learned(self) -> dict[str, Any]:
        """Name the modules that are used."""
        return {_REACHED: sorted(self._reached)}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Take their names."""
        self._reached = set(learned[_REACHED])

    def learn_more(self, learned: Mapping[str, Any]) -> None:
        """Add names of such modules."""
        self._reached |= set(learned[_REACHED])

    def see_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Decompose the weights.

        Raises:
            NumericalFailure: One is not finite.
        """
        for name, module in modules.items():
            with plain_weight(module) as W:
                found = spectrum_ends(W)
            if not np.isfinite(found).all():
                raise NumericalFailure(f"the weight of {name!r} holds NaN or infinite numbers")
            self._ends[name] = found

    def results(self, n_examples: int) -> Groups:
        """Give the largest and the smallest value (2) per module."""
        names = [name for name in self._ends if name in self._reached or not n_examples]
        return {"weight_condition": {name: self._ends[name] for name in names}}


def spectrum_ends(W: Float[Tensor, "O I"]) -> NDArray[np.float64]:
    """Find the largest and the smallest singular value of a matrix.

    Args:
        W: The matrix.

    Returns:
        Both of them; NaN where the matrix is not finite.
    """
    W = W.double()
    gram = W.mT @ W if W.shape[0] > W.shape[1] else W @ W.mT
    if not gram.isfinite().all():
        return np.full(2, np.nan)
    squares = torch.linalg.eigvalsh(gram)[[-1, 0]].clamp_min(0)
    ends: NDArray[np.float64] = squares.sqrt().cpu().numpy()
    return ends
