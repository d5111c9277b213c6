"""The rule ``layers``: the best layers share evenly, no other gets anything, controls equal it."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from fimlora.allocation import allocate
from fimlora.allocation.layers import Layers, choose_layers, n_layers_of
from fimlora.allocation.over_layers import RANDOM_LAYERS
from fimlora.allocation.planning import ranks_like
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import Budget, RankPlan, TargetModule, place_of
from fimlora.scores import Scores
from support.allocation import llama_like, modules_by_layer

ANY_SCORE = st.one_of(
    st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300]), st.floats(0, 1e308, allow_nan=False)
)


def named_blocks(scores, name="model.layers.{}"):
    return {name.format(i): score for i, score in enumerate(scores)}


def by_layer(modules, scores):
    """Scores of modules that add up to those of their layers, exactly."""
    return {m.name: scores[m.block] / 4 if m.block else 1e9 for m in modules}


def layers_in(plan, ranks=None):
    ranks = plan.ranks if ranks is None else ranks
    return {m.block for m in plan.modules if ranks[m.name]}


def plan_of(scores, budget=8, **options) -> RankPlan:
    modules = llama_like(len(scores))
    return allocate(
        Scores(modules, by_layer(modules, named_blocks(scores))),
        budget,
        rule="layers",
        **options,
    )


def test_the_best_half_shares_evenly_and_no_other_is_targeted():
    """Five layers, so two are chosen; 120 ranks over six modules are 20 each, v_proj has 16."""
    plan = plan_of([3.0, 9.0, 1.0, 8.0, 2.0])

    assert layers_in(plan) == {"model.layers.1", "model.layers.3"}
    for module in plan.modules:
        is_chosen = module.block in layers_in(plan)
        even = 16 if module.kind.endswith("v_proj") else 22
        assert plan.ranks[module.name] == (even if is_chosen else 0)
    assert plan.spent.ranks == plan.limit == 8 * 15
    assert plan.unspent == 0


@given(st.lists(ANY_SCORE, min_size=1, max_size=12), st.data())
def test_the_chosen_layers_are_those_of_a_full_sort_of_exact_sums(scores, data):
    """Against every subset by brute force: none of as many layers has a greater sum."""
    n = data.draw(st.integers(1, len(scores)))
    modules = llama_like(len(scores))
    values = {
        m.name: data.draw(st.sampled_from([0.0, 1.0, 0.3])) * scores[m.layer] for m in modules
    }
    layers = modules_by_layer(modules)
    sums = {b: sum(Fraction(values[m.name]) for m in inside) for b, inside in layers.items()}

    chosen = choose_layers(Layers(modules), values, {}, n)

    assert len(chosen) == n
    most = max(
        sum((sums[b] for b in some), Fraction(0)) for some in itertools.combinations(sums, n)
    )
    assert sum((sums[b] for b in chosen), Fraction(0)) == most
    assert all(
        (sums[a], -llama_depth(a)) > (sums[b], -llama_depth(b))
        for a in chosen
        for b in sums.keys() - chosen
    )


def llama_depth(block):
    return int(block.rsplit(".", 1)[-1])


@given(st.lists(st.floats(1e-60, 1e60), min_size=2, max_size=12), st.data())
def test_neither_unit_nor_order_matters_and_a_greater_score_is_never_dropped(scores, data):
    """Scale invariance, independence of module order, and monotony in one layer's score."""
    modules = llama_like(len(scores))
    values = by_layer(modules, named_blocks(scores))
    n = data.draw(st.integers(1, len(scores)))
    factor = data.draw(st.sampled_from([2.0**-100, 0.5, 2.0**70]))
    shuffled = data.draw(st.permutations(modules))
    chosen = choose_layers(Layers(modules), values, {}, n)

    assert (
        choose_layers(Layers(modules), {k: v * factor for k, v in values.items()}, {}, n)
        == chosen
    )
    assert choose_layers(Layers(shuffled), values, {}, n) == chosen
    for kept in chosen:
        higher = {m.name: values[m.name] * (2 if m.block == kept else 1) for m in modules}
        assert kept in choose_layers(Layers(modules), higher, {}, n)


