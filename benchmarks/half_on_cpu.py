"""A layer and attention in half precision on a CPU: torch's own products, widened ones, float32.

Medians of processor time, forward and back, the ways in turn; one thread. Where the CPU has
units for the dtype, fimlora leaves the products to torch.

    python benchmarks/half_on_cpu.py
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from fimlora import wide_products
from fimlora.half_on_cpu import widened_products, without_units

Forward = Callable[[], Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Way:
    """How the products are taken.

    Attributes:
        name: What to call it.
        dtype: Dtype of the numbers.
        widened: Dtypes whose products are widened.
        piece: Numbers of a weight that are widened at once.
    """

    name: str
    dtype: torch.dtype
    widened: tuple[torch.dtype, ...] = ()
    piece: int = 2**20

    def seconds(self, forward: Forward) -> float:
        """Processor time of going forward and back once."""
        wide_products._PIECE_ENTRIES = self.piece  # noqa: SLF001 - it is compared here
        with widened_products(self.widened):
            began = time.process_time()
            output = forward()
            output.backward(torch.ones_like(output))
            return time.process_time() - began


def ways(half: str) -> list[Way]:
    """All of them; the first one is what the others are held against."""
    dtype = DTYPES[half]
    return [
        Way("float32", torch.float32),
        Way(f"{half}, widened 4 MiB at a time", dtype, (dtype,)),
        Way(f"{half}, widened 64 MiB at a time", dtype, (dtype,), piece=2**24),
        Way(f"{half}, torch's own", dtype),
    ]


def layer(size: int, tokens: int, dtype: torch.dtype) -> Forward:
    """A frozen square layer."""
    linear = nn.Linear(size, size, bias=False, dtype=dtype).requires_grad_(False)
    x = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
    return partial(linear, x)


def attention(tokens: int, dtype: torch.dtype) -> Forward:
    """Eight causal heads of 64 features."""
    q, k, v = (torch.randn(1, 8, tokens, 64, dtype=dtype, requires_grad=True) for _ in range(3))
    return partial(functional.scaled_dot_product_attention, q, k, v, is_causal=True)


def compare(name: str, make: Callable[[torch.dtype], Forward], half: str, turns: int) -> None:
    """Print a row for each way."""
    forwards = {way: make(way.dtype) for way in ways(half)}
    taken: dict[Way, list[float]] = {way: [] for way in forwards}
    for way, forward in forwards.items():  # the first call also chooses kernels
        way.seconds(forward)
    for _ in range(turns):
        for way, forward in forwards.items():
            taken[way].append(way.seconds(forward))
    medians = {way: statistics.median(times) for way, times in taken.items()}
    base = next(iter(medians.values()))
    for way, median in medians.items():
        print(f"| {name} | {way.name} | {median:.3f} | {median / base:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--size", type=int, default=2048, help="features of the layer")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    probe = nn.Linear(1, 1, dtype=DTYPES[options.dtype])
    has_units = not without_units(probe, torch.device("cpu"))
    print(
        f"torch {torch.__version__}, units for {options.dtype}: {'yes' if has_units else 'no'}\n"
    )
    print("| what | products | s | / float32 |\n| --- | --- | --- | --- |")
    size, tokens = options.size, options.tokens
    cases: dict[str, Callable[[torch.dtype], Forward]] = {
        f"layer of {size} x {size}, {tokens} tokens": partial(layer, size, tokens),
        f"attention, {8 * tokens} tokens": partial(attention, 8 * tokens),
    }
    for name, make in cases.items():
        compare(name, make, options.dtype, options.turns)


if __name__ == "__main__":
    main()
