"""The null: the same forward passes, gone back through under labels of other examples."""

import numpy as np
import pytest
import torch
import transformers

from fimlora import find_targets, measure
from fimlora.errors import NumericalFailure
from fimlora.measuring.examples.losses import IGNORED, choose_loss
from fimlora.measuring.examples.null_labels import NullLabels
from support.models import PAD, TINY_MODELS, make_batch, tiny
from support.reference import (
    relative_error,
    weight_gradients_by_batch,
    weight_gradients_by_example,
)
from support.seq2seq import SEQ2SEQ_MODELS, make_seq2seq_batch
from support.statistics import assert_close, assert_identical
from support.toys import BETWEEN, Toy, make_toy, squared_sum, toy_batch

FLOAT32, FLOAT64 = 1e-5, 1e-10
LENGTHS = ([9, 5, 7, 2], [6, 9, 3], [30])
RECORD = ("spectra", "batch_energies", "moments")


def under_null_labels(model, batches, *, loss_fn=None, seed=0):
    """The same batches, with null labels in the place of the true ones."""
    null, found, first = NullLabels(choose_loss(model, batches[0], loss_fn), seed), [], 0
    for batch in batches:
        numbers = first + torch.arange(len(batch["labels"]))
        found.append(batch | {"labels": null.draw(batch["labels"], numbers)})
        first += len(numbers)
    return found


def one_by_one(batches):
    return [
        {name: value[i : i + 1] for name, value in batch.items()}
        for batch in batches
        for i in range(len(batch["labels"]))
    ]


def gradients_by_example(model, batches, modules):
    """By one backward pass of the model's own loss per example."""
    return weight_gradients_by_batch(model, one_by_one(batches), modules)


def assert_is_of(found, gradients, tolerance=FLOAT64):
    for module in found.modules:
        squares = gradients[module.name].square()
        rows, examples = squares.sum(dim=(0, 2)), squares.sum(dim=(1, 2))
        assert relative_error(found.row_energies[module.name], rows) <= tolerance
        assert relative_error(found.example_energies[module.name], examples) <= tolerance


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_null_gradients_are_those_of_the_model_with_null_labels(name):
    """Energies of every example, and the spectrum of their mean, by plain autograd."""
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    modules = find_targets(model, targets)
    null = under_null_labels(model, batches)
    gradients = weight_gradients_by_example(model, null, modules)

    found = measure(model, batches, target_modules=targets, record=RECORD, null=True)

    assert found.null is not None
    assert_is_of(found.null, gradients)
    for module in modules:
        values = torch.linalg.svdvals(gradients[module.name].mean(dim=0))[:64]
        assert relative_error(found.null.spectra[module.name], values) <= 1e-6
    others = [(a - b).any() for a, b in zip(*rows(found, found.null), strict=True)]
    assert all(others)


def rows(*statistics):
    return [[s.row_energies[m.name] for m in s.modules] for s in statistics]


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_numbers_and_several_labels_are_exchanged_whole(kind):
    """For those losses too, gradients are the model's own under the other labels."""
    model, targets = tiny("bert_classifier", torch.float64)
    model.config.problem_type = kind
    generator = torch.Generator().manual_seed(0)
    batches = [
        make_batch("bert_classifier", lengths, seed=i) for i, lengths in enumerate(LENGTHS)
    ]
    for batch in batches:
        labels = torch.rand(len(batch["labels"]), 3, generator=generator, dtype=torch.float64)
        batch["labels"] = labels if kind == "regression" else labels.round()
    modules = find_targets(model, targets)
    gradients = gradients_by_example(model, under_null_labels(model, batches), modules)

    found = measure(model, batches, target_modules=targets, null=True)

    assert found.null is not None
    assert_is_of(found.null, gradients)


def test_a_large_head_has_its_null_from_the_same_logits():
    """Token losses in chunks; both choices of labels give what all logits at once give."""
    config = transformers.LlamaConfig(
        vocab_size=5000, pad_token_id=PAD, initializer_range=0.2, hidden_size=24,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).double().eval()
    batches = [make_batch("llama_gqa_lm", [150, 9, 7, 3]), make_batch("llama_gqa_lm", [40, 8])]
    for batch in batches:
        batch["labels"] = batch["labels"].where(
            batch["labels"] == IGNORED, batch["labels"] * 70 % 5000
        )
    assert choose_loss(model, batches[0], None).head is not None
    modules = find_targets(model, ["v_proj", "down_proj"])
    null = under_null_labels(model, batches)

    found = measure(model, batches, target_modules=["v_proj", "down_proj"], null=True)

    assert found.null is not None
    assert_is_of(found.null, weight_gradients_by_example(model, null, modules))
    assert_is_of(found, weight_gradients_by_example(model, batches, modules))