@pytest.mark.parametrize("n_layers", [1, 3, 7, None])
@pytest.mark.parametrize("multiple_of", [1, 4])
@pytest.mark.parametrize(
    "budget", [4, Budget("parameters", 16_000)], ids=["ranks", "parameters"]
)
def test_every_control_spends_what_the_plan_spends(n_layers, multiple_of, budget):
    """Within one step: uniform, five random ones, and five draws of as many layers."""
    plan = plan_of(
        [1.0, 5.0, 2.0, 4.0, 3.0, 0.0, 9.0], budget, n_layers=n_layers, multiple_of=multiple_of
    )
    n = 3 if n_layers is None else n_layers

    assert plan.controls.keys() == {
        "uniform",
        "random",
        *(f"random-{i}" for i in range(2, 6)),
        *RANDOM_LAYERS,
    }
    assert n_layers_of(plan.modules, plan.ranks) == n
    in_ranks = isinstance(budget, int)
    spent = [plan.spending_of(ranks) for ranks in (plan.ranks, *plan.controls.values())]
    amounts = [s.ranks if in_ranks else s.parameters for s in spent]
    step = multiple_of * (1 if in_ranks else max(m.cost for m in plan.modules))
    assert max(amounts) <= plan.limit
    assert max(amounts) - min(amounts) < step
    if in_ranks and multiple_of == 1:
        assert set(amounts) == {plan.limit}
    for control in RANDOM_LAYERS:
        ranks = plan.controls[control]
        assert n_layers_of(plan.modules, ranks) == n
        used = [r for r in ranks.values() if r]
        wide = [ranks[m.name] for m in plan.modules if ranks[m.name] and m.d_out != 16]
        assert max(wide) - min(wide) <= multiple_of
        assert all(r % multiple_of == 0 for r in used)


def test_the_draws_of_layers_differ_and_come_from_the_seed_alone():
    """Not from the scores: they are what the choice is held against."""
    scores = [1.0, 5.0, 2.0, 4.0, 3.0, 0.0, 9.0, 7.0]
    plan, other, seeded = plan_of(scores), plan_of(scores[::-1]), plan_of(scores, seed=1)

    def drawn(some):
        return [layers_in(some, some.controls[name]) for name in RANDOM_LAYERS]

    assert drawn(plan) == drawn(other)
    assert drawn(plan) != drawn(seeded)
    assert len({frozenset(layers) for layers in drawn(plan)}) > 1


