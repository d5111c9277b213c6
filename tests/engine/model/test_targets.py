"""Which modules are targets, and how a name that is wrong is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fimlora import RankPlan, TargetModule, allocate, find_targets, measure, score
from fimlora.errors import InvalidOption, UnknownTarget, UnsupportedModule
from fimlora.left_out import (
    DRAWN_ANEW,
    EXCLUDED,
    FUSED_EXPERTS,
    NOT_A_PRODUCT,
    OTHER_CLASS,
    OUTPUT_HEAD,
)
from fimlora.model.targets import choose_targets, count_base_parameters, locate
from support.models import make_batch, tiny
from support.peft_models import uniform_peft


def names_of(model, target_modules):
    return [module.name for module in find_targets(model, target_modules)]


def test_endings_match_whole_parts_of_a_name():
    """``dense`` is the pooler's and each block's, not ``intermediate_dense``."""
    model, _ = tiny("bert_classifier")

    names = names_of(model, ["attention.output.dense", "query"])

    assert names == [
        f"bert.encoder.layer.{layer}.attention.{rest}"
        for layer in (0, 1)
        for rest in ("self.query", "output.dense")
    ]


def test_a_full_name_matches_one_module():
    """The rest of the model is left alone."""
    model, _ = tiny("llama_gqa_lm")

    (module,) = find_targets(model, ["model.layers.1.self_attn.k_proj"])

    assert module == TargetModule("model.layers.1.self_attn.k_proj", d_in=24, d_out=12)


def test_conv1d_is_stored_the_other_way_round():
    """GPT-2's fused attention has three times as many outputs as inputs."""
    model, _ = tiny("gpt2_lm")

    module = find_targets(model, ["attn.c_attn"])[0]

    assert (module.d_in, module.d_out, module.fan_in_fan_out) == (24, 72, True)


def test_a_string_is_a_regular_expression_as_in_peft():
    """It must match the whole name."""
    model, _ = tiny("llama_gqa_lm")

    names = names_of(model, r".*\.1\..*\.(q|v)_proj")

    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


@pytest.mark.parametrize("name", ["llama_gqa_lm", "llama_tied_lm", "gpt2_lm"])
def test_all_linear_of_a_language_model_is_what_peft_takes(name):
    """Every linear map but the output head, tied to the embedding or not."""
    model, _ = tiny(name)
    config = LoraConfig(
        target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2_lm"
    )
    layers = get_peft_model(tiny(name)[0], config).get_base_model().named_modules()
    wanted = {n for n, module in layers if hasattr(module, "lora_A")}

    assert set(names_of(model, "all-linear")) == wanted
    assert not any("lm_head" in n for n in wanted)


def test_all_linear_leaves_the_classification_head_out():
    """A head that is trained in full gets no LoRA."""
    model, _ = tiny("bert_classifier")

    names = names_of(model, "all-linear")

    assert len(names) == 2 * 6 + 1
    assert "classifier" not in names


def test_a_head_that_is_named_is_taken():
    """What a person asks for by name is theirs to ask, also when it is tied."""
    assert names_of(tiny("llama_tied_lm")[0], ["lm_head"]) == ["lm_head"]


@pytest.mark.parametrize(
    ("name", "endings"),
    [("bert_classifier", {"query", "value"}), ("gpt2_lm", {"c_attn"})],
)
def test_none_is_the_default_of_peft(name, endings):
    """The architecture decides."""
    names = names_of(tiny(name)[0], None)

    assert {n.rsplit(".", 1)[-1] for n in names} == endings


def test_none_on_a_live_adapter_is_what_carries_lora():
    """The names are those of the base model."""
    model, _ = tiny("bert_classifier")
    wanted = names_of(model, ["key", "intermediate.dense"])

    found = names_of(uniform_peft(model, ["key", "intermediate.dense"]), None)

    assert found == wanted


