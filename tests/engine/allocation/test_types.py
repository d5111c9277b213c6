"""Which modules an entry names, and which a preset ties."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora.allocation.types import Names, resolve_groups, resolve_types
from fimlora.constraints import Constraints
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora.shares import type_name

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def modules_of(*names):
    return [TargetModule(name, 8, 8) for name in names]


LLAMA = modules_of(
    *(f"model.layers.{i}.{kind}" for i in (0, 1, 11) for kind in KINDS), "score.q_proj"
)
MIXTURE = modules_of(
    *(
        f"model.layers.{i}.mlp.experts.{j}.{leaf}"
        for i in (0, 1)
        for j in (0, 1, 2)
        for leaf in ("gate_proj", "up_proj", "down_proj")
    )
)
NAMES = [m.name for m in LLAMA]


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("q_proj", [n for n in NAMES if n.endswith(".q_proj")]),
        ("self_attn.q_proj", [n for n in NAMES if n.endswith("attn.q_proj")]),
        ("layers.1.self_attn.q_proj", ["model.layers.1.self_attn.q_proj"]),
        ("model.layers.1.mlp.up_proj", ["model.layers.1.mlp.up_proj"]),
        ("proj", []),
        ("_proj", []),
        ("layers.1", []),
        ("layers.1.*", [n for n in NAMES if ".layers.1." in n]),
        ("model.layers.*.mlp.*", [n for n in NAMES if ".mlp." in n]),
        ("[kv]_proj", [n for n in NAMES if n.endswith((".k_proj", ".v_proj"))]),
        ("attn.q_proj", []),
    ],
    ids=str,
)
def test_an_entry_is_a_name_an_ending_after_a_dot_or_a_pattern(entry, wanted):
    """As a loop over all names says."""
    assert Names(NAMES).named_by(entry) == wanted


def test_a_pattern_of_many_stars_is_no_way_to_hold_a_process():
    """A name that almost fits is told in no time."""
    names = Names(["a" * 250])

    assert names.named_by("*a" * 60 + "b") == []


def test_types_are_kinds_without_numbers():
    """Of a layer or of an expert; a digit inside a name is part of it."""
    assert {type_name(m.kind) for m in LLAMA} == {*KINDS, "score.q_proj"}
    assert type_name("mlp.w1") == "mlp.w1"
    assert {type_name(m.kind) for m in MIXTURE} == {
        f"mlp.experts.*.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")
    }


def groups(preset, modules):
    return {frozenset(g) for g in resolve_groups(Constraints.of(groups=preset), modules)}


def test_by_type_ties_each_kind_over_all_layers():
    """And leaves what is outside the blocks alone."""
    assert groups("type", LLAMA) == {
        frozenset(f"model.layers.{i}.{kind}" for i in (0, 1, 11)) for kind in KINDS
    }


PACKS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
COMMON = {  # what modules have in common that are tied: of the block, its stack and the kind
    "type": lambda block, stack, kind: (stack, type_name(kind)),
    "layer": lambda block, stack, kind: block,
    "fused": lambda block, stack, kind: next(
        ((block, type_name(kind).rpartition(".")[0], pack) for pack in PACKS
         if kind.rpartition(".")[2] in pack),
        (block, type_name(kind)) if type_name(kind) != kind else None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("preset", COMMON)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["m.layers", "tower.0.b", "a"]),
            st.sampled_from(
                ["0", "1", "01", "10", "7000000000000000001", "7000000000000000002"]
            ),
            st.sampled_from(["attn", "mlp.experts.0", "mlp.experts.01", "mlp.experts.1"]),
            st.sampled_from(["q_proj", "k_proj", "up_proj", "gate_proj", "other", "2"]),
        ),
        unique=True,
        max_size=40,
    )
)
def test_a_preset_ties_what_a_slow_loop_finds(preset, parts):
    """Module by module, in the model's order; indices are told apart by their texts."""
    found = {}
    for stack, index, parent, leaf in parts:
        name = f"{stack}.{index}.{parent}.{leaf}"
        block = re.match(r".*?\.\d+(?=\.)", name)[0]
        stack_of, kind = block.rpartition(".")[0], name[len(block) + 1 :]
        common = COMMON[preset](block, stack_of, kind)
        if common is not None:
            found.setdefault(common, []).append(name)
    modules = modules_of(*(".".join(each) for each in parts))

    tied = resolve_groups(Constraints.of(groups=preset), modules)

    assert tied == [tuple(names) for names in found.values() if len(names) > 1]


