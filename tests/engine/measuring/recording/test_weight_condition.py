"""Both ends of a weight's spectrum, against dense decompositions and PEFT's own condition numbers."""

import pytest
import torch
import transformers
from peft import find_kappa_target_modules
from peft.helpers import KappaTuneSelector

from fimlora import Settings, allocate, find_targets, measure, measure_streamed, score
from fimlora.errors import NumericalFailure, UnsupportedModule
from fimlora.measuring.recording.weight_condition import spectrum_ends
from support.models import PAD, TINY_MODELS, VOCABULARY, make_batch, minilm_path, tiny
from support.reference import matrix_with
from support.statistics import assert_identical
from support.streaming import save

RECORD = "weight_condition"
ROUNDING = 2.0**-23  # of the float32 in which PEFT decomposes, relative to the largest value


def conditions(model, name, targets):
    statistics = measure(
        model, [make_batch(name, [31, 9, 3])], target_modules=targets, record=RECORD
    )
    return score(statistics, "kappa")


def assert_agrees(found, theirs):
    """Within what float32 leaves of the smallest value: a share of kappa itself."""
    for name, kappa in found.items():
        assert kappa == pytest.approx(theirs[name], rel=8 * ROUNDING * kappa)


@pytest.mark.parametrize("name", sorted(set(TINY_MODELS) - {"gpt2_lm"}))
def test_condition_numbers_are_those_of_peft(name):
    """On the same weights."""
    model, targets = tiny(name)
    selector = KappaTuneSelector(model, show_progress=False)
    selector.get_best_targets()

    found = conditions(model, name, targets).provenance["condition_numbers"]

    assert len(found) >= 6
    assert_agrees(found, selector._condition_numbers)


def test_conv1d_weights_are_decomposed_too():
    """PEFT looks at ``nn.Linear`` alone; against a dense decomposition in float64."""
    model, targets = tiny("gpt2_lm", torch.float64)

    found = conditions(model, "gpt2_lm", targets).provenance["condition_numbers"]

    for module in find_targets(model, targets):
        values = torch.linalg.svdvals(model.get_submodule(module.name).weight.detach())
        assert found[module.name] == pytest.approx(
            (values[0] / (values[-1] + 1e-8)).item(), rel=1e-6
        )


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.8])
def test_what_peft_selects_has_the_highest_scores(share):
    """Of a real model, whatever share is selected."""
    model = transformers.BertModel.from_pretrained(minilm_path()).eval()
    batch = {key: torch.full((2, 7), 5) for key in ("input_ids",)} | {"labels": torch.zeros(2)}
    statistics = measure(
        model, [batch], target_modules=["query", "key", "value", "dense"],
        exclude_modules=["pooler.dense"], record=RECORD,
        loss_fn=lambda outputs, batch: outputs.last_hidden_state.mean(dim=(1, 2)),
    )  # fmt: skip
    del model.pooler  # no target here, so no candidate there
    candidates = find_kappa_target_modules(model, top_p=1.0, show_progress=False)
    assert {*candidates["target_modules"]} == {m.name for m in statistics.modules}

    found = score(statistics, "kappa").by_module

    selected = find_kappa_target_modules(model, top_p=share, show_progress=False)[
        "target_modules"
    ]
    by_score = sorted(found, key=found.__getitem__, reverse=True)
    assert {*by_score[: len(selected)]} == {*selected}


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (30, 30)])
@pytest.mark.parametrize("least", [1.0, 1e-3, 1e-6])
def test_ends_are_those_that_a_matrix_was_made_with(shape, least):
    """To what the squares leave in float64."""
    torch.manual_seed(0)
    values = torch.logspace(0, torch.log10(torch.tensor(least)).item(), min(shape))

    largest, smallest = spectrum_ends(matrix_with(values.tolist(), *shape))

    assert largest == pytest.approx(values[0].item(), rel=1e-9)
    assert smallest == pytest.approx(values[-1].item(), rel=max(1e-9, 1e-14 / least**2))


