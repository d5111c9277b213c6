"""Time and memory of every method, alone and all at once, against the passes they cannot do without.

A method that looks at gradients is held against forward and backward to the activations of the
frozen model, one that looks at activations against forward alone; one that looks at weights reads
no batch. What is made of the sums at the end of a run counts, so a run has as many batches as one
has by default. All ways run on the same model and batches, in turn; a ratio is the median over the
turns. On the CPU processor time is counted and all models run in float32, on a GPU the clock. Peak
memory is taken in a process of its own for each way. The methods are those of the registry.

    python benchmarks/methods.py                                  # MiniLM and a small Llama
    python benchmarks/methods.py --models minilm --profile all    # where time goes
    python benchmarks/methods.py --device cuda --models llama-8b
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from cases import CASES, make_batches
from fimlora import measure as measure_model
from fimlora import score
from fimlora.methods import registry
from fimlora.methods.registry import METHODS
from fimlora.statistics.options import Passes
from measure import GIB, Bare, share_weights

FORWARD, BACKWARD = "forward", "forward + backward"
Batches = Sequence[dict[str, Tensor]]
Way = Callable[[Batches], None]
# The controls go by no score, and cost what is measured beside them.
MEASURED = tuple(name for name in METHODS if name not in registry.CONTROLS)
TOGETHER = {
    "all of activations": lambda method: method.passes is Passes.FORWARD,
    "all of gradients": lambda method: (
        method.passes is Passes.BACKWARD and not method.needs_null and not method.needs_retain
    ),
    "all": lambda _: True,
}


def methods_of(way: str) -> tuple[str, ...]:
    """The methods that a way measures for."""
    if way in TOGETHER:
        return tuple(name for name in MEASURED if TOGETHER[way](METHODS[name]))
    return (way,)


def all_ways() -> list[str]:
    """The bare passes, each method, and several methods at once."""
    several = [way for way in TOGETHER if len(methods_of(way)) > 1]
    return [FORWARD, BACKWARD, *MEASURED, *several]


def passes_of(way: str) -> Passes:
    """What passes a way makes."""
    if way in {FORWARD, BACKWARD}:
        return Passes.FORWARD if way == FORWARD else Passes.BACKWARD
    return registry.passes_needed(*methods_of(way))


class Forward:
    """A forward pass without a graph, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def __call__(self, batches: Batches) -> None:
        device = next(self.model.parameters()).device
        with torch.no_grad():
            for batch in batches:
                self.model(**{name: value.to(device) for name, value in batch.items()})


class Measured:
    """Statistics and scores of some methods, from one run."""

    def __init__(self, model: nn.Module, names: Collection[str], *, exact: bool) -> None:
        self.model, self.names = model, names
        is_of_gradients = registry.passes_needed(*names) is Passes.BACKWARD
        estimator = "exact" if exact else "auto"
        self.estimator = estimator if is_of_gradients else "none"

    def __call__(self, batches: Batches) -> None:
        retain = {"retain": batches} if registry.needs_retain(*self.names) else {}
        found = measure_model(
            self.model, batches, target_modules="all-linear", n_batches=len(batches),
            estimator=self.estimator, record=registry.records_needed(*self.names),
            null=registry.needs_null(*self.names), spectra_bytes=2**40, **retain,
        )  # fmt: skip
        for name in self.names:
            score(found, name)


def make_way(way: str, model: nn.Module, *, exact: bool) -> Way:
    """What runs it."""
    if way in {FORWARD, BACKWARD}:
        return Forward(model) if way == FORWARD else Bare(model)
    return Measured(model, methods_of(way), exact=exact)


def prepare(
    args: argparse.Namespace, name: str, n_batches: int
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model and its batches."""
    torch.manual_seed(0)
    case = CASES[name]
    model = case.build(torch.device(args.device))
    if args.device == "cpu":
        model = model.float()
    return model, make_batches(model, case.examples, case.tokens, n_batches)


def time_ways(
    args: argparse.Namespace, model: nn.Module, batches: Batches
) -> dict[str, list[float]]:
    """Seconds per run of every way, in turns."""
    ways = {w: make_way(w, share_weights(model), exact=args.exact) for w in args.ways}
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    few = [{name: value[:4] for name, value in batches[0].items()}]
    for turn in range(args.repeats + 1):
        for way, run in ways.items():
            gc.collect()
            used = batches if turn else few  # the first turn warms up
            start = clock()
            run(used)
            if args.device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[way].append(clock() - start)
    return seconds


def peak_of(args: argparse.Namespace) -> float:
    """Peak memory in GiB of one way in this process, of which it must be the only one."""
    [name] = args.models
    model, batches = prepare(args, name, 2)
    make_way(args.peak_of, model, exact=args.exact)(batches)
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def peaks(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Peak memory of every way on a model, each in a process of its own."""
    found = {}
    for way in args.ways:
        command = [
            sys.executable, __file__, "--device", args.device, "--threads", str(args.threads),
            "--models", name, "--peak-of", way, *(["--exact"] if args.exact else []),
        ]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(
    args: argparse.Namespace,
    name: str,
    seconds: dict[str, list[float]],
    memory: dict[str, float],
) -> None:
    """Print a model's table."""
    case = CASES[name]
    print(
        f"\n{name}, {args.device}, {args.batches} batches of {case.examples} x {case.tokens} "
        f"tokens, all linear maps, estimator {'exact' if args.exact else 'auto'}\n"
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {args.repeats} turns\n"
    )
    print("| way | passes | s per run | time / bare | peak GiB | peak / bare |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, own in seconds.items():
        passes = passes_of(way)
        bare = {Passes.FORWARD: FORWARD, Passes.BACKWARD: BACKWARD}.get(passes)
        cells = [f"`{way}`" if way in METHODS else way, passes.value]
        cells += [f"{statistics.median(own):.2f}", _ratio(own, seconds.get(bare or ""))]
        cells.append(f"{memory[way]:.2f}" if memory else "-")
        cells.append(f"{memory[way] / memory[bare]:.2f}" if bare in memory else "-")
        print(f"| {' | '.join(cells)} |")


def _ratio(over: list[float], under: list[float] | None) -> str:
    if not under:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(over, under, strict=True)):.2f}"


def profile_way(args: argparse.Namespace, model: nn.Module, batches: Batches) -> None:
    """Print where a way spends its time, by torch's profiler."""
    run = make_way(args.profile, share_weights(model), exact=args.exact)
    run(batches[:1])
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run(batches)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(
        f"\n{args.profile}: {total / 1e6:.2f} s\n\n| operation | share | calls |\n| --- | --- | --- |"
    )
    for event in events[:16]:
        print(f"| `{event.key}` | {event.self_cpu_time_total / total:.1%} | {event.count} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=["minilm", "llama-small"], choices=CASES)
    parser.add_argument(
        "--ways", nargs="+", default=all_ways(), choices=all_ways(), metavar="WAY"
    )
    parser.add_argument("--batches", type=int, default=8, help="batches per run")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--exact", action="store_true", help="estimator exact, not auto")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--profile", choices=all_ways(), metavar="WAY", help="where time goes")
    parser.add_argument("--peak-of", choices=all_ways(), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(peak_of(args)))
        return
    for name in args.models:
        model, batches = prepare(args, name, args.batches)
        if args.profile:
            profile_way(args, model, batches)
            continue
        memory = {} if args.no_memory else peaks(args, name)
        report(args, name, time_ways(args, model, batches), memory)


if __name__ == "__main__":
    main()
