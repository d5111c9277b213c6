"""Whether moving ranks while an adapter trains helps: against not moving them, and at random.

    python benchmarks/reallocation.py                     # MiniLM on the CPU, 3 seeds, minutes
    python benchmarks/reallocation.py --seeds 8 --rates 2e-3 4e-3 8e-3

MiniLM learns which package of Python's standard library a docstring is from. A seed is a head, an
adapter and an order of the rows, the same for all arms, and all train with the same rate and as many
parameters. `none` keeps one rank for all; `fim` moves ranks every so many steps by the gradients of
the adapter's own A and B, as `fimlora.FimLoraReallocator` does; `random` moves them at the same steps
to ranks drawn at random under the same bounds. Differences are paired by seed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "worker"), str(ROOT / "clients" / "python"), str(ROOT)]
from demo.base_model import find_minilm  # noqa: E402
from demo.docstrings import build_rows  # noqa: E402

from fimlora import Budget, FimLoraReallocator, Scores, allocate, find_targets  # noqa: E402
from fimlora.reallocation.resize import resize_with_state  # noqa: E402

Batch = Mapping[str, torch.Tensor]
Move = Callable[[Any, torch.optim.Optimizer, int], object]
SCALE = 2
ARMS = ("none", "fim", "random")
TARGETS = [
    "query",
    "key",
    "value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


@dataclass(frozen=True)
class Task:
    """Batches of rows, and how many classes they have."""

    train: list[list[dict[str, str]]]
    held_out: list[Batch]
    measured: list[Batch]
    encode: Callable[[Sequence[dict[str, str]]], Batch]
    n_classes: int


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        loss: On held-out rows.
        accuracy: On these.
        parameters: That were trained in the adapter, at the end.
        moved: Share of the ranks that were not where they began.
        seconds: Processor time, and what of it went into moving ranks.
    """

    loss: float
    accuracy: float
    parameters: int
    moved: float
    seconds: tuple[float, float]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    task = make_task(args)
    print(
        f"MiniLM, {len(task.train) * args.batch} training rows, {args.steps} steps of {args.batch}, "
        f"mean rank {args.rank}, ranks moved every {args.every} steps until three quarters"
    )
    for rate in args.rates:
        found: dict[str, list[Result]] = {arm: [] for arm in ARMS}
        for seed in range(args.seeds):
            for arm in ARMS:
                result = run(arm, seed, rate, task, args)
                found[arm].append(result)
                print(
                    f"  rate {rate:g} seed {seed} {arm:7} loss {result.loss:.4f} accuracy "
                    f"{result.accuracy:.3f} parameters {result.parameters} moved {result.moved:.2f}",
                    flush=True,
                )
        report(rate, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-3])
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--held-out", type=int, default=384)
    parser.add_argument("--measured", type=int, default=4, help="batches, each time")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def make_task(args: argparse.Namespace) -> Task:
    """Rows in an order of their own, the last of them held out."""
    rows = build_rows()
    classes = sorted({row["label"] for row in rows})
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [rows[i] for i in order]
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_minilm())

    def encode(some: Sequence[dict[str, str]]) -> Batch:
        texts = [row["text"] for row in some]
        options = {"truncation": True, "max_length": args.tokens, "padding": True}
        labels = torch.tensor([classes.index(row["label"]) for row in some])
        return {**tokenizer(texts, return_tensors="pt", **options), "labels": labels}

    def batches(some: Sequence[dict[str, str]]) -> list[list[dict[str, str]]]:
        starts = range(0, len(some) - args.batch + 1, args.batch)
        return [[*some[i : i + args.batch]] for i in starts]

    train = batches(rows[: -args.held_out])
    held_out = [encode(some) for some in batches(rows[-args.held_out :])]
    measured = [encode(some) for some in train[: args.measured]]
    return Task(train, held_out, measured, encode, len(classes))


