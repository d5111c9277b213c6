"""A plan from stored statistics is the one that was made right after measuring."""

from dataclasses import replace

import pytest

from fimlora import Budget, RankPlan, Statistics, allocate, score
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.text_files import rank_map
from fimlora.confidence.evidence import with_confidence
from fimlora.replan import WrittenAdapter, replan, replanned_config
from support.results import make_statistics

BUDGET = Budget("rank", 8)
FACTS = {"engine": "0.1.0", "dataset": {"source": "inline", "digest": "sha256:1"}}
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def statistics() -> Statistics:
    return make_statistics()


def plan_after_measuring(
    statistics: Statistics, *, method: str = "fim", scale: int = 2, **options
) -> RankPlan:
    scores = score(statistics, method, scale=scale)
    plan = allocate(scores, BUDGET, scale=scale, provenance=FACTS, **options)
    return with_confidence(statistics, plan)


def written_with(plan: RankPlan, *, layout: str = "B") -> WrittenAdapter:
    config = build_adapter_config(
        plan, base_model="tiny", task_type="SEQ_CLS", layout=layout, target_modules=TARGETS
    )
    return WrittenAdapter(rank_map(plan, layout=layout), config)


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "uniform"}, {"scale": 4}, {"r_min": 2, "r_max": 12}],
    ids=["plain", "another method", "another scale", "limits"],
)
@pytest.mark.parametrize("layout", ["B", "C"])
def test_the_settings_of_then_give_the_plan_of_then(statistics, layout, options, tmp_path):
    """Also when the statistics went through their file; and the config is the same too."""
    plan = plan_after_measuring(statistics, **options)
    written = written_with(plan, layout=layout)
    statistics.save(tmp_path / "statistics")

    again = replan(Statistics.load(tmp_path / "statistics"), written, BUDGET, **options)

    assert again == plan
    assert (again.confidence is None) == (options.get("method") == "uniform")
    assert rank_map(again, layout=layout) == written.rank_map
    assert replanned_config(again, written, layout=layout) == written.config


def test_what_a_plan_says_of_its_own_scores_stays_with_it(statistics):
    """Another method has no contrast of two datasets."""
    both = statistics.with_retain(make_statistics(seed=7))
    written = written_with(plan_after_measuring(both, method="vila"))

    other = replan(both, written, BUDGET, method="fim")

    assert "contrast" in written.rank_map["provenance"]
    assert "contrast" not in other.provenance
    assert other == replan(both, written_with(plan_after_measuring(both)), BUDGET)
    assert replan(both, written, BUDGET, method="vila") == plan_after_measuring(
        both, method="vila"
    )


@pytest.mark.parametrize("value", [3, 16])
def test_another_budget_is_met(statistics, value):
    """Its ranks differ, its limit is what may be spent, and nothing is spent beyond it."""
    plan = plan_after_measuring(statistics)

    other = replan(statistics, written_with(plan), Budget("rank", value))

    assert other.ranks != plan.ranks
    assert other.budget == Budget("rank", value)
    assert other.spent.ranks == other.limit == value * len(other.modules)


def test_facts_of_the_run_are_kept_and_scores_speak_for_themselves(statistics):
    """The run's data are not in its statistics; how scores came about is asked of them."""
    plan = plan_after_measuring(statistics)
    stale = dict(plan.provenance) | {"n_examples": 99}
    written = written_with(replace(plan, provenance=stale))

    other = replan(statistics, written, Budget("rank", 4), aggregation="mean")

    assert {key: other.provenance[key] for key in FACTS} == FACTS
    assert other.provenance["n_examples"] == statistics.n_examples
    assert other.provenance["aggregation"] == "mean"


def test_short_names_are_kept_only_for_the_same_modules(statistics):
    """A plan without some of them names what it targets in full."""
    plan = plan_after_measuring(statistics)
    written = written_with(plan)
    first, *others = plan.ranks
    fewer = replace(plan, ranks=plan.ranks | {first: 0}, r_min=0)

    assert written.target_modules(plan) == sorted(TARGETS)
    assert written.target_modules(fewer) is None
    assert sorted(replanned_config(fewer, written)["target_modules"]) == sorted(others)
