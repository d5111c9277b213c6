"""The buffers that blocks are read into.

On a CUDA device a buffer has a pinned twin in host memory: files are read into the twin,
and a stream of its own copies it over while the compute stream works.
"""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fimlora.model.weight_reader import WeightSlice


@dataclass
class WeightBuffer:
    """A buffer, and the block that is in it.

    Attributes:
        n_bytes: Its size.
        host: Where files are read to.
        device: Where the block computes from; the same memory on a CPU.
        block: The block's name.
        filled: Done when the block's weights are read; gives what to wait for on CUDA.
        replaced: What the model had in their stead.
    """

    n_bytes: int
    host: Tensor
    device: Tensor
    block: str | None = None
    filled: "Future[Any] | None" = None
    replaced: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_size(cls, n_bytes: int, device: torch.device) -> "WeightBuffer":
        """Make an empty one.

        Args:
            n_bytes: Its size.
            device: Where blocks compute.

        Returns:
            The buffer.
        """
        on_gpu = device.type == "cuda"
        host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        return cls(n_bytes, host, torch.empty_like(host, device=device) if on_gpu else host)

    def give_back(self) -> None:
        """Let go of the memory that blocks compute from, until `prepare`."""
        is_shared, self.device = self.host is self.device, self.device.new_empty(0)
        if is_shared:
            self.host = self.device

    def prepare(self) -> None:
        """See that there is memory for a block."""
        if self.device.numel() < self.n_bytes:
            is_shared = self.host is self.device
            self.device = self.device.new_empty(self.n_bytes)
            if is_shared:
                self.host = self.device

    def copy_over(self, read: Iterable[WeightSlice], stream: Any, computed: Any) -> Any:
        """Copy the host's twin to the device, while it is being read.

        Args:
            read: Each weight's slice, as soon as the twin has it.
            stream: The CUDA stream to copy on.
            computed: When the buffer's last user is done.

        Returns:
            When the copy is done.
        """
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            for weight in read:
                part = slice(weight.start, weight.end)
                self.device[part].copy_(self.host[part], non_blocking=True)
            copied = stream.record_event()
        copied.synchronize()  # the twin may be overwritten from here on
        return copied
