"""The verdict, against textbook statistics and evaluations whose truth is known."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from fimlora.errors import InvalidOption
from fimlora_worker.evaluation.csv_files import curves_csv, read_runs, runs_csv
from fimlora_worker.evaluation.paired import holm, paired
from fimlora_worker.evaluation.runs import RunSpec
from fimlora_worker.evaluation.verdict import judge
from support.evaluations import bowl, make_result, make_settings, noisy, run_all

N_SIMULATED = 400


def losses(results, arm):
    return [
        r.loss
        for r in sorted(results, key=lambda r: r.spec.seed)
        if r.spec.arm == arm and r.spec.phase == "final"
    ]


def simulate(seed, offsets, *, n_seeds=5, arms=("uniform", "random", "fim", "spectral")):
    settings = make_settings(
        arms=arms, seeds=tuple(range(n_seeds)), tuning_seeds=(100,), learning_rates=(1e-3, 2e-3)
    )
    surface = noisy(np.random.default_rng(seed), offsets=offsets)
    results = [make_result(spec, surface(spec)) for spec in _specs(settings)]
    return settings, results


def _specs(settings):
    for arm in settings.arms:
        for rate in (5e-4, 1e-3, 2e-3, 4e-3):
            yield RunSpec(arm, rate, 100, "tuning")
            for seed in settings.seeds:
                yield RunSpec(arm, rate, seed, "final")


def test_an_interval_is_that_of_the_paired_t_test():
    """Mean, interval and p value are scipy's for the same numbers."""
    settings = make_settings()
    surface = noisy(np.random.default_rng(3), offsets={"fim": -0.01})
    results = run_all(settings, surface)

    judged = judge(settings, results)

    for reference in ("uniform", "random"):
        test = stats.ttest_rel(losses(results, "fim"), losses(results, reference))
        interval = test.confidence_interval(0.95)
        found = judged.difference("fim", reference, "loss")
        assert found.n == 5
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        d = np.subtract(losses(results, "fim"), losses(results, reference))
        assert found.n_better == int((d < 0).sum())


