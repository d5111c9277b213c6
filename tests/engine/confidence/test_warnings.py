"""A warning comes where its number says so, and not next to it; each names number and step."""

from dataclasses import replace

import pytest

from fimlora import allocate
from fimlora.confidence.warnings import warnings_of
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores
from support.allocation import COST, llama_like, scores_of

MODULES = llama_like()
ENOUGH = {"n_examples": 64, "estimator": "exact"}
SURE = {"n_unresolved": 0, "expected_overlap": 0.99, "n_examples": 64}


def plan_of(facts=(), *, scores=None, budget=8, confidence=SURE, **options):
    options = {"r_min": 1, "r_max": 64} | options
    scores = Scores(MODULES, scores or scores_of(MODULES), provenance=ENOUGH | dict(facts))
    return replace(allocate(scores, budget, **options), confidence=confidence)


def messages(plan, **options):
    return {warning.code: warning.message for warning in warnings_of(plan, **options)}


def test_a_plan_without_fault_has_no_warning():
    """So that what is said below is said for its own reason."""
    assert messages(plan_of()) == {}


@pytest.mark.parametrize(("n", "said"), [(1, "1 example carries"), (31, "31 examples carry")])
def test_few_examples(n, said):
    """Two rows give exactly the map of a model, not of a task."""
    found = messages(plan_of({"n_examples": n}))

    assert list(found) == ["few_examples"]
    assert said in found["few_examples"]
    assert "at least 32" in found["few_examples"]
    assert messages(plan_of({"n_examples": 32})) == {}


def test_classes():
    """All of one, or some without an example; of many, some names are enough."""
    few = {"label_counts": {"ham": 4, "spam": 0, "other": 2}, "classes": 3, "classes_seen": 2}
    many = {
        "label_counts": {f"c{i}": int(i < 2) for i in range(9)}, "classes": 9, "classes_seen": 2
    }  # fmt: skip
    uncounted = {"classes": 900, "classes_seen": 60}
    one, all_seen = {"classes": 3, "classes_seen": 1}, {"classes": 3, "classes_seen": 3}

    assert "1 of 3 classes have no example (spam):" in messages(plan_of(few))["missing_classes"]
    assert "(c2, c3, c4, c5, c6, ...)" in messages(plan_of(many))["missing_classes"]
    assert (
        "840 of 900 classes have no example:" in messages(plan_of(uncounted))["missing_classes"]
    )
    assert list(messages(plan_of(one))) == ["one_class"]
    assert "one class of 3" in messages(plan_of(one))["one_class"]
    assert messages(plan_of(all_seen)) == {}


def test_a_seed_that_decides():
    """Only of the estimator whose scores are those of one draw."""
    assert list(messages(plan_of({"estimator": "sampled"}))) == ["seed_sensitive"]
    assert messages(plan_of({"estimator": "sketched"})) == {}


@pytest.mark.parametrize(
    "budget", [8, Budget("parameters", 8 * COST)], ids=["ranks", "parameters"]
)
def test_nearly_uniform_scores(budget):
    """Less than a fiftieth of what uniform spends lies elsewhere."""
    even = dict.fromkeys((m.name for m in MODULES), 1.0)
    what = "ranks" if budget == 8 else "parameters"
    found = messages(plan_of(scores=even, budget=budget))

    assert f"moves 0.0% of the {what} of uniform LoRA" in found["nearly_uniform"]
    tilted = {name: 1 + i / 12 for i, name in enumerate(even)}
    assert "nearly_uniform" not in messages(plan_of(scores=tilted, budget=budget))


@pytest.mark.parametrize("n_below", [6, 7, 12])
def test_uniform_for_want_of_a_score(n_below):
    """Bounds are no remedy where most estimates came out below zero."""
    even = dict.fromkeys((m.name for m in MODULES), 1.0)
    negative = dict.fromkeys(list(even)[:n_below], -1.0)
    scores = even if n_below < len(even) else dict.fromkeys(even, 0.0)

    message = messages(plan_of({"negative_estimates": negative}, scores=scores))[
        "nearly_uniform"
    ]

    is_most = n_below > 6
    assert (f"{n_below} of 12 estimates are below zero" in message) == is_most
    assert ("widen r_min" in message) != is_most


