"""The sums behind what a run records on request, for all its target modules at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fimlora.measuring.recording.batch_energies import BatchEnergies, Seen
from fimlora.measuring.recording.input_moments import InputMoments
from fimlora.measuring.recording.mean_gradient import ExactSum, GradientSum, Signs, SketchedSum
from fimlora.measuring.recording.pending_sum import StagedSum
from fimlora.memory.need import SKETCH_WIDTH, SPECTRA_BYTES, gradients_fit, sketch_is_smaller
from fimlora.plan import TargetModule
from fimlora.statistics.options import Record
from fimlora.statistics.statistics import Groups


class RecordedSums:
    """What was asked for, module by module.

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
        self._batches: dict[str, BatchEnergies] = {}
        self._weights, self._is_whole = torch.empty(0), True
        self._token_mask: Tensor | None = None
        if Record.MOMENTS in record:
            self._moments = {module.name: InputMoments() for module in modules}
        if Record.BATCH_ENERGIES in record:
            self._batches = {module.name: BatchEnergies() for module in modules}
        if Record.SPECTRA in record:
            fits = gradients_fit(modules, spectra_bytes)
            self._gradients = {
                module.name: ExactSum()
                if fits or not sketch_is_smaller(module)
                else SketchedSum(module, self._signs)
                for module in modules
            }

    def begin(self, weights: Tensor, token_mask: Tensor | None, *, is_whole: bool) -> None:
        """Expect a forward pass.

        Args:
            weights: What each of its examples counts in the loss of the batch.
            token_mask: Which tokens are not padding, if that is known.
            is_whole: Whether the pass holds all examples of the batch.
        """
        self._weights, self._token_mask, self._is_whole = weights, token_mask, is_whole
        self._signs.forget()

    def add(self, name: str, calls: Sequence[Seen]) -> None:
        """Take a module's part in a pass.

        Args:
            name: The module's name.
            calls: Input and output gradient of each of its calls, both examples by tokens by
                features.
        """
        if name in self._gradients:
            for x, g in calls:
                self._gradients[name].add(x.flatten(0, 1), g.flatten(0, 1))
        if name in self._moments:
            for x, _ in calls:
                self._moments[name].add(x, self._token_mask)
        if name in self._batches:
            self._batches[name].add(calls, self._weights, is_whole=self._is_whole)

    def discard(self) -> None:
        """Forget what a pass that was not committed has added."""
        self._signs.forget()
        for staged in self._staged():
            staged.discard()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        self._signs.forget()
        for staged in self._staged():
            staged.commit()

    def end_batch(self) -> dict[str, Tensor]:
        """Close a batch.

        Returns:
            For every module with sums of its own for the batch, one number that is finite iff
            they are.
        """
        return {name: energies.end_batch() for name, energies in self._batches.items()}

    def state(self) -> dict[str, Tensor]:
        """Give the sums that `restore` goes on from, not copied, between two batches."""
        totals = {key: staged.total for key, staged in self._sums_of_run()}
        totals |= {_key(name): energies.total for name, energies in self._batches.items()}
        return {key: total for key, total in totals.items() if total is not None}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from what another run's `state` gave.

        Args:
            sums: Its sums, which nobody else writes to; others may be among them.
        """
        for key, staged in self._sums_of_run():
            staged.total = sums.get(key)
        for name, energies in self._batches.items():
            energies.total = sums.get(_key(name))

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
            "batch_energies": {
                name: _array(energies.total) for name, energies in self._batches.items()
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

    def _staged(self) -> Iterator[StagedSum]:
        for _, staged in self._sums_of_run():
            yield staged
        for energies in self._batches.values():
            yield from energies.sums()

    def _sums_of_run(self) -> Iterator[tuple[str, StagedSum]]:
        """Name every sum over tokens by its kind, its number in that kind, and its module."""
        for name, gradient in self._gradients.items():
            for i, staged in enumerate(gradient.sums()):
                yield f"gradient {i}/{name}", staged
        for name, moments in self._moments.items():
            for i, staged in enumerate(moments.sums()):
                yield f"moments {i}/{name}", staged


def _key(name: str) -> str:
    return f"batch energies/{name}"


def _array(tensor: Tensor | None) -> NDArray[np.float64]:
    assert tensor is not None, "the module got no gradient"
    return tensor.double().cpu().reshape(-1).numpy()
