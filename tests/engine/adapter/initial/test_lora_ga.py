"""LoRA-GA's initial weights: directions of the full gradient, PEFT's own, and the changed base."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, LoraGAConfig, PeftModel, get_peft_model

from fimlora import load_plan, shift_base, write_adapter
from fimlora.adapter.convert import convert_adapter
from fimlora.adapter.truncate import truncate_adapter
from fimlora.errors import InvalidAdapter, InvalidOption, UnsupportedModule
from fimlora.memory.need import N_VALUES
from fimlora.plan import TargetModule
from fimlora.statistics.groups import N_DIRECTIONS
from support.initial import SEED, case_of, write_case
from support.peft_models import lora_layers
from support.plans import plan_of

FLOAT32 = 1e-4
NAMES = ("bert_classifier", "gpt2_lm", "llama_gqa_lm")


def weights_of(loaded, name):
    layer = lora_layers(loaded)[name]
    return (layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach())


def cosines(found, wanted):
    """Of rows with rows, whatever their signs and sizes."""
    return torch.nn.functional.cosine_similarity(found.double(), wanted.double()).abs()


def has_directions_beyond(case, module, rank):
    S = torch.linalg.svdvals(case.gradients[module.name])
    return len(S) > rank and S[rank] > 1e-6 * S[0]


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", NAMES)
def test_a_and_b_are_different_directions_at_the_official_size(name, layout, tmp_path):
    """The first r right vectors and the next r left ones, each of length O^(1/4) / sqrt(16).

    A gradient of few examples has fewer: what it lacks of B is zero, and A has all its rows.
    """
    case = case_of(name)
    write_case(case, name, tmp_path / "a", init="lora-ga", layout=layout)

    loaded = PeftModel.from_pretrained(copy.deepcopy(case.model), tmp_path / "a")

    n_known = {}
    for module in case.plan.modules:
        rank = case.plan.ranks[module.name]
        U, S, Vh = torch.linalg.svd(case.gradients[module.name], full_matrices=False)
        A, B = weights_of(loaded, module.name)
        size = module.d_out**0.25 / 4
        least = 1e-6 * S[0]
        n = int((least < S).sum())
        of_a, of_b = min(n, rank), max(0, min(n, 2 * rank) - rank)
        n_known[module.name] = of_b
        assert (cosines(A[:of_a], Vh[:of_a]) >= 1 - FLOAT32).all(), module.name
        assert (cosines(B.T[:of_b], U.T[rank : rank + of_b]) >= 1 - FLOAT32).all(), module.name
        assert (A[:of_a].norm(dim=1) / size - 1).abs().max() <= FLOAT32
        assert ((B[:, :of_b].norm(dim=0) / size - 1).abs() <= FLOAT32).all()
        assert A[:rank].any(dim=1).all()
        assert not A[rank:].any()
        assert not B[:, of_b:].any()
    assert sum(n_known.values()) >= 3 * len(n_known)


@pytest.mark.parametrize("name", NAMES)
def test_the_directions_are_those_of_peft(name, tmp_path):
    """PEFT's own ``lora_ga`` on the same gradients; its A is unscaled and its B has the values."""
    rank = 4
    case = case_of(name, ranks=[rank])
    write_case(case, name, tmp_path / "a", init="lora-ga")
    ours = PeftModel.from_pretrained(copy.deepcopy(case.model), tmp_path / "a")
    model = copy.deepcopy(case.model)
    for module in case.plan.modules:
        G = case.gradients[module.name].float()
        layer = model.get_submodule(module.name)
        layer._peft_loraga_grad = G.T if module.fan_in_fan_out else G
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[module.name for module in case.plan.modules],
        fan_in_fan_out=case.plan.modules[0].fan_in_fan_out,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(),
    )
    theirs = get_peft_model(model, config)

    n_compared = 0
    for module in case.plan.modules:
        (A, B), (their_A, their_B) = (weights_of(m, module.name) for m in (ours, theirs))
        S = torch.linalg.svdvals(case.gradients[module.name])
        known = S[rank : 2 * rank] > 1e-6 * S[0]
        n_compared += int(known.sum())
        assert (cosines(A, their_A) >= 1 - FLOAT32).all(), module.name
        assert (cosines(B.T, their_B.T)[known] >= 1 - FLOAT32).all(), module.name
    assert n_compared >= 3 * len(case.plan.modules)


@pytest.mark.parametrize("scale", [2, 0.5])
@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", NAMES)
def test_on_the_shifted_base_the_model_begins_as_it_was(name, layout, scale, tmp_path):
    """``W' + s B A == W`` to rounding, so that outputs are the same, and undoing it gives W."""
    case = case_of(name, scale=scale)
    model = case.model.double()
    base = {n: p.clone() for n, p in model.named_parameters()}
    logits = model(**case.batch).logits
    write_case(case, name, tmp_path / "a", init="lora-ga", layout=layout)

    shift_base(model, tmp_path / "a")

    shifted = {n: p.clone() for n, p in model.named_parameters()}
    changed = {n.removesuffix(".weight") for n in base if not torch.equal(base[n], shifted[n])}
    assert changed == {
        m.name
        for m in case.plan.modules
        if has_directions_beyond(case, m, case.plan.ranks[m.name])
    }
    assert len(changed) >= len(case.plan.modules) - 1
    loaded = PeftModel.from_pretrained(model, tmp_path / "a").double()
    assert torch.allclose(loaded(**case.batch).logits, logits, atol=1e-5, rtol=1e-5)
    for name_, layer in lora_layers(loaded).items():
        restored = layer.base_layer.weight + layer.get_delta_weight("default")
        assert (restored - base[f"{name_}.weight"]).abs().max() <= 1e-6
    shift_base(loaded, tmp_path / "a", undo=True)
    for name_, layer in lora_layers(loaded).items():
        assert (layer.base_layer.weight - base[f"{name_}.weight"]).abs().max() <= 1e-14


