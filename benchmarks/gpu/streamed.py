"""A model larger than the device's share, its blocks in host memory: overlap, bus, memory, bits."""

import gc
import hashlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from forms import Form, streamed_config
from rows import Row, RowFile
from torch import Tensor, nn
from turns import GIB, make_batches

from fimlora import Settings, measure
from fimlora.measuring.streamed.boundary_store import boundary_store
from fimlora.measuring.streamed.run import stream
from fimlora.memory.host import free_host_bytes
from fimlora.model.checkpoint import Checkpoint, StoredTensor
from fimlora.model.skeleton import build_skeleton
from stream_report import bus_rate
from stream_runs import OPTIONS, Seen, WatchedWeights

_BLOCK = re.compile(r"layers\.(\d+)\.")
_N_READERS, _PART_BYTES = 8, 2**24
_HOST_SHARE = 0.6  # of free host memory, that weights may take


class HostWeights(Checkpoint):
    """Random weights in host memory, read as a file would be.

    Args:
        config: The model's config.
        device: Where weights are drawn.
        n_kept: Blocks that are kept; more of the model's repeat them.
    """

    def __init__(self, config: Any, device: str, n_kept: int) -> None:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype)
        self._n_kept = n_kept
        self._kept: dict[str, Tensor] = {}
        self.tensors = {
            name: StoredTensor(Path(), 0, t.dtype, tuple(t.shape))
            for name, t in model.state_dict().items()
        }
        self._stored = dict(self.tensors)
        self.reads: Counter[str] = Counter()
        self.seen: Seen | None = None
        self._pool = ThreadPoolExecutor(_N_READERS, thread_name_prefix="fimlora-read")
        generator = torch.Generator(device).manual_seed(0)
        for name, stored in self.tensors.items():
            if self._key(name) == name:
                self._kept[name] = _drawn(stored, device, generator)

    def of_blocks(self, n_blocks: int, seen: Seen) -> "HostWeights":
        """The same, of the model's first blocks."""
        some = object.__new__(HostWeights)
        vars(some).update(vars(self))
        some.tensors = {
            name: stored
            for name, stored in self.tensors.items()
            if (block := _BLOCK.search(name)) is None or int(block[1]) < n_blocks
        }
        some._stored, some.reads, some.seen = dict(some.tensors), Counter(), seen
        return some

    def _read_stored(self, name: str, memory: Tensor) -> None:
        """Copy, by several threads."""
        start, source = time.perf_counter(), self._kept[self._key(name)]
        starts = range(0, len(source), _PART_BYTES)

        def copy(at: int) -> None:
            memory[at : at + _PART_BYTES].copy_(source[at : at + _PART_BYTES])

        if len(starts) > 1:
            list(self._pool.map(copy, starts))
        else:
            memory.copy_(source)
        if self.seen is not None:
            self.seen.read_s += time.perf_counter() - start

    def _key(self, name: str) -> str:
        """The name that its bytes are kept under."""
        block = _BLOCK.search(name)
        if block is None:
            return name
        kept = int(block[1]) % self._n_kept
        return f"{name[: block.start(1)]}{kept}{name[block.end(1) :]}"


def run_streamed(form: Form, file: RowFile) -> None:
    """Stream the whole model, and hold its time and its bits to those of a few resident blocks."""
    device = torch.device(form.device)
    if device.type == "cuda" and form.memory_gib:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, form.memory_gib * GIB / total))
    bus = bus_rate() if device.type == "cuda" else None
    n_blocks = form.streamed["num_hidden_layers"]
    whole = streamed_config(form.streamed, n_blocks, form.dtype)
    n_kept = _blocks_that_fit(whole, n_blocks, least=max(form.fit))
    weights = HostWeights(whole, form.device, n_kept)
    batches = make_batches(form.streamed["vocab_size"], *form.streamed_batches)
    size = sum(t.n_bytes for t in weights.tensors.values()) / GIB
    case = f"{size:.2f} GiB, {n_blocks} blocks, {'{} x {} x {}'.format(*form.streamed_batches)}"
    note = "" if n_kept == n_blocks else f"host memory holds {n_kept} blocks, which repeat"

    resident: dict[int, float] = {}
    digests: dict[str, str] = {}
    for n in form.fit:
        resident[n], digests["resident"] = _resident(form, weights, n, batches, device)
        file.add(Row("streamed", case, f"resident, {n} blocks", resident[n]))
        _let_go(device)
    digests["streamed"] = _streamed(form, weights, max(form.fit), batches, device)[1]
    is_same = digests["streamed"] == digests["resident"]
    same = "the same to the last bit" if is_same else "DIFFERENT"
    file.add(Row("streamed", case, f"statistics of {max(form.fit)} blocks", note=same))
    _let_go(device)

    seconds, _, facts = _streamed(form, weights, n_blocks, batches, device)
    few, many = form.fit
    per_block = max(0.0, resident[many] - resident[few]) / (many - few)
    facts["over_resident"] = seconds / (resident[many] + (n_blocks - many) * per_block)
    if bus:
        facts["of_bus"] = facts["bytes_read"] / seconds / bus
    file.add(Row("streamed", case, "streamed", seconds, facts, note))


