"""The bare tree of a model: same modules, no weights, nothing that was put on it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fimlora.model.outline import outline
from support.families import build


def shapes(model):
    return {
        n: (type(model.get_submodule(n.rpartition(".")[0])), p.shape, p.dtype)
        for n, p in [*model.named_parameters(), *model.named_buffers()]
    }


@pytest.mark.parametrize("name", ["llama", "qwen3_moe_mlp_only", "mamba2", "roberta", "gpt2"])
def test_names_classes_and_shapes_are_the_models(name):
    """And every tensor stands on the meta device, in another module than the model's."""
    model = build(name)

    tree = outline(model)

    assert shapes(tree) == shapes(model)
    assert {t.device.type for t in [*tree.parameters(), *tree.buffers()]} == {"meta"}
    assert not {id(m) for m in tree.modules()} & {id(m) for m in model.modules()}
    assert tree.config is not model.config


def test_what_is_tied_stays_tied():
    """A head that is the embedding, and a module that stands in two places."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=61, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config)
    model.twice = model.model.layers[0]

    tree = outline(model)

    assert tree.lm_head.weight is tree.model.embed_tokens.weight
    assert tree.twice is tree.model.layers[0]


def test_what_was_put_on_a_model_is_not_in_it():
    """Adapters, copies that are trained in full, hooks and replaced methods."""
    model = build("roberta")
    plain = shapes(model)
    options = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    wrapped = get_peft_model(model, options)
    model.register_forward_hook(lambda *_: None)
    model.forward = print

    tree = outline(wrapped)

    assert shapes(tree) == plain
    assert not any(module._forward_hooks for module in tree.modules())
    assert "forward" not in vars(tree)
    assert not hasattr(tree, "peft_config")
    assert model._forward_hooks


def test_a_packed_map_is_the_one_it_stands_for():
    """PEFT goes by the features of a quantised map, whose weight has another shape."""

    class Packed(nn.Parameter):
        pass

    model = nn.ModuleDict({"empty": nn.ModuleList(), "map": nn.Linear(6, 4)})
    data = torch.zeros(12, 1, dtype=torch.uint8)
    model["map"].weight = Packed(data, requires_grad=False)

    tree = outline(model)

    assert tree["map"].weight.shape == (4, 6)
    assert tree["empty"] is not model["empty"]