def test_a_layer_is_drawn_as_often_as_any_other():
    """Over 200 seeds and five draws each of 2 of 6 layers: a third of the time."""
    n = 1000
    counts = dict.fromkeys(range(6), 0)
    for seed in range(n // 5):
        plan = plan_of([1.0] * 6, 2, n_layers=2, seed=seed)
        for control in RANDOM_LAYERS:
            for block in layers_in(plan, plan.controls[control]):
                counts[llama_depth(block)] += 1

    deviation = math.sqrt(n * (1 / 3) * (2 / 3))
    assert all(abs(count - n / 3) < 4 * deviation for count in counts.values())


def test_stacks_of_one_index_are_layers_of_their_own():
    """An encoder's and a decoder's block 0 are two; a pooler is in none and gets nothing."""
    names = [f"{stack}.block.{i}.layer.0.q" for stack in ("encoder", "decoder") for i in (0, 1)]
    modules = tuple(TargetModule(name, 32, 32) for name in (*names, "pooler.dense"))
    values = dict(zip((m.name for m in modules), (1.0, 5.0, 6.0, 2.0, 99.0), strict=True))

    plan = allocate(Scores(modules, values), 4, rule="layers", n_layers=2)

    assert layers_in(plan) == {"encoder.block.1", "decoder.block.0"}
    assert list(plan.ranks.values()) == [0, 10, 10, 0, 0]
    assert all(
        control["pooler.dense"] for n, control in plan.controls.items() if n == "uniform"
    )


def test_layers_are_in_their_order_of_depth():
    """The tenth after the second: numbers are compared as numbers."""
    assert Layers(llama_like(11)[::-1]).blocks == [f"model.layers.{i}" for i in range(11)]
    assert choose_layers(
        Layers(llama_like(11)), dict.fromkeys([m.name for m in llama_like(11)], 0.0), {}, 3
    ) == {f"model.layers.{i}" for i in range(3)}


def test_a_layer_may_have_a_score_of_its_own():
    """Then modules need not add up to it."""
    modules = llama_like(3)
    own = named_blocks([0.1, 0.9, 0.5])
    plan = allocate(
        Scores(modules, {m.name: 1.0 for m in modules}, by_layer=own),
        8,
        rule="layers",
        n_layers=1,
    )

    assert layers_in(plan) == {"model.layers.1"}
    with pytest.raises(
        InvalidOption, match=r"'model\.layers\.2' has target modules and no score"
    ):
        choose_layers(Layers(modules), {}, named_blocks([1.0, 2.0]), 1)


def test_layers_without_room_give_way_to_others_among_the_draws():
    """A layer of one module of rank 2 at most cannot hold the budget, and no control is it."""
    modules = (
        TargetModule("layers.0.q", 2, 2),
        *(TargetModule(f"layers.{i}.q", 64, 64) for i in range(1, 4)),
    )
    plan = allocate(
        Scores(modules, {m.name: float(i) for i, m in enumerate(modules)}),
        8,
        rule="layers",
        n_layers=1,
    )

    assert [plan.ranks[m.name] for m in modules] == [0, 0, 0, 32]
    assert all("layers.0" not in layers_in(plan, plan.controls[n]) for n in RANDOM_LAYERS)
    assert plan.controls["uniform"]["layers.0.q"] == 2


def test_a_budget_that_the_layers_cannot_hold_names_the_interval():
    """As a mean over all modules, which is what was asked for."""
    with pytest.raises(InfeasibleBudget, match=r"rank from 0\.5 to 4$") as caught:
        plan_of([1.0, 2.0, 3.0, 4.0], 5, r_max=8)

    assert caught.value.interval == (6, 48)
    with pytest.raises(InfeasibleBudget, match=r"rank from 2 to 8$"):
        plan_of([1.0, 2.0, 3.0, 4.0], 1, r_min=4, r_max=16)


def test_controls_of_a_budget_below_a_rank_for_each_leave_modules_out():
    """Half a rank per module is one for each of the chosen; the controls spend as much."""
    plan = plan_of([1.0, 2.0, 3.0, 4.0], Budget("rank", 0.5))

    assert sorted(plan.ranks.values()) == [0] * 6 + [1] * 6
    assert {sum(ranks.values()) for ranks in plan.controls.values()} == {6}


@pytest.mark.parametrize("n_layers", [0, 5, -1, True])
def test_a_number_of_layers_that_there_are_not_is_refused(n_layers):
    """The message has how many there are."""
    with pytest.raises(InvalidOption, match="integer from 1 to 4, the number of layers"):
        plan_of([1.0, 2.0, 3.0, 4.0], n_layers=n_layers)


def test_what_no_layer_can_be_chosen_by_is_refused():
    """No block, a score that is none, a group over two layers, layers for another rule."""
    loose = (TargetModule("head", 8, 8),)
    modules = llama_like(2)
    values = {m.name: 1.0 for m in modules}
    with pytest.raises(InvalidOption, match="no target module is inside one"):
        allocate(Scores(loose, {"head": 1.0}), 2, rule="layers")
    with pytest.raises(InvalidScore, match="q_proj' is nan"):
        allocate(Scores(modules, values | {modules[0].name: math.nan}), 2, rule="layers")
    with pytest.raises(InvalidOption, match="'who'"):
        allocate(Scores(modules, values), 2, rule="layers", groups=[("who",)])
    with pytest.raises(InvalidOption, match="goes with rule 'layers' alone"):
        allocate(Scores(modules, values), 2, n_layers=1)


def test_a_group_of_one_layer_has_one_rank():
    """Chosen or not."""
    modules = llama_like(2)
    groups = [(modules[i].name, modules[i + 1].name) for i in (0, 3)]
    plan = allocate(
        Scores(modules, {m.name: float(i) for i, m in enumerate(modules)}),
        6,
        rule="layers",
        groups=groups,
    )

    for ranks in (plan.ranks, *plan.controls.values()):
        assert all(len({ranks[name] for name in group}) == 1 for group in groups)


def two_towers():
    """Two layers of each of two families; scores under which those of one are chosen."""
    modules = tuple(
        TargetModule(f"{tower}.layers.{i}.q_proj", 64, 64, family=tower)
        for tower in ("vision", "language")
        for i in (0, 1)
    )
    return Scores(modules, {m.name: 9.0 if m.family == "language" else 1.0 for m in modules})


@pytest.mark.parametrize(
    "asked",
    [{"per_type": {"family:vision": {"r_max": 4}}}, {"groups": [["family:vision"]]}],
    ids=str,
)
def test_families_of_which_no_layer_is_chosen_may_be_named(asked):
    """A rule or a group of theirs holds for the controls, which reach all modules."""
    plan = allocate(two_towers(), 4, rule="layers", n_layers=2, **asked)

    assert layers_in(plan) == {"language.layers.0", "language.layers.1"}
    over_all = [ranks for name, ranks in plan.controls.items() if "layers" not in name]
    assert over_all
    for ranks in over_all:
        seen = [rank for name, rank in ranks.items() if name.startswith("vision")]
        assert max(seen) <= 4 if "per_type" in asked else len(set(seen)) == 1


@pytest.mark.parametrize("family", ["audio", "visoin"])
def test_a_family_of_no_layer_is_refused(family):
    """Chosen or not."""
    with pytest.raises(
        InvalidOption, match=f"'family:{family}' is no family.*vision, language"
    ):
        allocate(
            two_towers(),
            4,
            rule="layers",
            n_layers=2,
            per_type={f"family:{family}": {"r_max": 4}},
        )


@pytest.mark.parametrize("budget", [6, Budget("parameters", 20_000)], ids=str)
@pytest.mark.parametrize(
    "asked",
    [
        {"groups": "type"},
        {"groups": [["*.q_proj", "*.v_proj"]]},
        {"rank_menu": [4, 8, 16, 32]},
        {"rank_menu": "powers-of-two"},
        {"max_lora_rank": 20},
        {"per_type": {"v_proj": {"r_min": 2, "r_max": 8}}},
        {"per_type": {"q_proj": {"share": 0.4}}},
    ],
    ids=str,
)
def test_what_every_plan_keeps_to_holds_among_the_chosen_layers(asked, budget):
    """Ties, menus, a server's highest rank and rules per type; of the plan and all controls."""
    plan = plan_of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], budget, **asked)

    spent = []
    for name, ranks in {"layers": plan.ranks, **plan.controls}.items():
        by_layers = "layers" in name
        reached = [m for m in plan.modules if ranks[m.name] or not by_layers]
        used = {m.kind.split(".")[-1]: set() for m in reached}
        for m in reached:
            used[m.kind.split(".")[-1]].add(ranks[m.name])
        if asked.get("groups") == "type":
            assert all(len(some) == 1 for some in used.values())
        elif "groups" in asked:
            assert len(used["q_proj"] | used["v_proj"]) == 1
        if "rank_menu" in asked:
            allowed = {0, 1, 2, 4, 8, 16, 32, 64, 128}
            menu = asked["rank_menu"]
            assert set().union(*used.values()) <= (
                allowed if isinstance(menu, str) else {0, *menu}
            )
        if "max_lora_rank" in asked:
            assert max(ranks.values()) <= 20
        if "r_max" in asked.get("per_type", {}).get("v_proj", {}):
            assert used["v_proj"] <= set(range(2, 9))
        if "share" in asked.get("per_type", {}).get("q_proj", {}):
            in_ranks = isinstance(budget, int)
            price = {m.name: 1 if in_ranks else m.cost for m in plan.modules}
            total = sum(price[n] * r for n, r in ranks.items())
            of_type = sum(price[n] * r for n, r in ranks.items() if n.endswith("q_proj"))
            assert of_type == pytest.approx(0.4 * total, abs=1 if in_ranks else 256)
        spending = plan.spending_of(ranks)
        spent.append(spending.ranks if isinstance(budget, int) else spending.parameters)
        assert len({m.block for m in reached}) == (3 if by_layers else 6)
    assert max(spent) <= plan.limit
    assert plan.ranks == ranks_like(plan, Scores(plan.modules, plan.scores))


