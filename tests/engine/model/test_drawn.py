"""What a weight is drawn as depends on the seed and its name, and on nothing else."""

import threading

import pytest
import torch
import transformers
from torch import nn

from fimlora.errors import InvalidCheckpoint
from fimlora.model.drawn import draw_weights, drawing_from
from fimlora.model.skeleton import build_skeleton

COMMON = {
    "vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip


def skeleton(folder, kind="Bert", dtype=None, **options):
    config = getattr(transformers, f"{kind}Config")(**COMMON, **options)
    cls = transformers.AutoModelForSequenceClassification
    return build_skeleton(folder, model_class=cls, config=config, dtype=dtype)


HEAD = ("bert.pooler.dense.weight", "classifier.weight", "classifier.bias")


def test_a_weight_is_what_it_is_whatever_is_drawn_beside_it(tmp_path):
    """Alone, after others, before others, in a deeper model, in another dtype."""
    whole = draw_weights(skeleton(tmp_path), HEAD, seed=3)
    backwards = draw_weights(skeleton(tmp_path), HEAD[::-1], seed=3)
    alone = draw_weights(skeleton(tmp_path), ["classifier.weight"], seed=3)
    narrow = draw_weights(skeleton(tmp_path, dtype=torch.bfloat16), HEAD, seed=3)
    other = draw_weights(skeleton(tmp_path), HEAD, seed=4)

    assert all(torch.equal(whole[n], backwards[n]) for n in HEAD)
    assert torch.equal(alone["classifier.weight"], whole["classifier.weight"])
    assert all(torch.equal(narrow[n], whole[n].bfloat16()) for n in HEAD)
    assert not torch.equal(other["classifier.weight"], whole["classifier.weight"])


def test_a_weight_has_the_distribution_that_transformers_gives_it(tmp_path):
    """Normal with the config's deviation, biases zero; GPT-2 scales some by its depth."""
    drawn = draw_weights(skeleton(tmp_path, initializer_range=0.3), HEAD, seed=0)
    gpt = transformers.GPT2Config(n_embd=64, n_layer=8, n_head=4, vocab_size=61)
    model = build_skeleton(tmp_path, model_class=transformers.GPT2LMHeadModel, config=gpt)
    name = "transformer.h.0.attn.c_proj.weight"

    assert drawn["bert.pooler.dense.weight"].std().item() == pytest.approx(0.3, rel=0.05)
    assert not drawn["classifier.bias"].any()
    scaled = draw_weights(model, [name], seed=0)[name]
    assert scaled.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_nothing_else_changes(tmp_path):
    """Neither the random state outside nor the skeleton, whose weights stay away."""
    model = skeleton(tmp_path)
    before = torch.get_rng_state()
    parameters = dict(model.named_parameters())

    draw_weights(model, HEAD, seed=3)
    skeleton(tmp_path)

    assert torch.equal(before, torch.get_rng_state())
    assert all(parameters[n] is p and p.is_meta for n, p in model.named_parameters())


def test_tied_weights_are_drawn_once(tmp_path):
    """Under all of their names."""
    config = transformers.LlamaConfig(**COMMON, tie_word_embeddings=True)
    model = build_skeleton(tmp_path, model_class=transformers.LlamaForCausalLM, config=config)

    drawn = draw_weights(model, ["model.embed_tokens.weight"], seed=0)

    assert drawn["lm_head.weight"] is drawn["model.embed_tokens.weight"]


def test_a_weight_that_nothing_initialises_is_refused(tmp_path):
    """It would be whatever was in memory."""
    model = skeleton(tmp_path)
    model.classifier.offset = nn.Parameter(torch.empty(3, device="meta"))

    with pytest.raises(InvalidCheckpoint, match=r"lacks 'classifier\.offset'.*initialise"):
        draw_weights(model, ["classifier.offset"], seed=0)


def test_other_threads_draw_and_build_as_ever(tmp_path):
    """What is on for one thread is off for the others."""
    inside, leave = threading.Event(), threading.Event()

    def draw():
        with torch.device("meta"), drawing_from(torch.Generator().manual_seed(0)):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=draw)
    thread.start()
    inside.wait(10)
    try:
        torch.manual_seed(5)
        here = [torch.rand(3), nn.Linear(3, 2).weight]
    finally:
        leave.set()
        thread.join()
    torch.manual_seed(5)

    assert all(
        torch.equal(a, b)
        for a, b in zip(here, [torch.rand(3), nn.Linear(3, 2).weight], strict=True)
    )
