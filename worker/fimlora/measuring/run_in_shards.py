"""A run that is measured in shards: one of them at work here, or all of them put together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.measuring.recording.addends import without_totals
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resume.merge import (
    Shard,
    ShardSums,
    in_order,
    shard_identity,
)
from fimlora.measuring.resume.progress_file import name_of
from fimlora.measuring.settings import Settings
from fimlora.plan import TargetModule


@dataclass(eq=False)
class RunInShards:
    """What is known of such a run.

    Attributes:
        identity: What its sums depend on.
        shard: The shard at work; ``None`` where all are put together.
        shards: What they came to, where they are.
        executor: How the run is measured here.
        batches: Digests of the batches so far.
    """

    identity: Mapping[str, Any]
    shard: Shard | None
    shards: Sequence[ShardSums]
    executor: str
    batches: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        settings: Settings,
        model: nn.Module,
        modules: Sequence[TargetModule],
        identity: Mapping[str, Any],
    ) -> "RunInShards | None":
        """Look whether a run is one.

        Args:
            settings: What is measured.
            model: The model, or its skeleton.
            modules: Its target modules.
            identity: What saved sums of the run depend on.

        Returns:
            The run; ``None`` where it is measured at once.
        """
        if settings.shard is None and not settings.shards:
            return None
        known = {**identity, "loss_fn": name_of(settings.loss_fn)}
        found = shard_identity(model, modules, known)
        return cls(found, settings.shard, settings.shards, str(identity["executor"]))

    def n_batches(self, total: int) -> int:
        """How many of all batches are run here."""
        if self.shard is None:
            return 0
        return max(0, min(total, self.shard.stop) - self.shard.start)

    def sums(self, recorder: Recorder, largest: int) -> ShardSums:
        """Give what a recorder of the shard has come to.

        Args:
            recorder: It, after the last batch.
            largest: Examples that went through the model at once.

        Returns:
            Its sums.
        """
        sums, learned = recorder.state()
        return self.sums_of(sums, [learned] if recorder.batch_sizes else [], largest)

    def sums_of(
        self, sums: Mapping[str, Tensor], learned: Sequence[Mapping[str, Any]], largest: int
    ) -> ShardSums:
        """Give what several recorders of the shard, of modules of their own, have come to."""
        assert self.shard is not None, "a shard is at work"
        kept = without_totals(sums)
        return ShardSums(
            self.shard, self.identity, self.batches, kept, learned, largest, self.executor
        )

    def merge(self, recorder: Recorder, device: torch.device) -> None:
        """Let a recorder go on from all shards, of which memory holds one at a time.

        Args:
            recorder: A new one, of some modules or all.
            device: Where it computes.
        """
        for each in in_order(self.shards, identity=self.identity, batches=self.batches):
            if each.learned:
                # Nothing here holds on to them while those of the next one are read.
                recorder.extend(_moved(each.sums_of(recorder.names), device), each.learned)

    @property
    def largest(self) -> int:
        """Examples that went through the model at once in any shard."""
        return max(each.largest for each in self.shards)


def _moved(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: tensor.to(device) for key, tensor in sums.items()}