def test_a_wrapped_model_has_the_targets_of_its_base_model():
    """LoRA's own linear maps, and heads it copied, are never targets."""
    wanted = find_targets(tiny("bert_classifier")[0], "all-linear")
    peft_model = uniform_peft(
        tiny("bert_classifier")[0], ["query"], modules_to_save=["classifier"]
    )

    assert find_targets(peft_model, "all-linear") == wanted
    assert find_targets(peft_model, ["dense"]) == find_targets(
        tiny("bert_classifier")[0], ["dense"]
    )


def test_locate_finds_the_linear_map_inside_its_lora_layer():
    """It is the very module that was there before."""
    model, _ = tiny("bert_classifier")
    (module,) = find_targets(model, ["layer.0.attention.self.query"])
    linear = model.get_submodule(module.name)

    peft_model = uniform_peft(model, ["query"])

    assert locate(peft_model, module) is linear


def test_base_parameters_do_not_count_what_peft_adds():
    """The fraction of a budget is of the base model."""
    model, _ = tiny("llama_tied_lm")
    wanted = sum(parameter.numel() for parameter in model.parameters())
    assert count_base_parameters(model) == wanted

    assert count_base_parameters(uniform_peft(model, ["q_proj", "down_proj"])) == wanted


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("qery", "no module is named 'qery' or ends in '.qery'. Near names: query"),
        ("zzz", "Linear maps end in: classifier, dense, key, query, value"),
        ("bert.encoder.layer.0.attention.self.quary", "Near names: bert.encoder.layer"),
        ("uery", "no module is named 'uery'"),
    ],
)
def test_an_unknown_name_lists_near_ones(entry, message):
    """Part of a name is no match; one bad entry among good ones is refused too."""
    model, _ = tiny("bert_classifier")

    with pytest.raises(UnknownTarget) as caught:
        find_targets(model, ["value", entry])

    assert message in str(caught.value)


def test_a_bare_name_as_a_string_says_that_a_list_was_meant():
    """In PEFT it would silently match nothing."""
    with pytest.raises(UnknownTarget, match=r"use a list for name endings.*query"):
        find_targets(tiny("bert_classifier")[0], "query")


def test_what_is_no_regular_expression_is_refused():
    """The message says why."""
    with pytest.raises(InvalidOption, match="is no regular expression"):
        find_targets(tiny("bert_classifier")[0], "(query")


def test_an_empty_list_is_refused():
    """There must be something to share the budget."""
    with pytest.raises(InvalidOption, match="target_modules is empty"):
        find_targets(tiny("bert_classifier")[0], [])


@pytest.mark.parametrize(
    ("entry", "kind"), [("embeddings.LayerNorm", "LayerNorm"), ("layer.0", "BertLayer")]
)
def test_what_is_not_a_linear_map_is_refused(entry, kind):
    """The message names the module and its kind."""
    with pytest.raises(UnsupportedModule, match=f"{entry}', a {kind}; only Linear, Conv1D"):
        find_targets(tiny("bert_classifier")[0], [entry])


def test_a_model_without_linear_maps_has_no_targets():
    """Rather an error than an empty plan."""
    with pytest.raises(UnknownTarget, match="has no linear map"):
        find_targets(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), "all-linear")


def test_targets_come_in_the_models_order():
    """Not in that of the entries."""
    model = nn.ModuleDict({"b": nn.Linear(1, 2), "a": nn.Linear(2, 1)})

    assert names_of(model, ["a", "b"]) == ["b", "a"]


EXPERTS = [
    f"model.layers.{layer}.mlp.experts.{name}"
    for layer in (0, 1)
    for name in ("down_proj", "gate_up_proj")
]


def test_fused_experts_that_are_left_out_are_named():
    """``all-linear`` does not reach them; statistics and rank map say so."""
    model, targets = tiny("mixtral_lm")
    batches = [make_batch("mixtral_lm", [5, 3])]

    statistics = measure(model, batches, target_modules="all-linear")

    reasons = {"lm_head": OUTPUT_HEAD} | dict.fromkeys(EXPERTS, FUSED_EXPERTS)
    assert statistics.not_targeted == reasons
    plan = allocate(score(statistics), 4)
    assert plan.not_targeted == plan.to_json()["not_targeted"] == reasons
    assert RankPlan.from_json(plan.to_json()) == plan
    assert choose_targets(model, targets).not_targeted == {}
    named = choose_targets(model, r".*\.(q_proj|experts\.down_proj)")
    assert list(named.not_targeted) == [EXPERTS[0], EXPERTS[2]]
    assert measure(model, batches, target_modules=targets).not_targeted == {}


