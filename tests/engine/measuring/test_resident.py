"""What `measure` accepts, refuses and reports."""

import pytest
import torch
from transformers import BertConfig, BertModel

from fimlora import measure, score
from fimlora.errors import (
    EmptyCalibration,
    InvalidOption,
    MissingGradient,
    NumericalFailure,
)
from fimlora.left_out import UNREACHED
from support.models import make_batch, tiny
from support.toys import make_toy, squared_sum, toy_batch

NAME = "bert_classifier"


@pytest.fixture
def model():
    return tiny(NAME)[0]


@pytest.fixture
def batches():
    return [make_batch(NAME, [5, 3], seed=i) for i in range(3)]


def test_it_stops_after_n_batches(model, batches):
    """The rest of the loader is not touched."""
    loader = iter(batches)

    statistics = measure(model, loader, target_modules=["query"], n_batches=2)

    assert (statistics.n_batches, statistics.n_examples) == (2, 4)
    assert next(loader) is batches[2]


def test_a_short_loader_is_used_up(model, batches):
    """The statistics say how many batches there were."""
    statistics = measure(model, batches, target_modules=["query"], n_batches=50)

    assert statistics.n_batches == 3


@pytest.mark.parametrize(
    ("wrap", "total"), [(list, 3), (iter, 8)], ids=["with_length", "without_length"]
)
def test_progress_counts_batches(model, batches, wrap, total):
    """After each batch: how many are done, and how many are expected."""
    seen = []

    measure(model, wrap(batches), target_modules=["query"], on_batch=lambda *n: seen.append(n))

    assert seen == [(1, total), (2, total), (3, total)]


def test_no_batch_is_an_error(model):
    """An empty loader has nothing to measure."""
    with pytest.raises(EmptyCalibration, match="gave no batch"):
        measure(model, [], target_modules=["query"])


def test_no_label_is_an_error(model, batches):
    """Neither has a loader whose labels are all left out."""
    for batch in batches:
        batch["labels"][:] = -100

    with pytest.raises(EmptyCalibration, match="no example carries a label"):
        measure(model, batches, target_modules=["query"])


def test_a_batch_without_labels_is_not_counted(model, batches):
    """Between two others it changes nothing, in the mean over batches neither."""
    wanted = measure(model, batches[::2], target_modules=["query"], estimator="both")
    batches[1]["labels"][:] = -100

    found = measure(model, batches, target_modules=["query"], estimator="both")

    assert found.n_batches == 2
    assert score(found).by_module == score(wanted).by_module
    assert (
        score(found, estimator="sampled").by_module
        == score(wanted, estimator="sampled").by_module
    )


def test_a_nan_loss_names_its_batch(model, batches):
    """The first batch is fine, the second is not."""
    model.config.problem_type = "regression"
    model.num_labels = model.config.num_labels = 1
    model.classifier = torch.nn.Linear(24, 1)
    batches[0]["labels"] = torch.tensor([0.5, 1.0])
    batches[1]["labels"] = torch.tensor([0.5, float("nan")])

    with pytest.raises(NumericalFailure, match="loss is nan in batch 2 of 3"):
        measure(model, batches, target_modules=["query"])


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_an_infinite_gradient_names_its_module(estimator):
    """A finite loss whose gradient is not: the square root at 0."""
    batch = toy_batch()

    def root(outputs, batch):
        return (outputs - outputs.detach()).flatten(1).sum(dim=1).sqrt()

    with pytest.raises(NumericalFailure, match="gradient of target module 'first' is"):
        measure(
            make_toy("plain"), [batch], target_modules=["first"], loss_fn=root,
            estimator=estimator,
        )  # fmt: skip


def test_a_module_that_does_not_run_is_named():
    """It is never scored zero, and a plan without it would not be what was asked for."""
    with pytest.raises(MissingGradient, match=r"'unused' cannot be measured: no gradient"):
        measure(
            make_toy("plain"), [toy_batch()], target_modules=["first", "unused"],
            loss_fn=squared_sum,
        )  # fmt: skip


def test_a_module_without_a_gradient_is_left_out(model, batches):
    """The loss here reads the hidden states, which the pooler does not reach."""

    def loss_fn(outputs, batch):
        return outputs.hidden_states[-1].square().sum(dim=(1, 2))

    for batch in batches:
        batch["output_hidden_states"] = True

    statistics = measure(model, batches, target_modules="all-linear", loss_fn=loss_fn)

    assert statistics.not_targeted == {"bert.pooler.dense": UNREACHED}
    assert statistics.row_energies.keys() == {m.name for m in statistics.modules}
    assert len(statistics.modules) == 2 * 6


