"""How far a plan moves when the base model is packed, beside how far it moves with other rows.

MiniLM on functions of the standard library, by package, with a head fitted in full precision:
measured in full precision, and as bitsandbytes packs it while it loads. Needs bitsandbytes.

    python benchmarks/quantised.py
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))
sys.path.insert(0, str(Path(__file__).parent))
from cases import build_minilm
from fimlora import RankPlan, Statistics, allocate, fit_head, measure, score
from fimlora.allocation.distance import plans_apart
from function_sources import PACKAGES, build_rows

TOKENS, BATCH = 64, 32
FORMATS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


def batches_of(folder: str, first: int, n_rows: int) -> list[dict[str, Any]]:
    """Some of the rows in an order of their own, tokenised."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = build_rows()
    order = np.random.RandomState(0).permutation(len(rows))[first : first + n_rows]
    batches = []
    for start in range(0, n_rows, BATCH):
        some = [rows[i] for i in order[start : start + BATCH]]
        texts = [row["text"] for row in some]
        encoded = tokenizer(
            texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
        labels = torch.tensor([PACKAGES.index(row["label"]) for row in some])
        batches.append({**encoded, "labels": labels})
    return batches


def measured(model: Any, batches: list[dict[str, Any]]) -> Statistics:
    """Scores of all maps inside the blocks."""
    return measure(
        model, batches, target_modules="all-linear",
        exclude_modules=["classifier", "bert.pooler.dense"], n_batches=len(batches),
    )  # fmt: skip


def plan_of(statistics: Statistics, budget: int) -> RankPlan:
    """The plan of a mean rank."""
    return allocate(score(statistics), budget)


def row(name: str, found: Statistics, wanted: Statistics, budget: int) -> str:
    """How far two plans and their scores are apart."""
    plan, other = plan_of(found, budget), plan_of(wanted, budget)
    a, b = (np.array([p.scores[m.name] for m in p.modules]) for p in (plan, other))
    ratio = np.abs(a / a.mean() / (b / b.mean()) - 1)
    return (
        f"| {name} | {plans_apart(plan, other):.1%} | {np.median(ratio):.1%} | "
        f"{ratio.max():.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--budget", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build_minilm(torch.device("cpu"))
    tokenizers = model.config.name_or_path
    model.classifier = torch.nn.Linear(model.config.hidden_size, len(PACKAGES))
    model.num_labels = model.config.num_labels = len(PACKAGES)
    batches = batches_of(tokenizers, 0, options.rows)
    fit_head(model, batches, drawn=["classifier"])
    wanted = measured(model, batches)
    print("| base, rows | ranks that move | scores, median | scores, most |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, told in FORMATS.items():
            config = transformers.BitsAndBytesConfig(
                llm_int8_skip_modules=["classifier"], bnb_4bit_compute_dtype=torch.float32,
                **told,
            )  # fmt: skip
            packed = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, quantization_config=config
            )
            found = measured(packed, batches)
            print(row(f"{name}, the same rows", found, wanted, options.budget), flush=True)
    others = measured(model, batches_of(tokenizers, options.rows, options.rows))
    print(row("full precision, other rows", others, wanted, options.budget))


if __name__ == "__main__":
    main()
