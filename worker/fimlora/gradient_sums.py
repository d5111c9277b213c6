"""What a run records beyond energies, on request: mean gradients and input moments.

Symbols: T tokens of all examples at hand, I and O input and output features, ``x`` (T I)
module input, ``g`` (T O) gradient of the summed per-example losses at its output, so that
``g^T x`` (O I) is the summed weight gradient; Y, Z, Omega, Psi as in `fimlora.spectra`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fimlora.energies import is_same_memory
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.plan import TargetModule
from fimlora.products import widen
from fimlora.shapes import Float
from fimlora.spectra import (
    SKETCH_WIDTH,
    Spectrum,
    draw_signs,
    exact_spectrum,
    sketched_spectrum,
)
from fimlora.staged import StagedSum
from fimlora.targets import base_model_of

# Memory for mean gradients; above it they are sketched. A pass needs as much again, for
# what it adds to them.
SPECTRA_BYTES = 2**30
_BYTES_PER_ENTRY = 4
Groups = dict[str, dict[str, NDArray[np.float64]]]


class Record(StrEnum):
    """What `fimlora.measure` records on request."""

    SPECTRA = "spectra"
    """The leading singular values of each module's mean weight gradient (experimental)."""
    MOMENTS = "moments"
    """The second moments of each module's input features."""


def parse_record(record: str | Collection[str]) -> frozenset[Record]:
    """Read a request.

    Args:
        record: One name or several.

    Returns:
        What to record.

    Raises:
        InvalidOption: A name is not known.
    """
    names = {record} if isinstance(record, str) else set(record)
    if unknown := sorted(names - set(Record)):
        allowed = ", ".join(repr(str(name)) for name in Record)
        raise InvalidOption(f"record={unknown[0]!r}; allowed are {allowed}")
    return frozenset(map(Record, names))


def check_record(record: frozenset[Record], model: nn.Module) -> None:
    """Refuse to record what would be wrong for a model.

    Args:
        record: What to record.
        model: The model, wrapped by PEFT or not.

    Raises:
        UnsupportedModule: Moments are wanted of an encoder-decoder.
    """
    base = base_model_of(model)
    is_encoder_decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    if is_encoder_decoder and Record.MOMENTS in record:
        raise UnsupportedModule(
            f"record='moments' leaves out padding by one attention mask, and {type(base).__name__} "
            "has tokens of two kinds; record='spectra' is allowed"
        )


class GradientSum(Protocol):
    """The weight gradient of one module, summed over tokens and batches."""

    def add(self, x: Tensor, g: Tensor) -> None:
        """Add ``g^T x``, once the pass is over."""

    def sums(self) -> tuple[StagedSum, ...]:
        """Give the sums it is made of."""

    def spectrum(self, n_examples: int) -> Spectrum:
        """Give the spectrum of the mean over the examples."""


class ExactSum:
    """The gradient itself."""

    def __init__(self) -> None:
        self._sum = StagedSum()  # (O I)

    def add(self, x: Float[Tensor, "T I"], g: Float[Tensor, "T O"]) -> None:
        """Add ``g^T x``, once the pass is over."""
        self._sum.stage_product(widen(g).mT, widen(x))

    def sums(self) -> tuple[StagedSum, ...]:
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
        assert self._sum.total is not None, "the module got no gradient"
        return exact_spectrum(self._sum.total / n_examples)


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
        self._Y, self._Z = StagedSum(), StagedSum()  # (L P), (Q S)

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

    def sums(self) -> tuple[StagedSum, ...]:
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
        Y, Z = self._Y.total, self._Z.total
        assert Y is not None, "the module got no gradient"
        assert Z is not None
        Psi = self._signs.psi(Y.mT)  # (L Q)
        return sketched_spectrum(Y / n_examples, Z / n_examples, Psi.mT)


def sketch_is_smaller(module: TargetModule, *, width: int = SKETCH_WIDTH) -> bool:
    """Compare the entries of Y and Z with those of the gradient.

    Returns:
        Whether a sketch saves memory for a module of this size.
    """
    long, short = max(module.d_in, module.d_out), min(module.d_in, module.d_out)
    return width * long + (2 * width + 1) * short < long * short


def gradients_fit(modules: Iterable[TargetModule], spectra_bytes: int) -> bool:
    """Compare the memory for the gradients of all modules with what it may be.

    Returns:
        Whether none needs to be sketched.
    """
    return _BYTES_PER_ENTRY * sum(m.d_in * m.d_out for m in modules) <= spectra_bytes


