"""Adapter configs, as stock PEFT understands them."""

import re

import pytest
from torch import nn

from fimlora import find_targets, write_adapter
from fimlora.adapter.config import rank_patterns, target_names
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.plan import TargetModule
from support.adapters import MINIMAL_FIELDS, RANKS, attach, config_of, write
from support.models import TINY_MODELS, tiny
from support.peft_models import lora_parameters, planned, resolved
from support.plans import plan_of


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_peft_resolves_the_plan(name, tmp_path):
    """Rank, alpha and scale of every module, and the parameter count, are the plan's."""
    model, plan = write(name, tmp_path / "a")

    peft_model = attach(model, tmp_path / "a")

    assert resolved(peft_model) == planned(plan)
    assert lora_parameters(peft_model) == plan.spent.parameters


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_the_config_is_the_minimal_one(name, tmp_path):
    """Fifteen fields, plain sorted names, integer alphas, one scale, nothing inherited."""
    _, plan = write(name, tmp_path / "a")

    config = config_of(tmp_path / "a")

    assert config.keys() == MINIMAL_FIELDS
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["rank_pattern"].keys() == config["alpha_pattern"].keys()
    for key, rank in config["rank_pattern"].items():
        assert key in plan.ranks  # hence no prefix, no escapes, no anchors
        assert type(rank) is int
        assert 1 <= rank < config["r"]
        assert type(config["alpha_pattern"][key]) is int
        assert config["alpha_pattern"][key] == 2 * rank
    assert set(plan.ranks) - config["rank_pattern"].keys() == {
        n for n, r in plan.ranks.items() if r == 8
    }
    assert config["target_modules"] == sorted(config["target_modules"])
    head = {"bert": ["classifier"], "deberta": ["classifier"], "llama": ["score"]}
    is_lm = TINY_MODELS[name].is_causal_lm
    assert config["modules_to_save"] == (None if is_lm else head[name.split("_")[0]])
    assert config["inference_mode"] is False
    assert config["init_lora_weights"] is True


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_each_key_matches_one_target_by_pefts_rule(name, tmp_path):
    """Sorted as PEFT sorts on saving, no key overlaps another, so order means nothing."""
    _, plan = write(name, tmp_path / "a")

    for key in config_of(tmp_path / "a")["rank_pattern"]:
        hits = [n for n in plan.ranks if re.match(rf"(.*\.)?({key})$", n)]
        assert hits == [key]


def test_conv1d_is_said_to_be_transposed(tmp_path):
    """GPT-2 stores its weights input first; the config says so for it and only for it."""
    write("gpt2_lm", tmp_path / "a")
    write("llama_gqa_lm", tmp_path / "b")

    assert config_of(tmp_path / "a")["fan_in_fan_out"] is True
    assert config_of(tmp_path / "b")["fan_in_fan_out"] is False


def test_a_classifier_trains_its_head_without_the_config_naming_it(tmp_path):
    """PEFT adds the head of a sequence classifier by itself."""
    model, _ = write("bert_classifier", tmp_path / "a")

    peft_model = attach(model, tmp_path / "a")

    trainable = [n for n, p in peft_model.named_parameters() if p.requires_grad]
    assert any("classifier.modules_to_save" in n for n in trainable)


def test_one_rank_for_all_needs_no_pattern(tmp_path):
    """A uniform plan is plain LoRA."""
    write("llama_gqa_lm", tmp_path / "a", ranks=[4])

    config = config_of(tmp_path / "a")

    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})


def test_modules_of_rank_zero_are_not_targeted(tmp_path):
    """PEFT has no rank 0; leaving a module out is how it gets none."""
    model, plan = write("llama_gqa_lm", tmp_path / "a", ranks=[4, 0, 2])

    peft_model = attach(model, tmp_path / "a")

    assert resolved(peft_model) == planned(plan)
    assert 0 not in config_of(tmp_path / "a")["rank_pattern"].values()


class Tower(nn.Module):
    """``model.layers.N.q_proj``, as any decoder has it."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.model.layers:
            layer.q_proj = nn.Linear(12, 12)

    def forward(self, x):
        for layer in self.model.layers:
            x = layer.q_proj(x)
        return x


class TwoTowers(Tower):
    """The same names once more below ``vision``."""

    def __init__(self):
        super().__init__()
        self.vision = Tower()


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [4, 3, 2, 1], [4, 4, 1, 2]])
def test_a_key_is_anchored_where_a_plain_one_hits_two_modules(ranks, tmp_path):
    """Two towers with equal inner names keep their own ranks, whichever has the largest."""
    model = TwoTowers()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    plan = plan_of(tuple(TargetModule(n, 12, 12) for n in names), ranks)
    write_adapter(plan, tmp_path / "a", base_model="towers", task_type=None)

    peft_model = attach(model, tmp_path / "a")

    keys = config_of(tmp_path / "a")["rank_pattern"]
    assert resolved(peft_model) == planned(plan)
    assert all(key.startswith(("^model", "vision")) for key in keys)


def test_names_get_longer_until_only_the_plan_is_hit():
    """A leaf name where it is unambiguous, a longer ending where it is not."""
    every = [
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.output.dense",
        "encoder.layer.1.attention.self.query",
        "pooler.dense",
        "score",
    ]

    assert target_names([every[1], every[3]], every) == ["query"]
    assert target_names([every[1]], every) == ["0.attention.self.query"]
    assert target_names([every[0], every[5]], every) == ["attention.output.dense", "score"]
    assert target_names([every[4]], every) == ["pooler.dense"]
    assert target_names([every[3], every[1]]) == [every[1], every[3]]


def test_a_target_whose_name_ends_anothers_is_refused():
    """PEFT could not adapt the one without the other."""
    with pytest.raises(UnsupportedModule, match="outside the plan"):
        target_names(["layers.0.q"], ["layers.0.q", "vision.layers.0.q"])


@pytest.mark.parametrize("targets", [["dense"], ["output.dense"], ["query", "pooler.dense"]])
def test_the_same_modules_are_targeted_with_and_without_the_models_names(targets, tmp_path):
    """BERT has three kinds of ``dense``: both ways PEFT adapts the plan's and no other."""
    for folder, known in [("short", True), ("full", False)]:
        model, _ = tiny("bert_classifier")
        plan = plan_of(find_targets(model, targets), RANKS)
        names = [n for n, _ in model.named_modules()] if known else None
        write_adapter(
            plan,
            tmp_path / folder,
            base_model="org/model",
            task_type="SEQ_CLS",
            module_names=names,
        )

        assert resolved(attach(model, tmp_path / folder)) == planned(plan)


def test_patterns_are_relative_to_the_widest_module():
    """Modules that differ from it in rank or in alpha alone are both named in both."""
    ranks, alphas = rank_patterns({"a": 4, "b": 4, "c": 2}, {"a": 8, "b": 4.5, "c": 4})

    assert ranks == {"b": 4, "c": 2}
    assert alphas == {"b": 4.5, "c": 4}


def test_layout_c_ends_at_256(tmp_path):
    """No server takes more."""
    with pytest.raises(InvalidOption, match="at most rank 256"):
        write("llama_gqa_lm", tmp_path / "a", ranks=[257], layout="C")
