"""Keep what blocks are called with until they are run again for their gradients.

Up to a limit it stays in host memory, above it goes to disk. Tensors that are not
contiguous stay where they are: kernels may take another path for another layout, and the
second run must repeat the first one to the last bit. They are masks and their like.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fimlora.errors import UnsupportedModule


class SavedTensor:
    """A tensor that blocks were called with.

    Attributes:
        edge: Where its gradient goes; ``None`` when it needs none.
    """

    def __init__(self, tensor: Tensor, store: "BoundaryStore", *, move: bool) -> None:
        self.edge: GradientEdge | None = None
        if tensor.requires_grad:
            self.edge = get_gradient_edge(tensor)
        self._store = store
        self._version = tensor._version  # noqa: SLF001 - how autograd sees in-place changes
        self._device, self._dtype, self._shape = tensor.device, tensor.dtype, tensor.shape
        self._file: Path | None = None
        self._tensor: Tensor | None = tensor.detach()
        self.n_bytes = tensor.numel() * tensor.itemsize
        if move and tensor.is_contiguous():
            self._move(tensor.detach())

    def _move(self, tensor: Tensor) -> None:
        if not self._store.admits(self.n_bytes):
            self._file, self._tensor = self._store.new_file(), None
            content = tensor.cpu().flatten().view(torch.uint8).numpy()
            with self._file.open("wb") as file:  # numpy's own writer hides that a disk is full
                file.write(content.data)
        elif tensor.device.type == "cuda":
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor = host.copy_(tensor, non_blocking=True)
            self._version = host._version  # noqa: SLF001

    def fetch(self) -> Tensor:
        """Bring the tensor back.

        Returns:
            A tensor of its own on the device it came from, without a graph.

        Raises:
            UnsupportedModule: The model has written into it since.
        """
        if self._file is not None:
            read = torch.from_file(
                str(self._file), size=self.n_bytes, dtype=torch.uint8, shared=False
            )
            return read.view(self._dtype).view(self._shape).to(self._device)
        assert self._tensor is not None
        if self._tensor._version != self._version:  # noqa: SLF001
            raise UnsupportedModule("the model writes into the input of a block in place")
        return self._tensor.detach().to(self._device, non_blocking=True)

    def release(self) -> None:
        """Let go of it."""
        self._store.forget(self.n_bytes if self._file is None else 0)
        if self._file is not None:
            self._file.unlink()
        self._tensor = self._file = self.edge = None


class BoundaryStore:
    """Where saved tensors are.

    Attributes:
        held_bytes: What is held in memory.
        peak_bytes: The most that was held in memory at once.
        bytes_on_disk: What was written to disk.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.peak_bytes = self.bytes_on_disk = 0
        self._folder, self._max_bytes = folder, max_bytes
        self.held_bytes = self._n_files = 0

    def save(self, tensor: Tensor, *, move: bool) -> SavedTensor:
        """Keep a tensor.

        Args:
            tensor: The tensor; it must not be written to any more.
            move: Whether it may leave device and memory.

        Returns:
            A handle to bring it back by.
        """
        saved = SavedTensor(tensor, self, move=move)
        if saved._file is None:  # noqa: SLF001
            self.held_bytes += saved.n_bytes
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        else:
            self.bytes_on_disk += saved.n_bytes
        return saved

    def admits(self, n_bytes: int) -> bool:
        """Whether so many more bytes may stay in memory."""
        return self._max_bytes is None or self.held_bytes + n_bytes <= self._max_bytes

    def forget(self, n_bytes: int) -> None:
        """Count bytes as no longer held."""
        self.held_bytes -= n_bytes

    def new_file(self) -> Path:
        """Name a file that nobody else writes."""
        self._n_files += 1
        return self._folder / f"{self._n_files}.bin"


@contextmanager
def boundary_store(max_bytes: int | None, folder: Path | None) -> Iterator[BoundaryStore]:
    """Open a store whose files are gone when the block ends.

    Args:
        max_bytes: What may stay in memory; ``None`` for everything.
        folder: Where to put the rest; ``None`` for the system's temporary folder.

    Yields:
        The store.
    """
    with tempfile.TemporaryDirectory(prefix="fimlora-boundary-", dir=folder) as temporary:
        yield BoundaryStore(Path(temporary), max_bytes)
