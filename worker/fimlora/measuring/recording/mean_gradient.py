"""The mean weight gradient of a module, whole or as a sketch: one sum for all that is read of it.

Symbols: T tokens of all examples at hand, I and O input and output features, ``x`` (T I)
module input, ``g`` (T O) gradient of the summed per-example losses at its output, so that
``g^T x`` (O I) is the summed weight gradient; Y, Z, Omega, Psi as in
`fimlora.measuring.recording.singular_values`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import Pass, Quantity, SeenCall, present
from fimlora.measuring.recording.singular_triplets import (
    Triplets,
    exact_triplets,
    sketched_triplets,
)
from fimlora.measuring.recording.singular_values import (
    Spectrum,
    exact_spectrum,
    sketched_spectrum,
)
from fimlora.memory.need import (
    SKETCH_WIDTH,
    SPECTRA_BYTES,
    gradients_fit,
    sketch_is_smaller,
)
from fimlora.numerics.last_input import is_same_memory
from fimlora.numerics.products import widen
from fimlora.numerics.seeded_draws import draw_signs
from fimlora.plan import TargetModule
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups


class Sketch(NamedTuple):
    """What is left of a gradient G, turned so that its longer side comes first.

    Attributes:
        Y: ``G Omega`` (L P).
        Z: ``Psi G`` (Q S).
        Psi: The signs behind Z (Q L).
        is_wide: Whether the longer side is that of the input features.
    """

    Y: Tensor
    Z: Tensor
    Psi: Tensor
    is_wide: bool


class ExactSum:
    """The gradient itself."""

    def __init__(self) -> None:
        self._sum = PendingSum()  # (O I)

    def add(self, x: Float[Tensor, "T I"], g: Float[Tensor, "T O"]) -> None:
        """Add ``g^T x``, once the pass is over."""
        self._sum.stage_product(widen(g).mT, widen(x))

    def sums(self) -> tuple[PendingSum, ...]:
        """Give the sums it is made of.

        Returns:
            The gradient.
        """
        return (self._sum,)

    def spectrum(self, n_examples: int) -> Spectrum:
        """Give the spectrum of the mean over the examples.

        Returns:
            The spectrum, without an error.
        """
        return exact_spectrum(self.total() / n_examples)

    def triplets(self, n_examples: int) -> Triplets:
        """Give the leading singular triplets of the mean over the examples.

        Returns:
            The triplets, without an error.
        """
        return exact_triplets(self.total() / n_examples)

    def total(self) -> Float[Tensor, "O I"]:
        """Give the gradient, not copied."""
        return present(self._sum.total)


class Signs:
    """The sign matrices of a run, and the last products with them.

    Modules called in turn on one input, such as query, key and value, see it through the
    same signs; the products are computed once.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._drawn: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}
        self._last: tuple[Tensor, dict[int, Tensor]] | None = None

    def omega(self, tensor: Float[Tensor, "T S"]) -> Float[Tensor, "S P"]:
        """Draw the signs that a tensor's features are mixed by for Y."""
        return self._get(tensor, self.width)

    def psi(self, tensor: Float[Tensor, "T L"]) -> Float[Tensor, "L Q"]:
        """Draw the signs that a tensor's features are mixed by for Z, transposed."""
        return self._get(tensor, 2 * self.width + 1)

    def mix_input(self, x: Float[Tensor, "T I"], signs: Tensor) -> Float[Tensor, "T M"]:
        """Multiply a module's input by signs, unless that was just done."""
        last = self._last
        if last is None or not is_same_memory(last[0], x):
            last = self._last = (x, {})
        found = last[1].get(signs.shape[1])
        if found is None:
            found = last[1][signs.shape[1]] = widen(x) @ signs
        return found

    def forget(self) -> None:
        """Let go of the last input."""
        self._last = None

    def _get(self, tensor: Tensor, n_columns: int) -> Tensor:
        key = (tensor.shape[1], n_columns, tensor.device, widen(tensor[:0]).dtype)
        if key not in self._drawn:
            purpose = "omega" if n_columns == self.width else "psi"
            drawn = draw_signs(tensor.shape[1], n_columns, purpose=purpose)
            self._drawn[key] = drawn.to(key[2], key[3])
        return self._drawn[key]