def test_holm_rejects_step_by_step():
    """The textbook's procedure, written as the loop it is."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = generator.uniform(0, 0.08, size=generator.integers(1, 7)).tolist()
        rejected = set()
        for step, place in enumerate(np.argsort(p_values)):
            if p_values[place] > 0.05 / (len(p_values) - step):
                break
            rejected.add(int(place))

        adjusted = holm(p_values)

        assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected


def test_intervals_hold_the_truth_as_often_as_they_say():
    """95 % of simulated intervals, within what so many simulations can differ by."""
    generator = np.random.default_rng(1)
    n, held = 4000, 0
    for _ in range(n):
        found = paired(generator.normal(0.3, 1, size=5).tolist())
        held += found.low <= 0.3 <= found.high

    assert abs(held / n - 0.95) < 4 * math.sqrt(0.05 * 0.95 / n)


def test_where_nothing_differs_hardly_ever_anybody_wins():
    """At most 5 % of evaluations whose arms are all the same name a winner."""
    codes = [judge(*simulate(seed, {})).verdict.code for seed in range(N_SIMULATED)]

    false = sum(code != "no_difference" for code in codes)

    assert false <= 0.05 * N_SIMULATED
    assert false > 0, "simulations that cannot fail show nothing"


@pytest.mark.parametrize(
    ("offsets", "code", "winner"),
    [
        ({"fim": -0.05}, "better", "fim"),
        ({"fim": -0.05, "spectral": -0.1}, "better", "spectral"),
        ({"fim": -0.05, "random": -0.05}, "any_uneven", None),
        ({"random": -0.05}, "any_uneven", "random"),
        ({"fim": 0.05}, "no_difference", "uniform"),
    ],
)
def test_a_difference_well_above_the_noise_is_found(offsets, code, winner):
    """Five times the noise, ten seeds: the right verdict in nearly all simulations."""
    verdicts = [judge(*simulate(seed, offsets, n_seeds=10)).verdict for seed in range(100)]

    right = [v for v in verdicts if v.code == code and winner in {v.winner, None}]

    assert len(right) >= 90
    assert all(v.winner in v.sentence and "uniform" in v.sentence for v in right)


@pytest.mark.parametrize(
    ("offsets", "code", "winner"),
    [
        ({"fim": -0.1, "random": -0.05, "random-experts": -0.05}, "better", "fim"),
        ({"fim": -0.05, "random-experts": -0.05}, "any_experts", None),
        ({"random-experts": -0.05}, "any_experts", "random-experts"),
        ({"fim": -0.05, "random-experts": 0.05}, "better", "fim"),
    ],
    ids=str,
)
def test_selected_experts_are_held_against_random_ones(offsets, code, winner):
    """As ranks are against random ranks: a selection that random experts equal is none."""
    arms = ("uniform", "random", "random-experts", "fim")
    found = [judge(*simulate(seed, offsets, n_seeds=10, arms=arms)) for seed in range(100)]

    right = [
        j.verdict for j in found
        if j.verdict.code == code and winner in {j.verdict.winner, None}
    ]  # fmt: skip

    assert len(right) >= 90
    assert all("random-experts" in v.sentence or "random experts" in v.sentence or
               "any selection" in v.sentence for v in right)  # fmt: skip
    references = {(d.arm, d.reference) for d in found[0].differences}
    controls = [*zip(arms[1:3], arms[:2], strict=True), ("random-experts", "uniform")]
    fim = [("fim", control) for control in arms[:3]]
    assert references == {*controls, *fim}


def test_no_difference_says_how_large_one_could_be():
    """The farthest that simultaneous intervals reach, in loss and in points of accuracy."""
    settings, results = simulate(7, {})
    with_accuracy = [make_result(r.spec, r.loss, accuracy=0.5 + r.loss / 100) for r in results]
    judged = judge(settings, with_accuracy)
    best = {arm.name: arm.best_rate for arm in judged.arms}

    def of(arm):
        return np.array(
            [
                r.loss
                for r in with_accuracy
                if r.spec.phase == "final"
                and r.spec.arm == arm
                and r.spec.learning_rate == best[arm]
            ]
        )

    farthest = 0.0
    for arm in ("random", "fim", "spectral"):
        d = of(arm) - of("uniform")
        interval = stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / 3)
        farthest = max(farthest, abs(interval.low), abs(interval.high))

    assert judged.verdict.code == "no_difference"
    assert (
        f"{farthest:.3g} of loss ({farthest:.1f} points of accuracy)" in judged.verdict.sentence
    )
    assert "use uniform" in judged.verdict.sentence


def test_an_arm_that_diverges_everywhere_is_named():
    """It has no figures, and the others are judged without it."""
    settings = make_settings()
    surface = bowl(dict.fromkeys(settings.arms, 2e-3))
    results = run_all(settings, lambda s: math.nan if s.arm == "fim" else surface(s))

    judged = judge(settings, results)

    assert [
        note for note in judged.verdict.notes if "fim diverged at every learning rate" in note
    ]
    assert judged.difference("fim", "uniform", "loss") is None
    json.dumps(judged.to_json(), allow_nan=False)


def test_an_arm_that_diverged_in_a_final_run_cannot_win():
    """However good its other runs are: the bad ones are left out of them."""
    settings, results = simulate(1, {"fim": -0.5}, n_seeds=10)
    spoiled = [
        make_result(r.spec, math.nan) if (r.spec.arm, r.spec.seed) == ("fim", 3) else r
        for r in results
    ]

    before, after = judge(settings, results).verdict, judge(settings, spoiled).verdict

    assert before.winner == "fim"
    assert after.winner == "uniform"
    assert "fim diverged in 1 of 10 final runs" in " ".join(after.notes)
    assert judge(settings, spoiled).difference("fim", "uniform", "loss").n == 9


def test_nothing_is_decided_when_uniform_has_no_figures():
    settings = make_settings()
    surface = bowl(dict.fromkeys(settings.arms, 2e-3))
    results = run_all(settings, lambda s: math.nan if s.arm == "uniform" else surface(s))

    verdict = judge(settings, results).verdict

    assert verdict.code == "undecided"
    assert "uniform diverged at every learning rate" in " ".join(verdict.notes)


def with_losses(given):
    """Settings and results in which final runs have the losses given by arm, one per seed."""
    arms = tuple(given)
    settings = make_settings(arms=arms, seeds=tuple(range(len(given["uniform"]))))
    usual = bowl(dict.fromkeys(arms, 2e-3))

    def surface(spec):
        return given[spec.arm][spec.seed] if spec.phase == "final" else usual(spec)

    return settings, run_all(settings, surface)


NEAR = (0.001, -0.001, 0.002, -0.002, 0.0)
FIM = [0.401 + each for each in NEAR]
UNIFORM_LOSSES = [0.501 - each for each in NEAR]
NOISY = [0.5 + each for each in (0.14, -0.16, 0.12, -0.1, 0.0)]


def test_random_that_is_no_better_than_uniform_does_not_make_any_pattern_do():
    """Not told apart is not equal: noise of random alone must not speak for it."""
    settings, results = with_losses({"fim": FIM, "uniform": UNIFORM_LOSSES, "random": NOISY})
    test = stats.ttest_rel(FIM, NOISY)
    interval = test.confidence_interval(0.95)
    half = (interval.high - interval.low) / 2

    verdict = judge(settings, results).verdict

    assert test.pvalue > 0.05
    assert (verdict.code, verdict.winner) == ("better", "fim")
    assert f"not told apart from random (-0.099 +- {half:.2g})" in verdict.sentence
    assert "uneven" not in verdict.sentence


def test_any_uneven_pattern_does_it_where_random_wins_over_uniform_too():
    """And the two that win are not told apart."""
    random = [1e-4 + each + 5 * noise for each, noise in zip(FIM, NEAR[::-1], strict=True)]

    judged = judge(
        *with_losses({"fim": FIM, "uniform": UNIFORM_LOSSES, "random": random, "other": NOISY})
    )

    assert judged.difference("fim", "random", "loss").p > 0.05
    assert judged.difference("random", "uniform", "loss").p_holm <= 0.05
    assert (judged.verdict.code, judged.verdict.winner) == ("any_uneven", "fim")
    assert "any uneven pattern does it" in judged.verdict.sentence


def test_the_best_arm_is_named_where_uniform_diverges_at_every_rate():
    """Uniform is not recommended; of arms that never diverged the one with the least loss is."""
    settings = make_settings(arms=("uniform", "random", "fim", "spectral"))
    usual = bowl(dict.fromkeys(settings.arms, 2e-3))
    offsets = {"uniform": math.nan, "random": 0.0, "fim": -0.1, "spectral": -0.2}

    def surface(spec):
        is_bad = (spec.arm, spec.seed) == ("spectral", 3)
        return math.nan if is_bad else usual(spec) + offsets[spec.arm]

    some = judge(settings, run_all(settings, surface)).verdict
    none = judge(settings, run_all(settings, lambda spec: math.nan)).verdict

    assert (some.code, some.winner) == ("undecided", "fim")
    assert "uniform diverged at every learning rate" in some.sentence
    assert "fim has the least loss (0.9, 5 seeds): use fim" in some.sentence
    assert none.code == "undecided"
    assert "use" not in none.sentence.lower()
    assert "lower learning rates" in none.sentence


def test_uniform_that_diverged_in_a_final_run_is_compared_by_the_rest_and_not_recommended():
    """Nobody is better on the surviving seeds; an arm that did not diverge is named."""
    unstable = [*UNIFORM_LOSSES[:3], math.nan, math.nan]
    stable = [each + 0.0005 for each in UNIFORM_LOSSES]
    given = {"fim": stable[::-1], "uniform": unstable, "random": NOISY}

    judged = judge(*with_losses(given))

    assert judged.difference("fim", "uniform", "loss").n == 3
    assert judged.verdict.code == "undecided"
    assert judged.verdict.winner != "uniform"
    assert "uniform diverged in 2 of 5 final runs" in judged.verdict.sentence
    assert f"use {judged.verdict.winner}" in judged.verdict.sentence
    assert "rest on the other 3" in " ".join(judged.verdict.notes)


def test_an_arm_that_is_better_where_uniform_did_not_diverge_says_so():
    unstable = [*UNIFORM_LOSSES[:4], math.nan]

    verdict = judge(*with_losses({"fim": FIM, "uniform": unstable, "random": NOISY})).verdict

    assert (verdict.code, verdict.winner) == ("better", "fim")
    assert "4 seeds in which uniform did not diverge" in verdict.sentence
    assert "cannot win" not in " ".join(verdict.notes)


def test_random_that_diverged_leaves_nothing_to_hold_a_winner_against():
    lost = [math.nan] * 5

    verdict = judge(
        *with_losses({"fim": FIM, "uniform": UNIFORM_LOSSES, "random": lost})
    ).verdict

    assert (verdict.code, verdict.winner) == ("better", "fim")
    assert "nothing to hold against random" in verdict.sentence


def test_runs_without_any_noise_are_judged_by_what_they_are():
    """Differences without spread: a real one is certain, none is none."""
    settings = make_settings()
    surface = bowl(dict.fromkeys(settings.arms, 2e-3))

    same = judge(settings, run_all(settings, surface))
    better = judge(settings, run_all(settings, lambda s: surface(s) - (s.arm == "fim") * 0.25))

    assert same.verdict.code == "no_difference"
    assert "larger than" not in same.verdict.sentence
    assert "none can be bounded (5 seeds): use uniform" in same.verdict.sentence
    assert same.difference("fim", "uniform", "loss").p == 1
    assert better.verdict.code == "better"
    assert "better than uniform by 0.25 of loss" in better.verdict.sentence
    for judged in (same, better):
        plain = judged.to_json()["differences"]
        assert all(each["low"] is each["high"] is None for each in plain)


def with_right_answers(settings, results, right, *, n_rows):
    """The same results, with as many right answers of the rows as an arm has with a seed."""
    return [
        make_result(r.spec, r.loss, accuracy=right(r.spec.arm, r.spec.seed) / n_rows)
        for r in results
    ]


@pytest.mark.parametrize(
    ("n_rows", "right", "row"),
    [
        (16, lambda arm, seed: 1, "6.25"),
        (16, lambda arm, seed: 1 + seed % 2, "6.25"),
        (30, lambda arm, seed: 7 + seed + (arm != "uniform"), "3.33"),
        (30, lambda arm, seed: 7 if arm == "fim" else 7 + (arm != "uniform") * seed, "3.33"),
        (192, lambda arm, seed: 90 + (arm == "random" and seed == 3), "0.521"),
    ],
    ids=["alike", "alike by seed", "one row apart", "one arm alike", "finer than a row"],
)
@pytest.mark.parametrize("offsets", [{}, {"fim": -1.0}], ids=["nobody", "a winner"])
def test_accuracy_that_counts_cannot_resolve_is_left_out(n_rows, right, row, offsets):
    """Equal counts are no interval, and no interval is finer than a row; the loss still is told."""
    settings, results = simulate(7, offsets, n_seeds=10)
    counted = with_right_answers(settings, results, right, n_rows=n_rows)

    sentence = judge(settings, counted, n_tested=n_rows).verdict.sentence

    assert "points of accuracy" not in sentence
    assert "accuracy +" not in sentence
    assert f"accuracy was not resolved ({n_rows} rows: one row is {row} points)" in sentence
    assert "of loss" in sentence


def test_accuracy_that_varies_by_rows_is_told():
    """Where every arm lies rows apart from uniform, by other numbers with other seeds."""
    settings, results = simulate(7, {}, n_seeds=10)
    generator = np.random.default_rng(0)
    counted = with_right_answers(
        settings, results, lambda *_: generator.integers(5, 12), n_rows=16
    )

    judged = judge(settings, counted, n_tested=16)

    assert "points of accuracy) at 95 %" in judged.verdict.sentence
    assert "resolved" not in judged.verdict.sentence
    assert judge(settings, counted).verdict.sentence == judged.verdict.sentence


def test_equal_differences_have_no_interval():
    """But for rounding: 7 of 10 rows less 6 of 10 is not 4 of 10 less 3 of 10 to the last bit."""
    found = paired([0.7 - 0.6, 0.4 - 0.3, 0.3 - 0.2])

    assert len({0.7 - 0.6, 0.4 - 0.3, 0.3 - 0.2}) > 1
    assert found.spread == 0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.p == 0


def test_the_larger_lever_is_named():
    """The rate: the farther neighbour of uniform's best. The ranks: the widest pair of arms."""
    settings = make_settings()
    surface = bowl({"uniform": 2e-3, "random": 2e-3, "fim": 2e-3})

    rate = judge(settings, run_all(settings, lambda s: surface(s) + (s.arm == "fim") * 0.03))
    ranks = judge(settings, run_all(settings, lambda s: surface(s) + (s.arm == "fim") * 0.3))

    assert rate.levers.rate == pytest.approx(0.1)
    assert rate.levers.ranks == pytest.approx(0.03)
    assert "the learning rate" in rate.levers.sentence
    assert ranks.levers.ranks == pytest.approx(0.3)
    assert "the choice of ranks" in ranks.levers.sentence


