"""A fitted head: what the model's own logits then say, and what of the model has changed."""

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from fimlora import fit_head, measure
from fimlora.errors import (
    EmptyCalibration,
    InvalidOption,
    NumericalFailure,
    UnsupportedModule,
)
from fimlora.measuring.head.last_linear import candidates
from support.classifiers import TASK, config_of, labelled_batch, load_classifier, save_base
from support.streaming import quiet

__all__ = ["quiet"]  # a fixture of every test here

# What the fit of each must leave as it was drawn, where a checkpoint has the base model alone.
LAST = {
    "Bert": "classifier",
    "DebertaV2": "classifier",
    "DistilBert": "classifier",
    "GPT2": "score",
    "Llama": "score",
    "ModernBert": "classifier",
    "Roberta": "classifier.out_proj",
}
LENGTHS = (
    [150, 9, 7, 3],
    [40, 12, 5],
    [9, 9, 8, 30, 2],
    [7],
    *([n, n + 1, 4] for n in range(5, 12)),
)
KINDS = ("single_label_classification", "multi_label_classification", "regression")


def batches_of(family, kind=KINDS[0]):
    batches = [labelled_batch(family, list(lengths)) for lengths in LENGTHS]
    for number, batch in enumerate(batches):
        draw = torch.Generator().manual_seed(number)
        n = len(batch["labels"])
        if kind == "multi_label_classification":
            batch["labels"] = torch.randint(0, 2, (n, 3), generator=draw).float()
        if kind == "regression":
            batch["labels"] = torch.randn(n, 3, generator=draw) + 2
    return batches


def classifier(family, folder, kind=KINDS[0]):
    save_base(family, folder)
    model = load_classifier(folder, seed=1)
    model.config.problem_type = kind
    return model


