"""What benchmarks/stream.py prints."""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from fimlora.model.checkpoint import Checkpoint

GIB = 2**30
# One run's answer, and the runs by number of blocks.
Run = dict[str, Any]
Runs = dict[int, list[Run]]
PEAK = {"cpu": "peak", "cuda": "device_peak"}


def of_depth(resident: Runs, n_blocks: int, key: str) -> float:
    """Seconds of so many resident blocks: measured, or extended from those that fit."""
    times = {n: median(run[key] for run in runs) for n, runs in resident.items()}
    if n_blocks in times:
        return times[n_blocks]
    few, many = min(times), max(times)
    per_block = (times[many] - times[few]) / (many - few)
    return times[many] + (n_blocks - many) * per_block


def report(
    args: argparse.Namespace,
    config: transformers.PretrainedConfig,
    folder: Path,
    found: dict[str, Runs],
) -> None:
    """Print what was found."""
    resident, streamed = found["resident"], found["streamed"]
    n_batches, examples, tokens = args.shape
    print(
        f"\n{args.model}: {type(config).__name__.removesuffix('Config')}, {args.blocks} blocks of "
        f"{block_bytes(folder) / GIB:.3f} GiB, {config.dtype}, {args.device}, "
        f"{n_batches} batches of {examples} x {tokens} tokens, exact, all linear maps"
    )
    print(f"torch {torch.__version__}, {args.threads} thread(s)\n")
    print(
        "| way | blocks | s | s per token | processor s | time / resident | processor | peak GiB |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for n in sorted({*resident, args.blocks}):
        way = "resident" if n in resident else "resident, extended"
        row(way, n, resident.get(n, []), resident, args)
    for n, runs in streamed.items():
        row("streamed", n, runs, resident, args)
    report_memory(args, folder, streamed[args.blocks])
    report_reading(args, streamed[args.blocks])
    fit = max(resident)
    digests = {run["digest"] for run in streamed[fit] + resident[fit]}
    same = "the same to the last bit" if len(digests) == 1 else "DIFFERENT"
    print(f"statistics of {fit} blocks, streamed and resident: {same}")


def row(way: str, n: int, runs: list[Run], resident: Runs, args: argparse.Namespace) -> None:
    """Print a row of the table; one without runs is what resident ones are extended to."""
    n_batches, examples, tokens = args.shape
    cells, ratios = [way, str(n)], []
    for key in ("clock_s", "processor_s"):
        wanted = of_depth(resident, n, key)
        own = median(run[key] for run in runs) if runs else wanted
        ratio = own / wanted
        if len(runs) == len(
            resident.get(n, [])
        ):  # run by turns, so that both were slowed alike
            pairs = zip(runs, resident.get(n, []), strict=True)
            ratio = median(a[key] / b[key] for a, b in pairs) if runs else 1
        cells.append(f"{own:.2f}")
        if key == "clock_s":
            cells.append(f"{own / (n_batches * examples * tokens):.4f}")
        ratios.append(f"{ratio:.2f}")
    peak = [f"{max(run[PEAK[args.device]] for run in runs) / GIB:.2f}" if runs else "-"]
    print(f"| {' | '.join(cells + ratios + peak)} |")


def report_memory(args: argparse.Namespace, folder: Path, runs: list[Run]) -> None:
    """Hold the peak to two blocks, the inputs of blocks, and 1 GiB."""
    boundary = runs[-1]["boundary_bytes"]
    peak = max(run[PEAK[args.device]] for run in runs)
    before = runs[-1]["before"] if args.device == "cpu" else 0
    allowed = 2 * block_bytes(folder) + (boundary if args.device == "cpu" else 0)
    weights = sum(t.n_bytes for t in Checkpoint(folder).tensors.values())
    print(
        f"\nstreamed peak {peak / GIB:.2f} GiB, {before / GIB:.2f} GiB of it before; all weights "
        f"{weights / GIB:.2f} GiB, inputs of blocks {boundary / GIB:.3f} GiB"
    )
    print(
        f"above two blocks{' and the inputs of blocks' if args.device == 'cpu' else ''}: "
        f"{(peak - before - allowed) / GIB:.2f} GiB (1 allowed)"
    )


def report_reading(args: argparse.Namespace, runs: list[Run]) -> None:
    """Say how much of reading was hidden behind computing."""
    middle = sorted(runs, key=lambda run: run["clock_s"])[len(runs) // 2]
    rate = middle["bytes_read"] / middle["read_s"] / 1e9
    print(
        f"read {middle['bytes_read'] / 1e9:.2f} GB, no tensor more than {middle['reads']} times, in "
        f"{middle['read_s']:.2f} s ({rate:.2f} GB/s); waited {middle['waited_s']:.2f} s of "
        f"{middle['clock_s']:.2f} s, so {1 - middle['waited_s'] / middle['read_s']:.0%} of reading "
        "was hidden"
    )
    if args.device == "cuda":
        bus, used = bus_rate(), middle["bytes_read"] / middle["clock_s"]
        print(
            f"bus {bus / 1e9:.1f} GB/s; weights went over it at {used / 1e9:.1f} GB/s, "
            f"{used / bus:.0%}; the compute stream was idle for weights "
            f"{middle['idle_s'] / middle['clock_s']:.0%} of the time"
        )


def bus_rate() -> float:
    """Bytes per second from pinned host memory to the device."""
    host = torch.empty(GIB, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    rates = []
    for _ in range(4):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        device.copy_(host, non_blocking=True)
        events[1].record()
        torch.cuda.synchronize()
        rates.append(GIB / events[0].elapsed_time(events[1]) * 1000)
    return max(rates)


def block_bytes(folder: Path) -> int:
    """Size of one block's weights."""
    tensors = Checkpoint(folder).tensors
    return sum(t.n_bytes for name, t in tensors.items() if name.startswith("model.layers.0."))