@pytest.mark.parametrize(
    ("losses_by_rate", "best", "distance"),
    [
        ({2e-3: 2.5679, 4e-3: 2.5637, 8e-3: 2.9, 16e-3: 3.2}, 2e-3, 0.0042),
        ({1e-3: 1.0201, 2e-3: 1.0195, 4e-3: 1.0, 8e-3: 1.3}, 2e-3, 0.0195),
        ({1e-3: 1.06, 2e-3: 1.0195, 4e-3: 1.0, 8e-3: 1.3}, 2e-3, 0.0405),
    ],
    ids=["at the edge", "above is farther", "below is farther"],
)
def test_a_rate_moves_the_loss_where_a_neighbour_has_less_of_it(losses_by_rate, best, distance):
    """The lowest rate within 2 % of the least loss is best; the rate above it may have less."""
    rates = [rate for rate in losses_by_rate if rate != 2e-3 or best != min(losses_by_rate)]
    settings = make_settings(learning_rates=tuple(rates))

    judged = judge(
        settings,
        run_all(
            settings, lambda s: losses_by_rate[s.learning_rate] + (s.arm == "fim") * 0.0002
        ),
    )

    [uniform] = [arm for arm in judged.arms if arm.name == "uniform"]
    assert uniform.best_rate == best
    assert judged.levers.rate == pytest.approx(distance)
    assert "larger lever was the learning rate" in judged.levers.sentence
    assert f"has a loss that differs by up to {distance:.3g};" in judged.levers.sentence