def test_an_encoder_decoder_reads_what_it_read():
    """Only what its decoder is to put out changes, not what it is given."""
    model, targets = SEQ2SEQ_MODELS["t5"]().double(), ["q", "v", "wo"]
    batches = [
        make_seq2seq_batch("t5", [9, 5, 7], [4, 6, 3]),
        make_seq2seq_batch("t5", [6, 8], [5, 2], seed=1),
    ]
    modules = find_targets(model, targets)
    null = under_null_labels(model, batches)
    for batch, other in zip(batches, null, strict=True):
        read = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        other["decoder_input_ids"] = read
    gradients = gradients_by_example(model, null, modules)

    found = measure(model, batches, target_modules=targets, null=True)

    assert found.null is not None
    assert_is_of(found.null, gradients, FLOAT32)  # the model's own loss is in float32


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3])
def test_micro_batches_and_the_run_itself_are_not_changed(micro_batch_size):
    """With a null and halves, the run's own sums are those without, to the last bit."""
    name = "llama_gqa_lm"
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    options = {
        "target_modules": targets, "record": RECORD, "estimator": "both", "rank": 4,
        "micro_batch_size": micro_batch_size,
    }  # fmt: skip

    found = measure(model, batches, **options, null=True, halves=True)

    assert_identical(found.with_parts({}), measure(model, batches, **options))
    whole = measure(model, batches, **(options | {"micro_batch_size": None}), null=True)
    assert found.null is not None
    assert whole.null is not None
    assert found.null.null_targets == whole.null.null_targets
    assert_close(found.null, whole.null, FLOAT64)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_goes_back_twice(use_reentrant):
    """Passes that run again in each backward pass report one gradient in each."""
    name = "llama_gqa_lm"
    batch = make_batch(name, [9, 4, 6])
    model, targets = tiny(name, torch.float64)
    plain = measure(model, [batch], target_modules=targets, null=True)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})

    found = measure(model, [batch], target_modules=targets, null=True, train_mode=True)

    assert found.null is not None
    assert plain.null is not None
    assert_close(found, plain, FLOAT64)
    assert_close(found.null, plain.null, FLOAT64)


class LabelledToy(Toy):
    """Takes labels, for the loss."""

    def forward(self, x, scale=None, labels=None):
        return super().forward(x)


def labelled_toy():
    torch.manual_seed(0)
    return LabelledToy(BETWEEN["plain"]).double()


def with_labels(outputs, batch):
    return squared_sum(outputs, batch) * batch["labels"]


def test_a_loss_of_ones_own_sees_the_exchanged_labels():
    """If its batch has labels, one per example; else there is no null, and all else is there."""
    batch = toy_batch(5)
    labels = torch.arange(1.0, 6.0, dtype=torch.float64)
    options = {"target_modules": ["first", "second"], "halves": True, "null": True}

    found = measure(
        labelled_toy(), [batch | {"labels": labels}], loss_fn=with_labels, **options
    )
    without = measure(make_toy("plain"), [batch] * 2, loss_fn=squared_sum, **options)

    assert found.null is not None
    drawn = NullLabels(choose_loss(labelled_toy(), batch, with_labels), 0).draw(
        labels, torch.arange(5)
    )
    for name in ("first", "second"):
        energies = found.example_energies[name] / labels.numpy() ** 2 * drawn.numpy() ** 2
        assert relative_error(found.null.example_energies[name], energies) <= FLOAT64
    assert found.halves is None  # of a single batch
    assert without.null is None
    assert without.halves is not None


def test_a_null_that_is_not_finite_is_refused():
    """By the module that it reaches, like any gradient."""
    batch = toy_batch(2) | {"labels": torch.tensor([1.0, 1e300], dtype=torch.float64)}
    batch["scale"][1] *= 1e-200
    options = {"target_modules": ["first"], "loss_fn": with_labels}
    measure(labelled_toy(), [batch], **options)

    with pytest.raises(NumericalFailure, match=r"'first'.*batch 1"):
        measure(labelled_toy(), [batch], null=True, **options)


def test_halves_add_up_to_the_run():
    """Every other batch, from the first on, and those between; what is per example is split."""
    name = "gpt2_lm"
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, [n, 3, 7], seed=n) for n in (9, 5, 8, 2)] + [
        make_batch(name, [4])
    ]
    options = {"target_modules": targets, "record": RECORD, "estimator": "both", "rank": 4}

    found = measure(model, iter(batches), **options, halves=True)

    assert found.halves is not None
    for half, some in zip(found.halves, (batches[::2], batches[1::2]), strict=True):
        alone = measure(model, some, **options)
        assert (half.n_examples, half.n_batches) == (alone.n_examples, alone.n_batches)
        assert_close(half, alone, 1e-7)
    for group in ("row_energies", "squared_gradients", "input_squares", "batch_energies"):
        for module, total in getattr(found, group).items():
            added = sum(getattr(half, group)[module] for half in found.halves)
            assert relative_error(added, total) <= FLOAT64


def test_a_module_that_one_half_never_reaches_has_nothing_there():
    """Zeros, as its gradient is: a plan of that half can be made all the same."""

    class Switch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x, which):
            return self.second(x) if which[0] else self.first(x)

    torch.manual_seed(0)
    batches = [{"x": torch.randn(2, 4, 3), "which": torch.full((2,), i % 2)} for i in range(4)]

    found = measure(
        Switch(),
        batches,
        target_modules=["first", "second"],
        loss_fn=lambda outputs, batch: outputs.square().sum(dim=(1, 2)),
        record="spectra",
        halves=True,
    )

    assert found.halves is not None
    for half, (seen, unseen) in zip(
        found.halves, (("first", "second"), ("second", "first")), strict=True
    ):
        assert np.array_equal(half.row_energies[seen], found.row_energies[seen])
        assert not half.row_energies[unseen].any()
        assert not half.spectra[unseen].any()