def own_loss(model, batches, kind):
    """The mean over rows of the model's loss, each row alone and without padding."""
    rows = [
        {name: tensor[row : row + 1] for name, tensor in batch.items()}
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    losses = {
        KINDS[0]: functional.cross_entropy,
        KINDS[1]: functional.binary_cross_entropy_with_logits,
        KINDS[2]: functional.mse_loss,
    }
    total = 0.0
    with torch.no_grad():
        for row in rows:
            n = int(row["attention_mask"].sum())
            labels = row.pop("labels")
            logits = model(**{name: tensor[:, :n] for name, tensor in row.items()}).logits
            total += losses[kind](logits, labels).item()
    return total / len(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", sorted(LAST))
def test_the_facts_are_those_of_the_model_that_has_the_head(family, kind, tmp_path):
    """So the features were those that its logits are made from, whatever it pools."""
    model, batches = classifier(family, tmp_path, kind), batches_of(family, kind)
    before = own_loss(model, batches, kind)

    head = fit_head(model, batches)

    facts = head.facts
    assert (facts["kind"], facts["module"]) == ("fitted", LAST[family])
    assert facts["rows"] == sum(map(len, LENGTHS))
    assert own_loss(model, batches, kind) == pytest.approx(facts["fitted"]["loss"], abs=2e-5)
    assert facts["fitted"]["loss"] < before


@pytest.mark.parametrize("family", sorted(LAST))
def test_nothing_but_the_last_map_changes(family, tmp_path):
    model = classifier(family, tmp_path).train()
    model.base_model.get_input_embeddings().weight.requires_grad = False
    before, flags = (
        copy.deepcopy(model.state_dict()),
        [p.requires_grad for p in model.parameters()],
    )
    random_state = torch.random.get_rng_state()

    head = fit_head(model, batches_of(family))

    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == head.weights.keys()
    assert {name.rpartition(".")[0] for name in changed} == {LAST[family]}
    for name in changed:
        assert torch.equal(after[name], head.weights[name])
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(not module._forward_hooks for module in model.modules())


def test_what_is_drawn_elsewhere_is_named(tmp_path):
    model = classifier("DistilBert", tmp_path)

    head = fit_head(model, batches_of("DistilBert"), drawn={"pre_classifier", "classifier"})

    assert head.facts["left_as_drawn"] == ["pre_classifier"]


def test_a_head_of_the_checkpoint_is_left_alone(tmp_path):
    model = classifier("Bert", tmp_path)
    before = copy.deepcopy(model.state_dict())

    head = fit_head(model, batches_of("Bert"), drawn={"bert.pooler.dense"})

    assert head.facts == {"kind": "pretrained", "left_as_drawn": ["bert.pooler.dense"]}
    assert not head.weights
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_maps_of_the_same_size_before_the_last_are_told_from_it(tmp_path):
    """RoBERTa with as many labels as features: its head has two linear maps of that shape."""
    save_base("Roberta", tmp_path)
    config = config_of(tmp_path)
    config.num_labels = 32
    model = TASK.from_pretrained(tmp_path, config=config)

    head = fit_head(model, batches_of("Roberta"))

    assert head.facts["module"] == "classifier.out_proj"
    assert own_loss(model.eval(), batches_of("Roberta"), KINDS[0]) == pytest.approx(
        head.facts["fitted"]["loss"], abs=2e-5
    )


def test_the_trained_copy_of_a_peft_model_is_fitted(tmp_path):
    """An adapter that does nothing yet changes nothing."""
    plain, batches = classifier("Bert", tmp_path), batches_of("Bert")
    model = get_peft_model(
        copy.deepcopy(plain), LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    )

    found, wanted = fit_head(model, batches), fit_head(plain, batches)

    assert found.facts["module"] == "classifier.modules_to_save.default"
    one = {k: v for k, v in batches[0].items() if k != "labels"}
    torch.testing.assert_close(model.eval()(**one).logits, plain.eval()(**one).logits)
    assert found.facts["fitted"] == wanted.facts["fitted"]


def test_the_size_of_micro_batches_changes_nothing_but_rounding(tmp_path):
    model, batches = classifier("GPT2", tmp_path), batches_of("GPT2")
    seen = []

    whole = fit_head(model, batches, on_batch=lambda *where: seen.append(where))
    small = fit_head(model, batches, micro_batch_size=1)

    assert seen == [(n, len(batches)) for n in range(1, len(batches) + 1)]
    assert small.facts["strength"] == whole.facts["strength"]
    for name, weight in whole.weights.items():
        torch.testing.assert_close(small.weights[name], weight, rtol=1e-3, atol=1e-5)


def test_rows_without_a_label_are_left_out(tmp_path):
    model, batches = classifier("Bert", tmp_path), batches_of("Bert")
    wanted = fit_head(model, batches)
    for batch in batches:
        for name, fill in (("input_ids", 7), ("attention_mask", 1), ("labels", -100)):
            extra = torch.full_like(batch[name][:1], fill)
            batch[name] = torch.cat([batch[name], extra])

    found = fit_head(model, batches)

    assert found.facts["rows"] == wanted.facts["rows"]
    for name, weight in wanted.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_fitted_is_refused_by_name(tmp_path):
    model, batches = classifier("Bert", tmp_path), batches_of("Bert")
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(EmptyCalibration, match="no batch"):
        fit_head(model, [])
    unlabelled = [
        batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in batches
    ]
    with pytest.raises(EmptyCalibration, match="no example carries a label"):
        fit_head(model, unlabelled)
    same = [batch | {"labels": torch.ones_like(batch["labels"])} for batch in batches]
    with pytest.raises(EmptyCalibration, match="same labels"):
        fit_head(model, same)
    with pytest.raises(InvalidOption, match="label 3 in batch 1 of"):
        fit_head(model, [batch | {"labels": batch["labels"] + 3} for batch in batches])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.classifier.bias.data[0] = float("nan")  # it is not looked at
    fit_head(model, batches)
    model.bert.embeddings.LayerNorm.bias.data[0] = float("nan")
    with pytest.raises(NumericalFailure, match="a feature"):
        fit_head(model, batches)


class SharpenedForSequenceClassification(transformers.BertForSequenceClassification):
    """Its logits are twice what its last map gives."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        return outputs | {"logits": outputs["logits"] * 2}


def test_logits_that_are_no_map_s_outputs_are_refused(tmp_path):
    model = classifier("Bert", tmp_path)
    sharpened = SharpenedForSequenceClassification(model.config)
    causal = transformers.BertLMHeadModel(copy.deepcopy(model.config))
    causal.config.is_decoder = True
    batch = batches_of("Bert")[0]

    with pytest.raises(UnsupportedModule, match=r"Sharpened.* .*'classifier'.* .*head='fresh'"):
        fit_head(sharpened, [batch])
    with pytest.raises(InvalidOption, match="no classifier"):
        fit_head(causal, [batch | {"labels": batch["input_ids"]}])


def pooled_by(share):
    """A classifier whose logits are made of those of all tokens."""

    class PooledForSequenceClassification(transformers.BertForSequenceClassification):
        def forward(self, input_ids, attention_mask, **kwargs):
            hidden = self.bert(input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask[..., None].to(hidden.dtype)
            logits = share(self.classifier(hidden), mask)
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)

    return PooledForSequenceClassification


def mean_of(logits, mask):
    return (logits * mask).sum(1) / mask.sum(1)


def test_logits_that_are_means_over_tokens_are_the_map_of_the_mean_input(tmp_path):
    """As if the model took the mean first; padding is no part of it."""
    model = pooled_by(mean_of)(classifier("Bert", tmp_path).config).eval()
    (linear,) = candidates(model)
    batch = batches_of("Bert")[0]

    with linear.replacing():
        logits = model.requires_grad_(False)(batch["input_ids"], batch["attention_mask"]).logits
        found = linear.features(logits)

    hidden = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    wanted = mean_of(hidden, batch["attention_mask"][..., None].float())
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert fit_head(model, [batch]).facts["module"] == "classifier"


@pytest.mark.parametrize(
    "share",
    [
        lambda logits, mask: (logits * mask).sum(1),  # a bias would count once per token
        lambda logits, mask: mean_of(logits, mask) * 2,
        lambda logits, mask: mean_of(logits.tanh(), mask),
        lambda logits, mask: logits.max(1).values,
    ],
    ids=["sum", "sharpened", "bent", "highest"],
)
def test_what_is_no_mean_of_outputs_is_refused(share, tmp_path):
    """A map that is fitted on mean inputs would be another model's."""
    model = pooled_by(share)(classifier("Bert", tmp_path).config).eval()

    with pytest.raises(UnsupportedModule, match=r"means of them .*'classifier'"):
        fit_head(model, batches_of("Bert")[:1])


def test_a_fitted_head_changes_what_is_measured(tmp_path):
    """Or it need not be fitted."""
    model, batches = classifier("Bert", tmp_path), batches_of("Bert")
    fresh = measure(model, batches, target_modules="all-linear", exclude_modules=["classifier"])

    fit_head(model, batches)

    fitted = measure(
        model, batches, target_modules="all-linear", exclude_modules=["classifier"]
    )
    energies = [
        {name: values.sum() for name, values in s.row_energies.items()} for s in (fresh, fitted)
    ]
    assert all(value > 0 for value in energies[1].values())
    ratios = [energies[1][name] / energies[0][name] for name in energies[0]]
    assert max(ratios) / min(ratios) > 1.01


def test_a_model_that_does_not_run_is_refused_by_name():
    """A filter in the middle that takes no such numbers, as Fourier transforms of half precision."""
    config = transformers.FNetConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, intermediate_size=32, num_labels=3
    )
    model = transformers.FNetForSequenceClassification(config).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 100, (8, 5), generator=generator)
    batch = {"input_ids": ids, "labels": torch.arange(8) % 3}

    with pytest.raises(UnsupportedModule, match=r"FNet.* fails on the first batch in bfloat16"):
        fit_head(model, [batch])
