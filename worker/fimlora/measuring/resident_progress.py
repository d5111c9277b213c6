"""How far a resident run is: counts its batches, saves its sums, and goes on from saved ones."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fimlora.measuring.examples.batches import Batch
from fimlora.measuring.examples.padding_check import PaddingCheck
from fimlora.measuring.micro_batch_size import MicroBatches
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resume.fingerprints import digest_batch
from fimlora.measuring.resume.progress_file import SavedSums
from fimlora.measuring.run_in_shards import RunInShards
from fimlora.model.random_states import random_states, restore_random_states

_N_DIGEST = 32  # bytes
_RANDOM = "random/"


class RunProgress:
    """Counts batches; with a file, also saves the sums after them and skips what it holds.

    Args:
        recorder: Holds the sums.
        sizes: Knows how many examples run at once.
        total: Batches the run will take.
        shards: The run, where it is measured in shards.
        saved: The run's file; ``None`` for a run that is not saved.
        on_batch: Called with (batches done, batches expected) after each batch.

    Attributes:
        n_done: Batches that are done.
        n_used: Those of them that hold a labelled example.
        n_examples: Labelled examples.
        padding: What is known of the model's padding.
    """

    def __init__(
        self,
        recorder: Recorder,
        sizes: MicroBatches,
        *,
        total: int,
        shards: RunInShards | None = None,
        saved: SavedSums | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.n_done = self.n_used = self.n_examples = 0
        self.padding = PaddingCheck()
        self._recorder, self._sizes, self._saved = recorder, sizes, saved
        self._total, self._shards, self._on_batch = total, shards, on_batch
        self._expected = total if shards is None else shards.n_batches(total)
        self._seen: list[bytes] = []  # digests of the batches, in order
        self._before: list[bytes] = []  # those that the file holds the sums of
        self._random: dict[str, Tensor] = {}

    def name_of(self, number: int) -> str:
        """What to call a batch, counted from 0, in an error."""
        return f"batch {number + 1} of {self._total}"

    def resume(self) -> None:
        """Go on from the file, if there is one.

        Raises:
            InvalidProgress: It is damaged, or comes from another run.
        """  # noqa: DOC502 - `SavedSums` raises
        found = self._saved.load() if self._saved is not None else None
        if found is None or self._saved is None:
            return
        tensors, facts = found
        digests = tensors.pop("batches").view(-1, _N_DIGEST)
        self._before = [bytes(row.tolist()) for row in digests]
        keys = [key for key in tensors if key.startswith(_RANDOM)]
        self._random = {key.removeprefix(_RANDOM): tensors.pop(key) for key in keys}
        self.n_done, self.n_used, self.n_examples = facts["counts"]
        self._recorder.restore(tensors, facts["recorder"])
        self._sizes.size, self._sizes.largest = facts["micro_batches"]
        same, self.padding.is_read = facts["padding"]
        self.padding.same = [(low, high) for low, high in same]

    def look_at(self, batch: Batch) -> None:
        """Note a batch of a run in shards, whether it is run here or not."""
        if self._shards is not None:
            self._shards.batches.append(digest_batch(batch).hex())

    def skips(self, batch: Batch) -> bool:
        """Look at the next batch of the loader.

        Args:
            batch: The batch.

        Returns:
            Whether the sums hold it already.

        Raises:
            InvalidProgress: Another one was in its place when the sums were saved.
        """  # noqa: DOC502 - `SavedSums` makes it
        if self._saved is None:
            return False
        digest, n = digest_batch(batch), len(self._seen)
        if n < len(self._before) and digest != self._before[n]:
            raise self._saved.refusal(f"batch {n + 1}", self._before[n].hex(), digest.hex())
        self._seen.append(digest)
        if len(self._seen) == len(self._before):
            # Only now: the loader may have drawn from it too.
            restore_random_states(self._random)
            self._saved.tell_resumed(self.n_done, self._expected)
        return n < len(self._before)

    def count(self, n_labelled: int) -> None:
        """Note a finished batch; save, if it is time, and tell the caller.

        Args:
            n_labelled: Its examples that carry a label.
        """
        self.n_done += 1
        self.n_used += n_labelled > 0
        self.n_examples += n_labelled
        if self._saved is not None and self._saved.is_due():
            self._saved.save_if_due(*self._state(self._saved))
        if self._on_batch is None:
            return
        try:
            self._on_batch(self.n_done, self._expected)
        except BaseException:
            if self._saved is not None:
                self._saved.save_quietly(*self._state(self._saved))
            raise

    def check_complete(self) -> None:
        """See that the loader gave every batch that the sums hold.

        Raises:
            InvalidProgress: It gave fewer.
        """  # noqa: DOC502 - `SavedSums` makes it
        if self._saved is not None and len(self._seen) < len(self._before):
            n_before, n_seen = len(self._before), len(self._seen)
            raise self._saved.refusal("number of batches", n_before, n_seen)

    def _state(self, saved: SavedSums) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        sums, learned = self._recorder.state()
        batches = torch.frombuffer(bytearray(b"".join(self._seen)), dtype=torch.uint8)
        counts = [self.n_done, self.n_used, self.n_examples]
        states = random_states(*saved.devices).items()
        random = {f"{_RANDOM}{device}": state for device, state in states}
        tensors = {"batches": batches, **random, **sums}
        sizes = [self._sizes.size, self._sizes.largest]
        padding = [self.padding.same, self.padding.is_read]
        return tensors, {
            "counts": counts, "recorder": learned, "micro_batches": sizes, "padding": padding
        }  # fmt: skip
