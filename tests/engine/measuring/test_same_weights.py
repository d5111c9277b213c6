"""Both executors read the same weights of a folder, whatever lies in it, or refuse it alike."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fimlora import Settings, measure, measure_folder
from fimlora.errors import InvalidCheckpoint
from fimlora.model.loading import align
from support.models import PAD, VOCABULARY, make_batch, tiny
from support.streaming import assert_same, quiet

__all__ = ["quiet"]  # a fixture of every test here

LM_BATCHES = [make_batch("llama_gqa_lm", [28, 9, 7, 3]), make_batch("llama_gqa_lm", [12, 5])]
EXECUTORS = ("resident", "streamed")
OPTIONS = {"target_modules": "all-linear", "micro_batch_size": 2}
INDEX = "model.safetensors.index.json"


def masked_loss(outputs, batch):
    """The mean loss of each example, of every token by its own logits."""
    logits, labels = outputs.logits.transpose(1, 2), batch["labels"]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses.sum(dim=1) / (labels != -100).sum(dim=1)


def measured(
    folder, *, executor, batches=LM_BATCHES, targets="all-linear", loss_fn=None, **options
):
    settings = Settings(target_modules=targets, micro_batch_size=2, loss_fn=loss_fn)
    return measure_folder(folder, batches, settings, executor=executor, **options)


def both(folder, **options):
    """Measured by both, under other random states."""
    found = []
    for seed, executor in enumerate(EXECUTORS):
        torch.manual_seed(seed)
        found.append(measured(folder, executor=executor, **options))
    assert_same(*found)
    return found[0]


def without(folder, *names):
    """Save a single file without some weights."""
    kept = {n: t for n, t in load_file(folder / "model.safetensors").items() if n not in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_one_file_goes_before_an_index_beside_it(tmp_path):
    """As for ``from_pretrained``: the shards are of another model."""
    model, _ = tiny("llama_gqa_lm")
    torch.manual_seed(9)
    type(model)(model.config).save_pretrained(tmp_path, max_shard_size="20KB")
    model.save_pretrained(tmp_path / "one")
    shutil.copy(tmp_path / "one" / "model.safetensors", tmp_path)
    assert (tmp_path / INDEX).exists()

    found = both(tmp_path)

    loaded = align(transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert_same(found, measure(loaded, LM_BATCHES, **OPTIONS))


def test_shards_that_the_index_does_not_name_are_not_read(tmp_path):
    """They are left over from another save."""
    model, _ = tiny("llama_gqa_lm")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = set(json.loads((tmp_path / INDEX).read_text())["weight_map"].values())
    wrong = {"lm_head.weight": torch.zeros(VOCABULARY, 24), "more.weight": torch.zeros(2)}
    save_file(wrong, tmp_path / "model-00099-of-00099.safetensors", metadata={"format": "pt"})
    assert len(shards) > 1

    found = both(tmp_path)

    assert_same(found, measure(align(model), LM_BATCHES, **OPTIONS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_decoder_without_an_output_head(tied, dtype, tmp_path):
    """Tied, it has the embedding's weights; else they are drawn, and no output is NaN."""
    model, _ = tiny("llama_tied_lm" if tied else "llama_gqa_lm")
    model.to(dtype).save_pretrained(tmp_path)
    if not tied:
        without(tmp_path, "lm_head.weight")

    found = both(tmp_path, model_class=transformers.AutoModelForCausalLM, dtype=dtype)

    assert all(module.name != "lm_head" for module in found.modules)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "Electra", "ModernBert"])
@pytest.mark.parametrize("saved", ["base", "head without a bias"])
def test_a_masked_language_model_whose_head_is_drawn(kind, saved, tmp_path):
    """All of it, or a bias; its decoder shares the embedding's weights and runs at the end."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=64, pad_token_id=PAD, dim=32, n_layers=2,
        n_heads=4, hidden_dim=40, embedding_size=32, cls_token_id=1, sep_token_id=2,
        bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    cls = transformers.AutoModelForMaskedLM
    torch.manual_seed(0)
    model = cls.from_config(config)
    (model.base_model if saved == "base" else model).save_pretrained(tmp_path)
    if saved != "base":
        biases = [n for n, _ in model.named_parameters() if n.endswith("bias")]
        without(tmp_path, *[n for n in biases if not n.startswith(model.base_model_prefix)])
    batch = make_batch("llama_gqa_lm", [28, 9, 7, 3])

    found = both(tmp_path, batches=[batch], model_class=cls, loss_fn=masked_loss)

    assert found.n_examples == 4


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"has 'model\.layers\.1\.\S+', which LlamaForCausalLM does"),
        ({"num_hidden_layers": 0}, r"has 'model\.layers\.0\.\S+', which LlamaForCausalLM does"),
        ({"num_hidden_layers": 3}, r"lacks weights of LlamaForCausalLM: \['model\.layers\.2\."),
        (
            {"intermediate_size": 48},
            r"mlp\.down_proj\.weight' shape \(24, 40\); the model needs",
        ),
        ({"attention_bias": True}, r"lacks weights of .*self_attn\.\w_proj\.bias"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_config_of_another_model_is_refused_alike(change, message, executor, tmp_path):
    """Nothing inside the base model is drawn, and nothing of it is left unread."""
    tiny("llama_gqa_lm")[0].save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, **change)

    with pytest.raises(InvalidCheckpoint, match=message):
        measured(tmp_path, executor=executor, targets=["q_proj"], config=config)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_biases_that_the_model_does_not_have_are_refused_alike(executor, tmp_path):
    """Without them it would be another model."""
    model, _ = tiny("llama_gqa_lm")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(24)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidCheckpoint, match=r"q_proj\.bias', which LlamaForCausalLM does"):
        measured(tmp_path, executor=executor)


def test_other_heads_poolers_and_stored_buffers_are_no_obstacle(tmp_path):
    """A checkpoint of pretraining, under old names, read as a masked language model."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(config)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
    for name in [n for n in weights if "LayerNorm" in n]:
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        weights[old.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    found = both(tmp_path, model_class=transformers.BertForMaskedLM, loss_fn=masked_loss)

    loaded = align(transformers.BertForMaskedLM.from_pretrained(tmp_path))
    assert_same(found, measure(loaded, LM_BATCHES, loss_fn=masked_loss, **OPTIONS))