def test_most_modules_at_a_bound():
    """They are counted by bound; exactly half of them are not most."""
    halves = dict(
        zip((m.name for m in MODULES), [1e-9] * 5 + [1e9] * 2 + [1.0] * 5, strict=True)
    )
    found = messages(plan_of(scores=halves, r_min=4, r_max=16))
    n_low = sum(r == 4 for r in plan_of(scores=halves, r_min=4, r_max=16).ranks.values())

    assert f"{n_low} at r_min=4" in found["at_bounds"]
    assert "lower r_min and raise r_max" in found["at_bounds"]
    ranks = dict(zip((m.name for m in MODULES), [4] * 6 + [8] * 6, strict=True))
    at_half = replace(plan_of(r_min=4, r_max=16), ranks=ranks)
    assert "at_bounds" not in messages(at_half)
    assert "at_bounds" in messages(replace(at_half, ranks=ranks | {MODULES[-1].name: 16}))
    one_rank = plan_of(r_min=8, r_max=8)
    assert "at_bounds" not in messages(one_rank)


@pytest.mark.parametrize(
    ("n_unresolved", "overlap", "is_said"),
    [(7, 0.94, True), (6, 0.5, False), (12, 0.95, False)],
)
def test_unresolved_ranks(n_unresolved, overlap, is_said):
    """Most of them, and another draw would move more than a twentieth."""
    confidence = {"n_unresolved": n_unresolved, "expected_overlap": overlap, "n_examples": 64}
    found = messages(plan_of(confidence=confidence))

    assert ("unresolved" in found) == is_said
    if is_said:
        assert "7 of 12 ranks are not resolved by 64 examples" in found["unresolved"]
        assert "about 6.0% of the plan" in found["unresolved"]


def test_a_confidence_that_is_not_known():
    """With the reason."""
    found = messages(plan_of(confidence=None), unknown="the estimator keeps no value")

    assert found["confidence_unknown"].endswith("is not known: the estimator keeps no value")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            {"kind": "fitted", "rows": 48, "measured_rows": 16},
            "48 rows of which 16 are measured",
        ),
        ({"kind": "fitted", "rows": 48, "measured_rows": 0}, None),
        ({"kind": "fitted", "rows": 48}, None),
        ({"kind": "fresh"}, None),
        (None, None),
    ],
)
def test_a_head_that_has_seen_what_is_measured(head, said):
    """Where it is known; a head of one's own in the library says nothing of it."""
    found = messages(plan_of({} if head is None else {"head": head}))

    assert list(found) == (["head_saw_measured"] if said else [])
    assert said is None or said in found["head_saw_measured"]


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ("cap", "max_batches=64 are measured, and another draw would still move about 8.1%"),
        ("data", "all rows are measured"),
        ("stable", None),
    ],
)
def test_rounds_that_ended_before_the_plan_was_stable(stopped, said):
    """Each end has its own next step."""
    rounds = {"stopped": stopped, "expected_move": 0.081, "tolerance": 0.05, "max_batches": 64}
    found = messages(plan_of({"n_batches_by": rounds | {"used": 64}}))

    assert list(found) == (["not_stable"] if said else [])
    if said:
        assert said in found["not_stable"]
        assert "tolerance of 5.0%" in found["not_stable"]


@pytest.mark.parametrize("rule", ["uniform", "random"])
def test_controls_have_none(rule):
    """Their ranks are from no score, however few examples there were."""
    plan = plan_of({"n_examples": 1, "estimator": "sampled"}, rule=rule)

    assert warnings_of(plan, unknown="it looks at no score") == ()


