"""What is measured is the model's own loss, or the model is refused by name."""

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn import functional

from fimlora import Settings, Statistics, measure, measure_streamed
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.examples.examples import labelled_examples
from fimlora.measuring.examples.losses import Loss, LossKind
from fimlora.measuring.examples.own_loss import short_slice, without_auxiliary_losses
from support.models import TINY_MODELS, make_batch, tiny
from support.statistics import assert_close, assert_identical

CPU = torch.device("cpu")
LENGTHS = [150, 9, 7, 3]
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
DECODER = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 40,
    "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 40,
}  # fmt: skip
MIXTURE = {**SIZES, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 20, "output_router_logits": True}  # fmt: skip


def build(class_name, config_name, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{config_name}Config")(**{**SIZES, **options})
    return getattr(transformers, class_name)(config).eval()


def text_batch(lengths=LENGTHS):
    return make_batch("llama_gqa_lm", lengths)


def measure_by(executor, model, folder, batches, targets, **options):
    if executor == "resident":
        return measure(model, batches, target_modules=targets, **options)
    model.save_pretrained(folder)
    settings = Settings(target_modules=targets, **options)
    return measure_streamed(folder, batches, settings, model_class=type(model))


UNSHIFTED = {
    "BartForCausalLM": ("Bart", ["q_proj"]),
    "MBartForCausalLM": ("MBart", ["q_proj"]),
    "PegasusForCausalLM": ("Pegasus", ["q_proj"]),
    "BlenderbotForCausalLM": ("Blenderbot", ["q_proj"]),
    "TrOCRForCausalLM": ("TrOCR", ["q_proj"]),
    "PLBartForCausalLM": ("PLBart", ["q_proj"]),
}


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("name", UNSHIFTED)
def test_a_decoder_that_does_not_shift_is_refused(name, executor, tmp_path):
    """Its labels are those of the very tokens; the way out is named."""
    config, targets = UNSHIFTED[name]
    model = build(name, config, **DECODER)

    with pytest.raises(UnsupportedModule, match=rf"own loss of {name} is .*; give a loss_fn"):
        measure_by(executor, model, tmp_path, [text_batch()], targets)


def test_such_a_decoder_is_measured_with_a_loss_of_ones_own():
    """As the refusal says."""
    model = build("BartForCausalLM", "Bart", **DECODER)

    def unshifted(outputs, batch):
        losses = functional.cross_entropy(
            outputs.logits.transpose(1, 2), batch["labels"], reduction="none"
        )
        return losses.sum(dim=1) / (batch["labels"] != -100).sum(dim=1)

    found = measure(
        model, [text_batch()], target_modules=["self_attn.q_proj"], loss_fn=unshifted
    )

    assert found.loss == "custom"


def test_prompts_before_the_tokens_are_refused():
    """There are more logits than labels, and no word on which belong together."""
    model = build("LlamaForCausalLM", "Llama")
    prompted = get_peft_model(
        model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )

    with pytest.raises(
        UnsupportedModule, match=r"LlamaForCausalLM gives 20 logits for 16 tokens"
    ):
        measure(prompted, [text_batch()], target_modules=["q_proj"])


class SmoothedForCausalLM(transformers.LlamaForCausalLM):
    """Smooths its labels."""

    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        if labels is not None:
            outputs.loss = functional.cross_entropy(
                outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                label_smoothing=0.1,
            )  # fmt: skip
        return outputs


class MeanOfExamplesForCausalLM(transformers.LlamaForCausalLM):
    """Takes the mean over examples, not over labels."""

    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        if labels is not None:
            losses = functional.cross_entropy(
                outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
            )
            outputs.loss = (losses.sum(dim=1) / (labels[:, 1:] != -100).sum(dim=1)).mean()
        return outputs


class SilentForCausalLM(transformers.LlamaForCausalLM):
    """Has no loss."""

    def forward(self, labels=None, **inputs):
        return super().forward(**inputs)


class WeightedForSequenceClassification(transformers.BertForSequenceClassification):
    """Weighs its classes."""

    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        if labels is not None:
            weights = torch.tensor([1.0, 5.0, 9.0])
            outputs.loss = functional.cross_entropy(outputs.logits, labels, weights)
        return outputs


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (SmoothedForCausalLM, transformers.LlamaConfig, "own loss of SmoothedForCausalLM"),
        (
            MeanOfExamplesForCausalLM,
            transformers.LlamaConfig,
            "own loss of MeanOfExamplesForCausalLM",
        ),
        (SilentForCausalLM, transformers.LlamaConfig, "SilentForCausalLM gives no loss"),
        (WeightedForSequenceClassification, transformers.BertConfig, "own loss of WeightedFor"),
    ],
)
def test_a_loss_of_another_kind_is_refused(kind, config, message):
    """Smoothed, averaged otherwise, weighted, or none at all."""
    torch.manual_seed(0)
    model = kind(config(**SIZES, num_labels=3, initializer_range=0.5)).eval()
    is_classifier = "Classification" in kind.__name__
    batch = make_batch("bert_classifier" if is_classifier else "llama_gqa_lm", LENGTHS)
    target = "query" if is_classifier else "q_proj"

    with pytest.raises(UnsupportedModule, match=message):
        measure(model, [batch], target_modules=[target])


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize(
    "first", [[9], [2, 2], [9, 3, 3]], ids=["alone", "equal", "last-equal"]
)
def test_a_mean_over_examples_is_found_in_whichever_batch_it_shows(first, executor, tmp_path):
    """One example, or as many labels in each, give the same mean; later ones do not."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, initializer_range=0.5)
    model = MeanOfExamplesForCausalLM(config).eval()
    batches = [text_batch(first), text_batch([2, 9, 2])]
    for batch in batches:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    with pytest.raises(UnsupportedModule, match="own loss of MeanOfExamplesForCausalLM"):
        measure_by(executor, model, tmp_path, batches, ["q_proj"])


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize(
    ("class_name", "config"),
    [("MixtralForCausalLM", "Mixtral"), ("Qwen3MoeForCausalLM", "Qwen3Moe"),
     ("OlmoeForCausalLM", "Olmoe")],
)  # fmt: skip
def test_a_loss_of_the_routers_is_left_out_and_named(class_name, config, executor, tmp_path):
    """The rest is what is measured of the same model without it."""
    model = build(class_name, config, **MIXTURE)
    targets, batches = ["q_proj", "o_proj"], [text_batch()]

    found = measure_by(executor, model, tmp_path, batches, targets)

    assert found.auxiliary_losses_left_out == ("router_aux_loss_coef",)
    assert found.provenance()["auxiliary_losses_left_out"] == ["router_aux_loss_coef"]
    assert model.config.output_router_logits
    model.config.output_router_logits = False
    plain = measure(model, batches, target_modules=targets)
    assert plain.auxiliary_losses_left_out == ()
    assert "auxiliary_losses_left_out" not in plain.provenance()
    assert_close(found, plain, 0)


def test_what_was_left_out_is_saved(tmp_path):
    """Statistics of a model with and without it are not merged."""
    model = build("MixtralForCausalLM", "Mixtral", **MIXTURE)
    found = measure(model, [text_batch()], target_modules=["q_proj"])
    found.save(tmp_path / "statistics.safetensors")

    assert_identical(Statistics.load(tmp_path / "statistics.safetensors"), found)


@pytest.mark.parametrize("fails", [False, True])
def test_the_config_is_left_as_it_was(fails):
    """A model may write the kind of its loss there, and the router's output is put back."""
    model = build("MixtralForCausalLM", "Mixtral", **MIXTURE)
    before = dict(vars(model.config))

    try:
        with without_auxiliary_losses(model) as names:
            assert names == ("router_aux_loss_coef",)
            assert not model.config.output_router_logits
            model.config.problem_type = "regression"
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails

    assert vars(model.config) == before