class InputMoments:
    """Second moments of the features of one module's input.

    Padding does not count. An input that the mask does not fit, such as one vector per
    example or a table of positions, counts as a whole.
    """

    def __init__(self) -> None:
        self.squares = StagedSum()  # (I)
        self.n_tokens = StagedSum()

    def add(self, x: Float[Tensor, "N T I"], token_mask: Tensor | None) -> None:
        """Add the squares of the tokens that are not padding."""
        squares, counted = widen(x).square(), x.new_ones(x.shape[:2], dtype=torch.bool)
        if token_mask is not None and token_mask.shape == counted.shape:
            counted = token_mask.to(x.device) != 0
        squares = squares.mul_(counted[:, :, None]).sum(dim=(0, 1), dtype=torch.float64)
        self.squares.stage(squares)
        self.n_tokens.stage(counted.sum())

    def sums(self) -> tuple[StagedSum, ...]:
        """Give the sums it is made of.

        Returns:
            Squares and number of tokens.
        """
        return self.squares, self.n_tokens


class GradientSums:
    """The sums behind what was asked for, for all target modules.

    Args:
        modules: The target modules.
        record: What to record.
        spectra_bytes: Memory for mean gradients. If the gradients of all modules together
            take more, those that a sketch is smaller than are sketched.
        signs: Signs to sketch with, drawn before for other modules; the same are drawn anew
            when there are none.
    """

    def __init__(
        self,
        modules: Iterable[TargetModule],
        *,
        record: frozenset[Record],
        spectra_bytes: int = SPECTRA_BYTES,
        signs: Signs | None = None,
    ) -> None:
        modules = tuple(modules)
        self._signs = signs or Signs(SKETCH_WIDTH)
        self._gradients: dict[str, GradientSum] = {}
        self._moments: dict[str, InputMoments] = {}
        self._token_mask: Tensor | None = None
        if Record.MOMENTS in record:
            self._moments = {module.name: InputMoments() for module in modules}
        if Record.SPECTRA in record:
            fits = gradients_fit(modules, spectra_bytes)
            self._gradients = {
                module.name: ExactSum()
                if fits or not sketch_is_smaller(module)
                else SketchedSum(module, self._signs)
                for module in modules
            }

    def begin(self, token_mask: Tensor | None) -> None:
        """Expect a forward pass.

        Args:
            token_mask: Which tokens are not padding, if that is known.
        """
        self._token_mask = token_mask
        self._signs.forget()

    def add(self, name: str, x: Tensor, g: Tensor) -> None:
        """Take one call of a module.

        Args:
            name: The module's name.
            x: Its input, examples by tokens by features.
            g: The gradient of its output, likewise.
        """
        if name in self._gradients:
            self._gradients[name].add(x.flatten(0, 1), g.flatten(0, 1))
        if name in self._moments:
            self._moments[name].add(x, self._token_mask)

    def discard(self) -> None:
        """Forget what a pass that was not committed has added."""
        self._signs.forget()
        for _, staged in self._all_sums():
            staged.discard()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        self._signs.forget()
        for _, staged in self._all_sums():
            staged.commit()

    def state(self) -> dict[str, Tensor]:
        """Give the sums that `restore` goes on from, not copied."""
        sums = self._all_sums()
        return {key: staged.total for key, staged in sums if staged.total is not None}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from what another run's `state` gave.

        Args:
            sums: Its sums, which nobody else writes to; others may be among them.
        """
        for key, staged in self._all_sums():
            staged.total = sums.get(key)

    def _all_sums(self) -> Iterator[tuple[str, StagedSum]]:
        """Name every sum by its kind, its number in that kind, and its module."""
        for name, gradient in self._gradients.items():
            for i, staged in enumerate(gradient.sums()):
                yield f"gradient {i}/{name}", staged
        for name, moments in self._moments.items():
            for i, staged in enumerate(moments.sums()):
                yield f"moments {i}/{name}", staged

    def results(self, n_examples: int) -> Groups:
        """Give what `fimlora.Statistics` holds of this.

        Args:
            n_examples: Examples that were seen.

        Returns:
            Arrays by the name of the statistics' field and of the module.
        """
        groups: Groups = {
            "input_squares": {
                name: _array(moments.squares.total) for name, moments in self._moments.items()
            },
            "token_counts": {
                name: _array(moments.n_tokens.total) for name, moments in self._moments.items()
            },
            "spectra": {},
            "mean_energies": {},
            "spectrum_errors": {},
        }
        for name, gradient in self._gradients.items():
            spectrum = gradient.spectrum(n_examples)
            groups["spectra"][name] = _array(spectrum.values)
            groups["mean_energies"][name] = np.array([spectrum.energy])
            groups["spectrum_errors"][name] = np.array([spectrum.error])
        return groups


def _array(tensor: Tensor | None) -> NDArray[np.float64]:
    assert tensor is not None, "the module got no gradient"
    return tensor.double().cpu().reshape(-1).numpy()