def test_a_batch_must_be_a_mapping(model):
    """A loader of tuples does not say what is what."""
    with pytest.raises(InvalidOption, match=r"must map .* got tuple"):
        measure(model, iter([(torch.zeros(1, 2), torch.zeros(1))]), target_modules=["query"])


def test_labels_must_be_there(model, batches):
    """Without labels there is no loss; the message lists what there is."""
    del batches[0]["labels"]

    with pytest.raises(InvalidOption, match=r"no tensor 'labels', only \['attention_mask'"):
        measure(model, batches, target_modules=["query"])


def test_a_model_without_a_known_loss_asks_for_one(batches):
    """A headless encoder has none of its own."""
    model = BertModel(BertConfig(vocab_size=61, hidden_size=8, num_hidden_layers=1,
                                 num_attention_heads=1, intermediate_size=8))  # fmt: skip

    with pytest.raises(InvalidOption, match=r"loss of BertModel is not known.*loss_fn"):
        measure(model, batches, target_modules=["query"])


def test_a_loss_of_ones_own_gives_one_number_per_example(model, batches):
    """A mean over the batch cannot be taken apart again."""
    with pytest.raises(InvalidOption, match=r"loss_fn gave shape \(\); expected .* \(2,\)"):
        measure(
            model, batches, target_modules=["query"],
            loss_fn=lambda outputs, batch: outputs.logits.mean(),
        )  # fmt: skip


def test_a_loss_of_ones_own_that_is_the_models_own_agrees(model, batches):
    """Cross-entropy by hand gives the statistics that the default gives."""

    def loss_fn(outputs, batch):
        return torch.nn.functional.cross_entropy(
            outputs.logits, batch["labels"], reduction="none"
        )

    found = measure(model, batches, target_modules=["query"], loss_fn=loss_fn, estimator="both")

    wanted = measure(model, batches, target_modules=["query"], estimator="both")
    assert found.loss == "custom"
    assert score(found).by_module == pytest.approx(score(wanted).by_module, rel=1e-6)
    for module in wanted.modules:
        assert found.squared_gradients[module.name] == pytest.approx(
            wanted.squared_gradients[module.name], rel=1e-5, abs=1e-12
        )


def test_half_precision_is_accumulated_in_float32(batches):
    """In bfloat16 the statistics are near those in float32, small modules too."""
    model, targets = tiny(NAME)
    wanted = score(measure(model, batches, target_modules=targets)).by_module

    found = measure(model.to(torch.bfloat16), batches, target_modules=targets)

    assert found.dtype == "bfloat16"
    assert score(found).by_module == pytest.approx(wanted, rel=0.2)


def test_a_label_out_of_range_names_its_batch(model, batches):
    """Otherwise it would be an assertion on the device, which ends the process."""
    batches[1]["labels"][0] = 3

    with pytest.raises(
        InvalidOption, match=r"label 3 in batch 2 of 3 .* from 0 to 2, and -100"
    ):
        measure(model, batches, target_modules=["query"])


def test_a_token_outside_the_vocabulary_is_no_label():
    """The first token of a row is never predicted, so its label does not matter."""
    model, batch = tiny("llama_gqa_lm")[0], make_batch("llama_gqa_lm", [5, 3])
    batch["labels"][:, 0] = 61
    measure(model, [batch], target_modules=["q_proj"])
    batch["labels"][1, 2] = 61

    with pytest.raises(InvalidOption, match=r"label 61 in batch 1 of 1 .* from 0 to 60"):
        measure(model, [batch], target_modules=["q_proj"])


def test_a_model_without_values_is_refused(model, batches):
    """On the meta device there is nothing to run."""
    with pytest.raises(InvalidOption, match="on the meta device and has no values"):
        measure(model.to("meta"), batches, target_modules=["query"])


def test_weights_of_inference_mode_are_refused(model, batches):
    """Autograd takes none of them, and the model keeps its flags."""
    with torch.inference_mode():
        weight = model.get_input_embeddings().weight.clone()
    model.get_input_embeddings().weight = torch.nn.Parameter(weight, requires_grad=False)

    with pytest.raises(
        InvalidOption, match=r"'.*weight' was made in torch.inference_mode.*load"
    ):
        measure(model, batches, target_modules=["query"])


def test_a_compiled_model_is_measured_as_itself(model, batches):
    """Names and statistics are those of the model that was compiled."""
    wanted = score(measure(model, batches, target_modules=["query"])).by_module

    found = measure(torch.compile(model, backend="eager"), batches, target_modules=["query"])

    assert score(found).by_module == wanted


def test_a_choice_that_no_gradient_reaches_is_refused():
    """There is nothing to share a budget by."""
    with pytest.raises(MissingGradient, match=r"no target module can be .*'unused'"):
        measure(make_toy("plain"), [toy_batch()], target_modules="unu.*", loss_fn=squared_sum)
