"""What stock PEFT makes of ``target_parameters``: the facts that fused experts are planned by."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fimlora.adapter.config import path_of_wrapper
from fimlora.adapter.stacked import joined, padded, per_expert
from fimlora.model.experts.fused import describe_experts, fused_experts
from fimlora.model.experts.wrapped import carriers_of_parameters
from support.experts import KINDS, MIXTURES, mixture, mixture_batches, with_experts

# PEFT says so of every key of a parameter, and it is wrong.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")


@pytest.mark.parametrize("name", MIXTURES)
def test_a_and_b_hold_those_of_all_experts_at_one_rank(name):
    """A has r rows per expert and B as many columns; the scale is alpha / r, the keys names."""
    base = mixture(name)
    modules = [describe_experts(n, m) for n, m in fused_experts(base).items()]
    ranks = {m.name: 2 + i for i, m in enumerate(modules)}
    model = with_experts(
        base, rank=9, rank_pattern=ranks, alpha_pattern={n: 3 * r for n, r in ranks.items()}
    )

    layers = carriers_of_parameters(model.get_base_model())

    assert list(layers) == [m.name for m in modules]
    for module in modules:
        rank, layer = ranks[module.name], layers[module.name]
        A, B = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
        assert A.shape == (rank * module.n_experts, module.d_in)
        assert B.shape == (module.d_out, rank * module.n_experts)
        assert layer.scaling["default"] == 3
        assert A.numel() + B.numel() == rank * module.cost


@pytest.mark.parametrize("name", KINDS)
def test_the_update_of_each_expert_is_its_own_pair(name):
    """Rows of A stand expert by expert, columns of B rank by rank; Llama 4's pair is transposed."""
    base = mixture(name)
    stores = {n: getattr(m, n.rpartition(".")[2]).shape for n, m in fused_experts(base).items()}
    modules = [describe_experts(n, m) for n, m in fused_experts(base).items()]
    layers = carriers_of_parameters(with_experts(base).get_base_model())

    for module in modules:
        layer = layers[module.name]
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        A, B = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
        pairs = per_expert(A, B, module.n_experts)
        update = layer.get_delta_weight("default")
        assert update.shape == stores[module.name]
        for expert, (a, b) in enumerate(pairs):
            own = 2 * b @ a
            stored = update[expert]
            assert torch.allclose(
                own if own.shape == stored.shape else own.T, stored, atol=1e-5
            )
        again = joined(pairs)
        assert torch.equal(again[0], A)
        assert torch.equal(again[1], B)
        wide = joined([padded(*pair, 5) for pair in pairs])
        for (a, b), (a5, b5) in zip(pairs, per_expert(*wide, module.n_experts), strict=True):
            assert torch.allclose(b5 @ a5, b @ a, atol=1e-6)
            assert a5.shape[0] == 5


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_comes_back_as_it_was_saved(name, tmp_path):
    """Logits and all; the only thing said is that pattern keys were ignored, which is wrong."""
    ids = mixture_batches()[0]["input_ids"]
    names = [*fused_experts(mixture(name))]
    model = with_experts(mixture(name), rank=4, rank_pattern={names[0]: 2, names[1]: 3})
    layers = carriers_of_parameters(model.get_base_model())
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    model.save_pretrained(tmp_path, save_embedding_layers=False)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = PeftModel.from_pretrained(mixture(name), tmp_path).eval()

    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    about = [str(w.message) for w in said if "experts" in str(w.message)]
    assert about
    assert all("did not match any targeted module" in message for message in about)
    paths = {n: path_of_wrapper(n, names) for n in names}
    tree = dict(again.get_base_model().named_modules())
    assert {n: tree[path].parameter_name for n, path in paths.items()} == {
        n: n.rpartition(".")[2] for n in names
    }


def test_dense_layers_beside_experts_are_moved_onto_these():
    """Named gate, up and down: PEFT adapts the experts at r and 2 r, and not what was named."""
    dense = [f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")]
    names = [*fused_experts(mixture("qwen3_moe"))]

    model = get_peft_model(
        mixture("qwen3_moe"), LoraConfig(r=4, target_modules=dense, target_parameters=names)
    )

    with_lora = [n for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")]
    assert not set(with_lora) & set(dense)
    carriers = carriers_of_parameters(model.get_base_model())
    assert {n.rpartition(".")[2]: layer.r["default"] for n, layer in carriers.items()} == {
        "gate_up_proj": 8,
        "down_proj": 4,
    }
