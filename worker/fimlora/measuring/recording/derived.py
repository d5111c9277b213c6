"""What is read at the end of a run from what other quantities have summed."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import GramOf, Quantity, SeenCall


class Derived(Quantity):
    """A quantity without sums of its own: it is given those that it reads."""

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep nothing."""
        return ()

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add nothing."""

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give none."""
        return iter(())
