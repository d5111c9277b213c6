"""Plans with fused experts, as stock PEFT adapts, loads and trains them."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from fimlora import (
    Budget,
    allocate,
    apply_fim_ranks,
    load_plan,
    measure,
    score,
    verify_adapter,
    write_adapter,
)
from fimlora.adapter.exports import export
from fimlora.adapter.stacked import per_expert
from fimlora.adapter.text_files import rank_map
from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.intended import read_intended
from fimlora.adapter.verifying.live import see_model
from fimlora.errors import InvalidOption
from fimlora.model.experts.wrapped import carriers_of_parameters
from fimlora.statistics import Statistics
from support.experts import (
    KINDS,
    LINEAR,
    SCALE,
    mixture,
    mixture_batches,
    n_tokens,
    with_experts,
)

# PEFT says so of every key of a parameter, and it is wrong.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
TARGETS = {"target_modules": [LINEAR], "target_parameters": "all", "estimator": "exact"}


def lora_parameters(model):
    return sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)


@pytest.mark.parametrize("name", [*KINDS, "qwen3_moe"])
def test_stock_peft_makes_of_a_folder_what_was_planned(name, tmp_path):
    """Ranks, parameters and the start, in both layouts; the plan comes back equal."""
    base, batches = mixture(name), mixture_batches()
    statistics = measure(base, batches, **TARGETS)
    plan = allocate(score(statistics), 4, r_min=1, r_max=14)
    wanted = base(**batches[0]).logits
    for layout in "BC":
        folder = tmp_path / layout
        write_adapter(
            plan, folder, base_model=None, task_type="CAUSAL_LM", layout=layout, weights=True,
            model=base,
        )  # fmt: skip
        made = PeftModel.from_pretrained(copy.deepcopy(base), folder, is_trainable=True).eval()
        written = rank_map(plan, layout=layout)["adapter"]
        assert lora_parameters(made) == written["trainable_parameters"]
        assert torch.allclose(made(**batches[0]).logits, wanted, atol=1e-5)
        layers = carriers_of_parameters(made.get_base_model())
        for module in plan.modules:
            if module.n_experts is None:
                continue
            layer = layers[module.name]
            rank = written["width"] or plan.ranks[module.name]
            assert (layer.r["default"], layer.scaling["default"]) == (rank, SCALE)
            A, B = (getattr(layer, f"lora_{x}")["default"].weight for x in "AB")
            for a, b in per_expert(A, B, module.n_experts):
                assert a[: plan.ranks[module.name]].any(dim=1).all()
                assert not a[plan.ranks[module.name] :].any()
                assert not b.any()
        assert load_plan(folder).modules == plan.modules
        assert load_plan(folder).ranks == plan.ranks


def test_a_live_adapter_gets_the_ranks_of_its_plan(tmp_path):
    """In parameters that a budget counts as PEFT has them; stock PEFT reads it back."""
    batches = mixture_batches()
    for name in ("mixtral", "llama4_text"):
        model = with_experts(mixture(name), rank=4, target_modules=[LINEAR])
        before, n_before = model(**batches[0]).logits, lora_parameters(model)

        plan = apply_fim_ranks(model, batches, budget=Budget("parameters", n_before))

        assert lora_parameters(model) == plan.spent.parameters <= n_before
        assert len(set(plan.ranks.values())) > 1
        assert torch.equal(model(**batches[0]).logits, before)
        for n, parameter in model.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        again = PeftModel.from_pretrained(mixture(name), tmp_path / name).eval()
        assert torch.equal(again(**batches[0]).logits, model(**batches[0]).logits)


def test_a_trained_adapter_keeps_what_each_expert_does_when_it_grows():
    """New rows of every expert stand among its own."""
    model = with_experts(mixture("mixtral"), rank=2)
    for layer in carriers_of_parameters(model.get_base_model()).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    batches = mixture_batches()
    before = model(**batches[0]).logits

    plan = apply_fim_ranks(model, batches, budget=4, r_min=3, r_max=6)

    assert min(plan.ranks.values()) >= 3
    assert torch.allclose(model(**batches[0]).logits, before, atol=1e-5)


def test_statistics_of_experts_are_saved_merged_and_read():
    """One number per expert, whatever the width of the model."""
    model, batches = mixture("qwen2_moe"), mixture_batches()
    whole = measure(model, batches, **TARGETS)
    first, second = (measure(model, [batch], **TARGETS) for batch in batches)

    merged = first.merge(second)

    for module in (m for m in whole.modules if m.n_experts is not None):
        for group in ("row_energies", "expert_tokens"):
            found = merged.groups[group][module.name]
            assert found == pytest.approx(whole.groups[group][module.name], rel=1e-5)
            assert len(found) == module.n_experts
    data = whole.to_bytes()
    assert b'"n_experts": 4' in data or b'\\"n_experts\\": 4' in data


def test_statistics_are_read_back_equal(tmp_path):
    """Modules that are fused come back as such."""
    whole = measure(mixture("mixtral"), mixture_batches(), **TARGETS)
    whole.save(tmp_path / "statistics.safetensors")

    read = Statistics.load(tmp_path / "statistics.safetensors")

    assert read.modules == whole.modules
    assert read.to_bytes() == whole.to_bytes()
    assert score(read).by_module == score(whole).by_module


def test_weights_that_are_made_of_one_matrix_are_refused(tmp_path):
    """Before anything is written."""
    statistics = measure(mixture("mixtral"), mixture_batches(), **TARGETS)
    plan = allocate(score(statistics), 4)

    with pytest.raises(InvalidOption, match="take init='kaiming'"):
        write_adapter(
            plan, tmp_path / "a", base_model=None, task_type="CAUSAL_LM", init="lora-one",
            statistics=statistics,
        )  # fmt: skip
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan for a mixture, its folder in layout B, and the model."""
    base = mixture("qwen2_moe")
    statistics = measure(base, mixture_batches(), **TARGETS)
    plan = allocate(score(statistics), 4, r_min=1, r_max=14)
    folder = tmp_path_factory.mktemp("planned") / "a"
    write_adapter(
        plan, folder, base_model=None, task_type="CAUSAL_LM", weights=True, model=base
    )
    return plan, folder, base