def test_a_neighbour_that_diverged_makes_the_rate_the_larger_lever():
    """Nothing that ranks do costs as much; its number is none on the wire."""
    settings = make_settings()
    usual = bowl({"uniform": 2e-3, "random": 2e-3, "fim": 2e-3})

    def surface(spec):
        return math.nan if spec.learning_rate > 2e-3 else usual(spec) - (spec.arm == "fim")

    judged = judge(settings, run_all(settings, surface))

    assert judged.levers.rate == math.inf
    assert judged.levers.ranks == pytest.approx(1)
    assert "larger lever was the learning rate" in judged.levers.sentence
    assert "away from 0.002, uniform diverged;" in judged.levers.sentence
    assert judged.to_json()["levers"]["rate"] is None


def test_where_nothing_moves_the_loss_no_lever_is_the_larger_one():
    settings = make_settings()

    levers = judge(settings, run_all(settings, lambda spec: 1.0)).levers

    assert (levers.rate, levers.ranks) == (0, 0)
    assert "Neither learning rate nor ranks" in levers.sentence


def test_a_best_rate_at_the_edge_of_the_widened_grid_is_said():
    settings = make_settings()
    results = run_all(settings, bowl({"uniform": 2e-3, "random": 2e-3, "fim": 64e-3}))

    of_arms = judge(settings, results).verdict.notes[:-2]

    assert len(of_arms) == 1
    assert "best rate of fim, 0.016, is at the edge" in of_arms[0]


