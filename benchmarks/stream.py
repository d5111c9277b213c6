"""Streamed execution beside resident: time, memory, reading, and the same results.

Each way has a process of its own; they take turns. A model that does not fit is streamed
whole, and the resident time of its depth is that of a few blocks and of one, extended. The
large models are bfloat16: a CPU without units for it multiplies in plain loops, which take about
a hundred times as long, so that a run of them does not end there in any useful time.

    python benchmarks/stream.py                                  # a small Llama on the CPU
    python benchmarks/stream.py --model 8b --folder /data/8b     # writes 16 GB once
    python benchmarks/stream.py --model 32b --folder /data/32b --device cuda --device-memory 24
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from random_checkpoint import LLAMA_8B, LLAMA_SMALL, QWEN_32B, write_checkpoint
from stream_report import GIB, Run, Runs, report
from stream_runs import Resident, Streamed, make_batches, serve, tell, with_blocks


@dataclass(frozen=True)
class Case:
    """A model, the shape of its calibration batches, and how much of it can be resident.

    Attributes:
        config: The model's shape.
        shape: Batches, examples per batch and tokens per example.
        turns: How often each way runs.
        fit: Numbers of blocks that are measured resident.
    """

    config: transformers.PretrainedConfig
    shape: tuple[int, int, int]
    turns: int
    fit: tuple[int, ...]


CASES = {
    "small": Case(LLAMA_SMALL, (2, 4, 64), turns=5, fit=(16,)),
    "8b": Case(LLAMA_8B, (2, 1, 128), turns=1, fit=(1, 4)),
    "32b": Case(QWEN_32B, (8, 4, 512), turns=3, fit=(2, 8)),
}
Ask = Callable[[int], Run]  # how many blocks to measure


@contextmanager
def process(way: str, folder: Path) -> Iterator[Ask]:
    """Start one side; gives how to let it run."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--way", way]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def answer() -> dict[str, Any]:
            line = child.stdout.readline()
            if not line:
                raise SystemExit(f"the {way} side ended with {child.wait()}")
            return json.loads(line)

        def ask(blocks: int) -> dict[str, Any]:
            child.stdin.write(json.dumps({"blocks": blocks}) + "\n")
            child.stdin.flush()
            return answer()

        yield ask
        child.stdin.close()


def take_turns(args: argparse.Namespace, folder: Path) -> dict[str, Runs]:
    """Run both sides by turns; the runs of each by number of blocks."""
    fit = CASES[args.model].fit
    fits = args.blocks <= max(fit)
    resident: Runs = {n: [] for n in ((args.blocks,) if fits else fit)}
    streamed: Runs = {n: [] for n in sorted({max(resident), args.blocks})}
    with process("resident", folder) as keep, process("streamed", folder) as stream:
        keep(min(resident))  # the first run of a process also chooses kernels
        if fits:  # else it is a small part of the run
            stream(args.blocks)
        for _ in range(args.turns):
            for n_streamed, runs in streamed.items():
                for n, kept in resident.items():
                    kept.append(keep(n))
                runs.append(stream(n_streamed))
        for n, kept in resident.items() if not fits else ():
            kept.append(keep(n))  # as much behind the long run as before it
    return {"resident": resident, "streamed": streamed}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", choices=CASES)
    parser.add_argument("--folder", type=Path, help="where the weights are, or will be written")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--device-memory", type=float, help="limit in GiB, on CUDA")
    parser.add_argument("--blocks", type=int, help="use so many of the model's blocks")
    parser.add_argument("--batches", type=int)
    parser.add_argument("--examples", type=int, help="examples per batch")
    parser.add_argument("--tokens", type=int, help="tokens per example")
    parser.add_argument("--turns", type=int, help="turns that count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--way", choices=["resident", "streamed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    case = CASES[args.model]
    args.blocks = args.blocks or case.config.num_hidden_layers
    args.turns = args.turns or case.turns
    given = (args.batches, args.examples, args.tokens)
    args.shape = tuple(a or b for a, b in zip(given, case.shape, strict=True))
    return args


def be_one_side(args: argparse.Namespace) -> None:
    """Serve requests in a process of its own."""
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.device_memory:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.device_memory * GIB / total)
    case = CASES[args.model]
    batches = make_batches(case.config.vocab_size, *args.shape)
    # What fits into memory is often read; what does not comes from the disk.
    cold = args.device == "cpu" and args.blocks > max(case.fit)
    way = (
        Resident(args.folder, min(args.blocks, max(case.fit)), device)
        if args.way == "resident"
        else Streamed(args.folder, device, cold=cold)
    )
    serve(way, batches, device)


def main() -> None:
    args = parse()
    if args.way:
        be_one_side(args)
        return
    with tempfile.TemporaryDirectory(prefix="fimlora-stream-") as temporary:
        folder = args.folder or Path(temporary)
        write_checkpoint(folder, with_blocks(CASES[args.model].config, args.blocks), tell)
        found = take_turns(args, folder)
        tell("")
        report(args, CASES[args.model].config, folder, found)


if __name__ == "__main__":
    main()
