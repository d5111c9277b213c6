"""Labels that say nothing about the examples they stand at: those of other examples.

A *target* is what a loss compares with: the label of an example, or one token that a language
model is to predict. Every target of a batch gives way to one of another example, of the batch
or of those before it, so that the loss has as many targets, at the same places, and about as
often the same ones. Nothing but the seed and the batches so far decides which.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fimlora.measuring.examples.losses import BY_TOKEN, IGNORED, Loss, predicted

# So many targets of batches before are remembered.
_N_REMEMBERED = 4096


@dataclass
class NullLabels:
    """Draws the null labels of one batch after the other.

    Attributes:
        loss: The loss, which knows where targets are.
        seed: The calibration's seed.
        counts: Targets so far, and how many of them have become another one.
    """

    loss: Loss
    seed: int
    counts: tuple[int, int] = field(default=(0, 0), init=False)
    # Targets of batches before, the latest first, and the examples that they come from.
    _before: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    @classmethod
    def of(cls, batch: Mapping[str, Any], loss: Loss, seed: int) -> "NullLabels | None":
        """Begin a run.

        Args:
            batch: Its first batch.
            loss: Its loss.
            seed: Its seed.

        Returns:
            What draws; ``None`` where a loss of the caller's own has no labels to exchange.
        """
        labels = batch.get("labels")
        return cls(loss, seed) if isinstance(labels, Tensor) and labels.dim() else None

    def draw(self, labels: Tensor, numbers: Tensor) -> Tensor:
        """Draw for the next batch.

        Args:
            labels: Those of its examples that carry one, in the order of the batch.
            numbers: Which examples of the run these are.

        Returns:
            As many, with the targets of other examples.
        """
        labels, drawn = labels.cpu(), labels.cpu().clone()
        if self.loss.kind in BY_TOKEN:
            at = (predicted(labels, self.loss.kind) != IGNORED).nonzero(as_tuple=True)
            own = predicted(labels, self.loss.kind)[at]
            new = self._exchange(own, owners=numbers[at[0]])
            predicted(drawn, self.loss.kind)[at] = new
        else:
            own = labels
            drawn = new = self._exchange(own, owners=numbers)
        n_changed = int((own != new).reshape(len(own), -1).any(dim=1).sum())
        self.counts = self.counts[0] + len(own), self.counts[1] + n_changed
        return drawn

    def _exchange(self, own: Tensor, owners: Tensor) -> Tensor:
        """Give every target another owner, and remember them for later batches."""
        pool, of = own, owners
        if self._before is not None and self._before[0].shape[1:] == own.shape[1:]:
            pool, of = (torch.cat(both) for both in zip((pool, of), self._before, strict=True))
        generator = torch.Generator().manual_seed(_seed(self.seed, int(owners[0])))
        new = pool[_others(of, generator)][: len(own)]
        self._before = pool[:_N_REMEMBERED], of[:_N_REMEMBERED]
        return new


def _seed(seed: int, number: int) -> int:
    """Name the draw of a batch by the calibration's seed and its first example."""
    digest = hashlib.sha256(f"null labels:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _others(owners: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a permutation that gives every place something of another owner.

    All are laid out in a circle, owner by owner, each in a random place; a turn by as many as
    the largest owner has leads out of every owner, if that is at most half of all.

    Returns:
        For every place, the one whose thing it gets.
    """
    _, number, counts = owners.unique(return_inverse=True, return_counts=True)
    shuffled = torch.randperm(len(owners), generator=generator)
    place = torch.randperm(len(counts), generator=generator)[number[shuffled]]
    circle = shuffled[place.argsort(stable=True)]
    found = torch.empty_like(circle)
    found[circle] = circle.roll(-int(counts.max()))
    return found