def test_other_scores_choose_other_layers_within_the_plan():
    """As many, and as much: what the null and the halves are planned by."""
    plan = plan_of([1.0, 2.0, 3.0, 4.0], 6, n_layers=1)
    others = Scores(plan.modules, by_layer(plan.modules, named_blocks([9.0, 2.0, 3.0, 4.0])))

    assert ranks_like(plan, Scores(plan.modules, plan.scores)) == dict(plan.ranks)
    other = ranks_like(plan, others)
    assert layers_in(plan, other) == {"model.layers.0"}
    assert sum(other.values()) == plan.spent.ranks


def test_a_plan_of_layers_is_read_back():
    """The rank map says the rule, and which modules are not targeted."""
    plan = plan_of([1.0, 2.0, 3.0, 4.0])

    assert RankPlan.from_json(plan.to_json()) == plan
    assert plan.to_json()["rule"] == "layers"


def wide_blocks(n=4, width=256):
    return [
        TargetModule(f"model.layers.{i}.self_attn.{leaf}", width, width)
        for i in range(n)
        for leaf in ("q_proj", "v_proj")
    ]


def wide_plan(budget, **options):
    modules = wide_blocks()
    scores = Scores(modules, {m.name: float(m.layer) for m in modules})
    return allocate(scores, budget, rule="layers", **options)