class SketchedSum:
    """Two products of the gradient with random signs, from which its spectrum is read."""

    def __init__(self, module: TargetModule, signs: Signs) -> None:
        self._is_wide = module.d_in > module.d_out  # then it is the transpose that is G
        self._signs = signs
        self._Y, self._Z = PendingSum(), PendingSum()  # (L P), (Q S)

    def add(self, x: Float[Tensor, "T I"], g: Float[Tensor, "T O"]) -> None:
        """Add what ``g^T x`` is to the sketch, at P + Q products per token and feature."""
        long, short = (x, g) if self._is_wide else (g, x)
        Omega, Psi = self._signs.omega(short), self._signs.psi(long)
        if self._is_wide:
            by_psi, by_omega = self._signs.mix_input(x, Psi), widen(g) @ Omega
        else:
            by_psi, by_omega = widen(g) @ Psi, self._signs.mix_input(x, Omega)
        long, short = widen(long), widen(short)
        self._Y.stage_product(long.mT, by_omega)
        self._Z.stage_product(by_psi.mT, short)

    def sums(self) -> tuple[PendingSum, ...]:
        """Give the sums it is made of.

        Returns:
            Y and Z.
        """
        return self._Y, self._Z

    def spectrum(self, n_examples: int) -> Spectrum:
        """Give the spectrum of the mean over the examples.

        Returns:
            The spectrum, with the error that is stated for it.
        """
        Y, Z, Psi, _ = self.sketch(n_examples)
        return sketched_spectrum(Y, Z, Psi)

    def triplets(self, n_examples: int) -> Triplets:
        """Give the leading singular triplets of the mean over the examples.

        Returns:
            The triplets, with the error that is stated for their energy.
        """
        Y, Z, Psi, is_wide = self.sketch(n_examples)
        found = sketched_triplets(Y, Z, Psi)
        return found.of_transpose() if is_wide else found

    def sketch(self, n_examples: int) -> Sketch:
        """Give the sketch of the mean over the examples."""
        Y, Z = present(self._Y.total), present(self._Z.total)
        Psi = self._signs.psi(Y.mT)  # (L Q)
        return Sketch(Y / n_examples, Z / n_examples, Psi.mT, self._is_wide)


class MeanGradient(Quantity):
    """The summed weight gradient of every module.

    It says nothing by itself: quantities that read it at the end are given it.

    Args:
        modules: The target modules.
        spectra_bytes: Memory for the gradients. If those of all modules together take more,
            those that a sketch is smaller than are sketched.
        signs: Signs to sketch with, drawn before for other modules; the same are drawn anew
            when there are none.
        whole: Whether none may be sketched, as something needs them whole.
    """

    def __init__(
        self,
        modules: Sequence[TargetModule],
        *,
        spectra_bytes: int = SPECTRA_BYTES,
        signs: Signs | None = None,
        whole: bool = False,
    ) -> None:
        fits = whole or gradients_fit(modules, spectra_bytes)
        self._signs = signs or Signs(SKETCH_WIDTH)
        self._gradients: dict[str, ExactSum | SketchedSum] = {
            module.name: ExactSum()
            if fits or not sketch_is_smaller(module)
            else SketchedSum(module, self._signs)
            for module in modules
        }

    def begin(self, at_hand: Pass) -> None:
        """Expect a forward pass."""
        super().begin(at_hand)
        self._signs.forget()

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add the gradients of the calls."""
        for (x,), g in calls:
            self._gradients[name].add(x.flatten(0, 1), g.flatten(0, 1))

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give what each gradient is made of, by number."""
        for name, gradient in self._gradients.items():
            for i, pending in enumerate(gradient.sums()):
                yield f"gradient {i}/{name}", pending

    def discard(self) -> None:
        """Forget what a pass that was not committed has added."""
        super().discard()
        self._signs.forget()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        super().commit()
        self._signs.forget()

    def reached(self) -> Iterator[tuple[str, ExactSum | SketchedSum]]:
        """Give the gradient of every module that one has reached."""
        for name, gradient in self._gradients.items():
            if all(pending.total is not None for pending in gradient.sums()):
                yield name, gradient

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - others say what it is
        """Give nothing."""
        return {}