@pytest.mark.parametrize(
    "given", [["k_proj", "layers.1.self_attn.v_proj"], r".*(k|1\..*v)_proj"]
)
def test_what_is_excluded_is_listed_with_its_reason(given):
    """By names and endings, or by an expression over full names."""
    choice = choose_targets(
        tiny("llama_gqa_lm")[0], ["q_proj", "k_proj", "v_proj"], exclude_modules=given
    )

    prefix = "model.layers.{}.self_attn.{}_proj".format
    assert [m.name for m in choice.modules] == [
        prefix(0, "q"), prefix(0, "v"), prefix(1, "q"),
    ]  # fmt: skip
    assert choice.not_targeted == dict.fromkeys(
        [prefix(0, "k"), prefix(1, "k"), prefix(1, "v")], EXCLUDED
    )


def test_modules_that_others_rule_out_are_listed_with_their_reason():
    """Those drawn anew, and those that an adapter cannot hold."""

    def unadaptable(model, names):
        return {name: "too odd" for name in names if name.endswith("key")}

    choice = choose_targets(
        tiny("bert_classifier")[0],
        ["dense", "key", "query"],
        drawn={"bert.pooler.dense", "classifier"},
        unadaptable=unadaptable,
    )

    kinds = {m.name.rpartition(".")[2] for m in choice.modules}
    assert (kinds, len(choice.modules)) == ({"query", "dense"}, 2 * 4)
    assert choice.not_targeted == {
        "bert.encoder.layer.0.attention.self.key": "too odd",
        "bert.encoder.layer.1.attention.self.key": "too odd",
        "bert.pooler.dense": DRAWN_ANEW,
    }


@pytest.mark.parametrize("entry", ["bert.pooler.dense", "pooler.dense"])
def test_a_module_named_by_itself_is_a_target_or_refused(entry):
    """A plan without it would not be what was asked for; a name that is excluded is no wish."""
    model, _ = tiny("bert_classifier")
    drawn = {"bert.pooler.dense"}

    with pytest.raises(UnsupportedModule, match=r"'bert.pooler.dense' can be no target.*drawn"):
        choose_targets(model, [entry, "query"], drawn=drawn)

    choice = choose_targets(model, [entry, "query"], drawn=drawn, exclude_modules=[entry])
    assert choice.not_targeted == {"bert.pooler.dense": EXCLUDED}


def test_what_is_excluded_may_be_no_linear_map():
    """An ending that means an embedding too is fine once that is left out."""
    model = nn.ModuleDict(
        {
            "text": nn.ModuleDict({"proj": nn.Linear(2, 2)}),
            "image": nn.ModuleDict({"proj": nn.Conv2d(1, 1, 1)}),
        }
    )

    choice = choose_targets(model, ["proj"], exclude_modules=["image.proj"])

    assert [m.name for m in choice.modules] == ["text.proj"]
    with pytest.raises(UnsupportedModule, match=r"'image.proj', a Conv2d.*exclude_modules"):
        choose_targets(model, ["proj"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["qery"], r"entry 'qery' is no name .* Near names: query"),
        (
            ["encoder"],
            r"'bert.encoder', which holds modules .*expression.*'\.\*encoder\\\.\.\*'",
        ),
        (r".*qery", r"matches no full name of a linear map. Near names: .*query"),
        (r".*encoder", r"matches no full name of a linear map"),
    ],
)
def test_an_exclusion_that_leaves_nothing_out_is_refused(given, message):
    """It would be a mistake that nobody sees."""
    with pytest.raises(UnknownTarget, match=message):
        choose_targets(tiny("bert_classifier")[0], ["query"], exclude_modules=given)