def test_a_floor_of_a_type_binds_the_chosen_layers_only():
    """16 ranks are 8 and 8 in one layer; the uniform control has 2 each over all four."""
    plan = wide_plan(2, n_layers=1, r_max=16, per_type={"q_proj": {"r_min": 8}})

    assert {r for name, r in plan.ranks.items() if ".layers.3." in name} == {8}
    assert set(plan.controls["uniform"].values()) == {2}
    assert all(sum(ranks.values()) == 16 for ranks in plan.controls.values())


@pytest.mark.parametrize(
    ("options", "r_max"),
    [
        ({}, 16),  # twice the mean; four modules of 16 spend the 64 ranks
        ({"per_type": {"q_proj": {"r_min": 2}}}, 16),
        ({"per_type": {"q_proj": {"r_max": 5}}}, 27),  # twice 5, and twice 27
        ({"per_type": {"q_proj": {"share": 0.25}}}, 24),  # 16 of 64, and 48 by two modules
        ({"per_type": {"q_proj": {"r_max": 5}}, "rank_menu": [1, 5, 8, 32, 64]}, 32),
    ],
    ids=str,
)
def test_the_ceiling_makes_room_for_the_budget_and_no_more(options, r_max):
    """Types' own bounds and shares counted, worked out by hand."""
    assert wide_plan(8, n_layers=2, **options).r_max == r_max


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank_menu": [8, 16], "max_lora_rank": 4}, r"the ranks 8, 16 of rank_menu$"),
        ({"multiple_of": 8, "max_lora_rank": 4}, r"multiples of 8$"),
    ],
    ids=str,
)
def test_the_ranks_that_are_allowed_are_named(options, said):
    """As they were asked for: a menu may look like multiples."""
    modules = wide_blocks()
    with pytest.raises(InfeasibleBudget, match=rf"no allowed rank.*allowed are {said}"):
        allocate(Scores(modules, {m.name: 1.0 for m in modules}), 4, **options)


CLOSE = st.one_of(st.sampled_from([0.0, 1.0, 2.0, 2.0**53, 2.0**53 + 2, 1.7e308]), ANY_SCORE)


@given(rows=st.lists(st.lists(CLOSE, min_size=7, max_size=7), min_size=2, max_size=6))
def test_layers_are_ranked_by_their_exact_sums_where_rounding_makes_them_one(rows):
    """Nor does a sum that no float can hold come before a larger one."""
    modules = llama_like(len(rows))
    layers = modules_by_layer(modules)
    scores = {m.name: 1e9 for m in modules}
    for inside, row in zip(layers.values(), rows, strict=True):
        scores |= {m.name: value for m, value in zip(inside, row * 9, strict=False)}
    exact = {b: sum(Fraction(scores[m.name]) for m in inside) for b, inside in layers.items()}
    ranked = sorted(layers, key=lambda block: -exact[block])

    for n in range(1, len(rows) + 1):
        assert choose_layers(Layers(modules), scores, {}, n) == frozenset(ranked[:n])


