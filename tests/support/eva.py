"""Models, batches and PEFT's own EVA on them, for the tests of ours."""

import copy
from collections.abc import Iterator

import torch
import transformers
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import Tensor, nn

from fimlora import Statistics, measure
from support.models import PAD
from support.peft_models import lora_layers

VOCABULARY = 200
LENGTHS = ([150, 9, 7, 3], [80, 60, 30], [50, 50, 50, 9])
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def llama(width: int, inner: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, initializer_range=0.2, num_hidden_layers=2,
        hidden_size=width, intermediate_size=inner, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return drawn(transformers.LlamaForCausalLM, config)


def bert(width: int, inner: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, initializer_range=0.2, num_hidden_layers=2,
        hidden_size=width, intermediate_size=inner, num_attention_heads=4, num_labels=3,
    )  # fmt: skip
    return drawn(transformers.BertForSequenceClassification, config)


def drawn(kind: type, config: object) -> nn.Module:
    """A model whose inputs have directions of unlike variance, as those of trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table *= torch.arange(1, table.shape[1] + 1).pow(-0.5)
    return model


def batches_for(*, by_token: bool) -> list[dict[str, Tensor]]:
    """Padded batches; a third of each text has no label where labels are per token."""
    batches = []
    for seed, lengths in enumerate(LENGTHS):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.full((len(lengths), max(lengths)), PAD)
        labels = torch.full_like(ids, -100)
        for row, n in enumerate(lengths):
            ids[row, :n] = torch.randint(1, VOCABULARY, (n,), generator=generator)
            labels[row, n // 3 : n] = ids[row, n // 3 : n]
        if not by_token:
            labels = torch.arange(len(lengths)) % 3
        batches.append(
            {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}
        )
    return batches


class EachBatchOnce:
    """A loader under which PEFT's EVA ends after its last batch, whatever has converged then.

    PEFT holds the cosines of every update against one tensor; nothing is above 2, all is above -2.
    """

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.tau, self._batches = torch.tensor(0.5), batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.tau.fill_(2.0)
        for number, batch in enumerate(self._batches, 1):
            if number == len(self._batches):
                self.tau.fill_(-2.0)
            yield batch


def by_peft(
    model: nn.Module, targets: list[str], r: int, *, by_token: bool
) -> dict[str, Tensor]:
    """A of every module that PEFT's EVA leaves an adapter."""
    loader = EachBatchOnce(batches_for(by_token=by_token))
    config = LoraConfig(
        r=r, lora_alpha=1, target_modules=targets, init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0, tau=loader.tau, use_label_mask=by_token),
    )  # fmt: skip
    adapted = get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(adapted, loader, show_progress_bar=False)
    return {
        name: layer.lora_A["default"].weight.detach()
        for name, layer in lora_layers(adapted).items()
    }


def by_us(model: nn.Module, targets: list[str], r: int, *, by_token: bool) -> Statistics:
    return measure(
        model, batches_for(by_token=by_token), target_modules=targets,
        estimator="none", record="input_components", n_components=2 * r,
    )  # fmt: skip
