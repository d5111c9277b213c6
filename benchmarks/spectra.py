"""Error of sketched spectra against exact SVD, and what recording spectra costs.

    python benchmarks/spectra.py                                  # MiniLM on the CPU
    python benchmarks/spectra.py --device cuda --model llama-small

Errors are on gradients of given decay between random directions. Times are medians over
turns in which every way runs once, beside measuring the same without spectra.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from cases import CASES, make_batches
from fimlora import TargetModule, find_targets, measure
from fimlora.measuring.recording.mean_gradient import Signs, SketchedSum
from fimlora.measuring.recording.singular_values import N_LEADING, Spectrum
from fimlora.memory.need import SKETCH_WIDTH, sketch_is_smaller

SIZES = ((1024, 1024), (1536, 768), (2048, 1024))
DECAYS = (0.5, 0.75, 1.0, 1.5)
WAYS = {
    "without": {"record": ()},
    "exact": {"record": "spectra", "spectra_bytes": 2**40},
    "sketch": {"record": "spectra", "spectra_bytes": 0},
    "moments": {"record": "moments"},
}


def make_gradient(
    n_rows: int, n_columns: int, power: float, device: torch.device
) -> torch.Tensor:
    """A gradient whose j-th singular value is ``j ** -power``."""
    torch.manual_seed(0)
    rank = min(n_rows, n_columns)
    U, V = (torch.linalg.qr(torch.randn(n, rank, device=device)).Q for n in (n_rows, n_columns))
    return (U * torch.arange(1, rank + 1, device=device) ** -power) @ V.T


def sketch_of(G: torch.Tensor) -> Spectrum:
    """Feed a gradient to the sketch as if one token had made each of its columns."""
    n_rows, n_columns = G.shape
    sketch = SketchedSum(TargetModule("m", n_columns, n_rows), Signs(SKETCH_WIDTH))
    sketch.add(torch.eye(n_columns, device=G.device), G.T)
    for staged in sketch.sums():
        staged.commit()
    return sketch.spectrum(1)


def report_errors(device: torch.device) -> None:
    print(f"sketch of width {SKETCH_WIDTH} against exact SVD, leading {N_LEADING} values")
    print("size         decay    energy error  stated  worst value  memory / exact")
    for n_rows, n_columns in SIZES:
        long, short = max(n_rows, n_columns), min(n_rows, n_columns)
        memory = (SKETCH_WIDTH * (long + 2 * short) + short) / (long * short)
        for power in DECAYS:
            G = make_gradient(n_rows, n_columns, power, device)
            wanted = torch.linalg.svdvals(G.double())[:N_LEADING]
            spectrum = sketch_of(G)
            found = spectrum.values[:N_LEADING]
            energy = (found.square().sum() / wanted.square().sum() - 1).abs().item()
            worst = ((found - wanted) / wanted).abs().max().item()
            stated = f"{spectrum.error:6.2%}" if spectrum.error <= 0.01 else "  flat"
            print(
                f"{n_rows:4} x {n_columns:4}  j^-{power:<4} {energy:13.3%}  {stated} "
                f"{worst:12.3%} {memory:11.2f}"
            )


def report_costs(args: argparse.Namespace, device: torch.device) -> None:
    case = CASES[args.model]
    model = case.build(device)
    batches = make_batches(model, case.examples, case.tokens, args.batches)
    sketched = sum(map(sketch_is_smaller, find_targets(model, "all-linear")))
    # Where no sketch is smaller than its gradient, both ways are one.
    ways = {way: options for way, options in WAYS.items() if sketched or way != "sketch"}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(args.turns + 1):
        for way, options in ways.items():
            start = _now(device)
            measure(
                model, batches, target_modules="all-linear", n_batches=len(batches),
                estimator="exact", **options,
            )  # fmt: skip
            if turn:  # the first one warms up
                seconds[way].append(_now(device) - start)
    print(
        f"\n{args.model} on {device.type}, {args.batches} batches of {case.examples} x "
        f"{case.tokens} tokens, estimator exact, median of {args.turns} turns; a sketch is "
        f"smaller for {sketched} modules"
    )
    for way, values in seconds.items():
        ratio = statistics.median(
            a / b for a, b in zip(values, seconds["without"], strict=True)
        )
        print(f"{way:8} {statistics.median(values):8.2f} s {ratio:6.2f}x of without")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=CASES, default="minilm")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    report_errors(device)
    report_costs(args, device)


if __name__ == "__main__":
    main()