def test_a_classifier_keeps_its_problem_type():
    """It guesses one from the labels, for itself and for every later batch."""
    model, targets = tiny("bert_classifier")

    measure(model, [make_batch("bert_classifier", LENGTHS[1:])], target_modules=targets)

    assert model.config.problem_type is None


def test_a_classifier_without_padding_is_refused_by_name():
    """In the library it is the caller who knows the padding."""
    model = build("LlamaForSequenceClassification", "Llama", pad_token_id=None)
    batch = make_batch("llama_classifier", LENGTHS)

    with pytest.raises(InvalidOption, match=r"LlamaForSequenceClassification.*pad_token_id"):
        measure(model, [batch | {"labels": batch["labels"] % 2}], target_modules=["q_proj"])


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_a_slice_is_short_and_uneven(name):
    """Two examples, few logits, labels where there were some."""
    by_token = TINY_MODELS[name].is_causal_lm
    kind = LossKind.CAUSAL_LM if by_token else LossKind.SINGLE_LABEL
    batch = make_batch(name, [150, 149, 148])
    if by_token:
        batch["labels"][:, :140] = -100  # an answer at the end of a long prompt
    examples = labelled_examples(batch, Loss(kind), CPU)

    few = short_slice(examples, Loss(kind))

    assert few.batch["input_ids"].shape == (2, 16)
    assert few.weights.sum().item() == pytest.approx(1)
    if by_token:
        labels = few.batch["labels"][:, 1:]
        assert (labels != -100).sum(dim=1).tolist() == [8, 3]
        ids = few.batch["input_ids"][:, 1:]
        assert torch.equal(labels[labels != -100], ids[labels != -100])


