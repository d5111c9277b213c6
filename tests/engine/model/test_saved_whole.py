"""What modules_to_save means in a model, against what stock PEFT makes of the names."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fimlora import measure, write_adapter
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.proof import prove
from fimlora.adapter.rank_map import budget_line
from fimlora.errors import AdapterMismatch, InvalidOption, UnknownTarget, UnsupportedModule
from fimlora.left_out import OUTPUT_HEAD, SAVED_WHOLE
from fimlora.measuring.settings import Settings
from fimlora.model.peft_trial import check_saved
from fimlora.model.saved_whole import facts_of_saved, find_saved
from fimlora.model.targets import choose_targets, find_targets
from fimlora.whole_names import inside_saved, outermost
from support.models import tiny
from support.plans import plan_of

LLAMA, BERT, GPT2 = "llama_gqa_lm", "bert_classifier", "gpt2_lm"
TARGETS = ["q_proj", "down_proj"]


def names_of(model, entries):
    return [each.name for each in find_saved(model, entries)]


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (None, []),
        (["lm_head"], ["lm_head"]),
        (["embed_tokens", "lm_head"], ["model.embed_tokens", "lm_head"]),
        (["norm"], ["model.norm"]),
        (["layers.0.mlp", "mlp.up_proj"], ["model.layers.0.mlp", "model.layers.1.mlp.up_proj"]),
        (["input_layernorm"], [f"model.layers.{i}.input_layernorm" for i in range(2)]),
    ],
)
def test_an_entry_is_a_name_or_an_ending_after_a_dot(entries, names):
    """What is inside another one is counted once, with that."""
    assert names_of(tiny(LLAMA)[0], entries) == names


@pytest.mark.parametrize("entries", [["lm_head"], ["norm"], ["embed_tokens", "layers.1.mlp"]])
def test_stock_peft_trains_just_these_and_as_many_parameters(entries):
    """Of the config that is written, with no LoRA inside."""
    model, _ = tiny(LLAMA)
    saved = find_saved(model, entries)
    targets = Settings(target_modules=[*TARGETS, "v_proj"], modules_to_save=entries).choose(
        model
    )
    plan = plan_of(targets.modules, [3, 2], provenance=facts_of_saved(saved))
    config = build_adapter_config(plan, base_model=None, task_type="CAUSAL_LM")
    prove(plan, config, model)

    peft_model = get_peft_model(model, LoraConfig(**config))

    found: dict[str, int] = {}
    for name, p in peft_model.named_parameters():
        if p.requires_grad:
            whole, dot, _ = name.removeprefix("base_model.model.").partition(
                ".modules_to_save."
            )
            found[whole if dot else "LoRA"] = found.get(whole if dot else "LoRA", 0) + p.numel()
    assert found == {"LoRA": plan.spent.parameters} | {s.name: s.parameters for s in saved}
    assert f"{sum(plan.saved.values()):,} parameters, beside the budget" in budget_line(plan)


@pytest.mark.parametrize(
    ("name", "entries", "error", "words"),
    [
        (LLAMA, ["lm_haed"], UnknownTarget, "Near names: lm_head"),
        (LLAMA, ["model.embed_token"], UnknownTarget, "model.embed_tokens"),
        (LLAMA, ["head"], UnknownTarget, "is no name of a module"),
        (LLAMA, ["layers"], UnsupportedModule, "a ModuleList"),
        (LLAMA, ["rotary_emb"], UnsupportedModule, "no parameters"),
        (LLAMA, [], InvalidOption, "at least one name"),
        (LLAMA, "lm_head", InvalidOption, "give a list"),
        ("deberta_v2_classifier", ["layers"], UnknownTarget, "no name of a module"),
    ],
)
def test_what_cannot_be_saved_whole_is_refused(name, entries, error, words):
    with pytest.raises(error, match=words):
        find_saved(tiny(name)[0], entries)


def test_quantised_weights_buffers_and_parts_of_a_head_are_refused():
    """Each would be trained or written otherwise than it was named."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = nn.Linear(2, 2)
            self.packed.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), False)
            self.counted = nn.BatchNorm1d(2)

    class OddForSequenceClassification(nn.Module):
        def __init__(self):
            super().__init__()
            self.classifier = nn.Sequential(nn.Linear(2, 2))

    with pytest.raises(UnsupportedModule, match="quantised"):
        find_saved(Odd(), ["packed"])
    with pytest.raises(UnsupportedModule, match="'num_batches_tracked' beside its parameters"):
        find_saved(Odd(), ["counted"])
    with pytest.raises(UnsupportedModule, match=r"part of 'classifier'"):
        find_saved(OddForSequenceClassification(), ["classifier.0"])
    assert names_of(OddForSequenceClassification(), ["classifier"]) == ["classifier"]