def test_warnings_are_kept_in_a_rank_map():
    """And a map of before there were any has none."""
    plan = plan_of({"n_examples": 2})
    plan = replace(plan, warnings=warnings_of(plan))
    data = plan.to_json()
    older = {key: value for key, value in data.items() if key != "warnings"}

    assert [row["code"] for row in data["warnings"]] == ["few_examples"]
    assert RankPlan.from_json(data) == plan
    assert RankPlan.from_json(older) == replace(plan, warnings=())


def test_a_weight_of_two_names():
    """Of each target that shares its weight, with what merging does to the other."""
    name = MODULES[0].name
    plan = plan_of({"tied_targets": {name: "model.embed_tokens"}})

    assert list(messages(plan)) == ["tied_weight"]
    assert f"{name} is one weight with model.embed_tokens" in messages(plan)["tied_weight"]
    assert "update to both" in messages(plan)["tied_weight"]
    assert "unmerged" in messages(plan)["tied_weight"]
    of_three = replace(
        plan, provenance={**plan.provenance, "tied_targets": {name: "wte, head"}}
    )
    assert f"{name} is one weight with wte, head: " in messages(of_three)["tied_weight"]
    assert "update to all of them" in messages(of_three)["tied_weight"]
    assert messages(replace(plan, ranks={**plan.ranks, name: 0})) == {}


SQUARE = tuple(TargetModule(f"layers.{i}.proj", 24, 24) for i in range(4))
WIDE = tuple(TargetModule(f"layers.{i}.up", 4096, 4096) for i in range(4))


def test_more_lora_than_weights():
    """Far beyond full rank all ranks are alike, which is no finding about the scores."""
    scores = Scores(SQUARE, scores_of(SQUARE), provenance=ENOUGH)
    plan = replace(allocate(scores, Budget("parameters", 10**6)), confidence=SURE)
    found = messages(plan)

    assert set(plan.ranks.values()) == {24}
    assert list(found) == ["more_than_whole"]
    assert f"4 of 4 modules have {4 * 24 * 48:,} LoRA" in found["more_than_whole"]
    assert f"the {4 * 24 * 24:,} of training them whole" in found["more_than_whole"]
    assert "4 of them are at their full rank" in found["more_than_whole"]
    assert plan.bounds == (24, 24)
    assert plan.r_min > 24


def test_the_rank_from_which_lora_is_larger():
    """Half of full rank, of a square matrix; there both are equal, and uniform is a finding."""
    even = Scores(SQUARE, dict.fromkeys((m.name for m in SQUARE), 1.0), provenance=ENOUGH)
    at, above = (
        replace(allocate(even, rank, r_min=1, r_max=24), confidence=SURE) for rank in (12, 13)
    )

    assert list(messages(at)) == ["nearly_uniform"]
    assert list(messages(above)) == ["more_than_whole", "nearly_uniform"]
    assert "at their full rank" not in messages(above)["more_than_whole"]


def test_a_small_map_among_large_ones_is_no_matter():
    """A gate at full rank spends next to nothing; uniform is said of the ranks that are free."""
    gate = TargetModule("layers.0.gate", 4096, 4)
    modules = (*WIDE, gate)
    scores = Scores(modules, dict.fromkeys((m.name for m in modules), 1.0), provenance=ENOUGH)
    plan = replace(allocate(scores, 8, r_min=1, r_max=64), confidence=SURE)

    assert plan.ranks[gate.name] == 4
    assert "more_than_whole" not in messages(plan)
    assert plan.bounds == (1, 64)


def test_full_rank_is_no_bound_that_could_be_raised():
    """A ceiling at full rank hides nothing."""
    plan = plan_of(r_min=1, r_max=64)
    full = {m.name: m.full_rank for m in MODULES}

    assert "at_bounds" not in messages(replace(plan, ranks=full))
    low = replace(plan, ranks=full, r_max=16)
    assert "4 at r_max" not in messages(low).get("at_bounds", "")
