"""The per-example Fisher information of LoRA-B, with the random A integrated out.

Symbols as in `fimlora.measuring.recording.energies`; K is the Gram matrix of an input's tokens.
Row energies of every example are summed over the run, and each example's energy is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fimlora.measuring.recording.energies import (
    gram_blocks,
    gram_is_cheaper,
    row_energies_by_gram,
    row_energies_directly,
)
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import GramOf, Quantity, SeenCall, as_array
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

_EXAMPLES = "examples/"


class FisherExact(Quantity):
    """Row energies ``||G[n, o, :]||^2``, summed over examples, and their sums per example.

    Where K is cheaper than the gradients themselves, K is kept of an input, not the input. A
    module that runs twice in a pass needs its inputs, as the gradients of all calls add up
    before they are squared.

    Args:
        modules: The target modules.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        self._modules = {module.name: module for module in modules}
        self._rows = {name: PendingSum() for name in self._modules}
        self._repeated: set[str] = set()
        self._of_pass: dict[str, Tensor] = {}  # energy of each example, by module
        self._of_batch: dict[str, list[Tensor]] = {name: [] for name in self._modules}
        self._of_run: dict[str, list[Tensor]] = {name: [] for name in self._modules}

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:
        """Keep K, or the input where that is cheaper."""
        return tuple(gram()) if self._by_gram(name, x) else (x,)

    def learn(self, calls: Mapping[str, int]) -> bool:
        """Find modules that ran more than once."""
        repeated = {name for name, n in calls.items() if n > 1}
        is_new = not repeated <= self._repeated
        self._repeated |= repeated
        return is_new

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Square the gradients of each example over all calls."""
        kept, g = [*chain(*(call.kept for call in calls))], _joined([call.g for call in calls])
        if self._by_gram(name, g):
            rows = row_energies_by_gram(kept, g)
        else:
            rows = self._row_energies_of_input(name, _joined(kept), g)
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

    def learned(self) -> dict[str, Any]:
        """Name the modules that run more than once."""
        return {"repeated": sorted(self._repeated)}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Take their names."""
        self._repeated = set(learned["repeated"])

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give row energies (O) and the energy of every example (N) per module."""
        names = [name for name, rows in self._rows.items() if rows.total is not None]
        return {
            "row_energies": {name: as_array(self._rows[name].total) for name in names},
            "example_energies": {name: as_array(_in_one(self._of_run[name])) for name in names},
        }

    def _seen(self) -> Iterator[tuple[str, list[Tensor]]]:
        return ((name, energies) for name, energies in self._of_run.items() if energies)

    def _by_gram(self, name: str, tokens: Tensor) -> bool:
        module = self._modules[name]
        if name in self._repeated:
            return False
        return gram_is_cheaper(tokens.shape[1], module.d_in, module.d_out)

    def _row_energies_of_input(self, name: str, x: Tensor, g: Tensor) -> Tensor:
        module = self._modules[name]
        if gram_is_cheaper(x.shape[1], module.d_in, module.d_out):
            return row_energies_by_gram(gram_blocks(x), g)
        return row_energies_directly(x, g)


def _in_one(energies: Sequence[Tensor]) -> Tensor:
    """Put examples in one tensor; those that did not reach the module are zero anywhere."""
    device = next((e.device for e in energies if e.device.type != "cpu"), energies[0].device)
    return torch.cat([e.to(device) for e in energies])


def _joined(calls: Sequence[Tensor]) -> Tensor:
    """Tokens of all calls in one axis; nothing is copied when there is one call."""
    return calls[0] if len(calls) == 1 else torch.cat([*calls], dim=1)
