"""Losses per example, and that their weighted sum is the model's own loss."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from fimlora.measuring.examples.losses import (
    LossKind,
    choose_loss,
    count_labels,
    per_example_loss,
)
from support.models import make_batch, tiny

SAME = 1e-6


def weighted_sum(model, batch):
    """What the engine takes for the loss of the batch."""
    loss = choose_loss(model, batch, None)
    counts = loss.count_labels(batch, len(batch["labels"]))
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        losses = loss.per_example(model(**inputs), batch)
    return loss.kind, (losses * counts / counts.sum()).sum().item()


def classifier(**options):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=61, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=8, **options,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["llama_gqa_lm", "gpt2_lm", "bert_classifier"])
def test_the_weighted_sum_is_the_models_own_loss(name):
    """With unequal numbers of labels per example, for a language model."""
    model, _ = tiny(name)
    batch = make_batch(name, [9, 3, 6])

    _, found = weighted_sum(model, batch)

    assert found == pytest.approx(model(**batch).loss.item(), rel=SAME)


@pytest.mark.parametrize(
    ("options", "labels", "kind"),
    [
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0]), LossKind.REGRESSION),
        (
            {"num_labels": 2, "problem_type": "regression"},
            torch.tensor([[0.5, 1], [-1, 0], [2, 2]]),
            LossKind.REGRESSION,
        ),
        ({"num_labels": 4}, torch.tensor([3, 0, 1]), LossKind.SINGLE_LABEL),
        ({"num_labels": 4}, torch.tensor([3, -100, 1]), LossKind.SINGLE_LABEL),
        (
            {"num_labels": 2},
            torch.tensor([[0.0, 1], [1, 1], [0, 0]]),
            LossKind.MULTI_LABEL,
        ),
    ],
    ids=["regression", "two_numbers", "classes", "class_left_out", "multi_label"],
)
def test_the_kind_follows_from_config_and_labels(options, labels, kind):
    """As transformers decides it, but without writing into the config."""
    model = classifier(**options)
    batch = make_batch("bert_classifier", [4, 4, 4]) | {"labels": labels}

    found_kind, found = weighted_sum(model, batch)

    assert found_kind is kind
    assert model.config.problem_type == options.get("problem_type")
    assert found == pytest.approx(model(**batch).loss.item(), rel=SAME)


def test_a_token_counts_for_its_successor_only():
    """The first label of a row has no token before it; -100 stands for none."""
    labels = torch.tensor([[5, 6, 7], [5, -100, 7], [5, -100, -100]])

    assert count_labels(labels, LossKind.CAUSAL_LM).tolist() == [2, 1, 0]


def test_an_example_without_labels_has_no_loss():
    """Its gradient is zero, not NaN."""
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.tensor([[1, 2, 3], [1, -100, -100]])

    losses = per_example_loss(logits, labels, LossKind.CAUSAL_LM)
    losses.sum().backward()

    assert losses[1] == 0
    assert logits.grad[1].abs().sum() == 0
    assert logits.grad[0].abs().sum() > 0


@pytest.mark.parametrize("kind", [LossKind.CAUSAL_LM, LossKind.SINGLE_LABEL])
def test_half_precision_logits_give_a_float32_loss(kind):
    """The softmax over a vocabulary does not fit in 8 bits."""
    is_lm = kind is LossKind.CAUSAL_LM
    logits = torch.randn(2, 3, 5) if is_lm else torch.randn(2, 5)
    labels = torch.ones(2, 3, dtype=torch.long) if is_lm else torch.ones(2, dtype=torch.long)

    losses = per_example_loss(logits.bfloat16(), labels, kind)

    assert losses.dtype == torch.float32
    wanted = per_example_loss(logits.bfloat16().float(), labels, kind)
    assert torch.equal(losses, wanted)