@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier"])
def test_a_slice_of_what_comes_without_a_mask_is_short_too(name):
    """All of its columns are tokens, so no more of them are asked about."""
    batch = make_batch(name, [150, 150, 150])
    del batch["attention_mask"]
    is_lm = name == "llama_gqa_lm"
    loss = Loss(LossKind.CAUSAL_LM if is_lm else LossKind.SINGLE_LABEL)

    few = short_slice(labelled_examples(batch, loss, CPU), loss)

    assert few.batch.keys() == batch.keys()
    assert few.batch["input_ids"].shape == (2, 16)
    assert few.batch["labels"].shape == ((2, 16) if is_lm else (2,))


def test_a_slice_of_what_a_decoder_puts_out_is_short():
    """Unless its labels come late, or come with inputs of their own."""
    loss = Loss(LossKind.SEQ2SEQ_LM)
    batch = {**text_batch([40, 39]), "labels": torch.ones(2, 50, dtype=torch.long)}
    late = batch["labels"].clone()
    late[0, :20] = -100
    shapes = [
        short_slice(labelled_examples(some, loss, CPU), loss).batch["labels"].shape
        for some in (
            batch,
            batch | {"labels": late},
            batch | {"decoder_input_ids": batch["labels"]},
        )
    ]

    assert shapes == [(2, 16), (2, 50), (2, 50)]


def test_all_logits_of_a_large_vocabulary_never_exist():
    """The head is asked about the tokens of a slice at most."""
    model, targets = tiny("llama_gqa_lm", vocabulary=5000)
    seen = []

    def note(module, args):
        if not torch.is_grad_enabled():
            seen.append(args[0].shape[:-1].numel())

    model.get_output_embeddings().register_forward_pre_hook(note)
    batch = text_batch([30, 29, 28, 27])

    found = measure(model, [batch], target_modules=targets)

    assert found.n_examples == 4
    assert max(seen) <= 2 * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm", "llama_classifier"])
def test_rounding_of_half_precision_is_no_other_loss(name, dtype):
    """The model may take its loss in its own dtype."""
    model, targets = tiny(name, dtype)

    found = measure(model, [make_batch(name, [30, 9, 7, 3])], target_modules=targets)

    assert found.n_examples == 4


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (torch.rand(4, 3), {"num_labels": 3}),
        (torch.rand(4), {"num_labels": 1}),
        (torch.rand(4, 3), {"num_labels": 3, "problem_type": "regression"}),
        (torch.tensor([0, 2, 1, -100]), {"num_labels": 3}),
    ],
    ids=["multi_label", "regression", "several_outputs", "without_label"],
)
def test_every_problem_of_a_classifier_agrees(labels, options):
    """Also where an example carries no label."""
    model = build("BertForSequenceClassification", "Bert", **options)
    batch = make_batch("bert_classifier", LENGTHS) | {"labels": labels}

    found = measure(model, [batch], target_modules=["query"])

    assert found.n_examples == 4 - int((labels == -100).any())


def test_modules_of_torch_are_not_looked_into():
    """The check itself leaves hooks on none of them."""
    model, targets = tiny("bert_classifier")

    measure(model, [make_batch("bert_classifier", LENGTHS[1:])], target_modules=targets)

    assert all(not m._forward_hooks for m in model.modules())
    assert any(isinstance(m, nn.Linear) for m in model.modules())


FSMT = {
    **DECODER, "langs": ["en", "de"], "src_vocab_size": 61, "tgt_vocab_size": 61,
}  # fmt: skip


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_a_model_that_does_not_run_in_its_dtype_is_refused_by_name(executor, tmp_path):
    """Torch has no Fourier transform of bfloat16; the sentence is torch's, and says so."""
    model = build("FNetForSequenceClassification", "FNet").to(torch.bfloat16)
    batch = make_batch("bert_classifier", [7, 3])
    batch["labels"] %= 2
    batch.pop("attention_mask")

    with pytest.raises(
        UnsupportedModule, match=r"fails on the first batch in bfloat16: .*BFloat16.*dtype"
    ):
        measure_by(executor, model, tmp_path, [batch], ["dense"])


def test_a_model_whose_own_loss_fails_is_refused_by_name():
    """FSMT has its tokens on the first axis of its logits, and its labels on the second."""
    model = build("FSMTForConditionalGeneration", "FSMT", **FSMT)
    inputs = text_batch([9, 5])
    batch = {**inputs, "labels": inputs["labels"][:, :4].clamp_min(3)}

    with pytest.raises(UnsupportedModule, match=r"own loss of FSMT.* fails: .*give a loss_fn"):
        measure(model, [batch], target_modules=["fc1"])