def test_a_name_that_peft_takes_for_others_too_is_refused():
    """It goes by how names end, without a dot: before anything is measured."""

    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner_norm, self.map = (
                nn.LayerNorm(4),
                nn.LayerNorm(4),
                nn.Linear(4, 4),
            )

    with pytest.raises(UnsupportedModule, match="would train 'inner_norm' whole with it"):
        check_saved(Ends(), "map", ["norm"])
    check_saved(Ends(), "map", ["norm", "inner_norm"])


def test_tied_weights_are_told_and_counted_as_copies():
    model, _ = tiny(GPT2)
    facts = facts_of_saved(find_saved(model, ["wte", "lm_head"]))

    assert facts["untied_by_saving"] == {
        "transformer.wte": "lm_head",
        "lm_head": "transformer.wte",
    }
    assert set(facts["modules_to_save"].values()) == {model.lm_head.weight.numel()}


def test_targets_inside_are_left_out_with_the_reason_or_refused():
    """As PEFT does; who names nothing but what is saved has asked for both."""
    model, _ = tiny(LLAMA)
    saved = ["model.layers.0.mlp", "lm_head"]

    choice = choose_targets(model, ["down_proj", "q_proj"], saved=saved)
    assert choice.not_targeted == {"model.layers.0.mlp.down_proj": SAVED_WHOLE}
    everything = choose_targets(model, "all-linear", saved=saved)
    assert set(everything.not_targeted.values()) == {SAVED_WHOLE}
    assert choose_targets(model, "all-linear").not_targeted == {"lm_head": OUTPUT_HEAD}
    for entries in (["q_proj", "lm_head"], ["q_proj", "0.mlp.down_proj"]):
        with pytest.raises(UnsupportedModule, match="trained whole"):
            choose_targets(model, entries, saved=saved)
    with pytest.raises(UnsupportedModule, match=r"entry 'mlp\.down_proj' and modules_to_save"):
        choose_targets(
            model, ["mlp.down_proj", "q_proj"], saved=[f"model.layers.{i}.mlp" for i in (0, 1)]
        )


def test_an_adapter_whose_config_saves_something_else_is_not_written(tmp_path):
    """Neither less nor more than is named."""
    model, _ = tiny(LLAMA)
    plan = plan_of(find_targets(model, ["q_proj"]), [3, 2])

    with pytest.raises(AdapterMismatch, match="'nothing' does not train whole"):
        write_adapter(
            plan, tmp_path / "a", base_model=None, task_type="CAUSAL_LM", model=model,
            modules_to_save=["nothing"],
        )  # fmt: skip
    config = build_adapter_config(plan, base_model=None, task_type=None)
    with pytest.raises(AdapterMismatch, match=r"input_layernorm' trains whole"):
        prove(plan, config | {"modules_to_save": ["nope", "norm"]}, model)
    assert list(tmp_path.iterdir()) == []


def test_scores_do_not_depend_on_what_is_saved():
    """It has the base model's weights at the start, as in training."""
    from fimlora.measuring.resident import measure_resident
    from support.models import make_batch

    batches = [make_batch(LLAMA, [7, 5, 6])]
    model, _ = tiny(LLAMA)
    bare = measure(model, batches, target_modules=["q_proj"])
    settings = Settings(target_modules=["q_proj"], modules_to_save=["lm_head"])
    beside = measure_resident(model, batches, settings)
    for name, energies in bare.row_energies.items():
        assert (beside.row_energies[name] == energies).all()


def test_many_modules_are_refused_at_once():
    """PEFT would take hours with them; a model of many experts has them by one name."""
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(1, 1) for _ in range(501))})
    with pytest.raises(UnsupportedModule, match=r"501 modules.*more than 500: name fewer"):
        find_saved(model, [str(i) for i in range(501)])
    assert len(find_saved(model, [str(i) for i in range(500)])) == 500


def test_names_inside_others_are_found_by_their_owners():
    """As many looks as a name has dots, however many names there are."""
    names = [f"a.{i}.b" for i in range(20_000)]
    assert outermost([*names, "a.7", "a.77"]) == sorted(
        {*names, "a.7", "a.77"} - {"a.7.b", "a.77.b"}
    )
    assert inside_saved(names, [f"a.{i}" for i in range(0, 20_000, 2)]) == set(names[::2])
    assert inside_saved(["ab.c", "a", "a.b.c"], ["a"]) == {"a", "a.b.c"}