def test_best_rates_at_the_edge_are_said_once_with_every_arm():
    """Of all arms that are there, each with its rate, and of no other."""
    best = {"uniform": 64e-3, "random": 2e-3, "fim": 64e-3, "spectral": 1e-4}
    settings = make_settings(arms=tuple(best))

    notes = judge(settings, run_all(settings, bowl(best))).verdict.notes

    [said] = [note for note in notes if "edge of the grid" in note]
    assert "rates of uniform (0.016), fim (0.016) and spectral (0.0005) are at the edge" in said
    assert "random" not in said


@pytest.mark.parametrize(("final_loss", "is_said"), [(1.45, True), (1.16, False)])
def test_a_rate_that_a_lucky_run_chose_is_said(final_loss, is_said):
    """Final runs far above what a lower rate reached in tuning: the rate, not the ranks."""
    tuning = {1e-3: 1.5, 2e-3: 1.2, 4e-3: 1.1, 8e-3: 2.4}

    def surface(spec):
        if spec.phase == "tuning":
            return tuning[spec.learning_rate]
        return final_loss + 0.01 * spec.seed

    settings = make_settings()
    notes = judge(settings, run_all(settings, surface)).verdict.notes

    said = [note for note in notes if "lucky" in note]
    assert len(said) == (3 if is_said else 0)
    assert all("at 0.002 (1.2)" in note and "end below 0.004" in note for note in said)


