"""A plan over some layers, as files, pictures and other tools have it: these layers and no other."""

import re

import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from fimlora import apply_fim_ranks, load_plan, write_adapter
from fimlora.adapter.exports import FORMATS, export
from fimlora.adapter.rank_map import render_text
from fimlora.adapter.rank_map_picture import render_svg
from fimlora.allocation import allocate
from fimlora.errors import InvalidOption
from fimlora.model.targets import find_targets, head_tensors
from fimlora.plan import Budget
from fimlora.scores import Scores
from support.adapters import config_of, task_of
from support.models import make_batch, tiny
from support.peft_models import planned, resolved


def plan_for(model, targets, budget=4, **options):
    """The second layer is the better one."""
    modules = tuple(find_targets(model, targets))
    scores = Scores(modules, {m.name: 1.0 + (m.layer or 0) for m in modules})
    return allocate(scores, budget, rule="layers", **options)


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("name", ["llama_gqa_lm", "gpt2_lm", "bert_classifier"])
def test_stock_peft_adapts_the_chosen_layers_and_no_other(name, layout, tmp_path):
    """By the written names alone, though every layer has modules that are called the same."""
    model, targets = tiny(name)
    plan = plan_for(model, targets)
    logits = model(**make_batch(name, [5, 3])).logits
    write_adapter(
        plan, tmp_path / "a", base_model="org/model", task_type=task_of(name), layout=layout,
        weights=True, head=head_tensors(model), model=model,
    )  # fmt: skip

    adapted = PeftModel.from_pretrained(model, tmp_path / "a")

    inside = {m.name for m in plan.modules if m.layer == 1}
    assert {n for n, rank in plan.ranks.items() if rank} == inside
    if layout == "B":
        assert resolved(adapted) == planned(plan)
    assert adapted(**make_batch(name, [5, 3])).logits.shape == logits.shape
    assert load_plan(tmp_path / "a").ranks == plan.ranks


def test_one_rank_for_all_chosen_modules_needs_no_pattern(tmp_path):
    """Then a tool that reads names and one rank reads it: where whole ranks come out even."""
    model, targets = tiny("llama_gqa_lm")
    write_adapter(
        plan_for(model, targets), tmp_path / "a", base_model="org/model", task_type="CAUSAL_LM",
        model=model,
    )  # fmt: skip
    config = config_of(tmp_path / "a")

    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["r"] == 8


def test_names_in_full_come_before_layers_to_transform():
    """PEFT looks at its own indices of layers for short names only, so these say nothing here."""
    model, targets = tiny("llama_gqa_lm")
    plan = plan_for(model, targets)
    names = [name for name, rank in plan.ranks.items() if rank]
    config = LoraConfig(r=8, target_modules=names, layers_to_transform=[0])

    adapted = get_peft_model(model, config)

    assert set(resolved(adapted)) == set(names)


# Of a schedule that falls to ranks of its own, `test_adalora` has what is written.
@pytest.mark.parametrize("format", sorted(FORMATS.keys() - {"adalora"}))
def test_every_tool_reads_it_or_is_told_why_not(format, tmp_path):
    """Unsloth takes names of leaves alone, and those are in every layer."""
    model, targets = tiny("llama_gqa_lm")
    plan = plan_for(model, targets)
    write_adapter(
        plan, tmp_path / "a", base_model="org/model", task_type="CAUSAL_LM", model=model
    )

    config = config_of(tmp_path / "a")
    if format == "unsloth":
        with pytest.raises(InvalidOption, match="leaf names"):
            export(plan, config, format)
        return
    options = {"steps": 400} if format == "adalora" else {}
    assert "layers.0." not in export(plan, config, format, **options).text


def test_the_picture_says_how_many_layers_are_chosen():
    """And how many modules are not targeted."""
    model, targets = tiny("llama_gqa_lm")
    plan = plan_for(model, targets)

    for text in (render_text(plan), render_svg(plan)):
        assert "1 of 2 layers" in text
        assert f"{len(plan.modules) // 2} modules not targeted" in re.sub(r"<[^>]*>", "", text)


def test_a_budget_above_all_ranks_of_the_chosen_layers_says_so():
    """What is left is not spent elsewhere."""
    model, targets = tiny("llama_gqa_lm")
    plan = plan_for(model, targets, Budget("parameters", 10**6))

    assert "as every module of these layers is at r_max" in render_text(plan)
    assert {plan.ranks[m.name] for m in plan.modules if m.layer == 0} == {0}


@pytest.mark.parametrize("method", ["fisher-layers", "cka-layers"])
def test_a_live_adapter_keeps_a_rank_in_every_layer(method):
    """Refused by name before anything is measured, with the way on."""
    model, targets = tiny("llama_gqa_lm")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=list(targets)))

    with pytest.raises(InvalidOption, match=f"{method}.*live adapter has at least rank 1"):
        apply_fim_ranks(adapted, [], method=method)
