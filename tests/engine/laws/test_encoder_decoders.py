"""Encoder-decoders: their loss, plain autograd as the reference, and the streamed executor."""

import copy

import pytest
import torch
from transformers import BartConfig, BartForQuestionAnswering

from fimlora import Settings, measure, measure_streamed
from fimlora.errors import UnsupportedModule
from fimlora.measuring.examples.losses import LossKind, choose_loss
from support.reference import relative_error
from support.seq2seq import SEQ2SEQ_MODELS, make_seq2seq_batch
from support.statistics import assert_identical
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here

FLOAT64 = 1e-10
LENGTHS = (([9, 5, 7, 2], [4, 6, 3, 5]), ([6, 9, 3], [5, 2, 4]))
OPTIONS = {"target_modules": "all-linear", "estimator": "both", "record": "spectra"}


@pytest.fixture(params=sorted(SEQ2SEQ_MODELS))
def name(request):
    return request.param


@pytest.fixture
def batches(name):
    return [make_seq2seq_batch(name, *lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def test_energies_are_those_of_each_examples_own_loss(name, batches):
    """One backward pass per example of the model's own loss, without any padding."""
    model = SEQ2SEQ_MODELS[name]().double()
    wanted = {}
    reference = copy.deepcopy(model)

    statistics = measure(model, batches, target_modules="all-linear")

    for batch in batches:
        for row in range(len(batch["labels"])):
            n = int(batch["attention_mask"][row].sum())
            labels = batch["labels"][row : row + 1]
            labels = labels[labels != -100].reshape(1, -1) if labels.dim() == 2 else labels
            reference.zero_grad()
            reference(
                input_ids=batch["input_ids"][row : row + 1, :n], labels=labels
            ).loss.backward()
            for module in statistics.modules:
                gradient = reference.get_submodule(module.name).weight.grad
                wanted.setdefault(module.name, []).append(gradient.square().sum())
    for module in statistics.modules:
        found = statistics.example_energies[module.name]
        assert relative_error(found, torch.stack(wanted[module.name])) <= FLOAT64, module.name


def test_the_kind_of_loss(name, batches):
    """A language model reads labels as its decoder puts them out; a classifier as ever."""
    loss = choose_loss(SEQ2SEQ_MODELS[name](), batches[0], None)

    is_classifier = "classifier" in name
    assert loss.kind is (LossKind.SINGLE_LABEL if is_classifier else LossKind.SEQ2SEQ_LM)
    counts = loss.count_labels(batches[0], 4).tolist()
    assert counts == ([1] * 4 if is_classifier else LENGTHS[0][1])


def test_streamed_equals_resident(name, batches, tmp_path):
    """Gradients of the encoder's output come from every block of the decoder."""
    resident = save(SEQ2SEQ_MODELS[name](), tmp_path)

    streamed = measure_streamed(tmp_path, batches, Settings(**OPTIONS))

    assert_identical(streamed, measure(resident, batches, **OPTIONS))
    parts = {name for name in streamed.row_energies if ".encoder." in f".{name}"}
    assert 0 < len(parts) < len(streamed.modules)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_targets_in_one_half_only(name, half, batches, tmp_path):
    """In micro-batches, with boundaries on disk; the encoder is reached through the decoder."""
    resident = save(SEQ2SEQ_MODELS[name](), tmp_path)
    options = {**OPTIONS, "target_modules": rf".*{half}\..*(q|v|q_proj|v_proj)"}

    streamed = measure_streamed(
        tmp_path, batches, Settings(micro_batch_size=3, **options), max_boundary_bytes=0
    )

    assert_identical(streamed, measure(resident, batches, micro_batch_size=3, **options))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_decoder_inputs_of_ones_own_are_taken(name, batches):
    """What the model would make of the labels, given as an argument, changes nothing."""
    model = SEQ2SEQ_MODELS[name]()
    given = [
        {**b, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(b["labels"])}
        for b in batches
    ]

    found, wanted = (measure(model, some, **OPTIONS) for some in (given, batches))

    for module in wanted.modules:
        energies = (s.row_energies[module.name] for s in (found, wanted))
        assert relative_error(*energies) <= 1e-5


@pytest.mark.parametrize("name", ["t5"])
def test_what_cannot_be_measured_is_named(batches):
    """Moments, as one mask does not fit two kinds of tokens; a head without a known loss."""
    model = SEQ2SEQ_MODELS["t5"]()
    for record in ("moments", "whitened_spectra"):
        with pytest.raises(UnsupportedModule, match=rf"{record}.*T5ForConditionalGeneration"):
            measure(model, batches, record=record, target_modules=["q"])
    other = BartForQuestionAnswering(
        BartConfig(vocab_size=61, d_model=8, encoder_layers=1, decoder_layers=1,
                   encoder_attention_heads=1, decoder_attention_heads=1)
    )  # fmt: skip

    with pytest.raises(UnsupportedModule, match=r"BartForQuestionAnswering.*loss_fn"):
        measure(other, batches, target_modules=["q_proj"])
