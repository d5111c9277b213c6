"""Batches are sorted and their padding is cut, and no statistic notices."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from fimlora import Settings, measure, measure_streamed
from fimlora.measuring.examples.examples import labelled_examples
from fimlora.measuring.examples.losses import Loss, LossKind
from fimlora.measuring.examples.padding import PASS_ON_CPU, Padding, find_padding
from support.models import PAD, TINY_MODELS, VOCABULARY, make_batch, tiny
from support.statistics import assert_close, assert_identical

# Models run in float64; what is left is the order of additions.
SAME = 1e-10
LENGTHS = [5, 17, 3, 16, 9]
# So many examples of each length that passes of their own are worth while.
MANY = [length for length in LENGTHS for _ in range(20)]
ENERGIES = ("row_energies", "example_energies", "squared_gradients")
CPU = torch.device("cpu")


def build(name):
    """A model in float64, and the shapes of the batches that reach it, in order."""
    model, targets = tiny(name, torch.float64)
    return model, targets, shapes_of(model)


def shapes_of(model):
    shapes = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled():  # else it is only asked something
            shapes.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def measured(name, batch, **options):
    model, targets, shapes = build(name)
    found = measure(model, [batch], target_modules=targets, estimator="both", **options)
    return found, shapes


def measured_whole(name, batch, **options):
    """Without any cut: the batch has a tensor that nobody knows how to cut."""
    model, targets, shapes = build(name)
    batch = batch | {"return_dict": torch.ones(1, 1)}
    wanted = measure(model, [batch], target_modules=targets, estimator="both", **options)
    assert {width for _, width in shapes} == {batch["input_ids"].shape[1]}
    return wanted


def left_padded(batch):
    """The same examples with their padding on the left, at the same positions."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    moved = {
        name: torch.stack(
            [row.roll(len(row) - n) for row, n in zip(value, lengths, strict=True)]
        )
        for name, value in batch.items()
    }
    moved["position_ids"] = (moved["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    return moved


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
@pytest.mark.parametrize(
    ("micro_batch_size", "shapes"),
    [(None, [(40, 17), (20, 9), (40, 5)]), (40, [(40, 17), (40, 9), (20, 3)])],
)
def test_statistics_are_those_of_the_padded_batch(name, micro_batch_size, shapes):
    """On every kind of model, examples in the order of the batch, split or not."""
    batch, record = make_batch(name, MANY, width=20), ["moments", "spectra"]

    found, seen = measured(name, batch, micro_batch_size=micro_batch_size, record=record)

    wanted = measured_whole(name, batch, record=record)
    sums = (*ENERGIES, "input_squares", "token_counts", "mean_energies")
    assert_close(found, wanted, SAME, groups=sums)
    assert_close(found, wanted, SAME**0.5, groups=["spectra"])  # roots of what is summed
    if name != "deberta_v2_classifier":  # which is run one by one
        assert list(dict.fromkeys(seen)) == shapes


@pytest.mark.parametrize("name", ["llama_gqa_lm", "gpt2_lm"])
def test_padding_on_the_left_is_cut_where_positions_are_given(name):
    """As the model then does not count columns."""
    batch = make_batch(name, LENGTHS)
    batch["labels"][:, 0] = -100

    found, seen = measured(name, left_padded(batch), micro_batch_size=2)

    assert_close(found, measured_whole(name, batch), SAME, groups=ENERGIES)
    assert seen[:3] == [(2, 17), (2, 9), (1, 3)]


def test_padding_on_the_left_stays_where_a_label_is_predicted_from_it():
    """What the model makes of padding is its own affair."""
    batch = left_padded(make_batch("llama_gqa_lm", [6, 3]))

    found = find_padding(batch, labels_by_token=True)

    assert found.spans == ((0, 6), (0, 6))


def test_padding_on_the_left_stays_where_columns_are_positions():
    """GPT-2 takes the column for the position when it is given none."""
    batch = left_padded(make_batch("gpt2_lm", LENGTHS))
    del batch["position_ids"]

    found, seen = measured("gpt2_lm", batch, micro_batch_size=2)

    assert {width for _, width in seen} == {17}
    assert_close(found, measured_whole("gpt2_lm", batch), SAME, groups=ENERGIES)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 12))