def test_every_judgement_says_what_it_was_tested_on_and_what_intervals_leave_out():
    """The number of rows, that rates were chosen on them, and that only seeds were varied."""
    settings, results = simulate(5, {})

    *_, rows, seeds = judge(settings, results, n_tested=187).verdict.notes

    assert "187 held-out rows" in rows
    assert "learning rate was chosen on the same rows" in rows
    assert "spread between seeds only" in seeds


def test_the_order_of_the_results_changes_nothing():
    settings, results = simulate(5, {"fim": -0.01})

    assert judge(settings, results[::-1]) == judge(settings, results)


def test_tuning_that_is_not_finished_is_not_judged():
    settings = make_settings()
    results = run_all(settings, bowl(dict.fromkeys(settings.arms, 2e-3)))

    with pytest.raises(InvalidOption, match="1 tuning runs are not finished, such as tuning:"):
        judge(
            settings,
            [r for r in results if r.spec.phase == "final"]
            + [r for r in results if r.spec.phase == "tuning"][1:],
        )


def test_an_evaluation_that_was_cut_short_is_judged_by_its_pairs():
    """Seeds that only one of two arms has say nothing about their difference."""
    settings, results = simulate(5, {})
    cut = [
        r
        for r in results
        if r.spec.phase == "tuning" or r.spec.seed < 3 or r.spec.arm == "uniform"
    ]

    assert judge(settings, cut).difference("fim", "uniform", "loss").n == 3


def test_tables_give_back_the_results():
    """Raw results, also of runs without a loss, are what was written."""
    settings, results = simulate(2, {})
    results[3] = make_result(results[3].spec, math.nan)

    again = read_runs(runs_csv(results), curves_csv(results))

    assert [str(r) for r in again] == [str(r) for r in results]
    assert judge(settings, again) == judge(settings, results)
