"""Weights of one block at a time: two buffers, one computes while the other fills."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fimlora.measuring.streamed.buffers import WeightBuffer
from fimlora.measuring.streamed.embeddings_and_head import EmbeddingsAndHead
from fimlora.measuring.streamed.model_tensors import put, put_from
from fimlora.memory.host import return_freed_memory
from fimlora.model.hooks import before_calls
from fimlora.model.weight_reader import WeightReader, WeightSlice, lay_out

# An embedding or head below this may lie beside two blocks: reading one of them again, and
# filling the heap anew, would cost more than the memory is worth.
_LARGE_BYTES = 2**28


class BlockWeights:
    """Gives a skeleton its weights when they are needed, and takes them away again.

    The rest of the model (norms, poolers, small heads) is loaded once and stays; the
    embeddings and the output head are loaded when they run and let go with
    `release_embeddings_and_head`.

    Args:
        model: The skeleton.
        reader: Reads its weights.
        blocks: Its blocks by name.
        device: Where they compute.
        large_bytes: Blocks that may be wanted again make room for an embedding or head of
            at least this size.
    """

    def __init__(
        self,
        model: nn.Module,
        reader: WeightReader,
        blocks: Mapping[str, nn.Module],
        device: torch.device,
        *,
        large_bytes: int = _LARGE_BYTES,
    ) -> None:
        self._model, self._device, self._large_bytes = model, device, large_bytes
        self._reader = reader
        self._slices = {block: self._lay_out(block) for block in blocks}
        self._embeddings_and_head = EmbeddingsAndHead(model, blocks, self._reader, device)
        n_bytes = max(s.end for slices in self._slices.values() for s in slices.values())
        self.buffers = [WeightBuffer.of_size(n_bytes, device) for _ in range(2)]
        self._current: WeightBuffer | None = None
        self._expected: str | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fimlora-prefetch")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Give the model its rest, and embeddings and head whenever they run, in the context.

        Yields:
            None. Reading has stopped when the context ends, also when it raises.
        """
        try:
            self._load_rest()
            self._embeddings_and_head.release()
            with before_calls(self._embeddings_and_head.modules, self._load_embedding_or_head):
                yield
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._embeddings_and_head.restore()
            for buffer in self.buffers:
                self._unload(buffer)

    def prefetch(self, block: str) -> None:
        """Begin to read a block into the buffer that is not in use.

        Args:
            block: Its name.
        """
        self._expected = block
        if any(buffer.block == block for buffer in self.buffers):
            return
        buffer = next(buffer for buffer in self.buffers if buffer is not self._current)
        self._unload(buffer)
        buffer.prepare()
        buffer.block = block
        computed = None
        if self._device.type == "cuda":  # the last user of this buffer may still run
            computed = torch.cuda.current_stream(self._device).record_event()
        buffer.filled = self._pool.submit(self._fill, buffer, block, computed)

    def load(self, block: str) -> None:
        """Put a block's weights into the model; those of the one before last go.

        Args:
            block: Its name.
        """
        self.prefetch(block)
        buffer = next(buffer for buffer in self.buffers if buffer.block == block)
        assert buffer.filled is not None
        copied = buffer.filled.result()
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        self._current = buffer
        if not buffer.replaced:
            for name, weight in self._slices[block].items():
                buffer.replaced[name] = put(self._model, name, weight.view(buffer.device))

    def mark_reusable(self, block: str) -> None:
        """Say that a block does not run again soon: a large head may take its memory.

        Args:
            block: Its name; it is the one that was loaded last.
        """
        assert self._current is not None
        assert self._current.block == block
        self._current = self._expected = None

    def release_embeddings_and_head(self) -> None:
        """Let go of embeddings and output head until they run again."""
        self._embeddings_and_head.release()

    def _lay_out(self, block: str) -> dict[str, WeightSlice]:
        tensors = self._model.get_submodule(block).state_dict(prefix=f"{block}.")
        return lay_out({name: t for name, t in tensors.items() if name in self._reader.names})

    def _fill(self, buffer: WeightBuffer, block: str, computed: Any) -> Any:
        """Read a block, in the background; on CUDA, returns when its copy will be done."""
        read = self._reader.fill(self._slices[block], buffer.host)
        if self._stream is not None:
            return buffer.copy_over(read, self._stream, computed)
        for _ in read:
            pass
        return None

    def _load_rest(self) -> None:
        inside = {name for slices in self._slices.values() for name in slices}
        rest = [
            n
            for n in self._model.state_dict()
            if n not in inside | self._embeddings_and_head.names
        ]
        for name, tensor in list(self._model.named_buffers()):
            put(self._model, name, tensor.to(self._device))
        present = [name for name in rest if name in self._reader.names]
        put_from(self._reader, self._model, present, self._device)

    def _load_embedding_or_head(self, module: str) -> None:
        """Load an embedding or head that is about to run."""
        if self._embeddings_and_head.is_away(module):
            if self._embeddings_and_head.largest_weight(module) >= self._large_bytes:
                self._make_room()
            self._embeddings_and_head.load(module)

    def _make_room(self) -> None:
        """Let go of blocks that are kept only in case they are needed again."""
        for buffer in self.buffers:
            if buffer is not self._current and buffer.block != self._expected:
                self._unload(buffer)
                buffer.give_back()
        return_freed_memory()

    def _unload(self, buffer: WeightBuffer) -> None:
        if buffer.filled is not None and not buffer.filled.cancelled():
            buffer.filled.exception()  # a wrong guess may still be on its way in
        for name, tensor in buffer.replaced.items():
            put(self._model, name, tensor)
        buffer.block, buffer.filled = None, None
        buffer.replaced.clear()