def test_nothing_left_is_refused():
    """The message names one module and its reason."""
    with pytest.raises(UnknownTarget, match=r"none of the 2 modules .*query.*exclude_modules"):
        choose_targets(tiny("bert_classifier")[0], ["query"], exclude_modules=["query"])


@pytest.mark.parametrize(
    "targets", [["q_proj", "gate_up_proj"], EXPERTS[:1], r".*gate_up_proj"]
)
def test_fused_experts_among_modules_are_refused(targets):
    """They are parameters, as in PEFT; the message says where they are asked for."""
    with pytest.raises(UnsupportedModule, match="ask for fused experts by target_parameters"):
        find_targets(tiny("mixtral_lm")[0], targets)


def test_an_embedding_that_carries_lora_is_a_target():
    """Also where nobody names targets: those that carry LoRA are meant."""
    model = uniform_peft(tiny("llama_gqa_lm")[0], ["q_proj", "embed_tokens"])

    assert [m.name for m in find_targets(model) if m.is_embedding] == ["model.embed_tokens"]

    named = find_targets(model, ["q_proj"])
    assert len(named) == len(find_targets(model, exclude_modules=["embed_tokens"])) == 2


class _Router(nn.Linear):
    """Gives scores and choices, as those of Llama 4 and PhiMoE do."""

    def forward(self, x):
        scores = super().forward(x)
        return scores, scores.argmax(dim=-1)


class _Grouped(nn.Linear):
    """Each group of inputs has outputs of its own."""

    def forward(self, x):
        return torch.einsum("...gi,gio->...go", x, self.weight.unflatten(0, (-1, 2)).mT)


class _Scaled(nn.Linear):
    """Another way to write a linear map."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def test_a_linear_map_in_name_only_is_left_out_with_its_reason():
    """PEFT fails on it when the model runs."""
    model = nn.ModuleDict(
        {
            f"{i}": nn.ModuleDict({"a": kind(4, 6), "b": nn.Linear(4, 6)})
            for i, kind in enumerate((_Router, _Grouped, _Scaled))
        }
    )

    choice = choose_targets(model, ["a", "b"])

    assert [m.name for m in choice.modules] == ["0.b", "1.b", "2.a", "2.b"]
    assert choice.not_targeted == dict.fromkeys(["0.a", "1.a"], NOT_A_PRODUCT)
    with pytest.raises(UnsupportedModule, match=r"'0.a' can be no target module: its class"):
        choose_targets(model, ["0.a", "b"])


class _PackedLinear(nn.Module):
    """A quantised map of a class of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))


def test_all_linear_lists_linear_maps_of_other_classes():
    """They are no targets, but nobody should think that there are none."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": _PackedLinear()})

    choice = choose_targets(model, "all-linear")

    assert [m.name for m in choice.modules] == ["a"]
    assert choice.not_targeted == {"b": OTHER_CLASS}
    assert choose_targets(model, ["a"]).not_targeted == {}
    with pytest.raises(UnsupportedModule, match="'b', a _PackedLinear; only Linear, Conv1D"):
        choose_targets(model, ["b"])


def test_full_names_mean_nothing_else():
    """Not what ends like them; and none of many is named by itself."""
    model = nn.ModuleDict({
        "a": nn.Linear(2, 2), "b": nn.ModuleDict({"a": nn.Linear(2, 2)}), "c": nn.Linear(2, 2),
    })  # fmt: skip

    choice = choose_targets(model, names=["c", "a"])
    left = choose_targets(model, names=["c", "a"], unadaptable=lambda *_: {"a": "for a reason"})

    assert [module.name for module in choice.modules] == ["a", "c"]
    assert choice.named == frozenset()
    assert [module.name for module in left.modules] == ["c"]
    assert left.not_targeted == {"a": "for a reason"}
    assert [module.name for module in find_targets(model, ["a"])] == ["a", "b.a"]