def test_by_layer_ties_each_block():
    """Two towers have layers of their own."""
    towers = modules_of(*(f"{t}.layers.{i}.{k}" for t in "ab" for i in (0, 1) for k in "xy"))

    assert groups("layer", towers) == {
        frozenset(f"{t}.layers.{i}.{k}" for k in "xy") for t in "ab" for i in (0, 1)
    }


@pytest.mark.parametrize(
    ("names", "tied"),
    [
        ([f"l.0.{k}" for k in KINDS], [KINDS[:3], KINDS[4:6]]),
        (["l.0.attn.query", "l.0.attn.key", "l.0.attn.value", "l.0.out.dense"],
         [["attn.query", "attn.key", "attn.value"]]),
        (["l.0.attn.q_proj", "l.0.mlp.up_proj"], []),
        (["l.0.a.q_proj", "l.0.b.k_proj"], []),
    ],
    ids=["llama", "bert", "one each", "two parents"],
)  # fmt: skip
def test_fused_ties_what_servers_pack(names, tied):
    """Projections of one parent that are held in one matrix."""
    wanted = {frozenset(f"l.0.{kind}" for kind in group) for group in tied}

    assert groups("fused", modules_of(*names)) == wanted


def test_fused_ties_all_experts_of_a_projection():
    """As a server that stacks them wants one rank for all: gate with up, and down."""
    first, second = (
        [m.name for m in MIXTURE if f".layers.{i}." in m.name] for i in (0, 1)
    )  # fmt: skip

    assert groups("fused", MIXTURE) == {
        frozenset(n for n in layer if n.endswith("down_proj") == is_down)
        for layer in (first, second)
        for is_down in (True, False)
    }


def resolved(**given):
    constraints = Constraints.of(**given)
    return resolve_groups(constraints, LLAMA), resolve_types(constraints, LLAMA)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"groups": [["q_proj"], ["self_attn.q_proj"]]}, "is in two"),
        ({"groups": [["nowhere", "q_proj"]]}, "'nowhere' names no target module"),
        ({"groups": "towers"}, "allowed are lists of names, type, fused, layer"),
        ({"groups": ["q_proj", "k_proj"]}, "no group"),
        ({"per_type": {"q_proj": {}, "self_attn.*": {}}}, "both 'q_proj' and 'self_attn.*'"),
        ({"per_type": {"nowhere": {}}}, "'nowhere' names no target module"),
        ({"per_type": {"q_proj": {"rank": 3}}}, "may have r_min, r_max and share"),
        ({"per_type": {"q_proj": {"r_min": 3, "r_max": 2}}}, "r_min=3 is above r_max=2"),
        ({"per_type": {"q_proj": {"share": 0}}}, "above 0 and at most 1"),
        ({"per_type": {"q_proj": {"r_max": 0}}}, "at least 1"),
        ({"rank_menu": [4, 2]}, "rising order"),
        ({"rank_menu": [0, 2]}, "rising order"),
        ({"rank_menu": "threes"}, "powers-of-two, vllm"),
        ({"rank_menu": [2, 4], "multiple_of": 2}, "give one of both"),
        ({"max_lora_rank": 0}, "max_lora_rank=0"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused_by_name(given, said):
    """Each error says what was given and what is allowed."""
    with pytest.raises(InvalidOption, match=re.escape(said)):
        resolved(**given)


def test_what_was_meant_to_be_a_target_may_be_named():
    """A module that no row reached is no reason to refuse what names it."""
    constraints = Constraints.of(groups=[["a.0.x", "gone"]], per_type={"gone": {"r_min": 2}})
    modules = modules_of("a.0.x", "a.0.y")

    assert resolve_groups(constraints, modules, ["a.0.gone"]) == [("a.0.x",)]
    assert resolve_types(constraints, modules, ["a.0.gone"]) == {"gone": []}


TOWERS = (
    TargetModule("vision.layers.0.q_proj", 4, 4, family="vision"),
    TargetModule("connector.0", 4, 4, family="connector"),
    TargetModule("text.layers.0.q_proj", 4, 4, family="language.attention"),
    TargetModule("text.layers.1.in_proj", 4, 4, family="language.ssm"),
    TargetModule("head", 4, 4, family="language"),
)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("family:vision", [0]),
        ("family:language", [2, 3, 4]),
        ("family:language.ssm", [3]),
        ("family:*.attention", [2]),
        ("family:*", [0, 1, 2, 3, 4]),
    ],
)
def test_a_family_names_its_modules(entry, wanted):
    """With all that are part of it; groups and rules take it alike."""
    names = [TOWERS[i].name for i in wanted]

    assert resolve_groups(Constraints.of(groups=[[entry]]), TOWERS) == [tuple(names)]
    assert resolve_types(Constraints.of(per_type={entry: {"r_max": 4}}), TOWERS) == {
        entry: names
    }