LEAVES = (
    "attn.q_proj",
    "attn.k_proj",
    "attn.v_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.o_proj",
)
ASKED = (
    {"groups": "fused"},
    {"groups": "type"},
    {"groups": "layer", "rank_menu": "powers-of-two"},
    {"groups": [["k_proj", "v_proj"]], "multiple_of": 2},
    {"groups": "fused", "per_type": {"o_proj": {"share": 0.25}}},
    {"groups": "fused", "per_type": {"k_proj": {"r_min": 2, "r_max": 5}}, "max_lora_rank": 12},
)


LAYER = st.tuples(
    st.lists(st.sampled_from(LEAVES), min_size=1, unique=True), st.sampled_from([16, 48])
)


@given(
    st.lists(LAYER, min_size=1, max_size=5),
    st.sampled_from(ASKED),
    st.integers(1, 12),
    st.data(),
)
def test_layers_share_as_a_model_of_them_alone_would(layers, asked, mean, data):
    """Against the uniform control of modules gathered anew, the others no targets; so the draws."""
    layers = [(LEAVES, 32), *layers]  # of unlike make-up and size; each leaf is in one
    modules = [
        TargetModule(f"layers.{i}.{leaf}", d_in, 32)
        for i, (leaves, d_in) in enumerate(layers)
        for leaf in leaves
    ]
    modules.append(TargetModule("head.o_proj", 32, 32))
    values = {m.name: data.draw(st.sampled_from([0.0, 1.0, 2.5])) for m in modules}
    budget = Budget("parameters", mean * sum(m.cost for m in modules) // 3)
    options = {"r_min": 1, "r_max": 16, **asked}
    try:
        plan = allocate(Scores(modules, values), budget, rule="layers", **options)
    except (InfeasibleBudget, InvalidOption):
        reject()

    def alone(ranks, limit):
        chosen = layers_in(plan, ranks)
        inside = [m for m in modules if m.block in chosen]
        others = {m.name: "not chosen" for m in modules if m.block not in chosen}
        scores = Scores(inside, {m.name: 1.0 for m in inside}, not_targeted=others)
        return allocate(scores, Budget("parameters", limit), rule="uniform", **options)

    patterns = [(plan.ranks, plan.limit)]
    if "o_proj" not in asked.get(
        "per_type", {}
    ):  # no more than the chosen layers have room for
        limit = min(plan.limit, alone(plan.ranks, 10**9).spent.parameters)
        drawn = plan.controls.keys() & {*RANDOM_LAYERS}
        patterns += [(plan.controls[name], limit) for name in sorted(drawn)]
    for ranks, limit in patterns:
        assert {n: r for n, r in ranks.items() if r} == dict(alone(ranks, limit).ranks)


def test_a_family_without_a_tower_may_be_named_where_no_chosen_layer_is_of_it():
    """All modules are known, so its rule is about those of the other layers."""
    modules = tuple(
        TargetModule(f"layers.{i}.in_proj", 64, 64, family="mamba" if i < 2 else "attention")
        for i in range(4)
    )
    scores = Scores(modules, {m.name: float(m.layer) for m in modules})
    plan = allocate(
        scores, 4, rule="layers", n_layers=2, per_type={"family:mamba": {"r_max": 4}}
    )

    assert layers_in(plan) == {"layers.2", "layers.3"}
    assert max(plan.controls["uniform"][f"layers.{i}.in_proj"] for i in (0, 1)) == 4


@given(
    st.lists(
        st.builds(
            lambda *parts: ".".join(parts),
            st.sampled_from(["h", "model.layers", "a\nb", "a b", ""]),
            st.sampled_from(["0", "1", "10", "2", "01", "3", "x", "1" * 16, "٣"]),
            st.sampled_from(["q", "mlp.1", "experts.0.q", "1"]),
        ),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
def test_layers_are_those_that_a_look_at_every_name_finds(names):
    """Whatever texts their indices have, in one list of blocks or several, or in none."""
    layers = Layers([TargetModule(name, 4, 4) for name in names])

    found = [place_of(name)[1] for name in names]
    assert {*layers.blocks} == {*found} - {None}
    assert [[*layers.blocks, None][number] for number in layers.of.tolist()] == found
    if len({block.rpartition(".")[0] for block in layers.blocks}) == 1:
        indices = [int(block.rpartition(".")[2]) for block in layers.blocks]
        assert indices == sorted(indices)