def test_in_half_precision_the_shift_is_rounded_once(tmp_path):
    """No worse than half a unit of the weight's last place, each way."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")
    model = copy.deepcopy(case.model).bfloat16()
    before = {n: p.clone() for n, p in model.named_parameters()}

    shift_base(model, tmp_path / "a")
    shift_base(model, tmp_path / "a", undo=True)

    for module in case.plan.modules:
        weight, wanted = (
            model.get_submodule(module.name).weight,
            before[f"{module.name}.weight"],
        )
        largest = max(wanted.abs().max(), weight.abs().max()).double()
        assert (weight.double() - wanted.double()).abs().max() <= largest * 2**-6


def test_the_plan_says_first_that_the_base_model_changes(tmp_path):
    """In the rank map that is written, as a fact and in a sentence."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")

    plan = load_plan(tmp_path / "a")

    assert plan.warnings[0].code == "base_changes"
    assert "lora-ga need another base model" in plan.warnings[0].message
    assert "shift_base" in plan.warnings[0].message
    assert plan.provenance["initial"] == {
        "name": "lora-ga",
        "starts_as_base": False,
        "changes_base": True,
        "largest_error": 0.0,
    }


def test_a_base_model_is_changed_for_no_other_adapter(tmp_path):
    """Those that start from it as it is, and folders without their weights, are refused."""
    case = case_of("llama_gqa_lm")
    before = copy.deepcopy(case.model.state_dict())
    write_case(case, "llama_gqa_lm", tmp_path / "one", init="lora-one")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()

    with pytest.raises(InvalidOption, match="lora-one, which need no other base model"):
        shift_base(case.model, tmp_path / "one")
    with pytest.raises(InvalidAdapter, match="cannot read initial weights"):
        shift_base(case.model, tmp_path / "a")
    assert all(torch.equal(before[n], t) for n, t in case.model.state_dict().items())


@pytest.mark.parametrize("layout", ["B", "C"])
def test_what_is_converted_still_says_that_the_base_model_changes(layout, tmp_path):
    """As its first warning and as a fact; the base shifts by it as by the first folder."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")
    other = copy.deepcopy(case.model)

    convert_adapter(tmp_path / "a", tmp_path / "b", layout=layout)

    before, after = load_plan(tmp_path / "a"), load_plan(tmp_path / "b")
    assert after.provenance["initial"] == before.provenance["initial"]
    assert after.warnings[0] == before.warnings[0]
    shift_base(case.model, tmp_path / "a")
    shift_base(other, tmp_path / "b")
    for name, tensor in case.model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_what_is_cut_says_so_and_shifts_no_base_model(tmp_path):
    """Its matrices are other ones; converting it again does not make it whole."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")

    truncate_adapter(tmp_path / "a", tmp_path / "b", budget=2)
    convert_adapter(tmp_path / "b", tmp_path / "c", layout="C")

    for folder in (tmp_path / "b", tmp_path / "c"):
        plan = load_plan(folder)
        assert plan.provenance["initial"]["changes_base"]
        assert plan.warnings[0].code == "base_changes"
        assert "this adapter was cut" in plan.warnings[0].message
        with pytest.raises(InvalidOption, match="was cut"):
            shift_base(case.model, folder)


def test_initial_weights_that_no_map_states_are_unknown(tmp_path):
    """Of an adapter that came without a rank map nothing is claimed."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")
    (tmp_path / "a" / "rank_map.json").unlink()

    convert_adapter(tmp_path / "a", tmp_path / "b")

    assert "initial" not in load_plan(tmp_path / "b").provenance
    with pytest.raises(InvalidOption, match="are unknown"):
        shift_base(case.model, tmp_path / "b")


def test_a_shared_weight_is_not_changed(tmp_path):
    """What else it is would change too; nothing is changed then."""
    case = case_of("llama_gqa_lm")
    write_case(case, "llama_gqa_lm", tmp_path / "a", init="lora-ga")
    first, last = case.plan.modules[0].name, case.plan.modules[-1].name
    model = case.model
    model.other = torch.nn.Module()
    model.other.register_parameter("weight", model.get_submodule(last).weight)
    before = model.get_submodule(first).weight.clone()

    with pytest.raises(UnsupportedModule, match="is shared with another module"):
        shift_base(model, tmp_path / "a")
    assert torch.equal(model.get_submodule(first).weight, before)


def test_ranks_beyond_what_is_recorded_are_refused(tmp_path):
    """The second half of the directions is B's, so a wide module has half as many ranks."""
    wide = TargetModule("layers.0.up", 100, 90)
    narrow = TargetModule("layers.0.down", 100, 40)
    case = case_of("llama_gqa_lm")
    shapes = {"left": (90, 64), "values": (64,), "right": (64, 100), "errors": (1,)}
    quantities = {
        f"gradient_{kind}": {m.name: np.ones(shape) for m in (wide, narrow)}
        for kind, shape in shapes.items()
    }
    statistics = replace(case.statistics, quantities=quantities)
    options = {"base_model": "m", "task_type": None, "init": "lora-ga", "seed": SEED}

    with pytest.raises(InvalidOption, match=r"up to 32, and 'layers\.0\.up' has rank 33"):
        write_adapter(
            plan_of((wide, narrow), [33, 40]), tmp_path / "a", statistics=statistics, **options
        )
    assert N_DIRECTIONS == N_VALUES == 64
