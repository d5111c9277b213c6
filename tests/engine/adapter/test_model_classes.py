"""One checkpoint, two classes: which of them an adapter's names are for."""

import json
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from fimlora import find_targets, load_plan, write_adapter
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.proof import prove
from fimlora.adapter.rank_map import render_text
from fimlora.adapter.rank_map_picture import render_svg
from fimlora.errors import AdapterMismatch
from fimlora.model.saved_whole import facts_of_saved, find_saved
from support.peft_models import lora_parameters, resolved
from support.plans import plan_of
from support.text_and_image import gemma, qwen


def written(folder, model, other, targets, *, layout="B"):
    plan = plan_of(find_targets(model, targets), [3, 8, 1, 5])
    write_adapter(
        plan, folder / "a", base_model="a/b", task_type="CAUSAL_LM", layout=layout,
        model=model.to("meta"), other_model=other.to("meta"),
    )  # fmt: skip
    return plan, json.loads((folder / "a" / "adapter_config.json").read_text())


def stock(model, config):
    options = {k: v for k, v in config.items() if k != "base_model_name_or_path"}
    return get_peft_model(model, LoraConfig(**options))


TEXT_PART = r".*language_model.*(mlp\.down_proj|self_attn\.o_proj)"
CASES = [
    (qwen, 0, ["q_proj", "down_proj", "out_proj"]),
    (qwen, 1, r".*language_model.*(mlp\.down_proj|self_attn\.q_proj)"),
    (gemma, 0, ["o_proj", "down_proj"]),
    (gemma, 1, TEXT_PART),
]


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize(("family", "own", "targets"), CASES)
def test_names_hold_for_both_classes_where_they_can(family, own, targets, layout, tmp_path):
    """Stock PEFT gives either class the planned ranks, scales and parameters."""
    pair = family()
    plan, config = written(tmp_path, pair[own], pair[1 - own], targets, layout=layout)

    found = [stock(model, config) for model in family()]

    for adapted in found:
        by_end = {name.split("layers.")[1]: s for name, s in resolved(adapted).items()}
        assert by_end == {
            m.name.split("layers.")[1]: (
                (plan.ranks[m.name], plan.alpha(m.name), 2.0) if layout == "B" else (8, 16, 2.0)
            )
            for m in plan.modules
        }
        assert len(by_end) == len(plan.modules) == len(resolved(adapted))
    assert lora_parameters(found[0]) == lora_parameters(found[1])


@pytest.mark.parametrize(("family", "own", "targets"), CASES)
def test_the_rank_map_says_so(family, own, targets, tmp_path):
    """As data, and in a sentence of the picture and of the table."""
    pair = family()
    written(tmp_path, pair[own], pair[1 - own], targets)
    plan = load_plan(tmp_path / "a")
    classes = [type(model).__name__ for model in (pair[own], pair[1 - own])]

    assert [plan.provenance[k] for k in ("model_class", "names_also_hold_for")] == classes
    said = "names are for {}; those of the config hold for {}, too".format(*classes)
    assert said.partition("; ")[0] in render_svg(plan)
    assert said in render_text(plan)


@pytest.mark.parametrize("own", [0, 1])
def test_where_no_names_hold_for_both_they_are_for_the_one(own, tmp_path):
    """The other class is named, and there a proof would fail."""
    pair = gemma()
    targets = ["q_proj"] if own == 0 else r".*language_model.*q_proj"

    plan, config = written(tmp_path, pair[own], pair[1 - own], targets)

    assert {
        name: rank for name, (rank, _, _) in resolved(stock(gemma()[own], config)).items()
    } == plan.ranks
    facts = load_plan(tmp_path / "a").provenance
    assert facts["names_do_not_hold_for"] == type(pair[1 - own]).__name__
    assert "names_also_hold_for" not in facts
    with pytest.raises(AdapterMismatch, match="PEFT"):
        prove(plan, config, gemma()[1 - own])


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
def test_names_of_the_text_class_alone_fail_the_proof_on_the_whole():
    """Every pattern key is lost there, and every module would get the highest rank."""
    text, whole = qwen()
    plan = plan_of(find_targets(text, ["q_proj", "down_proj"]), [3, 8])
    config = build_adapter_config(
        plan, base_model="a/b", task_type=None, target_modules=["q_proj", "down_proj"]
    )
    prove(plan, config, text)

    with pytest.raises(
        AdapterMismatch, match=r"Qwen3_5ForConditionalGeneration .*gets no LoRA"
    ):
        prove(plan, config, whole)
    assert {rank for rank, _, _ in resolved(stock(whole, config)).values()} == {8}


def test_without_another_class_the_own_one_is_named(tmp_path):
    """Names are plain full ones then."""
    text, _ = qwen()
    plan = plan_of(find_targets(text, ["q_proj"]), [3, 8])

    write_adapter(plan, tmp_path / "a", base_model="a/b", task_type=None, model=text)

    assert load_plan(tmp_path / "a").provenance == {"model_class": "Qwen3_5ForCausalLM"}
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert list(config["rank_pattern"]) == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        ("norm", False),
        ("layers.0.mlp", False),
        ("layers.1.input_layernorm", True),
        ("lm_head", True),
    ],
)
def test_modules_that_train_whole_are_the_same_in_both_classes(own, entry, holds, tmp_path):
    """PEFT takes ``norm`` for ``input_layernorm``, too: a short name is written only where it can be."""
    pair = gemma()
    targets = [
        n
        for n, _ in pair[own].named_modules()
        if n.endswith(
            "language_model.layers.3.self_attn.o_proj" if own else "3.self_attn.o_proj"
        )
    ]
    saved = find_saved(pair[own], [f"language_model.{entry}"] if own and not holds else [entry])
    plan = replace(
        plan_of(find_targets(pair[own], targets), [3]), provenance=facts_of_saved(saved)
    )
    write_adapter(
        plan, tmp_path / "a", base_model="a/b", task_type="CAUSAL_LM",
        model=pair[own].to("meta"), other_model=pair[1 - own].to("meta"),
    )  # fmt: skip

    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    facts = load_plan(tmp_path / "a").provenance
    assert (
        facts.get("names_also_hold_for" if holds else "names_do_not_hold_for")
        == type(pair[1 - own]).__name__
    )
    for number, model in enumerate(gemma()):
        if number == own or holds:
            counted = sum(
                p.numel()
                for n, p in stock(model, config).named_parameters()
                if p.requires_grad and ".lora_" not in n
            )
            assert counted == sum(plan.saved.values())