def _resident(
    form: Form, weights: HostWeights, n: int, batches: Any, device: torch.device
) -> tuple[float, str]:
    """Seconds of a run with all blocks in memory, the second of two, and its digest."""
    config = streamed_config(form.streamed, n, form.dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=form.dtype)
    some = weights.of_blocks(n, Seen(n))
    loaded = {name: some.read(name).to(device) for name in some.tensors}
    rotary = build_skeleton(Path(), config=config, model_class=type(model))
    rotary.load_state_dict(loaded, strict=False, assign=True)
    rotary.to(device)
    times, found = [], None
    for _ in range(2):
        start = _now(device)
        found = measure(rotary, batches, n_batches=len(batches), **OPTIONS)
        times.append(_now(device) - start)
    assert found is not None
    return times[-1], hashlib.sha256(found.to_bytes()).hexdigest()


def _streamed(
    form: Form, weights: HostWeights, n: int, batches: Any, device: torch.device
) -> tuple[float, str, dict[str, Any]]:
    """Seconds of a streamed run, its digest, and what it did besides computing."""
    config = streamed_config(form.streamed, n, form.dtype)
    seen = Seen(n)
    some = weights.of_blocks(n, seen)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = _now(device)
    with tempfile.TemporaryDirectory() as room, boundary_store(None, Path(room)) as store:
        found = stream(
            build_skeleton(
                Path(), config=config, model_class=transformers.AutoModelForCausalLM
            ),
            some,
            batches,
            Settings(n_batches=len(batches), **OPTIONS),
            device=device,
            store=store,
            new_weights=partial(WatchedWeights, seen),
        )
        seconds = _now(device) - start
        facts: dict[str, Any] = seen.facts(some, store)
    digest = hashlib.sha256(found.to_bytes()).hexdigest()  # type: ignore[union-attr]
    facts["hidden"] = max(0.0, 1 - seen.waited_s / seen.read_s) if seen.read_s else None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / GIB
        facts["peak_gib"] = peak
        facts["above_two_blocks_gib"] = peak - 2 * _block_bytes(weights) / GIB
    return seconds, digest, facts


def _blocks_that_fit(config: Any, n_blocks: int, *, least: int) -> int:
    """How many blocks host memory takes beside what is outside of blocks."""
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(
            config, dtype=config.dtype
        )
    sizes: Mapping[str, int] = {name: t.nbytes for name, t in model.state_dict().items()}
    inside = sum(size for name, size in sizes.items() if _BLOCK.search(name)) // n_blocks
    room = (free_host_bytes() or 2**34) * _HOST_SHARE - (
        sum(sizes.values()) - inside * n_blocks
    )
    return max(least, min(n_blocks, int(room // inside)))


def _block_bytes(weights: HostWeights) -> int:
    return sum(t.n_bytes for name, t in weights.tensors.items() if ".layers.0." in name)


def _drawn(stored: StoredTensor, device: str, generator: torch.Generator) -> Tensor:
    """The bytes of a weight, on the host."""
    if len(stored.shape) > 1:
        drawn = torch.empty(stored.shape, dtype=stored.dtype, device=device)
        drawn.normal_(0, 0.02, generator=generator)
    else:
        drawn = torch.ones(stored.shape, dtype=stored.dtype)
    return drawn.cpu().reshape(-1).view(torch.uint8)


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