def test_micro_batches_are_the_cheapest_of_all(lengths, per_pass):
    """Against every way to cut the examples in order."""
    lengths = sorted(lengths, reverse=True)
    n = len(lengths)

    def cost(cuts):
        borders = [0, *cuts, n]
        return sum(per_pass + (b - a) * lengths[a] for a, b in itertools.pairwise(borders))

    found = [0]
    while found[-1] < n:
        rest = Padding(tuple((0, k) for k in lengths[found[-1] :]), frozenset(), 9)
        found.append(found[-1] + rest.count_alike(pass_tokens=per_pass))

    ways = itertools.chain(*(itertools.combinations(range(1, n), k) for k in range(n)))
    assert cost(found[1:-1]) == min(map(cost, ways))


def test_a_label_on_padding_is_kept():
    """It enters the loss, whatever the mask says of its token."""
    batch = make_batch("llama_gqa_lm", [6, 3])
    batch["labels"][1, 4] = 7

    found = find_padding(batch, labels_by_token=True)

    assert found.spans == ((0, 6), (0, 5))


@pytest.mark.parametrize(
    "extra",
    [
        {"attention_mask": torch.ones(2, 1, 6, 6)},
        {"position_bias": torch.zeros(2, 6, 6)},
        {"position_ids": torch.arange(6)[None]},
    ],
    ids=["mask_of_four_axes", "unknown_tensor", "positions_for_all"],
)
def test_what_cannot_be_cut_for_certain_is_left_alone(extra):
    """Only tensors that are known to have a column per token are cut."""
    batch = make_batch("llama_gqa_lm", [6, 3]) | extra

    assert find_padding(batch, labels_by_token=True) is None


def test_several_labels_of_an_example_are_no_columns():
    """Also where there are as many as tokens."""
    labels = torch.arange(12.0).view(2, 6)
    batch = make_batch("bert_classifier", [2, 3], width=6) | {"labels": labels}

    examples = labelled_examples(batch, Loss(LossKind.MULTI_LABEL), CPU)

    assert examples.part(0, 2).batch["labels"].tolist() == labels.flip(0).tolist()
    assert examples.part(0, 2).batch["input_ids"].shape == (2, 3)
    assert examples.order.tolist() == [1, 0]


def test_a_loss_of_ones_own_sees_the_batch_as_it_is():
    """Nobody knows what it reads."""
    batch = make_batch("bert_classifier", [2, 5], width=6)

    examples = labelled_examples(batch, Loss(LossKind.CUSTOM, lambda *_: None), CPU)

    assert examples.part(0, 2).batch is batch


def test_streamed_equals_resident_on_sorted_examples(tmp_path):
    """To the last bit, as both cut alike."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=24, n_layer=2, n_head=2, n_positions=32, vocab_size=VOCABULARY,
        bos_token_id=1, eos_token_id=2, pad_token_id=PAD,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    seen, lengths = shapes_of(model), (MANY, [4, 11] * PASS_ON_CPU)
    batches = [make_batch("gpt2_lm", some, width=20) for some in lengths]

    found = measure_streamed(
        tmp_path, batches, Settings(target_modules=["c_attn"], estimator="both")
    )

    assert_identical(
        found, measure(model, batches, target_modules=["c_attn"], estimator="both")
    )
    assert {width for _, width in seen} == {17, 9, 5, 11, 4}


def test_a_model_that_reads_padding_gets_all_of_it():
    """XLNet predicts a class from the last column, whatever is there."""
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=24, pad_token_id=PAD
    )
    model = XLNetForSequenceClassification(config).double().eval()
    batch = make_batch("bert_classifier", LENGTHS, width=20)
    batch = {n: batch[n] for n in ("input_ids", "attention_mask", "labels")}
    batch["labels"] = batch["labels"] % 2

    def own_loss(outputs, given):  # with a loss of the caller's own nothing is ever cut
        return functional.cross_entropy(outputs["logits"], given["labels"], reduction="none")

    options = {"target_modules": ["ff.layer_1"]}
    wanted = measure(model, [batch], loss_fn=own_loss, **options)

    seen = shapes_of(model)
    for size in (None, 1, 2):
        found = measure(model, [batch], micro_batch_size=size, **options)
        assert_close(found, wanted, SAME)
    assert {width for _, width in seen} == {20}