def test_a_weight_of_zeros_scores_nothing():
    """Where a quotient would call it the best of all."""
    model, targets = tiny("bert_classifier")
    key = model.bert.encoder.layer[0].attention.self.key
    with torch.no_grad():
        key.weight.zero_()
        key.weight[0, 0] = 0

    scores = conditions(model, "bert_classifier", targets)

    assert scores.by_module["bert.encoder.layer.0.attention.self.key"] == 0
    assert (
        scores.provenance["condition_numbers"]["bert.encoder.layer.0.attention.self.key"]
        is None
    )
    assert sum(value == 0 for value in scores.by_module.values()) == 1


def test_a_weight_that_is_not_finite_is_named():
    """It is no module's fault that another one hides it."""
    model, targets = tiny("bert_classifier")
    layer = model.bert.encoder.layer[1]
    layer.output.dense.weight.data[2, 3] = torch.nan
    layer.forward = lambda hidden_states, *args, **kwargs: (
        hidden_states + 0 * sum(m(hidden_states).sum() for m in (layer.attention.self.query,))
    )

    with pytest.raises(NumericalFailure, match=r"layer\.1\.output\.dense"):
        conditions(model, "bert_classifier", targets)


def test_modules_that_no_row_reaches_stay_no_targets():
    """A weight that could be decomposed makes no target of them."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, pad_token_id=PAD, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=40,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    skipped = model.model.layers[1].mlp
    skipped.forward = lambda x: x
    batch = make_batch("llama_gqa_lm", [9, 3])

    with_it, without = (
        measure(model, [batch], target_modules="all-linear", record=record)
        for record in (RECORD, ())
    )

    assert with_it.modules == without.modules
    assert len(with_it.modules) == 11
    assert set(with_it.quantities[RECORD]) == {m.name for m in without.modules}


def test_labels_and_halves_move_nothing():
    """It is the same in every part of a run."""
    model, targets = tiny("bert_classifier")
    batches = [
        make_batch("bert_classifier", lengths, seed=i)
        for i, lengths in enumerate([[9, 3], [5]])
    ]

    found = measure(
        model, batches, target_modules=targets, record=RECORD, null=True, halves=True
    )

    for half in found.halves:
        for name, ends in found.quantities[RECORD].items():
            assert (half.quantities[RECORD][name] == ends).all()


def test_quantised_weights_are_refused():
    """What is stored is not what they stand for."""
    model, targets = tiny("bert_classifier")
    query = model.bert.encoder.layer[0].attention.self.query
    query.weight = torch.nn.Parameter(query.weight.to(torch.float8_e4m3fn), requires_grad=False)

    with pytest.raises(UnsupportedModule, match=r"'weight_condition'.*query.*float8"):
        conditions(model, "bert_classifier", targets)


def test_no_batch_is_touched_where_nothing_else_is_asked_for(tmp_path):
    """Resident and streamed; the numbers are those of a run over data."""
    model, targets = tiny("llama_gqa_lm")
    resident = save(model, tmp_path)
    options = {"target_modules": targets, "record": RECORD}

    class Untouched:
        def __iter__(self):
            pytest.fail("a batch was read")

    alone = measure(resident, Untouched(), estimator="none", **options)
    streamed = measure_streamed(tmp_path, Untouched(), Settings(estimator="none", **options))
    beside = measure(resident, [make_batch("llama_gqa_lm", [9, 3])], **options)

    assert_identical(streamed, alone)
    assert len(alone.modules) == 14
    assert (alone.n_examples, alone.row_energies) == (0, {})
    assert score(alone, "kappa").by_module == score(beside, "kappa").by_module
    assert (
        allocate(score(alone, "uniform"), 2).ranks
        == allocate(score(beside, "uniform"), 2).ranks
    )