def run(arm: str, seed: int, rate: float, task: Task, args: argparse.Namespace) -> Result:
    """Train one adapter from one start."""
    model, optimizer, scheduler = make_run(seed, rate, task, args)
    start, limit = ranks_of(model), parameters_of(model)
    move = mover(arm, seed, task, limit)
    rows = [row for batch in task.train for row in batch]
    draws, order = torch.Generator().manual_seed(seed), []
    begun, moving = time.process_time(), 0.0
    torch.manual_seed(seed)  # of dropout
    for step in range(1, args.steps + 1):
        if len(order) < args.batch:
            order = torch.randperm(len(rows), generator=draws).tolist()
        chosen = [rows[order.pop()] for _ in range(args.batch)]
        model.train()
        model(**task.encode(chosen)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % args.every == 0 and step <= 3 * args.steps // 4:
            before = time.process_time()
            move(model, optimizer, step)
            moving += time.process_time() - before
    taken = time.process_time() - begun
    loss, accuracy = test(model, task)
    end = ranks_of(model)
    away = sum(abs(end[n] - start[n]) for n in start) / 2 / sum(start.values())
    assert parameters_of(model) <= limit
    return Result(loss, accuracy, parameters_of(model), away, (taken, moving))


def make_run(
    seed: int, rate: float, task: Task, args: argparse.Namespace
) -> tuple[Any, torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The model with a head and an adapter of this seed, and what trains them."""
    torch.manual_seed(seed)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        find_minilm(), num_labels=task.n_classes
    )
    names = [m.name for m in find_targets(base, TARGETS, exclude_modules=["pooler.dense"])]
    config = LoraConfig(
        r=args.rank, lora_alpha=SCALE * args.rank, target_modules=names, task_type="SEQ_CLS"
    )
    model = get_peft_model(base, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    scheduler = transformers.get_linear_schedule_with_warmup(
        optimizer, args.steps // 10, args.steps
    )
    return model, optimizer, scheduler


def mover(arm: str, seed: int, task: Task, limit: int) -> Move:
    """What an arm does every so many steps."""
    if arm == "none":
        return lambda *_: None
    if arm == "fim":
        budget = Budget("parameters", limit)
        return FimLoraReallocator(task.measured, every=1, budget=budget, seed=seed).reallocate

    def at_random(model: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        modules = find_targets(model)
        scores = Scores(modules, {m.name: 1.0 for m in modules})
        budget, draw = Budget("parameters", limit), 1000 * seed + step
        plan = allocate(scores, budget, rule="random", seed=draw, scale=SCALE)
        resize_with_state(model, optimizer, plan, seed=seed + step)

    return at_random


def ranks_of(model: Any) -> dict[str, int]:
    named = model.named_modules()
    return {n: m.r["default"] for n, m in named if "default" in getattr(m, "lora_A", {})}


def parameters_of(model: Any) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


def test(model: Any, task: Task) -> tuple[float, float]:
    """Loss and accuracy on held-out rows."""
    model.eval()
    losses, right = [], []
    with torch.no_grad():
        for batch in task.held_out:
            outputs = model(**batch)
            losses.append(outputs.loss.item())
            right.append((outputs.logits.argmax(-1) == batch["labels"]).float().mean().item())
    return statistics.mean(losses), statistics.mean(right)


def report(rate: float, found: Mapping[str, Sequence[Result]]) -> None:
    """Means, and paired differences with their standard errors."""
    print(f"rate {rate:g}: arm, loss, accuracy, ranks moved, time of moving")
    for arm, results in found.items():
        share = sum(r.seconds[1] for r in results) / sum(r.seconds[0] for r in results)
        mean = {
            k: statistics.mean(getattr(r, k) for r in results)
            for k in ("loss", "accuracy", "moved")
        }
        print(
            f"  {arm:7} {mean['loss']:.4f} {mean['accuracy']:.3f} {mean['moved']:.2f} {share:.0%}"
        )
    for arm, other in (("fim", "none"), ("random", "none"), ("fim", "random")):
        pairs = [*zip(found[arm], found[other], strict=True)]
        losses = [one.loss - two.loss for one, two in pairs]
        points = [100 * (one.accuracy - two.accuracy) for one, two in pairs]
        better = sum(difference < 0 for difference in losses)
        print(
            f"  {arm} - {other}: loss {with_error(losses, 4)}, lower in {better} of {len(losses)}; "
            f"accuracy {with_error(points, 1)} points"
        )


def with_error(values: Sequence[float], digits: int) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.{digits}f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.{digits}f} +- {error:.{digits}f}"


if __name__ == "__main__":
    main()
