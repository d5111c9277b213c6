"""Arms must spend the same, or they are refused by name."""

from dataclasses import replace

import pytest

from fimlora.allocation import allocate
from fimlora.allocation.division import dearest_step
from fimlora.constraints import Constraints
from fimlora.errors import InvalidOption
from fimlora.left_out import NOT_SELECTED
from fimlora.plan import Budget, TargetModule
from fimlora.scores import Scores
from fimlora_worker.errors import UnequalArms
from fimlora_worker.evaluation.arms import Arm, check_equal, check_saved

MODULES = tuple(
    TargetModule(f"layer.{i}.{kind}", d_in, 16)
    for i in range(4)
    for kind, d_in in (("attention", 16), ("mlp", 64))
)
STEP = 80
SCORES = Scores(MODULES, {m.name: float(m.cost * (i + 1)) for i, m in enumerate(MODULES)})
LIMIT = Budget("parameters", 4 * sum(m.cost for m in MODULES))


def arm(name, *, seed=0, budget=LIMIT, scores=SCORES, **options):
    rule = name if name in {"uniform", "random"} else "proportional"
    return Arm(name, (allocate(scores, budget, rule=rule, seed=seed, **options),))


def as_arms(*arms):
    return {each.name: each for each in arms}


def test_plans_of_one_budget_in_parameters_are_equal():
    """Measured, uniform and several random plans; none is a step from another."""
    draws = tuple(allocate(SCORES, LIMIT, rule="random", seed=s) for s in range(5))
    arms = as_arms(arm("uniform"), Arm("random", draws), arm("fim"))

    check_equal(arms)

    spent = {plan.spent.parameters for each in arms.values() for plan in each.plans}
    assert max(spent) - min(spent) < STEP
    assert [arms["random"].plan(seed) for seed in range(7)] == [*draws, *draws[:2]]


def test_plans_of_one_budget_in_ranks_need_not_be():
    """Equal ranks at unequal costs are unequal parameters; the message says how many."""
    fim, uniform = arm("fim", budget=4), arm("uniform", budget=4)
    assert fim.plans[0].spent.ranks == uniform.plans[0].spent.ranks

    with pytest.raises(UnequalArms, match=r"parameters, .* more than one step of 80 apart"):
        check_equal(as_arms(uniform, fim))


def test_a_step_of_multiples_is_as_many_ranks():
    """Ranks of eight at a time cannot come closer; by the ranks themselves they are refused."""
    sizes = tuple(TargetModule(f"layer.{i}", 64 + 32 * (i % 2), 64) for i in range(6))
    scores = Scores(sizes, {m.name: float(3**i) for i, m in enumerate(sizes)})
    uniform = arm("uniform", budget=16, scores=scores, multiple_of=8)
    spent = uniform.plans[0].spent.parameters
    less = Budget("parameters", spent - 500)
    fim = arm("fim", budget=less, scores=scores, multiple_of=8)
    assert 160 <= spent - fim.plans[0].spent.parameters < 8 * 160

    check_equal(as_arms(uniform, fim))
    single = replace(uniform.plans[0], constraints=Constraints())
    fim = replace(fim.plans[0], constraints=Constraints())
    with pytest.raises(UnequalArms, match="more than one step of 160 apart"):
        check_equal(as_arms(Arm("uniform", (single,)), Arm("fim", (fim,))))


def test_a_step_of_tied_modules_or_of_a_menu_is_dearer():
    """Both are weighed as the plan has them: a layer of 80 + 32, eight ranks at a time."""
    tied, capped = (
        arm("fim", groups="layer", rank_menu=[2, 4, 12], **more).plans[0]
        for more in ({}, {"r_max": 4})
    )

    assert dearest_step(arm("fim").plans[0]) == STEP
    assert dearest_step(tied) == (80 + 32) * 8
    assert dearest_step(capped) == (80 + 32) * 2


def test_more_than_a_step_is_too_much():
    more = Budget("parameters", LIMIT.value + 2 * STEP)

    with pytest.raises(UnequalArms, match="'fim' trains"):
        check_equal(as_arms(arm("uniform"), arm("fim", budget=more, r_max=16)))


def test_another_scale_is_another_learning_rate():
    with pytest.raises(UnequalArms, match="scale"):
        check_equal(as_arms(arm("uniform"), arm("fim", scale=4)))


def test_other_modules_are_another_question():
    fewer = Scores(MODULES[:-1], {m.name: 1.0 for m in MODULES[:-1]})

    with pytest.raises(UnequalArms, match="different target modules"):
        check_equal(as_arms(arm("uniform"), arm("fim", scores=fewer, r_max=32)))


@pytest.mark.parametrize("is_fused", [True, False])
def test_arms_may_train_other_experts_of_the_same_modules(is_fused):
    """What they spend is what trains, and must be the same; others were meant, or are no arm's."""
    q = TargetModule("layers.0.q", 16, 16)
    names = ["up"] if is_fused else [f"{expert}.up" for expert in range(4)]
    experts = [
        TargetModule(f"layers.0.experts.{name}", 16, 16, n_experts=4 if is_fused else None)
        for name in names
    ]
    budget = Budget("parameters", 40 * 32)

    def of(name, chosen, *, meant=NOT_SELECTED, limit=budget):
        modules = [q] + (
            [replace(m, experts=tuple(chosen)) for m in experts]
            if is_fused
            else [experts[e] for e in chosen]
        )
        left = {} if is_fused else {m.name: meant for m in experts if m not in modules}
        scores = Scores(modules, {m.name: 1.0 for m in modules}, not_targeted=left)
        return Arm(name, (allocate(scores, limit, r_min=1, r_max=16),))

    uniform = of("uniform", range(4))
    check_equal(as_arms(uniform, of("fim", [0, 2]), of("random-experts", [1, 3])))

    less = Budget("parameters", 20 * 32)
    with pytest.raises(UnequalArms, match="more than one step"):
        check_equal(as_arms(uniform, of("fim", [0, 2], limit=less)))
    if not is_fused:
        with pytest.raises(UnequalArms, match="different target modules"):
            check_equal(as_arms(uniform, of("fim", [0, 2], meant="it is excluded")))


def test_an_arm_has_a_plan():
    with pytest.raises(InvalidOption, match="no plan"):
        Arm("fim", ())


def test_arms_beside_other_modules_that_train_whole_are_refused():
    """Of either side, by name, with what to give."""
    plain = as_arms(arm("uniform"), arm("fim"))
    saving = as_arms(
        arm("uniform", provenance={"modules_to_save": {"lm_head": 9}}),
        arm("fim", provenance={"modules_to_save": {"lm_head": 9}}),
    )

    check_saved(plain, {})
    check_saved(saving, {"lm_head": 9})
    for arms, saved in (
        (plain, {"lm_head": 9}),
        (saving, {}),
        (plain | {"x": saving["fim"]}, {}),
    ):
        with pytest.raises(UnequalArms, match=r"'lm_head' is saved whole in .* alone"):
            check_saved(arms, saved)