@pytest.mark.parametrize("layout", ["B", "C"])
def test_what_was_written_is_verified(planned, tmp_path, layout):
    """Tensors, or the config alone; and the model that stock PEFT makes of it."""
    plan, _, base = planned
    for weights in (True, False) if layout == "B" else (True,):
        folder = tmp_path / str(weights)
        write_adapter(
            plan, folder, base_model=None, task_type="CAUSAL_LM", layout=layout,
            weights=weights, model=base,
        )  # fmt: skip
        found = verify_adapter(folder, plan)
        assert not found.faults
        assert found.planned.parameters == found.found.parameters
    made = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "True", is_trainable=True)
    assert not compare(read_intended(plan), see_model(made, read_intended(plan))).faults


def test_experts_that_are_not_as_planned_are_found(planned, tmp_path):
    """Another rank, a parameter that is left out, and one that is not planned."""
    plan, folder, base = planned
    other = max(n for n in plan.ranks if n.endswith("gate_up_proj"))
    changed = replace(plan, ranks=dict(plan.ranks) | {other: plan.ranks[other] + 1})
    assert {f.code for f in verify_adapter(folder, changed).faults} >= {"rank"}

    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_parameters"] = [n for n in config["target_parameters"] if n != other]
    shutil.copytree(folder, tmp_path / "fewer")
    (tmp_path / "fewer" / "adapter_model.safetensors").unlink()
    (tmp_path / "fewer" / "adapter_config.json").write_text(json.dumps(config))
    faults = verify_adapter(tmp_path / "fewer", plan).faults
    assert any(f.code == "missing" and f.module == other for f in faults)

    without = replace(plan, ranks=dict(plan.ranks) | {other: 0})
    made = PeftModel.from_pretrained(copy.deepcopy(base), folder, is_trainable=True)
    faults = compare(read_intended(without), see_model(made, read_intended(without))).faults
    assert any(f.code == "fused" and f.module == other for f in faults)


def test_the_rank_map_shows_each_expert(planned):
    """Its tokens, padding left out, and its share of the Fisher information."""
    plan, folder, _ = planned

    shown = load_plan(folder).provenance["experts"]

    rows = [m for m in plan.modules if m.n_experts is not None]
    assert set(shown) == {m.name for m in rows}
    for module in rows:
        facts = shown[module.name]
        assert len(facts["tokens"]) == len(facts["fisher"]) == module.n_experts
        assert sum(facts["tokens"]) == 2 * n_tokens(mixture_batches())
        assert sum(facts["fisher"]) == pytest.approx(1, abs=1e-5)


def test_exports_say_who_can_take_experts(planned):
    """PEFT and TRL by its config; others are refused by name."""
    plan, folder, _ = planned
    config = json.loads((folder / "adapter_config.json").read_text())

    assert json.loads(export(plan, config, "peft").text)["target_parameters"]
    for taken in ("trl", "vllm", "ms-swift", "llama-factory"):
        assert "target_parameters" in export(plan, config, taken).text
    for refused in ("axolotl", "unsloth", "adalora"):
        with pytest.raises(InvalidOption, match="not known to take target_parameters"):
            export(plan, config, refused, steps=100 if refused == "adalora" else None)
