"""Losses behind a large head are those of all its logits, which never exist at once."""

from dataclasses import replace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fimlora import Settings, measure, measure_streamed
from fimlora.measuring.examples.examples import Examples, example_losses
from fimlora.measuring.examples.large_head import CHUNK_SIZES, ChunkSizes
from fimlora.measuring.examples.losses import choose_loss
from support.models import PAD, VOCABULARY, make_batch, tiny
from support.reference import relative_error
from support.seq2seq import SEQ2SEQ_MODELS, make_seq2seq_batch
from support.statistics import assert_close, assert_identical
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here

# Chunks of three tokens round otherwise than all at once.
SAME = {torch.float32: 1e-6, torch.bfloat16: 2e-2}
CPU = torch.device("cpu")
DECODER = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}


# Small heads count as large, and there are several chunks, the last one shorter.
SMALL = ChunkSizes(min_vocabulary=1, n_logits=1, min_tokens=3)
LARGE = CHUNK_SIZES.min_vocabulary


def causal_lm(kind: str, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**DECODER | options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)


def watched(model):
    """The model with a hook on its head, which therefore gives all its logits."""
    model.lm_head.register_forward_hook(lambda *_: None)
    return model


def labelled(width: int | None = None):
    return make_batch("llama_gqa_lm", [9, 4, 6], width=width)


def losses_and_gradient(model, loss, batch):
    """Losses per example, and the gradient of their weighted sum at every embedding."""
    embedded, n = [], len(batch["labels"])

    def keep(module, args, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    found = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    handles = [module.register_forward_hook(keep) for module in found]
    try:
        losses = example_losses(model, loss, Examples(batch, torch.ones(n)), CPU)
    finally:
        for handle in handles:
            handle.remove()
    (losses * torch.arange(1.0, n + 1)).sum().backward()
    return losses.detach(), torch.cat([x.grad.flatten() for x in embedded])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Llama", {"tie_word_embeddings": False}),
        ("Llama", {"tie_word_embeddings": True}),
        ("Gemma2", {"head_dim": 6, "final_logit_softcapping": 5.0}),
        ("Cohere", {"logit_scale": 0.3}),
        ("Granite", {"logits_scaling": 3.0}),
        ("Mixtral", {"num_local_experts": 4}),
        ("Phi", {"num_attention_heads": 2}),  # its head has a bias
    ],
)
def test_losses_and_gradients_are_those_of_all_logits(kind, options, dtype):
    """Whatever known function the model applies to its logits."""
    model, batch = causal_lm(kind, **options).to(dtype), labelled()
    loss = choose_loss(model, batch, None, chunk_sizes=SMALL)
    assert loss.head is not None

    found = losses_and_gradient(model, loss, batch)

    wanted = losses_and_gradient(model, replace(loss, head=None), batch)
    for left, right in zip(found, wanted, strict=True):
        assert relative_error(left, right) <= SAME[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["t5", "t5_gated_untied", "bart"])
def test_losses_and_gradients_of_an_encoder_decoder(name, dtype):
    """Hidden states are scaled before the head of T5, a bias is added behind BART's."""
    model = SEQ2SEQ_MODELS[name]().requires_grad_(False).to(dtype)
    if name == "bart":
        model.final_logits_bias.copy_(torch.linspace(-2, 2, VOCABULARY))
    batch = make_seq2seq_batch(name, [9, 4, 6], [5, 7, 3])
    loss = choose_loss(model, batch, None, chunk_sizes=SMALL)
    assert loss.head is not None
    assert loss.head.linear is model.lm_head
    without_bias = replace(loss, head=replace(loss.head, follow=lambda logits: logits))

    found = losses_and_gradient(model, loss, batch)

    wanted = losses_and_gradient(model, replace(loss, head=None), batch)
    for left, right in zip(found, wanted, strict=True):
        assert relative_error(left, right) <= SAME[dtype]
    others = losses_and_gradient(model, without_bias, batch)
    assert (relative_error(others[0], wanted[0]) > SAME[dtype]) is (name == "bart")


def test_statistics_do_not_depend_on_it():
    """Energies and squared gradients, whole or in micro-batches, plain or wrapped by PEFT."""
    lengths = [31] * 36 + [5]
    batches = [make_batch("llama_gqa_lm", lengths), labelled(width=12)]
    n_labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches[:1])
    assert n_labels > CHUNK_SIZES.n_tokens(LARGE)  # several chunks
    model, targets = tiny("llama_gqa_lm", torch.float64, vocabulary=LARGE)
    options = {"target_modules": targets, "estimator": "both", "rank": 4}
    wrapped = get_peft_model(
        tiny("llama_gqa_lm", torch.float64, vocabulary=LARGE)[0],
        LoraConfig(target_modules=targets),
    )

    found = [
        measure(model, batches, **options),
        measure(model, batches, micro_batch_size=2, **options),
        measure(wrapped, batches, **options),
    ]

    wanted = measure(watched(model), batches, **options)
    for statistics in found:
        assert_close(statistics, wanted, 1e-9)


