"""What estimators of each example's own gradient share: sums over examples, and each one's energy.

Symbols as in `fimlora.measuring.recording.energies`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import Quantity, SeenCall, as_array
from fimlora.plan import TargetModule
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups

_EXAMPLES = "examples/"


class FisherPerExample(Quantity):
    """Row energies ``||G[n, o, :]||^2``, summed over examples, and their sums per example.

    Args:
        modules: The target modules.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        self._modules = {module.name: module for module in modules}
        self._rows = {name: PendingSum() for name in self._modules}
        self._of_pass: dict[str, Tensor] = {}  # energy of each example, by module
        self._of_batch: dict[str, list[Tensor]] = {name: [] for name in self._modules}
        self._of_run: dict[str, list[Tensor]] = {name: [] for name in self._modules}

    @abstractmethod
    def row_energies(self, name: str, calls: Sequence[SeenCall]) -> Float[Tensor, "N O"]:
        """Give the row energies of each example's gradient, of which all calls are a part."""

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Square the gradients of each example over all calls."""
        rows = self.row_energies(name, calls)
        self._rows[name].stage(rows.sum(dim=0, dtype=torch.float64))
        self._of_pass[name] = rows.sum(dim=1)

    def end_batch(self, order: Tensor | None) -> dict[str, Tensor]:
        """Put the batch's examples behind those before."""
        checks = {}
        for name in self._modules:
            energies = _in_one(self._of_batch[name])
            energies = energies if order is None else energies[order.to(energies.device)]
            self._of_batch[name] = []
            self._of_run[name].append(energies)
            checks[name] = energies.sum()
        return checks

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give the row energies."""
        for name, rows in self._rows.items():
            yield f"rows/{name}", rows

    def discard(self) -> None:
        """Forget what a pass that was not committed has added."""
        super().discard()
        self._of_pass.clear()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        super().commit()
        nothing = self.at_hand.weights.new_zeros(len(self.at_hand.weights))
        for name, energies in self._of_batch.items():
            energies.append(self._of_pass.get(name, nothing))
        self._of_pass.clear()

    def state(self) -> dict[str, Tensor]:
        """Give rows and the energies of all examples so far."""
        self._of_run = {name: [_in_one(v)] if v else [] for name, v in self._of_run.items()}
        examples = {f"{_EXAMPLES}{name}": values for name, [values] in self._seen()}
        return super().state() | examples

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from rows and energies."""
        super().restore(sums)
        keys = {name: f"{_EXAMPLES}{name}" for name in self._modules}
        self._of_run = {name: [sums[k]] if k in sums else [] for name, k in keys.items()}

    def extend(self, sums: Mapping[str, Tensor]) -> None:
        """Add rows, and put the examples behind those before."""
        super().extend(sums)
        for name, energies in self._of_run.items():
            if (key := f"{_EXAMPLES}{name}") in sums:
                energies.append(sums[key])

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give row energies (O) and the energy of every example (N) per module."""
        names = [name for name, rows in self._rows.items() if rows.total is not None]
        return {
            "row_energies": {name: as_array(self._rows[name].total) for name in names},
            "example_energies": {name: as_array(_in_one(self._of_run[name])) for name in names},
        }

    def _seen(self) -> Iterator[tuple[str, list[Tensor]]]:
        return ((name, energies) for name, energies in self._of_run.items() if energies)


def _in_one(energies: Sequence[Tensor]) -> Tensor:
    """Put examples in one tensor; those that did not reach the module are zero anywhere."""
    device = next((e.device for e in energies if e.device.type != "cpu"), energies[0].device)
    return torch.cat([e.to(device) for e in energies])


def joined(calls: Sequence[Tensor], *, dim: int) -> Tensor:
    """Put tokens of all calls in one axis; nothing is copied when there is one call."""
    return calls[0] if len(calls) == 1 else torch.cat([*calls], dim=dim)
