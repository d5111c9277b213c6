"""Time and memory of measuring, against the passes it cannot do without and against PEFT.

Every way runs on the same model and batches, in turn, many times; a ratio is the median
over the turns, so that a busy machine slows both sides of it. On the CPU processor time is
counted, on a GPU the clock. Half precision is slow on a CPU without units for it: a layer took
a hundred times as long. Peak memory is taken in a process of its own for each way. Beside each
ratio stands what it would be if only the estimator's products took time.

    python benchmarks/measure.py                                  # MiniLM on the CPU
    python benchmarks/measure.py --uneven                         # with padding
    python benchmarks/measure.py --profile                        # where time goes
    python benchmarks/measure.py --device cuda --model llama-8b   # random bfloat16 weights
"""

import argparse
import copy
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from cases import CASES, make_batches
from fimlora import measure
from floors import Floors, count_flops, matrix_rate

SCORED_RANK = 8
SIGNAL = "+signal"
GIB = 2**30


class Bare:
    """Forward and backward to the activations of the frozen model, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        embeddings = self.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda *call: call[-1].requires_grad_())

    def __call__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        device = next(self.model.parameters()).device
        extra = {"use_cache": False} if "CausalLM" in type(self.model).__name__ else {}
        for batch in batches:
            moved = {name: value.to(device) for name, value in batch.items()}
            self.model(**moved, **extra).loss.backward()


class Ours:
    """`fimlora.measure` on the model as it is."""

    def __init__(
        self,
        model: nn.Module,
        estimator: str,
        record: str | tuple[()] = (),
        *,
        signal: bool = False,
    ) -> None:
        self.model, self.estimator, self.record = model, estimator, record
        self.signal = signal

    def __call__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        measure(
            self.model, batches, target_modules="all-linear", n_batches=len(batches),
            estimator=self.estimator, rank=SCORED_RANK, record=self.record,
            null=self.signal, halves=self.signal,
        )  # fmt: skip


class Peft:
    """The published way: LoRA attached, training mode, squared gradients of B."""

    def __init__(self, model: nn.Module) -> None:
        config = LoraConfig(
            r=SCORED_RANK, lora_alpha=2 * SCORED_RANK, lora_dropout=0.1,
            target_modules="all-linear",
        )  # fmt: skip
        self.model = get_peft_model(model, config).train()

    def __call__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        device = next(self.model.parameters()).device
        weights = [p for n, p in self.model.named_parameters() if "lora_B" in n]
        squares = [torch.zeros_like(p, dtype=torch.float32) for p in weights]
        for batch in batches:
            self.model.zero_grad()
            moved = {name: value.to(device) for name, value in batch.items()}
            self.model(**moved).loss.backward()
            for square, weight in zip(squares, weights, strict=True):
                square.add_(weight.grad.float().square())
        [square.mean().item() for square in squares]


WAYS: dict[str, Callable[[nn.Module], Callable[[Sequence[dict[str, Tensor]]], None]]] = {
    "bare": Bare,
    "sampled": lambda model: Ours(model, "sampled"),
    "sketched": lambda model: Ours(model, "sketched"),
    "exact": lambda model: Ours(model, "exact"),
    "both": lambda model: Ours(model, "both"),
    "sampled+batch": lambda model: Ours(model, "sampled", "batch_energies"),
    "sampled+signal": lambda model: Ours(model, "sampled", signal=True),
    "exact+signal": lambda model: Ours(model, "exact", signal=True),
    "peft": Peft,
}


def share_weights(model: nn.Module) -> nn.Module:
    """A copy with hooks and layers of its own on the same weights, which fit only once."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def prepare(
    args: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """The model and its batches."""
    model = CASES[args.model].build(device)
    batches = make_batches(model, args.examples, args.tokens, args.batches, uneven=args.uneven)
    return model, batches


def time_ways(
    args: argparse.Namespace, model: nn.Module, batches: Sequence[dict[str, Tensor]]
) -> dict[str, list[float]]:
    """Seconds per batch of every way, in turns."""
    ways = {name: WAYS[name](share_weights(model)) for name in args.ways}
    device = next(model.parameters()).device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, run in ways.items():
            gc.collect()
            start = clock()
            run(batches)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                seconds[name].append((clock() - start) / len(batches))
    return seconds


