"""Which runs come next, on loss surfaces that are known."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora_worker.evaluation.runs import RunSpec
from fimlora_worker.evaluation.schedule import best_rates, next_runs
from fimlora_worker.evaluation.settings import most_runs
from support.evaluations import bowl, make_result, make_settings, run_all

ARMS = ("uniform", "random", "fim")


def rates_of(results, *, arm=None, phase="tuning"):
    return sorted(
        {
            r.spec.learning_rate
            for r in results
            if r.spec.phase == phase and arm in (None, r.spec.arm)
        }
    )


def test_each_arm_is_tuned_on_the_grid_and_runs_at_its_own_best_rate():
    """Bests inside the grid: nothing is widened, and every final run is at the arm's best."""
    settings = make_settings()
    best = {"uniform": 2e-3, "random": 4e-3, "fim": 2e-3}

    results = run_all(settings, bowl(best))

    assert rates_of(results) == [1e-3, 2e-3, 4e-3, 8e-3]
    assert len(results) == 3 * 4 * 2 + 3 * 5
    finals = {
        (r.spec.arm, r.spec.learning_rate, r.spec.seed)
        for r in results
        if r.spec.phase == "final"
    }
    assert finals == {(arm, best[arm], seed) for arm in ARMS for seed in range(5)}


@pytest.mark.parametrize(
    ("best", "widened", "chosen"),
    [
        ({"fim": 16e-3}, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3], 16e-3),
        ({"fim": 5e-4}, [5e-4, 1e-3, 2e-3, 4e-3, 8e-3], 5e-4),
        # Only once: what lies farther out is not looked for.
        ({"fim": 64e-3}, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3], 16e-3),
        ({"fim": 8e-3}, [1e-3, 2e-3, 4e-3, 8e-3, 16e-3], 8e-3),
    ],
)
def test_a_best_rate_at_an_edge_widens_the_grid_of_all_arms_once(best, widened, chosen):
    """One more rate beyond the edge, for every arm alike, with every tuning seed."""
    settings = make_settings()

    results = run_all(settings, bowl({"uniform": 2e-3, "random": 2e-3, **best}))

    for arm in ARMS:
        assert rates_of(results, arm=arm) == pytest.approx(widened)
    tuned = [r for r in results if r.spec.phase == "tuning"]
    assert len(tuned) == 3 * 5 * 2
    assert best_rates(settings, results)["fim"] == pytest.approx(chosen)


def test_both_edges_are_widened_when_arms_differ():
    """One arm at the lower edge and one at the upper: two more rates for everybody."""
    settings = make_settings()

    results = run_all(settings, bowl({"uniform": 1e-3, "random": 2e-3, "fim": 8e-3}))

    assert rates_of(results) == pytest.approx([5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    assert len(results) == most_runs(settings)


@pytest.mark.parametrize(("gain", "chosen"), [(0.01, 2e-3), (0.04, 4e-3)])
def test_a_higher_rate_must_be_better_by_more_than_chance(gain, chosen):
    """Losses within 2 % of each other are not told apart: the lower rate is the safer one."""
    losses = {1e-3: 1.5, 2e-3: 1.2, 4e-3: 1.2 * (1 - gain), 8e-3: 2.4}

    results = run_all(make_settings(), lambda spec: losses[spec.learning_rate])

    assert set(best_rates(make_settings(), results).values()) == {chosen}


def test_ties_go_to_the_lower_rate():
    """On a flat surface the lowest rate wins, before and after widening."""
    settings = make_settings()

    results = run_all(settings, lambda _: 1.0)

    assert best_rates(settings, results) == dict.fromkeys(ARMS, pytest.approx(5e-4))


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_a_diverged_run_is_the_worst_there_is(nothing):
    """One diverged tuning seed rules a rate out, however low the loss of the other one."""
    settings = make_settings()

    def surface(spec: RunSpec) -> float:
        if spec.learning_rate > 3e-3:
            return nothing if spec.seed == 100 else 0.0
        return bowl(dict.fromkeys(ARMS, 2e-3))(spec)

    results = run_all(settings, surface)

    assert best_rates(settings, results) == dict.fromkeys(ARMS, 2e-3)
    assert rates_of(results) == [1e-3, 2e-3, 4e-3, 8e-3]


def test_an_arm_that_diverges_everywhere_is_tried_lower_and_then_has_no_final_runs():
    """Too high a rate is what diverges, so the grid is widened below; others go on."""
    settings = make_settings()

    def surface(spec: RunSpec) -> float:
        return math.nan if spec.arm == "fim" else bowl(dict.fromkeys(ARMS, 2e-3))(spec)

    results = run_all(settings, surface)

    assert rates_of(results, arm="fim") == pytest.approx([5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
    assert best_rates(settings, results)["fim"] is None
    assert {r.spec.arm for r in results if r.spec.phase == "final"} == {"uniform", "random"}


@given(
    best=st.fixed_dictionaries({arm: st.floats(1e-4, 1e-1) for arm in ARMS}),
    order=st.randoms(use_true_random=False),
    diverges_above=st.floats(2e-3, 1),
)
def test_the_order_in_which_runs_end_changes_nothing(
    best, order: random.Random, diverges_above
):
    """Any worker may finish any run that may start: the set of runs is the same."""
    settings = make_settings(seeds=(0, 1), tuning_seeds=(100,))

    def surface(spec: RunSpec) -> float:
        return math.nan if spec.learning_rate > diverges_above else bowl(best)(spec)

    one = run_all(settings, surface)
    other = []
    while waiting := next_runs(settings, other):
        order.shuffle(other)
        spec = order.choice(waiting)
        other.append(make_result(spec, surface(spec)))

    assert {r.spec.key for r in one} == {r.spec.key for r in other}
    assert len(one) == len({r.spec.key for r in one}) <= most_runs(settings)
    per_arm = {arm: len([r for r in one if r.spec.arm == arm]) for arm in ARMS}
    assert len(set(per_arm.values())) == 1  # the lowest rate never diverges here


def test_what_is_finished_is_not_asked_for_again():
    """The list shrinks by exactly what is finished."""
    settings = make_settings()
    every = next_runs(settings, [])
    some = [make_result(spec, 1.0) for spec in every[::3]]

    left = next_runs(settings, some)

    assert left == [spec for i, spec in enumerate(every) if i % 3]