class LargestTensor(TorchDispatchMode):
    """Notes the most entries that any operation's result has."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.entries = max(self.entries, *sizes, 0)
        return result


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_streamed_equals_resident_behind_the_head_of_a_decoder(name, tmp_path):
    """In micro-batches; the bias comes from the checkpoint."""
    model = SEQ2SEQ_MODELS[name](LARGE)
    if name == "bart":
        model.final_logits_bias.copy_(torch.linspace(-2, 2, LARGE))
    resident = save(model, tmp_path)
    batches = [
        make_seq2seq_batch(name, [9, 5, 7], [4, 6, 3]),
        make_seq2seq_batch(name, [6, 9], [5, 2], seed=1),
    ]
    options = {"target_modules": "all-linear", "estimator": "both", "micro_batch_size": 2}
    assert choose_loss(resident, batches[0], None).head is not None

    found = measure_streamed(tmp_path, batches, Settings(**options))

    assert_identical(found, measure(resident, batches, **options))


IDS = torch.arange(3, 2051).view(64, 32)
MOST = CHUNK_SIZES.n_logits


@pytest.mark.parametrize(("vocabulary", "is_large"), [(5000, True), (LARGE - 1, False)])
def test_the_logits_of_all_tokens_never_exist(vocabulary, is_large):
    """With a large head no tensor of a measurement outgrows a chunk's logits."""
    model = causal_lm("Llama", vocab_size=vocabulary)

    with LargestTensor() as largest:
        measure(model, [{"input_ids": IDS, "labels": IDS}], target_modules=["down_proj"])

    assert (largest.entries <= MOST) is is_large
    assert largest.entries < IDS.numel() * vocabulary or not is_large


@pytest.mark.parametrize(("vocabulary", "is_large"), [(5000, True), (LARGE - 1, False)])
def test_the_logits_of_a_decoder_never_exist(vocabulary, is_large):
    """As of a causal model: the bias behind the head is added chunk by chunk."""
    model = bart(vocabulary)

    with LargestTensor() as largest:
        measure(model, [{"input_ids": IDS, "labels": IDS}], target_modules=["fc1"])

    assert (largest.entries <= MOST) is is_large
    assert largest.entries < IDS.numel() * vocabulary or not is_large


def bart(vocabulary):
    config = transformers.BartConfig(
        vocab_size=vocabulary, d_model=24, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=40,
        decoder_ffn_dim=40, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("is_large", [True, False])
@pytest.mark.parametrize("kind", ["causal", "decoder"])
def test_in_small_chunks_no_tensor_outgrows_the_heads_weight(kind, is_large):
    """Forward and backward; the chunks may be as small as one likes."""
    model = causal_lm("Llama", vocab_size=5000) if kind == "causal" else bart(5000)
    ids = IDS[:4]
    batch = {"input_ids": ids, "labels": ids}
    sizes = replace(CHUNK_SIZES, n_logits=1, min_tokens=16)
    loss = choose_loss(
        model,
        batch,
        None,
        chunk_sizes=replace(sizes, min_vocabulary=1000 if is_large else 9999),
    )

    with LargestTensor() as largest:
        losses_and_gradient(model, loss, batch)

    assert (largest.entries <= 5000 * 24) is is_large


def test_a_head_that_is_not_plain_gives_all_its_logits():
    """Something unknown behind it, a hook on it, a module around it."""
    batch = labelled()
    plain, odd, hooked, trained = (causal_lm("Llama") for _ in range(4))
    forward = type(odd).forward

    class OddForCausalLM(type(odd)):
        def forward(self, *args, **kwargs):
            outputs = forward(self, *args, **kwargs)
            outputs["logits"] = outputs["logits"].sigmoid()
            return outputs

    odd.__class__ = OddForCausalLM
    hooked.lm_head.register_forward_hook(lambda *_: None)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    models = [plain, odd, hooked, get_peft_model(trained, config)]

    heads = [choose_loss(model, batch, None, chunk_sizes=SMALL).head for model in models]

    assert [head is not None for head in heads] == [True, False, False, False]
    assert plain.lm_head is heads[0].linear  # looking at the model has left it as it was


def test_a_head_that_is_a_target_is_measured_on_all_its_tokens():
    """Its own statistics need its input and its gradient."""
    model, batch = causal_lm("Llama", vocab_size=LARGE, tie_word_embeddings=False), labelled()

    found = measure(model, [batch], target_modules=["lm_head"])

    assert_identical(found, measure(watched(model), [batch], target_modules=["lm_head"]))


@pytest.mark.parametrize("name", ["llama_gqa_lm", "llama_tied_lm", "gpt2_lm"])
def test_streamed_equals_resident_behind_a_large_head(name, tmp_path):
    """Several passes wait at the blocks at once, and each finds its own hidden states."""
    model, targets = tiny(name, vocabulary=LARGE)
    resident = save(model, tmp_path)
    batches = [
        make_batch(name, lengths, seed=i) for i, lengths in enumerate([[9, 5, 7], [6, 9]])
    ]
    options = {"target_modules": targets, "estimator": "both", "micro_batch_size": 2}
    assert choose_loss(resident, batches[0], None).head is not None

    found = measure_streamed(tmp_path, batches, Settings(**options))

    assert_identical(found, measure(resident, batches, **options))


def test_a_label_out_of_range_is_named_before_it_is_looked_up():
    """As without a large head."""
    batch = labelled()
    batch["labels"][0, 5] = LARGE

    with pytest.raises(ValueError, match=f"label {LARGE} in batch 1 of 1 is out of range"):
        measure(causal_lm("Llama", vocab_size=LARGE), [batch], target_modules=["q_proj"])
