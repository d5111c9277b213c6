"""How many tokens are routed to each expert, padding left out."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fimlora.measuring.recording.derived import Derived
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import as_array
from fimlora.statistics.statistics import Groups


class ExpertTokens(Derived):
    """The tokens that each expert's matrix was given in the forward passes of a run.

    Args:
        names: Names of the matrices.
    """

    reads_labels = False

    def __init__(self, names: Sequence[str]) -> None:
        self._counts = {name: PendingSum() for name in names}  # (1)

    def see_routed(self, name: str, rows: Tensor) -> None:
        """Count an expert's tokens, unless they are padding."""
        mask = self.at_hand.token_mask
        n_rows = len(rows)
        # Experts that are not given one row per token are given no padding either.
        if mask is not None and (not n_rows or int(rows[-1]) < mask.numel()):
            n_rows = int(mask.reshape(-1).to(rows.device)[rows].sum())
        self._counts[name].stage(torch.tensor([n_rows], dtype=torch.float64))

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give the counts."""
        for name, count in self._counts.items():
            yield f"expert tokens/{name}", count

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give the tokens (1) of each matrix."""
        counts = ((name, count.total) for name, count in self._counts.items())
        return {"expert_tokens": {name: as_array(t) for name, t in counts if t is not None}}
