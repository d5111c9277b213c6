"""One side of benchmarks/stream.py in a process of its own, so that its memory is its own.

A request is a line on standard input that names a number of blocks; the answer is a line
on standard output with times, memory and a digest of the statistics.
"""

import gc
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from fimlora import Settings, Statistics, measure
from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.boundary_store import BoundaryStore, boundary_store
from fimlora.measuring.streamed.run import stream
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.skeleton import build_skeleton
from fimlora.model.weight_reader import WeightReader

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
OPTIONS = {"target_modules": "all-linear", "estimator": "exact"}


@dataclass
class Seen:
    """What a streamed run did besides computing.

    Attributes:
        n_blocks: Blocks of the model.
        loads: Blocks that were asked for.
        waited_s: The time until they were there; for what is read in the foreground, too.
        read_s: Time that all reading took, most of it while a block computed.
        idle: On CUDA, events around each wait of the compute stream.
    """

    n_blocks: int
    loads: int = 0
    waited_s: float = 0
    read_s: float = 0
    idle: list[tuple[Any, Any]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def facts(self, checkpoint: Checkpoint, store: BoundaryStore) -> dict[str, float]:
        """Name the numbers."""
        sizes = {name: t.n_bytes for name, t in checkpoint.tensors.items()}
        return {
            "waited_s": self.waited_s,
            "idle_s": sum(a.elapsed_time(b) for a, b in self.idle) / 1000,
            "read_s": self.read_s,
            "bytes_read": sum(sizes[name] * n for name, n in checkpoint.reads.items()),
            "reads": max(checkpoint.reads.values()),
            "boundary_bytes": store.peak_bytes + store.bytes_on_disk,
        }


class WatchedCheckpoint(Checkpoint):
    """Times what is read of the first blocks; there are no others in it."""

    def __init__(self, folder: Path, seen: Seen) -> None:
        super().__init__(folder)
        self._seen = seen
        self.tensors = {
            name: stored
            for name, stored in self.tensors.items()
            if (block := re.search(r"layers\.(\d+)\.", name)) is None
            or int(block[1]) < seen.n_blocks
        }

    def read_into(self, name: str, memory: Tensor) -> None:
        start = time.perf_counter()
        super().read_into(name, memory)
        took = time.perf_counter() - start
        self._seen.read_s += took
        if "prefetch" not in threading.current_thread().name:
            self._seen.waited_s += took


class WatchedWeights(BlockWeights):
    """Times how long blocks are waited for."""

    def __init__(
        self,
        seen: Seen,
        model: nn.Module,
        reader: WeightReader,
        blocks: Mapping[str, nn.Module],
        device: torch.device,
        **options: Any,
    ) -> None:
        super().__init__(model, reader, blocks, device, **options)
        self._seen, self._on_gpu = seen, device.type == "cuda"

    def load(self, block: str) -> None:
        start, events, seen = time.perf_counter(), [], self._seen
        if self._on_gpu:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        super().load(block)
        if self._on_gpu:
            events[1].record()
            seen.idle.append((events[0], events[1]))
        seen.loads += 1
        seen.waited_s += time.perf_counter() - start
        tell(f"{block}, {seen.loads} of {2 * seen.n_blocks}, {start - seen.start:.0f} s")


def tell(line: str) -> None:
    """Show progress on a line that the next one overwrites."""
    print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def with_blocks(
    config: transformers.PretrainedConfig, n_blocks: int
) -> transformers.PretrainedConfig:
    """The config of the first blocks of a model."""
    facts = {**config.to_dict(), "num_hidden_layers": n_blocks}
    if facts.get("layer_types"):
        facts["layer_types"] = facts["layer_types"][:n_blocks]
    return type(config).from_dict(facts)


def make_batches(
    vocabulary: int, n: int, examples: int, tokens: int
) -> list[dict[str, Tensor]]:
    """Random token ids, all of which are also labels."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randint(5, vocabulary, (examples, tokens), generator=generator) for _ in range(n)
    ]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in drawn]


class Resident:
    """`fimlora.measure` on the first blocks of the model, which are loaded before."""

    def __init__(self, folder: Path, n_blocks: int, device: torch.device) -> None:
        tell(f"loading {n_blocks} blocks to keep")
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        config = with_blocks(config, n_blocks)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, local_files_only=True
        )
        for parameter in model.parameters():  # not mapped, and aligned as torch does it
            parameter.data = parameter.data.to(device, copy=True)
        self._model, self._blocks = model.to(device), list(model.model.layers)

    def run(
        self, batches: Sequence[dict[str, Tensor]], n_blocks: int
    ) -> tuple[Statistics, dict[str, float]]:
        """Measure."""
        tell(f"resident, {n_blocks} blocks")
        self._model.model.layers = nn.ModuleList(self._blocks[:n_blocks])
        return measure(self._model, batches, n_batches=len(batches), **OPTIONS), {}


class Streamed:
    """What `fimlora.measure_streamed` does, on the first blocks of the model, looked at."""

    def __init__(self, folder: Path, device: torch.device, *, cold: bool) -> None:
        self._folder, self._device, self._cold = folder, device, cold

    def run(
        self, batches: Sequence[dict[str, Tensor]], n_blocks: int
    ) -> tuple[Statistics, dict[str, float]]:
        """Measure."""
        config = transformers.AutoConfig.from_pretrained(self._folder, local_files_only=True)
        config = with_blocks(config, n_blocks)
        if self._cold:
            _forget_files(self._folder)
        seen = Seen(n_blocks)
        with boundary_store(None, None) as store:
            checkpoint = WatchedCheckpoint(self._folder, seen)
            statistics = stream(
                build_skeleton(self._folder, config=config),
                checkpoint,
                batches,
                Settings(n_batches=len(batches), **OPTIONS),
                device=self._device,
                store=store,
                new_weights=partial(WatchedWeights, seen),
            )
        return statistics, seen.facts(checkpoint, store)


def _forget_files(folder: Path) -> None:
    """Let the system drop what it keeps of the files, so that they come from the disk."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_now() -> dict[str, int]:
    """Resident size of this process, and its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return {"now": int(kib["VmRSS"]) * 1024, "peak": int(kib["VmHWM"]) * 1024}


def serve(
    way: Resident | Streamed,
    batches: Sequence[dict[str, Tensor]],
    device: torch.device,
) -> None:
    """Answer requests until there are no more."""
    before = memory_now()["now"]  # of a resident way with its model
    for line in sys.stdin:
        request = json.loads(line)
        gc.collect()
        with suppress(OSError):  # the peak so far is that of loading
            Path("/proc/self/clear_refs").write_text("5")
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        clock, processor = time.perf_counter(), time.process_time()
        statistics, facts = way.run(batches, request["blocks"])
        if device.type == "cuda":
            torch.cuda.synchronize()
            facts["device_peak"] = torch.cuda.max_memory_allocated()
        answer = {
            "clock_s": time.perf_counter() - clock,
            "processor_s": time.process_time() - processor,
            "before": before,
            "peak": memory_now()["peak"],
            "digest": hashlib.sha256(statistics.to_bytes()).hexdigest(),
            **facts,
        }
        tell("")
        print(json.dumps(answer), flush=True)
