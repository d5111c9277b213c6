"""Ways to run the same batches, in turn: time beside the bare passes, and the most memory."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rows import Row, RowFile
from torch import Tensor, nn

from floors import matrix_rate
from measure import Bare, share_weights

Batches = Sequence[Mapping[str, Tensor]]
Way = Callable[[nn.Module], Callable[[Batches], Any]]
GIB = 2**30


def make_batches(vocabulary: int, n: int, examples: int, tokens: int) -> Batches:
    """Random token ids, all of which are labels too."""
    drawn = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, vocabulary, (examples, tokens), generator=drawn) for _ in range(n)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids]


def take_turns(
    section: str,
    case: str,
    model: nn.Module,
    batches: Batches,
    ways: Mapping[str, Way],
    *,
    repeats: int,
    operations: Callable[[str], float | None],
    file: RowFile,
) -> None:
    """Run every way as often, and keep a row of each; one that fails is left out from then on.

    Args:
        section: The part of the run.
        case: Model and batches, in words.
        model: The model; every way has a tree of its own over the same weights.
        batches: What each way runs in a turn.
        ways: What makes each way, ``bare`` first.
        repeats: Turns that count.
        operations: Floating point operations of a batch that a way cannot do without.
        file: Where rows go.
    """
    device = next(model.parameters()).device
    rate = matrix_rate(device, next(model.parameters()).dtype)
    runs: dict[str, Callable[[Batches], Any]] = {}
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float | None] = {}
    failed: set[str] = set()

    def guarded(name: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            failed.add(name)
            note = f"failed: {type(error).__name__}: {error}".partition("\n")[0][:300]
            file.add(Row(section, case, name, note=note))
            return None

    for name, way in ways.items():
        runs[name] = guarded(name, lambda way=way: way(share_weights(model)))
        seconds[name] = []
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if name in failed:
                continue
            took = guarded(name, lambda run=run: _once(run, batches, device))
            if took is not None and turn:  # the first turn warms up
                seconds[name].append(took[0] / len(batches))
                peaks[name] = took[1]
    for name in (name for name in runs if name not in failed and seconds[name]):
        own, bare, peft = seconds[name], seconds.get("bare"), seconds.get("peft")
        median, peak, n_operations = statistics.median(own), peaks[name], operations(name)
        facts = {
            "over_bare": _ratio(own, bare),
            "peft_over_it": _ratio(peft, own),
            "of_rate": n_operations and n_operations / median / rate,
            "peak_gib": peak,
            "peak_over_bare": peak and peaks.get("bare") and peak / (peaks["bare"] or 1),
        }
        file.add(Row(section, case, name, median, facts))


def _once(
    run: Callable[[Batches], Any], batches: Batches, device: torch.device
) -> tuple[float, float | None]:
    """Seconds, and on a GPU the most memory in GiB."""
    gc.collect()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    run(batches)
    if on_gpu:
        torch.cuda.synchronize(device)
    took = clock() - start
    return took, torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None


def _ratio(over: Sequence[float] | None, under: Sequence[float] | None) -> float | None:
    if not over or not under or len(over) != len(under):
        return None
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


__all__ = ["Bare", "Batches", "make_batches", "take_turns"]