def profile_ways(
    args: argparse.Namespace, model: nn.Module, batches: Sequence[dict[str, Tensor]]
) -> None:
    """Print where each way spends its time, by torch's profiler."""
    kinds, key = [ProfilerActivity.CPU], "self_cpu_time_total"
    if args.device == "cuda":
        kinds, key = [*kinds, ProfilerActivity.CUDA], "self_device_time_total"
    for name in args.ways:
        run = WAYS[name](share_weights(model))
        run(batches)  # warms up
        with profile(activities=kinds) as found:
            run(batches)
        events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
        total = sum(getattr(event, key) for event in events)
        print(f"\n{name}: {total / 1e6 / len(batches):.3f} s per batch\n")
        print("| operation | share | calls per batch |\n| --- | --- | --- |")
        for event in events[: args.profile]:
            share = getattr(event, key) / total
            print(f"| `{event.key}` | {share:.1%} | {event.count / len(batches):g} |")


def peak_of(args: argparse.Namespace, device: torch.device) -> float:
    """Peak memory in GiB of one way in this process, of which it must be the only one."""
    model, batches = prepare(args, device)
    WAYS[args.peak_of](model)(batches)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def peaks(args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of every way, each in a process of its own."""
    found = {}
    for name in args.ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(
    args: argparse.Namespace,
    seconds: dict[str, list[float]],
    memory: Mapping[str, float],
    floors: Floors,
    rate: float,
) -> None:
    """Print the table."""
    padding = ", uneven and padded" if args.uneven else ""
    print(
        f"{args.model}, {args.device}, {args.examples} x {args.tokens} tokens{padding}, all "
        f"linear maps\ntorch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    )
    if own := seconds.get("bare"):
        reached = floors.bare / statistics.median(own)
        print(
            f"bare pass: {floors.bare / 1e9:.1f} GFLOP at {reached / 1e9:.0f} GFLOP/s, "
            f"{reached / rate:.0%} of a large {CASES[args.model].dtype} product's rate"
        )
    print(
        "\n| way | s per batch | time / bare | arithmetic / bare | PEFT's time / its "
        "| peak GiB | peak / bare |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, own in seconds.items():
        floor = floors.of(name)
        cells = [name, f"{statistics.median(own):.3f}"]
        cells.append(_ratio(own, seconds.get("bare")))
        cells.append("-" if floor is None else f"{floor:.2f}")
        cells.append(_ratio(seconds.get("peft"), own))
        cells.append(f"{memory[name]:.2f}" if memory else "-")
        cells.append(f"{memory[name] / memory['bare']:.2f}" if "bare" in memory else "-")
        print(f"| {' | '.join(cells)} |")
    for name in (name for name in seconds if name.endswith(SIGNAL)):
        alone = seconds.get(name.removesuffix(SIGNAL))
        print(
            f"\n{name}: {_ratio(seconds[name], alone)} times as long as without null and halves"
        )


def _ratio(over: list[float] | None, under: list[float] | None) -> str:
    if not over or not under:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(over, under, strict=True)):.2f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="minilm", choices=CASES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--examples", type=int, help="examples per batch")
    parser.add_argument("--tokens", type=int, help="tokens per example")
    parser.add_argument("--batches", type=int, default=2, help="batches per turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--uneven", action="store_true", help="examples of unequal length")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument(
        "--profile", type=int, nargs="?", const=12, metavar="N",
        help="print the N operations that take most time, instead of the table",
    )  # fmt: skip
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    case = CASES[args.model]
    args.examples = args.examples or case.examples
    args.tokens = args.tokens or case.tokens
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    if args.peak_of:
        print(json.dumps(peak_of(args, device)))
        return
    model, batches = prepare(args, device)
    if args.profile:
        profile_ways(args, model, batches)
        return
    memory = {} if args.no_memory else peaks(args)
    seconds = time_ways(args, model, batches)
    shared = share_weights(model)
    floors = count_flops(shared, batches[0], Bare(shared), rank=SCORED_RANK)
    rate = matrix_rate(device, next(model.parameters()).dtype)
    report(args, seconds, memory, floors, rate)


if __name__ == "__main__":
    main()