def test_a_family_that_is_not_there_is_refused_with_those_that_are():
    """Also where a model is one family, or was measured before they were recorded."""
    rules = Constraints.of(per_type={"family:audio": {"r_max": 4}})

    with pytest.raises(
        InvalidOption, match=r"theirs are: vision, connector, language\.attention"
    ):
        resolve_types(rules, TOWERS)
    with pytest.raises(InvalidOption, match=r"all of one family, or .* `force` measures anew"):
        resolve_types(rules, modules_of("layers.0.q_proj"))


@pytest.mark.parametrize("entry", ["family:vision", "family:vision.*", "family:language.conv"])
def test_a_family_that_no_row_reached_may_be_named(entry):
    """As its modules may by name; what names no family, of whatever was reached, is refused."""
    reached, gone = TOWERS[2:], ["vision.layers.0.q_proj"]
    rules = Constraints.of(groups=[[entry, "head"]], per_type={entry: {"r_max": 4}})

    assert resolve_groups(rules, reached, gone) == [("head",)]
    assert resolve_types(rules, reached, gone) == {entry: []}
    with pytest.raises(InvalidOption, match="is no family of the target modules"):
        resolve_types(rules, reached)
    with pytest.raises(InvalidOption, match="is no family of the target modules"):
        resolve_types(rules, modules_of("head"), gone)
    misspelt = Constraints.of(per_type={"family:visoin": {"r_max": 4}})
    with pytest.raises(
        InvalidOption, match=r"'family:visoin' is no family.*language\.attention"
    ):
        resolve_types(misspelt, reached, gone)


PARTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)


@given(
    st.lists(PARTS, min_size=1, max_size=12, unique=True),
    st.lists(st.lists(PARTS, max_size=3), min_size=1, max_size=4),
)
def test_lists_of_entries_are_found_as_by_a_look_at_every_name(names, lists):
    """Whether they are found at once or one by one; what names nothing or ties twice is refused."""
    meant = [
        [n for e in entries for n in names if n == e or n.endswith(f".{e}")]
        for entries in lists
    ]
    empty = any(
        not any(n == e or n.endswith(f".{e}") for n in names) for some in lists for e in some
    )
    wanted = [tuple(dict.fromkeys(some)) for some in meant if some]
    flat = [name for group in wanted for name in group]
    constraints, modules = Constraints.of(groups=lists), modules_of(*names)

    if empty or len({*flat}) < len(flat):
        with pytest.raises(InvalidOption, match=r"names no target module|is in two"):
            resolve_groups(constraints, modules)
    else:
        assert resolve_groups(constraints, modules) == wanted
